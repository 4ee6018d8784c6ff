//! Rules that match exactly the same requests at the same place: one of them would never decide.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use heddle_api::{
    problem::Fault,
    resource::{
        AnyObject, GrpcRouteMatch, GrpcRouteRule, HeaderMatch, HttpRouteMatch, HttpRouteRule, MatchType, Name,
        ParentRef, PathMatchType,
    },
};

use super::{super::Change, OperationFault, View};

/// Where a rule applies, and to what.
#[derive(PartialEq, Eq, Hash)]
struct Place<'a> {
    service: Name,
    port: u16,
    hostname: &'a str,
    wanted: Wanted,
}

/// What a rule matches, written in one way only.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Wanted {
    Request(Arc<Request>),
    Connection,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Request {
    path: (u8, String),
    method: String,
    headers: Vec<(String, bool, String)>,
    query: Vec<(String, bool, String)>,
}

/// Which rule it was.
struct Origin<'a> {
    object: &'a AnyObject,
    path: String,
}

/// Checks the routes of all services to which changed routes attach.
pub(super) fn check(view: &View, changes: &[(usize, Change)], faults: &mut Vec<OperationFault>) {
    let mut services = BTreeSet::new();
    let mut operations = HashMap::new();
    for (operation, change) in changes {
        if let Some(object) = &change.after
            && let Some(parents) = parents(object)
        {
            services.extend(parents.iter().map(|parent| change.name.sibling(&parent.name)));
            operations.insert((change.kind, change.name.clone()), *operation);
        }
    }
    if services.is_empty() {
        return;
    }
    let mut seen: HashMap<Place<'_>, Origin<'_>> = HashMap::new();
    // What was there comes first, so that a fault is told where the change is.
    let (mut unchanged, mut changed) = (Vec::new(), Vec::new());
    let routes: BTreeMap<_, _> = (services.iter())
        .flat_map(|service| view.referrers(service))
        .filter(|object| parents(object).is_some())
        .map(|object| ((object.kind(), object.name()), object))
        .collect();
    for (key, object) in &routes {
        match operations.get(key) {
            Some(operation) => changed.push((Some(*operation), *object)),
            None => unchanged.push((None, *object)),
        }
    }
    for (operation, object) in unchanged.into_iter().chain(changed) {
        let name = object.name();
        let attached = parents(object).into_iter().flatten();
        let mut told = HashSet::new();
        for parent in attached.filter(|parent| services.contains(&name.sibling(&parent.name))) {
            for (path, hostname, wanted) in rules(object) {
                for port in ports(view, &name, parent) {
                    let service = name.sibling(&parent.name);
                    match seen.entry(Place { service, port, hostname, wanted: wanted.clone() }) {
                        Entry::Vacant(place) => {
                            place.insert(Origin { object, path: path.clone() });
                        }
                        Entry::Occupied(first) => {
                            let Some(operation) = operation else { continue };
                            if told.insert(path.clone()) {
                                let message = message(first.key(), first.get(), object);
                                faults.push(OperationFault { operation, fault: Fault::new(&*path, message) });
                            }
                        }
                    }
                }
            }
        }
    }
}

fn message(place: &Place<'_>, first: &Origin<'_>, object: &AnyObject) -> String {
    let other = if std::ptr::eq(first.object, object) {
        first.path.clone()
    } else {
        format!("{} of {}", first.path, first.object)
    };
    let host = if place.hostname.is_empty() { String::new() } else { format!(" for host {:?}", place.hostname) };
    let what = if place.wanted == Wanted::Connection { "takes all connections" } else { "matches the same" };
    format!("never decides: {other} {what} on port {} of service {}{host}", place.port, place.service)
}

pub(super) fn parents(object: &AnyObject) -> Option<&[ParentRef]> {
    match object {
        AnyObject::HttpRoute(object) => Some(&object.spec.parent_refs),
        AnyObject::GrpcRoute(object) => Some(&object.spec.parent_refs),
        AnyObject::TcpRoute(object) => Some(&object.spec.parent_refs),
        _ => None,
    }
}

/// The ports to which a parent attaches a route.
pub(super) fn ports(view: &View, route: &Name, parent: &ParentRef) -> Vec<u16> {
    match (parent.port, view.service(&route.sibling(&parent.name))) {
        (Some(port), _) => vec![port],
        (None, Some(service)) => service.spec.ports.iter().map(|port| port.port).collect(),
        (None, None) => Vec::new(),
    }
}

/// Each match of a route for each of its host names, with its path in the document.
fn rules(object: &AnyObject) -> Vec<(String, &str, Wanted)> {
    let (hostnames, matches) = match object {
        AnyObject::HttpRoute(object) => (&object.spec.hostnames[..], http_matches(&object.spec.rules)),
        AnyObject::GrpcRoute(object) => (&object.spec.hostnames[..], grpc_matches(&object.spec.rules)),
        AnyObject::TcpRoute(_) => (&[][..], vec![("spec.rules[0]".to_owned(), Wanted::Connection)]),
        _ => return Vec::new(),
    };
    let hostnames: Vec<&str> =
        if hostnames.is_empty() { vec![""] } else { hostnames.iter().map(String::as_str).collect() };
    let each = |(path, wanted): (String, Wanted)| {
        hostnames.iter().map(move |hostname| (path.clone(), *hostname, wanted.clone())).collect::<Vec<_>>()
    };
    matches.into_iter().flat_map(each).collect()
}

fn http_matches(rules: &[HttpRouteRule]) -> Vec<(String, Wanted)> {
    each_match(rules.iter().map(|rule| rule.matches.iter().map(http_request).collect()))
}

fn grpc_matches(rules: &[GrpcRouteRule]) -> Vec<(String, Wanted)> {
    each_match(rules.iter().map(|rule| rule.matches.iter().map(grpc_request).collect()))
}

fn each_match(rules: impl Iterator<Item = Vec<Request>>) -> Vec<(String, Wanted)> {
    let mut all = Vec::new();
    for (index, matches) in rules.enumerate() {
        if matches.is_empty() {
            all.push((format!("spec.rules[{index}]"), Wanted::Request(Arc::new(any()))));
        }
        for (number, wanted) in matches.into_iter().enumerate() {
            all.push((format!("spec.rules[{index}].matches[{number}]"), Wanted::Request(Arc::new(wanted))));
        }
    }
    all
}

fn any() -> Request {
    http_request(&HttpRouteMatch::default())
}

fn http_request(wanted: &HttpRouteMatch) -> Request {
    // No path is the prefix `/`; the slash at the end of a prefix says nothing.
    let path = wanted.path.as_ref().map_or((0, String::new()), |path| match path.r#type {
        PathMatchType::PathPrefix => (0, path.value.trim_end_matches('/').to_owned()),
        PathMatchType::Exact => (1, path.value.clone()),
        PathMatchType::RegularExpression => (2, path.value.clone()),
    });
    let query = wanted.query_params.iter();
    let query = query.map(|param| (param.name.clone(), param.r#type == MatchType::Exact, param.value.clone()));
    Request {
        path,
        method: wanted.method.clone().unwrap_or_default(),
        headers: headers(&wanted.headers),
        query: sorted(query.collect()),
    }
}

fn grpc_request(wanted: &GrpcRouteMatch) -> Request {
    let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "*".to_owned());
    let path = wanted.method.as_ref().map_or((0, String::new()), |method| match (method.r#type, &method.method) {
        (MatchType::Exact, None) => (0, format!("/{}", part(&method.service))),
        (MatchType::Exact, Some(_)) if method.service.is_some() => {
            (1, format!("/{}/{}", part(&method.service), part(&method.method)))
        }
        (MatchType::Exact, Some(_)) => (3, part(&method.method)),
        (MatchType::RegularExpression, _) => (4, format!("/{}/{}", part(&method.service), part(&method.method))),
    });
    Request { path, method: String::new(), headers: headers(&wanted.headers), query: Vec::new() }
}

fn headers(headers: &[HeaderMatch]) -> Vec<(String, bool, String)> {
    let plain = |header: &HeaderMatch| {
        (header.name.to_ascii_lowercase(), header.r#type == MatchType::Exact, header.value.clone())
    };
    sorted(headers.iter().map(plain).collect())
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}
