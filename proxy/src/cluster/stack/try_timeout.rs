//! The time that one try has, until its response's headers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::{Duration, Sleep, sleep};
use tower::Service;

use super::Try;
use crate::{
    body::Body,
    outcome::{Error, ErrorKind},
};

/// Gives up a try.
#[derive(Clone, Debug)]
pub(crate) struct TryTimeout<S> {
    inner: S,
}

impl<S> TryTimeout<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: Service<Try, Response = Response<Body>, Error = Error>> Service<Try> for TryTimeout<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, this_try: Try) -> Self::Future {
        let limit = this_try.context.rules.per_try_timeout;
        Timed { inner: self.inner.call(this_try), timer: limit.map(sleep), limit: limit.unwrap_or_default() }
    }
}

pin_project! {
    /// A try with a timeout, or without.
    pub(crate) struct Timed<F> {
        #[pin]
        inner: F,
        #[pin]
        timer: Option<Sleep>,
        limit: Duration,
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for Timed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            return Poll::Ready(result);
        }
        if this.timer.as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
            let detail = format!("no response headers within {} ms", this.limit.as_millis());
            return Poll::Ready(Err(Error::new(ErrorKind::PerTryTimeout, detail).after_send()));
        }
        Poll::Pending
    }
}
