//! The time that a request has in all.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::Service;

use super::Call;
use crate::{
    body::Body,
    exchange::Exchange,
    outcome::{Error, ErrorKind},
};

/// Gives up a request whose time is over, be it before or in the middle of the response.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S> {
    inner: S,
}

impl<S> Deadline<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: Service<Call, Response = Response<Body>, Error = Error>> Service<Call> for Deadline<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let timer = call.context.deadline.map(|(at, kind)| Timer {
            sleep: Box::pin(sleep_until(at)),
            kind,
            exchange: call.context.exchange.clone(),
        });
        Limited { inner: self.inner.call(call), timer }
    }
}

/// On the heap, as the body takes it over.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    kind: ErrorKind,
    exchange: Rc<Exchange>,
}

pin_project! {
    /// A request with a deadline, or without.
    pub(crate) struct Limited<F> {
        #[pin]
        inner: F,
        timer: Option<Timer>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for Limited<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            let timer = this.timer.take();
            return Poll::Ready(result.map(|mut response| {
                response.body_mut().settle().deadline = timer.map(|Timer { sleep, kind, .. }| (sleep, kind));
                response
            }));
        }
        let Some(Timer { sleep, kind, exchange }) = this.timer else { return Poll::Pending };
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let waited = exchange.started().elapsed().as_millis();
        let error = Error::new(*kind, format!("no response within {waited} ms")).after_send();
        // The try that is under way, if one is, is what took too long.
        exchange.fail_attempt(&error);
        Poll::Ready(Err(error))
    }
}
