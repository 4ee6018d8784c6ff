//! No more requests in flight than the cluster's limit.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;
use tower::Service;

use super::Call;
use crate::{
    body::Body,
    cluster::limit::{Limit, Permit},
    outcome::{Error, ErrorKind},
};

/// Sheds load. tower's own limit ends at the response's headers, this one at the end of its body.
#[derive(Clone, Debug)]
pub(crate) struct Admit<S> {
    inner: S,
    limit: Limit,
}

impl<S> Admit<S> {
    pub(super) fn new(inner: S, limit: Limit) -> Self {
        Self { inner, limit }
    }
}

impl<S: Service<Call, Response = Response<Body>, Error = Error>> Service<Call> for Admit<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Admitted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.limit.request() {
            Some(permit) => Admitted::Sent { inner: self.inner.call(call), permit: Some(permit) },
            None => Admitted::Refused,
        }
    }
}

pin_project! {
    /// A request in flight, or not.
    #[project = Projected]
    pub(crate) enum Admitted<F> {
        Sent { #[pin] inner: F, permit: Option<Permit> },
        Refused,
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for Admitted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Sent { inner, permit } => {
                let mut response = ready!(inner.poll(cx))?;
                response.body_mut().settle().permit = permit.take();
                Poll::Ready(Ok(response))
            }
            Projected::Refused => Poll::Ready(Err(Error::new(
                ErrorKind::Overloaded,
                "as many requests in flight to this cluster as its traffic policy allows",
            ))),
        }
    }
}
