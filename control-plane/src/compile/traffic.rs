//! Effective traffic policy, with the defaults that the resource types promise.

use std::sync::Arc;

use heddle_api::{
    proto::discovery as proto,
    resource::{
        BalancingSpec, Duration, LimitsSpec, OutlierSpec, RetryCondition, RetrySpec, RouteRetry, TimeoutsSpec,
        TrafficPolicySpec,
    },
};

use super::oldest_first;
use crate::mesh::{Mesh, Scope};
use heddle_api::resource::Name;

const CONNECT_MS: u64 = 2_000;
const IDLE_MS: u64 = 3_600_000;
const RETRIES: u32 = 2;
const RETRY_STATUSES: [u32; 3] = [502, 503, 504];
const RETRY_GRPC_STATUSES: [u32; 1] = [14];
const BACKOFF_MS: u64 = 25;
const MAX_BACKOFF_MS: u64 = 250;
const REPLAY_BYTES: u64 = 64 * 1024;
const BUDGET_PERCENT: u32 = 20;
const BUDGET_MIN: u32 = 10;
const LIMIT: u32 = 1024;
const CONSECUTIVE_FAILURES: u32 = 5;
const BASE_EJECTION_MS: u64 = 10_000;
const MAX_EJECTION_MS: u64 = 300_000;
const MAX_EJECTED_PERCENT: u32 = 50;

/// The policy that holds for callers of a service: its own, or else its namespace's, or else the
/// mesh's, or else the defaults. Of several in one place the oldest counts.
pub(super) fn effective(mesh: &Mesh, service: &Name) -> proto::TrafficPolicy {
    let scopes = [Scope::Service(service.clone()), Scope::Namespace(Arc::clone(&service.namespace)), Scope::Mesh];
    let policy = scopes.iter().find_map(|scope| oldest_first(mesh.traffic_policies(scope)).first().copied());
    match policy {
        Some(policy) => compile(&policy.spec, format!("TrafficPolicy {}", Name::of(&policy.metadata))),
        None => compile(&TrafficPolicySpec::default(), String::new()),
    }
}

/// A duration in milliseconds; none is 0.
pub(super) fn millis(duration: Option<Duration>) -> u64 {
    duration.map_or(0, Duration::as_millis)
}

/// A rule's own retry policy: defaults for what it leaves out.
pub(super) fn route_retry(rule: &RouteRetry) -> proto::RetryPolicy {
    let mut policy = retry(&RetrySpec {
        attempts: rule.attempts,
        backoff: rule.backoff,
        methods: rule.methods.clone(),
        ..RetrySpec::default()
    });
    if !rule.codes.is_empty() {
        policy.statuses = rule.codes.iter().copied().map(u32::from).collect();
    }
    policy
}

fn compile(spec: &TrafficPolicySpec, source: String) -> proto::TrafficPolicy {
    let timeouts = spec.timeouts.clone().unwrap_or_default();
    let TimeoutsSpec { request, per_try, connect, idle } = timeouts;
    proto::TrafficPolicy {
        balancing: balancing(spec.balancing.unwrap_or_default()).into(),
        request_timeout_ms: millis(request),
        per_try_timeout_ms: millis(per_try),
        connect_timeout_ms: connect.map_or(CONNECT_MS, Duration::as_millis),
        idle_timeout_ms: idle.map_or(IDLE_MS, Duration::as_millis),
        retry: Some(retry(&spec.retries.clone().unwrap_or_default())),
        limits: Some(limits(&spec.limits.clone().unwrap_or_default())),
        outlier_detection: Some(outlier(&spec.outlier_detection.clone().unwrap_or_default())),
        source,
    }
}

fn balancing(spec: BalancingSpec) -> proto::Balancing {
    match spec {
        BalancingSpec::PeakEwma => proto::Balancing::PeakEwma,
        BalancingSpec::RoundRobin => proto::Balancing::RoundRobin,
        BalancingSpec::Random => proto::Balancing::Random,
    }
}

fn retry(spec: &RetrySpec) -> proto::RetryPolicy {
    let on = |condition| spec.on.as_ref().is_none_or(|conditions| conditions.contains(&condition));
    let base = spec.backoff.map_or(BACKOFF_MS, Duration::as_millis);
    proto::RetryPolicy {
        max_retries: spec.attempts.unwrap_or(RETRIES),
        statuses: match &spec.statuses {
            Some(statuses) => statuses.iter().copied().map(u32::from).collect(),
            None => RETRY_STATUSES.to_vec(),
        },
        on_connect_failure: on(RetryCondition::ConnectFailure),
        on_reset: on(RetryCondition::Reset),
        on_refused_stream: on(RetryCondition::RefusedStream),
        backoff_base_ms: base,
        backoff_max_ms: spec.max_backoff.map_or(MAX_BACKOFF_MS, Duration::as_millis).max(base),
        replay_bytes: spec.replay_bytes.unwrap_or(REPLAY_BYTES),
        budget_percent: spec.budget.as_ref().map_or(BUDGET_PERCENT, |budget| budget.percent),
        budget_min_per_second: spec.budget.as_ref().map_or(BUDGET_MIN, |budget| budget.min_per_second),
        methods: spec.methods.clone(),
        grpc_statuses: match &spec.grpc_statuses {
            Some(names) => names.iter().filter_map(|name| grpc_status(name)).collect(),
            None => RETRY_GRPC_STATUSES.to_vec(),
        },
    }
}

fn limits(spec: &LimitsSpec) -> proto::Limits {
    proto::Limits {
        max_connections: spec.max_connections.unwrap_or(LIMIT),
        max_requests: spec.max_requests.unwrap_or(LIMIT),
        max_pending: spec.max_pending.unwrap_or(LIMIT),
    }
}

fn outlier(spec: &OutlierSpec) -> proto::OutlierDetection {
    let base = spec.base_ejection.map_or(BASE_EJECTION_MS, Duration::as_millis);
    proto::OutlierDetection {
        consecutive_failures: spec.consecutive_failures.unwrap_or(CONSECUTIVE_FAILURES),
        base_ejection_ms: base,
        max_ejection_ms: spec.max_ejection.map_or(MAX_EJECTION_MS, Duration::as_millis).max(base),
        max_ejected_percent: spec.max_ejected_percent.unwrap_or(MAX_EJECTED_PERCENT),
    }
}

/// The number of a gRPC status; validation refuses other names.
fn grpc_status(name: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.iter().position(|known| *known == name).and_then(|number| u32::try_from(number).ok())
}
