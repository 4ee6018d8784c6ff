//! mimalloc, asked the short way: its crate asks for an alignment each time, even for what all its memory has, and that
//! is looked at first.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// What all memory of at least this size is aligned to (`MI_MAX_ALIGN_SIZE`).
const ALIGNED: usize = 16;

/// The process's allocator.
pub(crate) struct Allocator;

fn is_plain(layout: Layout) -> bool {
    layout.align() <= ALIGNED && layout.align() <= layout.size()
}

// SAFETY: mimalloc keeps what is asked of an allocator; memory of one of its functions may be given back to any other.
#[expect(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = unsafe {
            if is_plain(layout) {
                mi::mi_malloc(layout.size())
            } else {
                mi::mi_malloc_aligned(layout.size(), layout.align())
            }
        };
        memory.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { mi::mi_zalloc_aligned(layout.size(), layout.align()).cast() }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        unsafe { mi::mi_free(memory.cast()) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { mi::mi_realloc_aligned(memory.cast(), size, layout.align()).cast() }
    }
}
