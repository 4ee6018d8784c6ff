//! TrafficPolicy and AuthorizationPolicy.

use std::{fmt, str::FromStr as _, time::Duration};

use heddle_certs::SpiffeId;

use super::{
    common,
    faults::{Faults, Path},
    http::{check_path, methods},
};
use crate::resource::{
    self, AuthorizationPolicySpec, OperationSpec, OutlierSpec, RetrySpec, SourceSpec, TargetRef, TimeoutsSpec,
    TrafficPolicySpec,
};

/// The gRPC statuses that can stand for a failure.
const GRPC_STATUSES: &[&str] = &[
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

fn target(target: Option<&TargetRef>, path: &Path<'_>, faults: &mut Faults) {
    if let Some(target) = target {
        let reference = path.field("targetRef");
        faults.check(&reference.field("name"), common::dns_label(&target.name));
    }
}

pub(super) fn check_traffic(spec: &TrafficPolicySpec, path: &Path<'_>, faults: &mut Faults) {
    target(spec.target_ref.as_ref(), path, faults);
    if let Some(timeouts) = &spec.timeouts {
        check_timeouts(timeouts, &path.field("timeouts"), faults);
    }
    if let Some(retries) = &spec.retries {
        check_retries(retries, &path.field("retries"), faults);
    }
    if let Some(outlier) = &spec.outlier_detection {
        check_outlier(outlier, &path.field("outlierDetection"), faults);
    }
}

fn check_timeouts(timeouts: &TimeoutsSpec, path: &Path<'_>, faults: &mut Faults) {
    at_most(("perTry", timeouts.per_try), ("request", timeouts.request), path, faults);
    positive("connect", timeouts.connect, path, faults);
}

/// `0s` is no limit, so anything may stand before it.
pub(super) fn at_most(
    small: (&str, Option<resource::Duration>),
    large: (&str, Option<resource::Duration>),
    path: &Path<'_>,
    faults: &mut Faults,
) {
    if let (Some(one), Some(other)) = (small.1, large.1)
        && other.0 != Duration::ZERO
        && one > other
    {
        faults.add(&path.field(small.0), format!("is {one}, more than {} ({other})", large.0));
    }
}

/// Where `0s` cannot be meant.
pub(super) fn positive(field: &str, value: Option<resource::Duration>, path: &Path<'_>, faults: &mut Faults) {
    if value.is_some_and(|value| value.0 == Duration::ZERO) {
        faults.add(&path.field(field), "is 0s; a time above that is wanted");
    }
}

fn check_retries(retries: &RetrySpec, path: &Path<'_>, faults: &mut Faults) {
    if let Some(on) = &retries.on {
        faults.unique(&path.field("on"), on, |condition| format!("{condition:?}"));
    }
    if let Some(codes) = &retries.statuses {
        statuses(codes, &path.field("statuses"), faults);
    }
    if let Some(names) = &retries.grpc_statuses {
        let list = path.field("grpcStatuses");
        for (index, name) in names.iter().enumerate() {
            if !GRPC_STATUSES.contains(&name.as_str()) {
                let hint = common::Suggest::for_word(name, GRPC_STATUSES.iter().copied());
                faults.add(&list.index(index), format!("{name:?} is no gRPC status of a failure{hint}"));
            }
        }
        faults.unique(&list, names, |name| format!("{name:?}"));
    }
    methods(&retries.methods, &path.field("methods"), faults);
    positive("backoff", retries.backoff, path, faults);
    positive("maxBackoff", retries.max_backoff, path, faults);
    let default = resource::Duration(Duration::from_millis(250));
    at_most(("backoff", retries.backoff), ("maxBackoff", retries.max_backoff.or(Some(default))), path, faults);
    if retries.backoff.is_none() && retries.max_backoff.is_some_and(|max| max.0 < Duration::from_millis(25)) {
        faults.add(&path.field("maxBackoff"), "is less than backoff, which is 25ms when left out");
    }
}

/// HTTP statuses of failures, each once.
pub(super) fn statuses(codes: &[u16], path: &Path<'_>, faults: &mut Faults) {
    for (index, code) in codes.iter().enumerate() {
        if !(400..=599).contains(code) {
            faults.add(&path.index(index), format!("{code} is no status of a failure; 400 to 599 are"));
        }
    }
    faults.unique(path, codes, |code| format!("{code}"));
}

fn check_outlier(outlier: &OutlierSpec, path: &Path<'_>, faults: &mut Faults) {
    positive("baseEjection", outlier.base_ejection, path, faults);
    positive("maxEjection", outlier.max_ejection, path, faults);
    let default = resource::Duration(Duration::from_secs(300));
    at_most(
        ("baseEjection", outlier.base_ejection),
        ("maxEjection", outlier.max_ejection.or(Some(default))),
        path,
        faults,
    );
    if outlier.base_ejection.is_none() && outlier.max_ejection.is_some_and(|max| max.0 < Duration::from_secs(10)) {
        faults.add(&path.field("maxEjection"), "is less than baseEjection, which is 10s when left out");
    }
}

pub(super) fn check_authorization(spec: &AuthorizationPolicySpec, path: &Path<'_>, faults: &mut Faults) {
    target(spec.target_ref.as_ref(), path, faults);
    let rules = path.field("rules");
    common::rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()), &rules, faults);
    for (index, rule) in spec.rules.iter().enumerate() {
        let entry = rules.index(index);
        let from = entry.field("from");
        for (index, source) in rule.from.iter().enumerate() {
            check_source(source, &from.index(index), faults);
        }
        let to = entry.field("to");
        for (index, operation) in rule.to.iter().enumerate() {
            check_operation(operation, &to.index(index), faults);
        }
    }
}

fn check_source(source: &SourceSpec, path: &Path<'_>, faults: &mut Faults) {
    if *source == SourceSpec::default() {
        faults.add(path, "names nobody; for any caller leave `from` out");
    }
    if source.unauthenticated {
        let both = [("identities", &source.identities), ("namespaces", &source.namespaces)];
        for (field, _) in both.iter().filter(|(_, list)| !list.is_empty()) {
            faults.add(
                &path.field(field),
                "a caller without identity has none; take `unauthenticated` into a source of its own",
            );
        }
    }
    let identities = path.field("identities");
    for (index, text) in source.identities.iter().enumerate() {
        faults.check(&identities.index(index), identity(text));
    }
    faults.unique(&identities, &source.identities, quoted);
    let namespaces = path.field("namespaces");
    for (index, text) in source.namespaces.iter().enumerate() {
        faults.check(&namespaces.index(index), common::dns_label(text));
    }
    faults.unique(&namespaces, &source.namespaces, quoted);
    let cidrs = path.field("cidrs");
    for (index, text) in source.cidrs.iter().enumerate() {
        faults.check(&cidrs.index(index), common::cidr(text));
    }
    faults.unique(&cidrs, &source.cidrs, quoted);
}

/// A SPIFFE ID or its short form, in which a segment may be `*`; a full ID may end in `/**`.
fn identity(text: &str) -> Result<(), String> {
    let Some(full) = text.strip_prefix("spiffe://") else {
        let segments: Vec<_> = text.split('/').collect();
        let [namespace, account] = segments[..] else {
            return Err(format!("{text:?} is no identity; write <namespace>/<service account>, or spiffe://… in full"));
        };
        if namespace != "*" {
            common::dns_label(namespace)?;
        }
        return if account == "*" { Ok(()) } else { common::service_account(account) };
    };
    let Some((_, path)) = full.split_once('/') else {
        return Err(format!("{text:?} names a whole trust domain; write {text}/** for everybody in it"));
    };
    let (path, ends_in_rest) = match path.strip_suffix("**") {
        Some("") => ("", true),
        Some(path) if path.ends_with('/') => (path.trim_end_matches('/'), true),
        _ => (path, false),
    };
    if path.split('/').any(|segment| segment.contains('*') && segment != "*") {
        return Err(format!("{text:?}: * stands for a whole segment, ** for all that follow at the end"));
    }
    // With its stars filled in, it must be an identity: otherwise it could never match one.
    let trust_domain = &text[..text.len() - full.len() + full.find('/').unwrap_or(0)];
    let filled =
        path.split('/').map(|segment| if segment == "*" { "x" } else { segment }).collect::<Vec<_>>().join("/");
    let sample = match (filled.is_empty(), ends_in_rest) {
        (true, true) => format!("{trust_domain}/x"),
        (_, true) => format!("{trust_domain}/{filled}/x"),
        _ => format!("{trust_domain}/{filled}"),
    };
    SpiffeId::from_str(&sample).map(|_| ()).map_err(|error| format!("{text:?} is no SPIFFE ID: {error}"))
}

fn check_operation(operation: &OperationSpec, path: &Path<'_>, faults: &mut Faults) {
    if *operation == OperationSpec::default() {
        faults.add(path, "names nothing; for any operation leave `to` out");
    }
    let ports = path.field("ports");
    for (index, port) in operation.ports.iter().enumerate() {
        faults.check(&ports.index(index), common::port(*port));
    }
    faults.unique(&ports, &operation.ports, |port| format!("port {port}"));
    methods(&operation.methods, &path.field("methods"), faults);
    let paths = path.field("paths");
    for (index, text) in operation.paths.iter().enumerate() {
        faults.check(&paths.index(index), path_pattern(text));
    }
    faults.unique(&paths, &operation.paths, quoted);
}

/// `/exact`, `/prefix/*` or `*`.
fn path_pattern(text: &str) -> Result<(), String> {
    if matches!(text, "*" | "/*") {
        return Ok(());
    }
    let path = text.strip_suffix('*').filter(|path| path.ends_with('/')).unwrap_or(text);
    if path.contains('*') {
        return Err(format!("{text:?}: * may only stand for all that follows a slash, at the end"));
    }
    check_path(path)
}

fn quoted(text: &impl fmt::Debug) -> String {
    format!("{text:?}")
}
