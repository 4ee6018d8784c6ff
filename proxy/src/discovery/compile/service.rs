//! Services with their routes and traffic policy.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use heddle_api::{limits::MAX_SERVICE_REGEXES, proto::discovery as proto};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{At, Reason, each, is_label, millis, millis_or, port, protocol, regex, service_name};
use crate::snapshot::{
    Backend, Balancing, ClusterName, Filter, HeaderModifier, HostPattern, HttpMatch, HttpRule, Limits,
    OutlierDetection, PathMatch, PathModifier, Redirect, RetryPolicy, Rewrite, Service, ServicePort, TrafficPolicy,
    ValueMatch,
};

/// Largest body that a policy may have a proxy keep for replay.
const MAX_REPLAY: u64 = 1 << 20;

pub(in crate::discovery) fn service(name: &str, version: &str, sent: proto::Service) -> Result<Service, Reason> {
    let said = format!("{}/{}", sent.namespace, sent.name);
    if said != name {
        return Err(format!("name: {said:?} is not the resource's name"));
    }
    let regexes = regexes(&sent);
    if regexes > MAX_SERVICE_REGEXES {
        return Err(format!("ports: {regexes} regular expressions are more than {MAX_SERVICE_REGEXES}"));
    }
    let mut ports = BTreeMap::new();
    for (number, compiled) in each("ports", sent.ports, service_port)? {
        if ports.insert(number, compiled).is_some() {
            return Err(format!("ports: {number} is there twice"));
        }
    }
    Ok(Service {
        name: service_name(name)?,
        hosts: each("hosts", sent.hosts, |host| Ok(host.to_ascii_lowercase()))?,
        addresses: each("addresses", sent.addresses, |ip| {
            ip.parse().map_err(|_| format!(": {ip:?} is no IP address"))
        })?,
        ports,
        policy: Arc::new(
            traffic_policy(sent.traffic_policy.unwrap_or_default())
                .map_err(|reason| format!("traffic_policy.{reason}"))?,
        ),
        version: version.to_owned(),
    })
}

/// Counted before any is compiled: each may take much memory.
fn regexes(service: &proto::Service) -> usize {
    let is_regex = |value: &Option<proto::StringMatch>| {
        matches!(value.as_ref().and_then(|value| value.kind.as_ref()), Some(proto::string_match::Kind::Regex(_)))
    };
    let rules = service.ports.iter().flat_map(|port| &port.http_rules);
    let matches = rules.filter_map(|rule| rule.r#match.as_ref());
    matches
        .map(|matches| {
            let named = matches.headers.iter().chain(&matches.query).filter(|named| is_regex(&named.value));
            named.count() + usize::from(is_regex(&matches.path))
        })
        .sum()
}

fn service_port(sent: proto::ServicePort) -> Result<(u16, ServicePort), Reason> {
    let number = port(sent.port).at(|| "port".to_owned())?;
    let compiled = ServicePort {
        protocol: protocol(sent.protocol).at(|| "protocol".to_owned())?,
        http_rules: each("http_rules", sent.http_rules, |rule| http_rule(rule).map(Arc::new))?,
        tcp_backends: each("tcp_backends", sent.tcp_backends, backend)?,
        tcp_route: sent.tcp_route.into(),
    };
    Ok((number, compiled))
}

fn http_rule(sent: proto::HttpRule) -> Result<HttpRule, Reason> {
    let origin = format!("{} rule {}", sent.route, sent.rule);
    http_rule_unnamed(sent).map_err(|reason| format!("{reason} ({origin})"))
}

fn http_rule_unnamed(sent: proto::HttpRule) -> Result<HttpRule, Reason> {
    let matches = http_match(sent.r#match.unwrap_or_default()).map_err(|reason| format!("match.{reason}"))?;
    let prefix = matches!(matches.path, Some(PathMatch::Prefix(_)));
    Ok(HttpRule {
        route: sent.route.into(),
        rule: sent.rule.into(),
        hostnames: each("hostnames", sent.hostnames, |host| host_pattern(&host))?,
        matches,
        filters: each("filters", sent.filters, |sent| filter(sent, prefix))?,
        backends: each("backends", sent.backends, backend)?,
        request_timeout: millis(sent.request_timeout_ms),
        per_try_timeout: millis(sent.per_try_timeout_ms),
        retry: sent.retry.map(retry).transpose().map_err(|reason| format!("retry.{reason}"))?.map(Arc::new),
    })
}

fn host_pattern(text: &str) -> Result<HostPattern, Reason> {
    let lower = text.to_ascii_lowercase();
    let (suffix, labels) = match lower.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, lower.as_str()),
    };
    if !labels.split('.').all(is_label) {
        return Err(format!(": {text:?} is no host name"));
    }
    Ok(if suffix { HostPattern::Suffix(format!(".{labels}")) } else { HostPattern::Exact(lower) })
}

fn http_match(sent: proto::HttpMatch) -> Result<HttpMatch, Reason> {
    let path = match sent.path.and_then(|path| path.kind) {
        None => None,
        Some(proto::string_match::Kind::Exact(path)) => Some(PathMatch::Exact(absolute(path)?)),
        Some(proto::string_match::Kind::Prefix(path)) => {
            let path = absolute(path)?;
            Some(PathMatch::Prefix(path.trim_end_matches('/').to_owned()))
        }
        Some(proto::string_match::Kind::Regex(pattern)) => {
            Some(PathMatch::Regex(regex(&pattern).at(|| "path".to_owned())?))
        }
    };
    let method = match sent.method.as_str() {
        "" => None,
        method => Some(self::method(method)?),
    };
    Ok(HttpMatch {
        path,
        headers: each("headers", sent.headers, |sent| {
            Ok((header_name(&sent.name)?, value_match(sent.value.unwrap_or_default())?))
        })?,
        query: each("query", sent.query, |sent| Ok((sent.name, value_match(sent.value.unwrap_or_default())?)))?,
        method,
    })
}

fn absolute(path: String) -> Result<String, Reason> {
    if path.starts_with('/') { Ok(path) } else { Err(format!("path: {path:?} does not begin with a slash")) }
}

pub(super) fn method(text: &str) -> Result<Method, Reason> {
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("method: {text:?} is no method"))
}

fn value_match(sent: proto::StringMatch) -> Result<ValueMatch, Reason> {
    match sent.kind {
        Some(proto::string_match::Kind::Exact(value)) => Ok(ValueMatch::Exact(value)),
        Some(proto::string_match::Kind::Regex(pattern)) => {
            Ok(ValueMatch::Regex(regex(&pattern).at(|| "value".to_owned())?))
        }
        Some(proto::string_match::Kind::Prefix(_)) => Err("value: a prefix is for paths only".to_owned()),
        None => Err("value: is missing".to_owned()),
    }
}

fn header_name(text: &str) -> Result<HeaderName, Reason> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("name: {text:?} is no name of a header"))
}

fn header(sent: proto::Header) -> Result<(HeaderName, HeaderValue), Reason> {
    let value =
        HeaderValue::from_str(&sent.value).map_err(|_| format!("value: {:?} is no value of a header", sent.value))?;
    Ok((header_name(&sent.name)?, value))
}

fn header_modifier(sent: proto::HeaderModifier) -> Result<HeaderModifier, Reason> {
    Ok(HeaderModifier {
        set: each("set", sent.set, header)?,
        add: each("add", sent.add, header)?,
        remove: each("remove", sent.remove, |name| header_name(&name))?,
    })
}

fn filter(sent: proto::HttpFilter, prefix: bool) -> Result<Filter, Reason> {
    use proto::http_filter::Kind;
    match sent.kind {
        Some(Kind::RequestHeaders(modifier)) => Ok(Filter::RequestHeaders(header_modifier(modifier)?)),
        Some(Kind::ResponseHeaders(modifier)) => Ok(Filter::ResponseHeaders(header_modifier(modifier)?)),
        Some(Kind::Redirect(sent)) => redirect(sent, prefix).map(Filter::Redirect),
        Some(Kind::Rewrite(sent)) => Ok(Filter::Rewrite(Rewrite {
            hostname: match sent.hostname.as_str() {
                "" => None,
                name => Some(HeaderValue::from_str(host(name)?).map_err(|error| format!("hostname: {error}"))?),
            },
            path: path_modifier(sent.path, prefix)?,
        })),
        None => Err("kind: this proxy does not know the filter".to_owned()),
    }
}

fn host(text: &str) -> Result<&str, Reason> {
    if text.to_ascii_lowercase().split('.').all(is_label) {
        Ok(text)
    } else {
        Err(format!("hostname: {text:?} is no host name"))
    }
}

fn redirect(sent: proto::Redirect, prefix: bool) -> Result<Redirect, Reason> {
    let scheme = match sent.scheme.as_str() {
        "" => None,
        "http" | "https" => Some(sent.scheme),
        other => return Err(format!("scheme: {other:?} is neither http nor https")),
    };
    let hostname = match sent.hostname.as_str() {
        "" => None,
        name => Some(host(name)?.to_owned()),
    };
    if !matches!(sent.status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!("status: {} is no redirect", sent.status));
    }
    let number = match sent.port {
        0 => None,
        number => Some(port(number).at(|| "port".to_owned())?),
    };
    Ok(Redirect {
        scheme,
        hostname,
        port: number,
        path: path_modifier(sent.path, prefix)?,
        status: status(sent.status)?,
    })
}

fn path_modifier(sent: Option<proto::PathModifier>, prefix: bool) -> Result<Option<PathModifier>, Reason> {
    use proto::path_modifier::Kind;
    let checked = |path: String| {
        // What is sent on must be a path, without a query of its own.
        let right = path.is_empty() || path.starts_with('/');
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        if right && plain { Ok(path) } else { Err(format!("path: {path:?} is no path")) }
    };
    match sent.and_then(|sent| sent.kind) {
        None => Ok(None),
        Some(Kind::ReplaceFull(path)) => Ok(Some(PathModifier::Full(checked(absolute(path)?)?))),
        Some(Kind::ReplacePrefixMatch(_)) if !prefix => {
            Err("path: replace_prefix_match needs a match of a prefix".to_owned())
        }
        Some(Kind::ReplacePrefixMatch(path)) => Ok(Some(PathModifier::Prefix(checked(path)?))),
    }
}

fn backend(sent: proto::Backend) -> Result<Backend, Reason> {
    Ok(Backend {
        cluster: ClusterName {
            service: service_name(&sent.service).at(|| "service".to_owned())?,
            port: port(sent.port).at(|| "port".to_owned())?,
        },
        weight: sent.weight.min(1_000_000),
        filters: each("filters", sent.filters, |sent| filter(sent, false))?,
        invalid: (!sent.invalid.is_empty()).then(|| sent.invalid.into()),
    })
}

fn status(number: u32) -> Result<StatusCode, Reason> {
    u16::try_from(number)
        .ok()
        .and_then(|number| StatusCode::from_u16(number).ok())
        .ok_or_else(|| format!("status: {number} is no HTTP status"))
}

fn traffic_policy(sent: proto::TrafficPolicy) -> Result<TrafficPolicy, Reason> {
    let balancing = match proto::Balancing::try_from(sent.balancing) {
        Ok(proto::Balancing::Unspecified | proto::Balancing::PeakEwma) => Balancing::PeakEwma,
        Ok(proto::Balancing::RoundRobin) => Balancing::RoundRobin,
        Ok(proto::Balancing::Random) => Balancing::Random,
        Err(_) => return Err(format!("balancing: {} is unknown to this proxy", sent.balancing)),
    };
    let limits = sent.limits.unwrap_or_default();
    let or_1024 = |limit: u32| if limit == 0 { 1024 } else { limit };
    let outlier = sent.outlier_detection.unwrap_or_default();
    Ok(TrafficPolicy {
        balancing,
        request_timeout: millis(sent.request_timeout_ms),
        per_try_timeout: millis(sent.per_try_timeout_ms),
        connect_timeout: millis_or(sent.connect_timeout_ms, Duration::from_secs(2)),
        idle_timeout: millis_or(sent.idle_timeout_ms, Duration::from_secs(3600)),
        retry: Arc::new(retry(sent.retry.unwrap_or_default()).map_err(|reason| format!("retry.{reason}"))?),
        limits: Limits {
            max_connections: or_1024(limits.max_connections),
            max_requests: or_1024(limits.max_requests),
            max_pending: or_1024(limits.max_pending),
        },
        outlier: OutlierDetection {
            consecutive_failures: outlier.consecutive_failures,
            base_ejection: millis_or(outlier.base_ejection_ms, Duration::from_secs(10)),
            max_ejection: millis_or(outlier.max_ejection_ms, Duration::from_secs(300)),
            max_ejected_percent: outlier.max_ejected_percent.min(50),
        },
        source: if sent.source.is_empty() { "default".into() } else { sent.source.into() },
    })
}

fn retry(sent: proto::RetryPolicy) -> Result<RetryPolicy, Reason> {
    Ok(RetryPolicy {
        max_retries: sent.max_retries.min(10),
        statuses: each("statuses", sent.statuses, status)?,
        grpc_statuses: sent.grpc_statuses,
        on_connect_failure: sent.on_connect_failure,
        on_reset: sent.on_reset,
        on_refused_stream: sent.on_refused_stream,
        backoff_base: millis_or(sent.backoff_base_ms, Duration::from_millis(25)),
        backoff_max: millis_or(sent.backoff_max_ms, Duration::from_millis(250)),
        replay_bytes: usize::try_from(sent.replay_bytes.min(MAX_REPLAY)).unwrap_or(0),
        budget_percent: sent.budget_percent.min(100),
        budget_min_per_second: sent.budget_min_per_second,
        methods: each("methods", sent.methods, |text| method(&text))?,
    })
}
