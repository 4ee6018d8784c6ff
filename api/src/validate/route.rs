//! HTTPRoute, GRPCRoute and TCPRoute.

use super::{
    common,
    faults::{Faults, Path},
    http::{Allowed, check_path, filters, header_matches, method, methods, query_matches},
    policy::{at_most, positive, statuses},
};
use crate::{
    limits::{MAX_ROUTE_MATCHES, MAX_ROUTE_REGEXES, MAX_ROUTE_RULES},
    resource::{
        BackendRef, GrpcMethodMatch, GrpcRouteMatch, GrpcRouteSpec, HeaderMatch, HttpRouteFilterType, HttpRouteMatch,
        HttpRouteRule, HttpRouteSpec, MatchType, ParentRef, PathMatchType, RouteRetry, RouteTimeouts, TcpRouteSpec,
    },
};

pub(super) fn check_http(spec: &HttpRouteSpec, path: &Path<'_>, faults: &mut Faults) {
    parents(&spec.parent_refs, &path.field("parentRefs"), faults);
    hostnames(&spec.hostnames, &path.field("hostnames"), faults);
    let rules = path.field("rules");
    common::rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()), &rules, faults);
    let of_match = |wanted: &HttpRouteMatch| {
        let path = wanted.path.as_ref().is_some_and(|path| path.r#type == PathMatchType::RegularExpression);
        let query = wanted.query_params.iter().filter(|param| param.r#type == MatchType::RegularExpression);
        usize::from(path) + query.count() + header_regexes(&wanted.headers)
    };
    let counts = spec.rules.iter().map(|rule| (rule.matches.len(), rule.matches.iter().map(of_match).sum()));
    // First: each expression takes its time to check.
    if !within_limits(counts, spec.hostnames.len(), &rules, faults) {
        return;
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(rule, &rules.index(index), faults);
    }
    duplicates(&spec.rules, |rule| &rule.matches, &rules, faults);
}

fn header_regexes(headers: &[HeaderMatch]) -> usize {
    headers.iter().filter(|header| header.r#type == MatchType::RegularExpression).count()
}

/// Checks how much a route comes to, from the matches of its rules and their regular expressions.
fn within_limits(
    rules: impl Iterator<Item = (usize, usize)>,
    hostnames: usize,
    path: &Path<'_>,
    faults: &mut Faults,
) -> bool {
    let (mut matches, mut regexes) = (0, 0);
    for (of_rule, expressions) in rules {
        // A rule without matches matches everything.
        matches += of_rule.max(1);
        regexes += expressions;
    }
    let flat = matches * hostnames.max(1);
    let mut within = true;
    let mut check = |holds: bool, message: String| {
        if !holds {
            faults.add(path, message);
            within = false;
        }
    };
    check(
        matches <= MAX_ROUTE_MATCHES,
        format!("have {matches} matches; a route has at most {MAX_ROUTE_MATCHES}, so make several of it"),
    );
    check(
        flat <= MAX_ROUTE_RULES,
        format!("have {matches} matches for {hostnames} host names, which makes {flat}; at most {MAX_ROUTE_RULES}"),
    );
    check(
        regexes <= MAX_ROUTE_REGEXES,
        format!("have {regexes} regular expressions; a route has at most {MAX_ROUTE_REGEXES}"),
    );
    within
}

fn http_rule(rule: &HttpRouteRule, path: &Path<'_>, faults: &mut Faults) {
    let matches = path.field("matches");
    for (index, wanted) in rule.matches.iter().enumerate() {
        let entry = matches.index(index);
        if let Some(wanted) = &wanted.path {
            let place = entry.field("path");
            let outcome = match wanted.r#type {
                PathMatchType::Exact | PathMatchType::PathPrefix => check_path(&wanted.value),
                PathMatchType::RegularExpression => common::regex(&wanted.value),
            };
            faults.check(&place.field("value"), outcome);
        }
        header_matches(&wanted.headers, &entry.field("headers"), faults);
        query_matches(&wanted.query_params, &entry.field("queryParams"), faults);
        if let Some(text) = &wanted.method {
            faults.check(&entry.field("method"), method(text));
        }
    }
    let is_prefix =
        |wanted: &HttpRouteMatch| wanted.path.as_ref().is_some_and(|path| path.r#type == PathMatchType::PathPrefix);
    let prefix = !rule.matches.is_empty() && rule.matches.iter().all(is_prefix);
    filters(&rule.filters, Allowed::All { prefix }, &path.field("filters"), faults);
    let redirects = rule.filters.iter().any(|filter| filter.r#type == HttpRouteFilterType::RequestRedirect);
    let place = path.field("backendRefs");
    match (redirects, rule.backend_refs.is_empty()) {
        (true, false) => faults.add(&place, "never get a request: the rule redirects"),
        (false, true) => faults.add(&place, "is missing; a rule without a redirect needs at least one backend"),
        _ => {}
    }
    backends(&rule.backend_refs, Allowed::Headers("for one backend only headers can be changed"), &place, faults);
    timeouts(rule.timeouts.as_ref(), &path.field("timeouts"), faults);
    retry(rule.retry.as_ref(), rule.timeouts.as_ref(), &path.field("retry"), faults);
}

pub(super) fn check_grpc(spec: &GrpcRouteSpec, path: &Path<'_>, faults: &mut Faults) {
    parents(&spec.parent_refs, &path.field("parentRefs"), faults);
    hostnames(&spec.hostnames, &path.field("hostnames"), faults);
    let rules = path.field("rules");
    common::rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()), &rules, faults);
    let of_match = |wanted: &GrpcRouteMatch| {
        let method = wanted.method.as_ref().is_some_and(|method| method.r#type == MatchType::RegularExpression);
        usize::from(method) + header_regexes(&wanted.headers)
    };
    let counts = spec.rules.iter().map(|rule| (rule.matches.len(), rule.matches.iter().map(of_match).sum()));
    if !within_limits(counts, spec.hostnames.len(), &rules, faults) {
        return;
    }
    let headers_only =
        Allowed::Headers("a gRPC call can neither be redirected nor rewritten; only headers can be changed");
    for (index, rule) in spec.rules.iter().enumerate() {
        let entry = rules.index(index);
        let matches = entry.field("matches");
        for (index, wanted) in rule.matches.iter().enumerate() {
            let entry = matches.index(index);
            if let Some(method) = &wanted.method {
                grpc_method(method, &entry.field("method"), faults);
            }
            header_matches(&wanted.headers, &entry.field("headers"), faults);
        }
        filters(&rule.filters, headers_only, &entry.field("filters"), faults);
        backends(&rule.backend_refs, headers_only, &entry.field("backendRefs"), faults);
        timeouts(rule.timeouts.as_ref(), &entry.field("timeouts"), faults);
        retry(rule.retry.as_ref(), rule.timeouts.as_ref(), &entry.field("retry"), faults);
    }
    duplicates(&spec.rules, |rule| &rule.matches, &rules, faults);
}

fn grpc_method(wanted: &GrpcMethodMatch, path: &Path<'_>, faults: &mut Faults) {
    if wanted.service.is_none() && wanted.method.is_none() {
        faults.add(path, "matches nothing; give service or method, or leave it out for any call");
    }
    let is_identifier = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|first: char| first.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if wanted.r#type == MatchType::RegularExpression
        && let (Some(service), Some(method)) = (&wanted.service, &wanted.method)
        && common::regex(service).is_ok()
        && common::regex(method).is_ok()
    {
        // Proxies match both at once.
        faults.check(path, common::regex(&format!("/(?:{service})/(?:{method})")));
    }
    let parts = [("service", &wanted.service, true), ("method", &wanted.method, false)];
    for (field, text, dotted) in parts {
        let Some(text) = text else { continue };
        let outcome = match wanted.r#type {
            MatchType::RegularExpression => common::regex(text),
            MatchType::Exact
                if text.len() <= 1024 && text.split('.').all(is_identifier) && (dotted || !text.contains('.')) =>
            {
                Ok(())
            }
            MatchType::Exact if dotted => {
                Err(format!("{text:?} is no gRPC service; write one such as shop.v1.Inventory"))
            }
            MatchType::Exact => Err(format!("{text:?} is no gRPC method; write one such as Reserve")),
        };
        faults.check(&path.field(field), outcome);
    }
}

pub(super) fn check_tcp(spec: &TcpRouteSpec, path: &Path<'_>, faults: &mut Faults) {
    parents(&spec.parent_refs, &path.field("parentRefs"), faults);
    let rules = path.field("rules");
    common::rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()), &rules, faults);
    for (index, rule) in spec.rules.iter().enumerate() {
        let entry = rules.index(index);
        backends(
            &rule.backend_refs,
            Allowed::Nothing("opaque bytes cannot be filtered"),
            &entry.field("backendRefs"),
            faults,
        );
    }
}

fn parents(parents: &[ParentRef], path: &Path<'_>, faults: &mut Faults) {
    for (index, parent) in parents.iter().enumerate() {
        let entry = path.index(index);
        faults.check(&entry.field("name"), common::dns_label(&parent.name));
        let overlaps = |other: &ParentRef| {
            other.name == parent.name && (other.port == parent.port || other.port.is_none() || parent.port.is_none())
        };
        if let Some(first) = parents[..index].iter().position(overlaps) {
            faults.add(&entry, format!("is attached already, by entry {first}"));
        }
    }
}

fn hostnames(hostnames: &[String], path: &Path<'_>, faults: &mut Faults) {
    for (index, hostname) in hostnames.iter().enumerate() {
        faults.check(&path.index(index), common::host_pattern(hostname));
    }
    faults.unique(path, hostnames, |hostname| format!("{hostname:?}"));
}

fn backends(backends: &[BackendRef], allowed: Allowed, path: &Path<'_>, faults: &mut Faults) {
    for (index, backend) in backends.iter().enumerate() {
        let entry = path.index(index);
        faults.check(&entry.field("name"), common::dns_label(&backend.name));
        if let Some(namespace) = &backend.namespace {
            faults.check(&entry.field("namespace"), common::dns_label(namespace));
        }
        let same = |other: &BackendRef| {
            (&other.name, &other.namespace, other.port) == (&backend.name, &backend.namespace, backend.port)
        };
        if let Some(first) = backends[..index].iter().position(same) {
            faults.add(&entry, format!("is the same as backend {first}; add up their weights"));
        }
        filters(&backend.filters, allowed, &entry.field("filters"), faults);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == Some(0)) {
        faults.add(path, "all have weight 0, so that no request could go anywhere");
    }
}

fn timeouts(timeouts: Option<&RouteTimeouts>, path: &Path<'_>, faults: &mut Faults) {
    if let Some(timeouts) = timeouts {
        at_most(("backendRequest", timeouts.backend_request), ("request", timeouts.request), path, faults);
    }
}

fn retry(retry: Option<&RouteRetry>, timeouts: Option<&RouteTimeouts>, path: &Path<'_>, faults: &mut Faults) {
    let Some(retry) = retry else { return };
    statuses(&retry.codes, &path.field("codes"), faults);
    methods(&retry.methods, &path.field("methods"), faults);
    positive("backoff", retry.backoff, path, faults);
    let request = timeouts.and_then(|timeouts| timeouts.request);
    at_most(("backoff", retry.backoff), ("timeouts.request", request), path, faults);
}

/// A match that an earlier rule of the route has already never gets a request.
fn duplicates<R, M: PartialEq + Default>(
    rules: &[R],
    matches: impl Fn(&R) -> &Vec<M>,
    path: &Path<'_>,
    faults: &mut Faults,
) {
    let any = M::default();
    let mut seen: Vec<(&M, String)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let entry = path.index(index);
        let list = entry.field("matches");
        let own = matches(rule);
        if own.is_empty() {
            once(&any, &entry, &mut seen, faults);
        }
        for (index, wanted) in own.iter().enumerate() {
            once(wanted, &list.index(index), &mut seen, faults);
        }
    }
}

fn once<'m, M: PartialEq>(wanted: &'m M, place: &Path<'_>, seen: &mut Vec<(&'m M, String)>, faults: &mut Faults) {
    match seen.iter().find(|(known, _)| *known == wanted) {
        Some((_, first)) => faults.add(place, format!("never gets a request: {first} matches the same")),
        None => seen.push((wanted, place.to_string())),
    }
}
