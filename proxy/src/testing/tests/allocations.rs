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
    static TAKEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
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
        TAKEN.with_borrow_mut(|taken| taken.push(owner(&Backtrace::force_capture().to_string())));
        COUNTS.set(true);
    }
}

/// The innermost function that is neither the standard library's nor one of the plain types' that all use.
fn owner(backtrace: &str) -> String {
    const OWNERS: [&str; 8] =
        ["heddle_proxy::", "hyper::", "hyper_util::", "h2::", "tokio::", "tokio_rustls::", "rustls::", "tower::"];
    let functions = backtrace.lines().filter_map(|line| line.trim_start().split_once(": ").map(|(_, name)| name));
    let mut others = functions.filter(|name| !name.contains("::allocations::"));
    let is_owned = |name: &&str| OWNERS.iter().any(|owner| name.trim_start_matches(['<', '&']).starts_with(owner));
    others.find(is_owned).unwrap_or("nobody").to_owned()
}

/// By both proxies together, for an exchange of HTTP/1.1 on connections that are there, without a trace to be exported.
/// What is added is paid for by every request.
const MOST: usize = 22;

#[test]
fn a_request_takes_little_from_the_heap() {
    const REQUESTS: usize = 5;
    run_within(Duration::from_secs(300), async {
        let app = app::http(|_| async { Response::new(text("the same for all")) }).await;
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
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
        for function in TAKEN.take() {
            let of_ours = function.trim_start_matches(['<', '&']).strip_prefix("heddle_proxy::");
            if of_ours.is_some_and(|name| !name.starts_with("testing::")) {
                *ours.entry(function).or_default() += 1;
            }
        }
        let count: usize = ours.values().sum();
        assert!(count > 0, "nothing was counted");
        assert!(count <= MOST * REQUESTS, "{count} in {REQUESTS} requests: {ours:#?}");
    });
}
