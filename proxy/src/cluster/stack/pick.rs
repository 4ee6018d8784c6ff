//! An endpoint for each try, and what the try says of it.

use std::{
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use super::{Call, Try};
use crate::{
    body::{Body, grpc_status},
    cluster::{
        Cluster,
        balance::{Change, Picked, Verdict},
    },
    exchange::{AttemptId, Exchange},
    outcome::{ClosedBy, Error, ErrorKind},
};

/// Picks endpoints.
#[derive(Clone)]
pub(crate) struct Pick<S> {
    inner: S,
    cluster: Rc<Cluster>,
}

impl<S> Pick<S> {
    pub(super) fn new(inner: S, cluster: Rc<Cluster>) -> Self {
        Self { inner, cluster }
    }

    /// Decides for an endpoint and begins a try.
    fn begin(&self, call: Call) -> Result<Try, Error> {
        let Call { request, context } = call;
        let tried: Vec<SocketAddr> = context
            .exchange
            .read(|outcome| {
                outcome.attempts.iter().filter_map(|attempt| Some(attempt.endpoint.as_ref()?.address)).collect()
            })
            .unwrap_or_default();
        let number = u32::try_from(tried.len() + 1).unwrap_or(u32::MAX);
        let now = Instant::now();
        let picked = self.cluster.pick(context.instance, &tried, now)?;
        let pool = self.cluster.pool(picked.endpoint())?;
        let trace = context.trace.child(&mut *self.cluster.rng.borrow_mut());
        let id = context.exchange.begin_attempt(Some(picked.endpoint().clone()), trace.span_id(), now);
        Ok(Try { request, context, id, number, trace, picked: Rc::new(picked), pool })
    }
}

impl<S: Service<Try, Response = Response<Body>, Error = Error>> Service<Call> for Pick<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Picking<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.begin(call) {
            Ok(this_try) => {
                let under_way = UnderWay {
                    cluster: self.cluster.clone(),
                    picked: this_try.picked.clone(),
                    exchange: this_try.context.exchange.clone(),
                    id: this_try.id,
                    ended: false,
                };
                Picking::Trying { inner: self.inner.call(this_try), under_way: Some(under_way) }
            }
            Err(error) => Picking::None { error: Some(error) },
        }
    }
}

pin_project! {
    /// A try under way, or none because there is no endpoint.
    #[project = Projected]
    pub(crate) enum Picking<F> {
        Trying { #[pin] inner: F, under_way: Option<UnderWay> },
        None { error: Option<Error> },
    }
}

impl<F: Future<Output = Result<Response<Body>, Error>>> Future for Picking<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Trying { inner, under_way } => {
                let result = ready!(inner.poll(cx));
                let under_way = under_way.take().expect("polled after it was ready");
                Poll::Ready(match result {
                    Ok(response) => Ok(under_way.answered(response)),
                    Err(error) => {
                        under_way.failed(&error);
                        Err(error)
                    }
                })
            }
            Projected::None { error } => Poll::Ready(Err(error.take().expect("polled after it was ready"))),
        }
    }
}

/// A try whose end is still to be told. Dropped, it was given up.
pub(crate) struct UnderWay {
    cluster: Rc<Cluster>,
    picked: Rc<Picked>,
    exchange: Rc<Exchange>,
    id: AttemptId,
    ended: bool,
}

impl UnderWay {
    fn answered(mut self, mut response: Response<Body>) -> Response<Body> {
        self.ended = true;
        let trailers_only = response.body().is_end_stream();
        let grpc_status = if trailers_only { grpc_status(response.headers()) } else { None };
        self.exchange.answered(self.id, response.status(), grpc_status);
        let failed = response.status().is_server_error() || grpc_status.is_some_and(is_failure);
        let meshed = self.picked.endpoint().meshed;
        if !(failed && meshed && ErrorKind::said(response.headers()).is_some_and(is_of_caller)) {
            self.report(if failed { Verdict::Failure } else { Verdict::Success });
        }
        let settle = response.body_mut().settle();
        settle.attempt = Some((self.exchange.clone(), self.id));
        settle.picked = Some(self.picked.clone());
        response
    }

    fn failed(mut self, error: &Error) {
        self.ended = true;
        let (verdict, closed_by) = match error.kind {
            ErrorKind::ConnectFailed | ErrorKind::ConnectTimeout | ErrorKind::TlsFailed | ErrorKind::PeerIdentity => {
                (Some(Verdict::Failure), None)
            }
            ErrorKind::UpstreamReset | ErrorKind::UpstreamProtocol | ErrorKind::UpstreamRefused => {
                (Some(Verdict::Failure), Some(ClosedBy::Upstream))
            }
            ErrorKind::PerTryTimeout => (Some(Verdict::Failure), Some(ClosedBy::Proxy)),
            // Not the endpoint's fault.
            _ => (None, None),
        };
        self.exchange.end_attempt(self.id, None, Some(error.clone()), closed_by);
        if let Some(verdict) = verdict {
            self.report(verdict);
        }
    }

    fn report(&self, verdict: Verdict) {
        let endpoint = self.picked.endpoint();
        match self.picked.report(verdict, Instant::now()) {
            Change::None => {}
            Change::Ejected(pause) => {
                self.exchange.ejected(self.id);
                tracing::warn!(
                    cluster = %self.cluster.name(),
                    endpoint = %endpoint.address,
                    workload = endpoint.workload,
                    pause_ms = pause.as_millis() as u64,
                    "ejected after failures in a row"
                );
            }
            Change::Returned => tracing::info!(
                cluster = %self.cluster.name(),
                endpoint = %endpoint.address,
                workload = endpoint.workload,
                "back after an ejection"
            ),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Time ran out: noted by who gave up. Otherwise the caller went away, which says nothing.
        if self.exchange.attempt_failed(self.id).is_some_and(|kind| !is_of_caller(kind)) {
            self.report(Verdict::Failure);
        }
        self.exchange.end_unended(self.id);
    }
}

/// Whether it says more of the caller than of the endpoint: that it left too little time, or goes in circles.
fn is_of_caller(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DeadlineExceeded | ErrorKind::Loop)
}

/// gRPC statuses that say of the server what a 5xx does: UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
fn is_failure(grpc_status: u32) -> bool {
    matches!(grpc_status, 2 | 13 | 14 | 15)
}
