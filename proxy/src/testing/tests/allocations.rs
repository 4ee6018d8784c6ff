//! What a request takes from the heap, and whose code takes it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1::SendRequest;

use crate::{
    snapshot::Protocol,
    testing::{
        Called, TestMesh,
        app::{self, text},
        client::{Answer, connect1, get},
        run_within,
    },
};

/// The system's allocator, with a note of who asked on a thread that counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static TAKEN: RefCell<Vec<Backtrace>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: each call goes on to the system's allocator as it came.
#[expect(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        unsafe { System.realloc(memory, layout, size) }
    }
}

fn note() {
    // What is done here allocates, too, and is not counted.
    if COUNTS.try_with(|counts| counts.replace(false)) == Ok(true) {
        // Told apart later: that takes its time, and a connection that was idle for long is another thing.
        TAKEN.with_borrow_mut(|taken| taken.push(Backtrace::force_capture()));
        COUNTS.set(true);
    }
}

/// Who asked: the innermost function that is of this crate or of a library with work of its own, by its place. What
/// plain types take (headers, bytes, vectors) is taken by who uses them.
fn owner(backtrace: &str) -> String {
    const LIBRARIES: [&str; 10] = [
        "futures-util",
        "h2",
        "hyper",
        "hyper-util",
        "rustls",
        "tokio",
        "tokio-rustls",
        "tokio-stream",
        "tokio-util",
        "tower",
    ];
    let mut lines = backtrace.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once(": ") else { continue };
        let place = lines.next_if(|line| line.starts_with("at ")).and_then(|line| line.strip_prefix("at "));
        // Functions that were inlined are named without their crate, but have a place; those of libraries the other way
        // round.
        let library = match place.map(|place| place.split_once("/registry/src/").ok_or(place)) {
            Some(Err(place)) if place.contains("/allocations.rs") => continue,
            Some(Err(place)) if place.starts_with("./src/") => return place.to_owned(),
            Some(Err(_)) => continue,
            Some(Ok((_, rest))) => rest.split('/').nth(1).and_then(|one| Some(one.rsplit_once('-')?.0.to_owned())),
            None => name.trim_start_matches(['<', '&']).split("::").next().map(|one| one.replace('_', "-")),
        };
        if let Some(library) = library.filter(|library| LIBRARIES.contains(&&**library)) {
            return library;
        }
    }
    "nobody".to_owned()
}

/// By both proxies together (twelve on the way out, six on the way in), for an exchange of HTTP/1.1 on connections that
/// are there, which may be retried. What is added is paid for by every request.
const MOST: usize = 18;

#[test]
fn a_request_takes_little_from_the_heap() {
    const REQUESTS: usize = 5;
    run_within(Duration::from_secs(300), async {
        let app = app::http(|_| async { Response::new(text("the same for all")) }).await;
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let called = Called::new("orders", Protocol::Http, &callee.addresses);
        let caller = mesh.caller(vec![called.retries(|retry| retry.max_retries = 2)]);
        let mut client: SendRequest<Empty<Bytes>> = connect1(caller.address()).await;
        for round in 0..2 {
            // The first round makes connections, and what is made once.
            COUNTS.set(round > 0);
            for _ in 0..REQUESTS {
                client.ready().await.unwrap();
                let answer = Answer::read(client.send_request(get("/")).await.unwrap()).await;
                assert_eq!(answer.status, StatusCode::OK);
            }
            COUNTS.set(false);
            caller.requests(REQUESTS).await;
            callee.requests(REQUESTS).await;
        }
        let mut ours = BTreeMap::<_, usize>::new();
        for function in TAKEN.take().iter().map(|backtrace| owner(&backtrace.to_string())) {
            if function.starts_with("./src/") && !function.starts_with("./src/testing") {
                *ours.entry(function).or_default() += 1;
            }
        }
        let count: usize = ours.values().sum();
        assert!(count > 0, "nothing was counted");
        assert!(count <= MOST * REQUESTS, "{count} in {REQUESTS} requests: {ours:#?}");
    });
}
