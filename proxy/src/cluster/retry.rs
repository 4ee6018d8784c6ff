//! Whether a try that failed may be made again, and when.
//!
//! A request that provably reached no app may go again whatever its method. Anything else may only if
//! its method is idempotent (or the policy names it), and if its body can be sent again in full. In
//! both cases the policy's conditions, the number of tries, the deadline and the cluster's budget have
//! a say.

#[cfg(test)]
mod tests;

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::budget::Budget;
use crate::{
    outcome::{Error, ErrorKind},
    snapshot::RetryPolicy,
};

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub enum TryResult<'a> {
    /// Without response headers.
    Failed(&'a Error),
    /// With response headers.
    Answered {
        /// The status.
        status: StatusCode,
        /// `grpc-status` of a trailers-only response.
        grpc_status: Option<u32>,
        /// A peer proxy said in `heddle-error` that no app has seen it (it drains, say).
        never_sent: bool,
        /// `grpc-retry-pushback-ms`, negative: do not retry; or `Retry-After`.
        pushback: Option<Pushback>,
    },
}

/// What a server says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Not at all.
    Never,
    /// Not before this.
    After(Duration),
}

/// All that the decision needs.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Of the rule or the cluster.
    pub policy: &'a RetryPolicy,
    /// Of the request.
    pub method: &'a Method,
    /// Whether the body can be sent again in full.
    pub replayable: bool,
    /// Retries made so far.
    pub retries: u32,
    /// How the last try ended.
    pub result: TryResult<'a>,
    /// When the whole request must be over.
    pub deadline: Option<Instant>,
}

/// Why a try is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No connection.
    ConnectFailure,
    /// Refused unprocessed.
    Refused,
    /// Reset before response headers.
    Reset,
    /// The try took too long.
    Timeout,
    /// The HTTP status.
    Status,
    /// The gRPC status.
    GrpcStatus,
}

/// Why a try that failed is not made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not a failure that the policy retries.
    NotRetryable,
    /// The method is not idempotent, and the request may have been processed.
    Method,
    /// The body is gone.
    Body,
    /// As often as the policy says already.
    Attempts,
    /// The server asked not to.
    Pushback,
    /// No time left.
    Deadline,
    /// The cluster's retry budget is spent.
    Budget,
}

/// Whether to try again, after which pause, and why (not). The budget pays only if the answer is yes.
pub fn decide(
    asked: &Asked<'_>,
    budget: &Budget,
    now: Instant,
    rng: &mut impl rand::Rng,
) -> Result<(Duration, Reason), Refusal> {
    let policy = asked.policy;
    let (reason, never_sent) = reason(policy, asked.result).ok_or(Refusal::NotRetryable)?;
    if asked.retries >= policy.max_retries {
        return Err(Refusal::Attempts);
    }
    if !never_sent && !is_idempotent(asked.method) && !policy.methods.contains(asked.method) {
        return Err(Refusal::Method);
    }
    if !asked.replayable {
        return Err(Refusal::Body);
    }
    let mut pause = backoff(policy, asked.retries, rng);
    match asked.result {
        TryResult::Answered { pushback: Some(Pushback::Never), .. } => return Err(Refusal::Pushback),
        TryResult::Answered { pushback: Some(Pushback::After(after)), .. } => {
            // Who asks for a longer pause than we would make at most gets none of our retries.
            if after > policy.backoff_max {
                return Err(Refusal::Pushback);
            }
            pause = pause.max(after);
        }
        TryResult::Answered { pushback: None, .. } | TryResult::Failed(_) => {}
    }
    if asked.deadline.is_some_and(|deadline| now + pause >= deadline) {
        return Err(Refusal::Deadline);
    }
    if !budget.withdraw(now) {
        return Err(Refusal::Budget);
    }
    Ok((pause, reason))
}

/// Safe or idempotent by RFC 9110, section 9.2.2, without CONNECT.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// Which of the policy's conditions the result meets, and whether no app has seen the request.
fn reason(policy: &RetryPolicy, result: TryResult<'_>) -> Option<(Reason, bool)> {
    use ErrorKind as K;
    match result {
        TryResult::Failed(error) => {
            let (reason, retried) = match error.kind {
                K::ConnectFailed | K::ConnectTimeout | K::TlsFailed | K::PeerIdentity => {
                    (Reason::ConnectFailure, policy.on_connect_failure)
                }
                K::UpstreamRefused => (Reason::Refused, policy.on_refused_stream),
                K::UpstreamReset => (Reason::Reset, policy.on_reset),
                // A per-try timeout exists to be followed by another try.
                K::PerTryTimeout => (Reason::Timeout, true),
                // What no other try would change, and what is not about a try.
                K::BadRequest
                | K::HeadersTooLarge
                | K::HeaderTimeout
                | K::BodyTimeout
                | K::EgressDenied
                | K::UnknownDestination
                | K::DiscoveryTimeout
                | K::UnknownPort
                | K::NoRoute
                | K::NoBackend
                | K::NoEndpoints
                | K::CircuitOpen
                | K::Overloaded
                | K::NoCertificate
                | K::UpstreamProtocol
                | K::RequestTimeout
                | K::DeadlineExceeded
                | K::Denied
                | K::CertificateExpired
                | K::PlaintextRefused
                | K::OpaqueRefused
                | K::NotServed
                | K::Loop
                | K::Draining
                | K::NotReady
                | K::AppUnavailable
                | K::UpgradeRefused
                | K::NotProxyRequest
                | K::TooManyConnections
                | K::ClientGone
                | K::Internal => return None,
            };
            retried.then_some((reason, error.never_sent))
        }
        TryResult::Answered { never_sent: true, .. } => policy.on_refused_stream.then_some((Reason::Refused, true)),
        TryResult::Answered { grpc_status: Some(status), .. } if status != 0 => {
            policy.grpc_statuses.contains(&status).then_some((Reason::GrpcStatus, false))
        }
        TryResult::Answered { status, .. } => policy.statuses.contains(&status).then_some((Reason::Status, false)),
    }
}

/// Doubled each time up to the longest, with full jitter: anything from nothing to that.
fn backoff(policy: &RetryPolicy, retries: u32, rng: &mut impl rand::Rng) -> Duration {
    let longest = policy.backoff_base.saturating_mul(2_u32.saturating_pow(retries)).min(policy.backoff_max);
    longest.mul_f64(rng.random())
}
