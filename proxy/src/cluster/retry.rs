//! Whether a try that failed may be made again, and when.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::budget::Budget;
use crate::{outcome::Error, snapshot::RetryPolicy};

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
        /// A peer proxy said `heddle-error: draining`: no app has seen it.
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

/// Whether to try again, after which pause, and why (not).
pub fn decide(
    asked: &Asked<'_>,
    budget: &Budget,
    now: Instant,
    rng: &mut impl rand::Rng,
) -> Result<(Duration, Reason), Refusal> {
    let _ = (asked, budget, now, rng);
    todo!()
}
