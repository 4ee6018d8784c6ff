//! `Expect: 100-continue`, end to end: hyper says "100 Continue" to a caller when its body is first read,
//! so the body is not read before the upstream has said so, or time is over.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode, header::EXPECT};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{BodyError, Kind};

/// How long to wait for an upstream that may never have heard of 100 (RFC 9110, section 10.1.1: not
/// indefinitely).
const PATIENCE: Duration = Duration::from_secs(1);

/// Learns of the upstream's 100. (hyper's callback wants what is `Send`; it never leaves its thread.)
#[derive(Clone, Debug, Default)]
pub(crate) struct Expect(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    released: AtomicBool,
    waker: AtomicWaker,
}

impl Expect {
    /// Whether a request waits for a 100.
    pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
        headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    }

    /// Has the upstream's 100 noted.
    pub(crate) fn listen<B>(&self, request: &mut Request<B>) {
        let shared = self.0.clone();
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                shared.released.store(true, Ordering::Relaxed);
                shared.waker.wake();
            }
        });
    }
}

/// A body that is not read yet.
pub(super) struct Held {
    body: Kind,
    expect: Option<(Expect, Pin<Box<Sleep>>)>,
}

impl Held {
    pub(super) fn new(body: Kind, expect: Expect) -> Self {
        Self { body, expect: Some((expect, Box::pin(sleep(PATIENCE)))) }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((expect, patience)) = &mut self.expect {
            expect.0.waker.register(cx.waker());
            if !expect.0.released.load(Ordering::Relaxed) {
                ready!(patience.as_mut().poll(cx));
            }
            self.expect = None;
        }
        self.body.poll_frame(cx)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
