//! Tries that failed are made again, as [`crate::cluster::retry`] decides.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use http::{Extensions, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::{Duration, Instant, Sleep, sleep};
use tower::Service;

use super::Call;
use crate::{
    body::{Body, Replay, grpc_status},
    cluster::{
        Cluster,
        retry::{Asked, Refusal, TryResult, decide},
    },
    headers,
    outcome::{Error, ErrorKind},
};

/// Makes tries.
#[derive(Clone)]
pub(crate) struct Retry<S> {
    inner: S,
    cluster: Rc<Cluster>,
}

impl<S> Retry<S> {
    pub(super) fn new(inner: S, cluster: Rc<Cluster>) -> Self {
        Self { inner, cluster }
    }
}

impl<S> Service<Call> for Retry<S>
where
    S: Service<Call, Response = Response<Body>, Error = Error> + Clone,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = Tries<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Call { mut request, context } = call;
        self.cluster.budget.deposit(context.exchange.started());
        let may_retry = context.rules.retry.max_retries > 0;
        let again = may_retry.then(|| Again::keep(&mut request, &context));
        Tries {
            inner: self.inner.clone(),
            cluster: self.cluster.clone(),
            context,
            again,
            state: State::Next { request: Some(request) },
        }
    }
}

pin_project! {
    /// The tries of a request, one after the other.
    pub(crate) struct Tries<S: Service<Call>> {
        inner: S,
        cluster: Rc<Cluster>,
        context: Rc<super::Context>,
        // None: whatever comes of the first try is it.
        again: Option<Again>,
        #[pin]
        state: State<S::Future>,
    }
}

pin_project! {
    #[project = Now]
    enum State<F> {
        Next { request: Option<Box<Request<Body>>> },
        UnderWay { #[pin] sent: F },
        Pause { over: Pin<Box<Sleep>> },
    }
}

impl<S> Future for Tries<S>
where
    S: Service<Call, Response = Response<Body>, Error = Error>,
{
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                Now::Next { request } => {
                    ready!(this.inner.poll_ready(cx))?;
                    let request = request.take().expect("set with this state");
                    State::UnderWay { sent: this.inner.call(Call { request, context: this.context.clone() }) }
                }
                Now::UnderWay { sent } => {
                    let result = ready!(sent.poll(cx));
                    let pause = this.again.as_mut().and_then(|again| again.after(&result, this.cluster, this.context));
                    let Some(pause) = pause else { return Poll::Ready(result) };
                    // Its connection and endpoint are free from now on, not only after the pause.
                    drop(result);
                    State::Pause { over: Box::pin(sleep(pause)) }
                }
                Now::Pause { over } => {
                    ready!(over.as_mut().poll(cx));
                    State::Next { request: this.again.as_ref().map(Again::request) }
                }
            };
            this.state.set(next);
        }
    }
}

/// What it takes to send a request again.
struct Again {
    method: Method,
    uri: Uri,
    version: Version,
    headers: headers::Copied,
    extensions: Extensions,
    body: Replay,
    /// Retries so far.
    retries: u32,
}

impl Again {
    /// Keeps a copy of the request, and what is read of its body.
    fn keep(request: &mut Request<Body>, context: &super::Context) -> Self {
        let body = std::mem::replace(request.body_mut(), Body::empty());
        let body = Replay::new(body, context.rules.retry.replay_bytes);
        *request.body_mut() = body.reading();
        let extensions = request.extensions();
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: headers::Copied::of(request.headers()),
            extensions: if extensions.is_empty() { Extensions::new() } else { extensions.clone() },
            body,
            retries: 0,
        }
    }

    /// The request, to be sent once more.
    fn request(&self) -> Box<Request<Body>> {
        let mut request = Request::new(self.body.reading());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.to_map();
        *request.extensions_mut() = self.extensions.clone();
        Box::new(request)
    }

    /// The pause before the next try, if after this result one is to be made.
    fn after(
        &mut self,
        result: &Result<Response<Body>, Error>,
        cluster: &Cluster,
        context: &super::Context,
    ) -> Option<Duration> {
        let asked = Asked {
            policy: &context.rules.retry,
            method: &self.method,
            replayable: self.body.is_replayable(),
            retries: self.retries,
            result: match result {
                Ok(response) => answered(response),
                Err(error) => TryResult::Failed(error),
            },
            deadline: context.deadline.map(|(at, _)| at),
        };
        match decide(&asked, &cluster.budget, Instant::now(), &mut *cluster.rng.borrow_mut()) {
            Ok((pause, reason)) => {
                tracing::debug!(cluster = %cluster.name(), ?reason, ?pause, "trying again");
                self.retries += 1;
                Some(pause)
            }
            Err(refusal) => {
                if refusal != Refusal::NotRetryable {
                    context.exchange.note(|outcome| outcome.retry_refused = Some(refusal));
                }
                None
            }
        }
    }
}

fn answered(response: &Response<Body>) -> TryResult<'_> {
    let headers = response.headers();
    // Whether a response is worth a retry is told by its status, but for what follows from headers.
    let trailers_only = response.body().is_end_stream();
    let meshed = response.body().comes_from_mesh();
    TryResult::Answered {
        status: response.status(),
        grpc_status: if trailers_only { grpc_status(headers) } else { None },
        never_sent: meshed && ErrorKind::said(headers).is_some_and(ErrorKind::is_of_instance),
        pushback: if response.status() == StatusCode::OK && !trailers_only {
            None
        } else {
            headers::pushback(headers, SystemTime::now())
        },
    }
}
