//! The time that a request has in all.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;
use tower::Service;

use super::Call;
use crate::{
    body::Body,
    exchange::Exchange,
    outcome::{Error, ErrorKind},
    timer::{Timer, Timers},
};

/// Gives up a request whose time is over, be it before or in the middle of the response.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S> {
    inner: S,
    timers: Timers,
}

impl<S> Deadline<S> {
    pub(super) fn new(inner: S, timers: Timers) -> Self {
        Self { inner, timers }
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
        let exchange = call.context.exchange.clone();
        let limit = call.context.deadline.map(|(at, kind)| Limit { timer: self.timers.until(at), kind, exchange });
        Limited { inner: self.inner.call(call), limit }
    }
}

/// Until the response's headers; then its body takes the timer over.
struct Limit {
    timer: Timer,
    kind: ErrorKind,
    exchange: Rc<Exchange>,
}

pin_project! {
    /// A request with a deadline, or without.
    pub(crate) struct Limited<F> {
        #[pin]
        inner: F,
        limit: Option<Limit>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for Limited<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            let limit = this.limit.take();
            return Poll::Ready(result.map(|mut response| {
                response.body_mut().settle().deadline = limit.map(|Limit { timer, kind, .. }| (timer, kind));
                response
            }));
        }
        let Some(Limit { timer, kind, exchange }) = this.limit else { return Poll::Pending };
        ready!(timer.poll(cx));
        let waited = exchange.started().elapsed().as_millis();
        let error = Error::new(*kind, format!("no response within {waited} ms")).after_send();
        // The try that is under way, if one is, is what took too long.
        exchange.fail_attempt(&error);
        Poll::Ready(Err(error))
    }
}
