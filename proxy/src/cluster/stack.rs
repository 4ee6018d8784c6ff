//! What happens to an HTTP request on its way to a cluster, as one list.
//!
//! Each layer decides one thing and holds what it decided until the response is over, body and all
//! ([`crate::body::Settle`]); a layer that fails answers with the [`Error`] that the caller gets to see.

mod admit;
mod deadline;
mod pick;
mod retry;
mod send;
#[cfg(test)]
mod tests;
mod try_timeout;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use http::{Request, Response};
use tokio::time::{Duration, Instant};
use tower::{ServiceBuilder, ServiceExt};

use self::{admit::Admit, deadline::Deadline, pick::Pick, retry::Retry, send::Send, try_timeout::TryTimeout};
use super::{Cluster, balance::Picked};
use crate::{
    body::{Body, Expect},
    connect::{Carried, Pool},
    exchange::{AttemptId, Exchange},
    outcome::{Error, ErrorKind},
    snapshot::{HttpRule, RetryPolicy, TrafficPolicy},
    trace_context::TraceContext,
};

/// A request to a cluster.
pub(crate) struct Call {
    /// As it is to be forwarded, but for what differs from try to try. On the heap, like all that goes from layer to
    /// layer: each move would be a copy.
    pub(crate) request: Box<Request<Body>>,
    /// What holds for all its tries.
    pub(crate) context: Rc<Context>,
}

/// What holds for all tries of a request.
pub(crate) struct Context {
    pub(crate) exchange: Rc<Exchange>,
    /// The caller's span.
    pub(crate) trace: TraceContext,
    pub(crate) rules: Rules,
    /// When it must be over, and what it is if it is not.
    pub(crate) deadline: Option<(Instant, ErrorKind)>,
    pub(crate) carried: Carried,
    /// The body waits for the upstream's 100.
    pub(crate) expect: Option<Expect>,
    /// The only endpoint that may get it.
    pub(crate) instance: Option<SocketAddr>,
}

/// Timeouts and retries of a route, or else of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) per_try_timeout: Option<Duration>,
    pub(crate) retry: Arc<RetryPolicy>,
}

/// One try of a request.
pub(crate) struct Try {
    request: Box<Request<Body>>,
    context: Rc<Context>,
    id: AttemptId,
    number: u32,
    /// The span of this try.
    trace: TraceContext,
    picked: Rc<Picked>,
    pool: Rc<Pool>,
}

/// All layers.
pub(crate) type Stack = Admit<Deadline<Retry<Pick<TryTimeout<Send>>>>>;

/// The layers in the order in which a request passes them.
pub(crate) fn stack(cluster: &Rc<Cluster>) -> Stack {
    ServiceBuilder::new()
        // Full: refused at once, nothing is queued. The place is taken until the response is over.
        .layer_fn(|inner| Admit::new(inner, cluster.limit.clone()))
        // All tries together, until the response is over.
        .layer_fn(|inner| Deadline::new(inner, cluster.timers.clone()))
        // Tries again, while policy, budget and the rest of the time allow.
        .layer_fn(|inner| Retry::new(inner, cluster.clone()))
        // An endpoint for each try, and what it made of it.
        .layer_fn(|inner| Pick::new(inner, cluster.clone()))
        // One try, until the response's headers.
        .layer_fn(TryTimeout::new)
        // A connection from the endpoint's pool.
        .service(Send::new(cluster.clone()))
}

/// Sends a request to a cluster.
pub(crate) async fn call(cluster: &Rc<Cluster>, call: Call) -> Result<Response<Body>, Error> {
    stack(cluster).oneshot(call).await
}

impl Rules {
    /// What the rule says, and what it does not say as the cluster's policy has it.
    pub(crate) fn new(rule: Option<&HttpRule>, policy: &TrafficPolicy) -> Self {
        Self {
            request_timeout: rule.and_then(|rule| rule.request_timeout).or(policy.request_timeout),
            per_try_timeout: rule.and_then(|rule| rule.per_try_timeout).or(policy.per_try_timeout),
            retry: rule.and_then(|rule| rule.retry.clone()).unwrap_or_else(|| policy.retry.clone()),
        }
    }
}

/// The earlier of what the rules say and what the caller still waits.
pub(crate) fn deadline(rules: &Rules, asked: Option<Duration>, began: Instant) -> Option<(Instant, ErrorKind)> {
    let ours = rules.request_timeout.map(|timeout| (began + timeout, ErrorKind::RequestTimeout));
    let callers = asked.and_then(|asked| Some((began.checked_add(asked)?, ErrorKind::DeadlineExceeded)));
    match (ours, callers) {
        (Some(ours), Some(callers)) => Some(if callers.0 < ours.0 { callers } else { ours }),
        (ours, callers) => ours.or(callers),
    }
}
