//! Routes, flattened to one match each and sorted by the Gateway API's precedence.
//!
//! Of rules that match a request the first decides: the more specific host name; an exact path, then
//! the longest prefix, then a regular expression, then any path (which `/` as a prefix is, or it
//! would hide every expression); a method; more headers; more query parameters; the older route; the
//! route's name; the order within the route. gRPC methods are paths, so that both kinds of route sort
//! as one.

use std::cmp::Reverse;

use heddle_api::{
    proto::discovery::{self as proto, string_match::Kind},
    resource::{
        BackendRef, GrpcMethodMatch, GrpcRouteSpec, HeaderMatch, HttpRouteFilter, HttpRouteMatch, HttpRouteSpec,
        MatchType, Object, ParentRef, PathMatch, PathMatchType, QueryParamMatch, RouteRetry, RouteTimeouts,
        ServiceSpec,
    },
};
use jiff::Timestamp;

use super::{age, filters, oldest_first, traffic};
use crate::mesh::Mesh;
use heddle_api::resource::Name;

/// What callers of a port follow, in order of precedence.
pub(super) fn http_rules(mesh: &Mesh, service: &Name, port: u16) -> Vec<proto::HttpRule> {
    let mut rules = Vec::new();
    for route in mesh.http_routes(service) {
        if attaches(&route.spec.parent_refs, service, port) {
            add_http_route(mesh, route, &mut rules);
        }
    }
    for route in mesh.grpc_routes(service) {
        if attaches(&route.spec.parent_refs, service, port) {
            add_grpc_route(mesh, route, &mut rules);
        }
    }
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

/// Where opaque connections to a port go: the route, and its backends. Of several routes the oldest
/// counts.
pub(super) fn tcp_backends(mesh: &Mesh, service: &Name, port: u16) -> Option<(String, Vec<proto::Backend>)> {
    let routes =
        oldest_first(mesh.tcp_routes(service).filter(|route| attaches(&route.spec.parent_refs, service, port)));
    let route = routes.first()?;
    let name = Name::of(&route.metadata);
    let backends = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
    Some((format!("TCPRoute {name}"), backends.map(|reference| backend(mesh, &name, reference)).collect()))
}

/// Sorts before what it precedes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    host: (HostRank, Reverse<usize>),
    path: (PathRank, Reverse<usize>),
    no_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    age: Timestamp,
    route: Name,
    kind: &'static str,
    rule: usize,
    number: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostRank {
    Exact,
    Suffix,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix,
    Regex,
    Any,
}

fn host_rank(hostname: &str) -> (HostRank, Reverse<usize>) {
    let rank = match hostname {
        "" => HostRank::Any,
        name if name.starts_with("*.") => HostRank::Suffix,
        _ => HostRank::Exact,
    };
    (rank, Reverse(hostname.len()))
}

fn path_rank(path: Option<&proto::StringMatch>) -> (PathRank, Reverse<usize>) {
    match path.and_then(|path| path.kind.as_ref()) {
        None => (PathRank::Any, Reverse(0)),
        Some(Kind::Prefix(prefix)) if prefix == "/" => (PathRank::Any, Reverse(0)),
        Some(Kind::Exact(path)) => (PathRank::Exact, Reverse(path.len())),
        Some(Kind::Prefix(prefix)) => (PathRank::Prefix, Reverse(prefix.len())),
        // The length of an expression says nothing of how specific it is.
        Some(Kind::Regex(_)) => (PathRank::Regex, Reverse(0)),
    }
}

/// Whether a route's parents name this port of this service (whose namespace is the route's).
pub(super) fn attaches(parents: &[ParentRef], service: &Name, port: u16) -> bool {
    parents.iter().any(|parent| *parent.name == *service.name && parent.port.is_none_or(|named| named == port))
}

type Ranked = (Precedence, proto::HttpRule);

fn add_http_route(mesh: &Mesh, route: &Object<HttpRouteSpec>, into: &mut Vec<Ranked>) {
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let flat = Rule {
            mesh,
            kind: "HTTPRoute",
            route: Name::of(&route.metadata),
            age: age(&route.metadata),
            index,
            hostnames: &route.spec.hostnames,
            name: rule.name.as_deref(),
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: rule.timeouts.as_ref(),
            retry: rule.retry.as_ref(),
        };
        flat.add(rule.matches.iter().map(http_match).collect(), into);
    }
}

fn add_grpc_route(mesh: &Mesh, route: &Object<GrpcRouteSpec>, into: &mut Vec<Ranked>) {
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let flat = Rule {
            mesh,
            kind: "GRPCRoute",
            route: Name::of(&route.metadata),
            age: age(&route.metadata),
            index,
            hostnames: &route.spec.hostnames,
            name: rule.name.as_deref(),
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: rule.timeouts.as_ref(),
            retry: rule.retry.as_ref(),
        };
        let matches = rule.matches.iter().map(|wanted| proto::HttpMatch {
            path: wanted.method.as_ref().and_then(grpc_path),
            headers: wanted.headers.iter().map(header_match).collect(),
            ..proto::HttpMatch::default()
        });
        flat.add(matches.collect(), into);
    }
}

/// One rule of a route of either kind.
struct Rule<'a> {
    mesh: &'a Mesh,
    kind: &'static str,
    route: Name,
    age: Timestamp,
    index: usize,
    hostnames: &'a [String],
    name: Option<&'a str>,
    filters: &'a [HttpRouteFilter],
    backends: &'a [BackendRef],
    timeouts: Option<&'a RouteTimeouts>,
    retry: Option<&'a RouteRetry>,
}

impl Rule<'_> {
    /// One flat rule for each host name and match.
    fn add(&self, mut matches: Vec<proto::HttpMatch>, into: &mut Vec<Ranked>) {
        if matches.is_empty() {
            matches.push(proto::HttpMatch::default());
        }
        let compiled = self.compile();
        let any = [String::new()];
        let hostnames = if self.hostnames.is_empty() { &any[..] } else { self.hostnames };
        for hostname in hostnames {
            let hostname = hostname.to_ascii_lowercase();
            for (number, wanted) in matches.iter().enumerate() {
                let precedence = Precedence {
                    host: host_rank(&hostname),
                    path: path_rank(wanted.path.as_ref()),
                    no_method: wanted.method.is_empty(),
                    headers: Reverse(wanted.headers.len()),
                    query: Reverse(wanted.query.len()),
                    age: self.age,
                    route: self.route.clone(),
                    kind: self.kind,
                    rule: self.index,
                    number,
                };
                let rule = proto::HttpRule {
                    hostnames: if hostname.is_empty() { Vec::new() } else { vec![hostname.clone()] },
                    r#match: Some(wanted.clone()),
                    ..compiled.clone()
                };
                into.push((precedence, rule));
            }
        }
    }

    fn compile(&self) -> proto::HttpRule {
        let backends = self.backends.iter().map(|reference| backend(self.mesh, &self.route, reference));
        proto::HttpRule {
            route: format!("{} {}", self.kind, self.route),
            rule: self.name.map_or_else(|| self.index.to_string(), str::to_owned),
            filters: self.filters.iter().filter_map(filters::compile).collect(),
            backends: backends.collect(),
            request_timeout_ms: traffic::millis(self.timeouts.and_then(|timeouts| timeouts.request)),
            per_try_timeout_ms: traffic::millis(self.timeouts.and_then(|timeouts| timeouts.backend_request)),
            retry: self.retry.map(traffic::route_retry),
            ..proto::HttpRule::default()
        }
    }
}

fn backend(mesh: &Mesh, route: &Name, reference: &BackendRef) -> proto::Backend {
    let service = route.relative(reference.namespace.as_deref(), &reference.name);
    let (port, invalid) = match backend_port(mesh, &service, reference.port) {
        Ok(port) => (port, String::new()),
        Err(why) => (reference.port.unwrap_or_default(), why),
    };
    proto::Backend {
        service: service.to_string(),
        port: port.into(),
        weight: reference.weight.unwrap_or(1),
        filters: reference.filters.iter().filter_map(filters::compile).collect(),
        invalid,
    }
}

fn backend_port(mesh: &Mesh, service: &Name, port: Option<u16>) -> Result<u16, String> {
    match mesh.service(service) {
        Some(object) => port_of(object, service, port),
        None => Err(format!("service {service} does not exist")),
    }
}

/// The port of a backend that a route means, or why none.
pub(super) fn port_of(object: &Object<ServiceSpec>, service: &Name, port: Option<u16>) -> Result<u16, String> {
    match (port, object.spec.ports.as_slice()) {
        (Some(port), ports) if ports.iter().any(|candidate| candidate.port == port) => Ok(port),
        (Some(port), _) => Err(format!("service {service} has no port {port}")),
        (None, [only]) => Ok(only.port),
        (None, _) => Err(format!("service {service} has several ports and the route names none")),
    }
}

fn http_match(wanted: &HttpRouteMatch) -> proto::HttpMatch {
    proto::HttpMatch {
        path: wanted.path.as_ref().map(path_match),
        headers: wanted.headers.iter().map(header_match).collect(),
        query: wanted.query_params.iter().map(query_match).collect(),
        method: wanted.method.clone().unwrap_or_default(),
    }
}

fn path_match(path: &PathMatch) -> proto::StringMatch {
    let value = path.value.clone();
    string_match(match path.r#type {
        PathMatchType::Exact => Kind::Exact(value),
        PathMatchType::PathPrefix => Kind::Prefix(value),
        PathMatchType::RegularExpression => Kind::Regex(value),
    })
}

fn header_match(header: &HeaderMatch) -> proto::NamedMatch {
    named_match(header.name.to_ascii_lowercase(), header.r#type, &header.value)
}

fn query_match(parameter: &QueryParamMatch) -> proto::NamedMatch {
    named_match(parameter.name.clone(), parameter.r#type, &parameter.value)
}

fn named_match(name: String, r#type: MatchType, value: &str) -> proto::NamedMatch {
    let value = match r#type {
        MatchType::Exact => Kind::Exact(value.to_owned()),
        MatchType::RegularExpression => Kind::Regex(value.to_owned()),
    };
    proto::NamedMatch { name, value: Some(string_match(value)) }
}

/// A gRPC method as the path of its request.
fn grpc_path(method: &GrpcMethodMatch) -> Option<proto::StringMatch> {
    let (service, name) = (method.service.as_deref(), method.method.as_deref());
    Some(string_match(match (method.r#type, service, name) {
        (_, None, None) => return None,
        (MatchType::Exact, Some(service), Some(name)) => Kind::Exact(format!("/{service}/{name}")),
        (MatchType::Exact, Some(service), None) => Kind::Prefix(format!("/{service}")),
        (MatchType::Exact, None, Some(name)) => Kind::Regex(format!("/[^/]+/{}", regex::escape(name))),
        (MatchType::RegularExpression, service, name) => {
            Kind::Regex(format!("/(?:{})/(?:{})", service.unwrap_or("[^/]+"), name.unwrap_or("[^/]+")))
        }
    }))
}

fn string_match(kind: Kind) -> proto::StringMatch {
    proto::StringMatch { kind: Some(kind) }
}
