//! Tries that failed are made again, as [`crate::cluster::retry`] decides.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::SystemTime,
};

use futures_util::future::LocalBoxFuture;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};

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
    S: Service<Call, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let cluster = self.cluster.clone();
        let inner = self.inner.clone();
        Box::pin(async move { tries(inner, &cluster, call).await })
    }
}

async fn tries<S>(mut inner: S, cluster: &Cluster, call: Call) -> Result<Response<Body>, Error>
where
    S: Service<Call, Response = Response<Body>, Error = Error>,
{
    cluster.budget.deposit(Instant::now());
    let Call { request, context } = call;
    let policy = context.rules.retry.clone();
    if policy.max_retries == 0 {
        return inner.ready().await?.call(Call { request, context }).await;
    }
    let (parts, body) = request.into_parts();
    let replay = Replay::new(body, policy.replay_bytes);
    let mut retries = 0;
    loop {
        let request = Request::from_parts(parts.clone(), replay.reading());
        let result = inner.ready().await?.call(Call { request, context: context.clone() }).await;
        let asked = Asked {
            policy: &policy,
            method: &parts.method,
            replayable: replay.is_replayable(),
            retries,
            result: match &result {
                Ok(response) => answered(response),
                Err(error) => TryResult::Failed(error),
            },
            deadline: context.deadline.map(|(at, _)| at),
        };
        let decision = decide(&asked, &cluster.budget, Instant::now(), &mut *cluster.rng.borrow_mut());
        let (pause, reason) = match decision {
            Ok(again) => again,
            Err(refusal) => {
                if refusal != Refusal::NotRetryable {
                    context.exchange.note(|outcome| outcome.retry_refused = Some(refusal));
                }
                return result;
            }
        };
        tracing::debug!(cluster = %cluster.name(), ?reason, ?pause, "trying again");
        // Its connection and endpoint are free from now on, not only after the pause.
        drop(result);
        sleep(pause).await;
        retries += 1;
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
