//! TrafficPolicy: how callers treat a service.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, TargetRef};

/// How proxies call the services that this attaches to. The most specific policy wins whole: service
/// over namespace over mesh; fields that it leaves out have the defaults named here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it attaches to; absent: its namespace (in the namespace `heddle`: the mesh).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// How an endpoint is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancing: Option<BalancingSpec>,
    /// How long to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// What to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetrySpec>,
    /// How much at once (circuit breaker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// When an endpoint is left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierSpec>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BalancingSpec {
    /// The better of two random ones by peak EWMA of latency, times requests in flight.
    #[default]
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
}

/// How long to wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutsSpec {
    /// The whole request with all its tries, until the response is complete; default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One try, until response headers; default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Duration>,
    /// TCP connect and TLS handshake; default 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    /// A pooled connection without a request, a TCP connection without a byte; default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
}

/// What to try again, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// Tries after the first, 0 to 10; default 2. What was provably never sent may be tried again for
    /// any method; the rest only for idempotent methods and those in `methods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// Default: connect-failure, refused-stream, reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub on: Option<Vec<RetryCondition>>,
    /// HTTP statuses (400 to 599) that count as failed; default 502, 503, 504.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub statuses: Option<Vec<u16>>,
    /// gRPC status names that count as failed, e.g. `UNAVAILABLE`; default UNAVAILABLE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub grpc_statuses: Option<Vec<String>>,
    /// Methods to retry besides GET, HEAD, OPTIONS, TRACE, PUT and DELETE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub methods: Vec<String>,
    /// First pause, doubled each time, with full jitter; default 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
    /// Longest pause; default 250ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Duration>,
    /// Largest body kept for replay, bytes, at most 1 MiB; default 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_048_576))]
    pub replay_bytes: Option<u64>,
    /// How many retries all requests to a cluster may cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudgetSpec>,
}

/// When a try counts as failed besides its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryCondition {
    /// No connection could be made.
    ConnectFailure,
    /// The connection ended before response headers.
    Reset,
    /// HTTP/2 REFUSED_STREAM or GOAWAY.
    RefusedStream,
}

/// A retry budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudgetSpec {
    /// Share of requests, 0 to 100; default 20.
    #[serde(default = "default_budget_percent")]
    #[schemars(range(max = 100))]
    pub percent: u32,
    /// Always allowed a second; default 10.
    #[serde(default = "default_budget_min")]
    #[schemars(range(max = 10_000))]
    pub min_per_second: u32,
}

fn default_budget_percent() -> u32 {
    20
}

fn default_budget_min() -> u32 {
    10
}

/// How much at once, per calling proxy; beyond it, 503 at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitsSpec {
    /// Connections; default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests in flight; default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Requests waiting for a connection; default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending: Option<u32>,
}

/// When an endpoint is ejected: left out of balancing for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierSpec {
    /// 5xx responses, failed connections, resets or timeouts in a row; 0: off; default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub consecutive_failures: Option<u32>,
    /// First ejection; doubled each time, until a probe succeeds; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<Duration>,
    /// Longest ejection; default 300s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<Duration>,
    /// Share of endpoints that may be ejected, 0 to 50; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 50))]
    pub max_ejected_percent: Option<u32>,
}
