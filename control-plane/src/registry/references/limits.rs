//! What a proxy can take of one service. A proxy refuses a resource beyond its limits as a whole, and keeps
//! the last good one: all routes and policies of the service would stand still. So it is refused here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use heddle_api::{
    limits::{MAX_PLACE_BYTES, MAX_PLACE_RULES, MAX_PORT_RULES, MAX_SERVICE_BYTES, MAX_SERVICE_REGEXES},
    problem::Fault,
    resource::{
        Action, AnyObject, HeaderMatch, HttpRouteMatch, MatchType, Name, ObjectKind, PathMatchType, QueryParamMatch,
    },
};
use serde::Serialize;

use super::{
    super::Change,
    OperationFault, View,
    conflicts::{parents, ports},
    inherited::{backends_of, too_many_inherited},
};

/// Routes that are named where there are too many rules.
const SHOWN: usize = 5;
/// What a rule takes besides what is written in it.
const RULE_BYTES: usize = 64;

/// What a route makes for one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Flat rules: one for each host name and match.
    pub(super) rules: usize,
    pub(super) regexes: usize,
    /// About.
    pub(super) bytes: usize,
}

/// Checks services that changed routes attach to or that changed themselves, the places of changed authorization
/// policies, and what services inherit by routes. Says whether anything is too large.
pub(super) fn check(view: &View, changes: &[(usize, Change)], faults: &mut Vec<OperationFault>) -> bool {
    let before = faults.len();
    // Each with the operations that are told.
    let mut services: BTreeMap<Name, BTreeSet<(usize, &str)>> = BTreeMap::new();
    let mut places: BTreeMap<Name, BTreeSet<usize>> = BTreeMap::new();
    let mut backends: BTreeMap<Name, BTreeSet<(usize, &str)>> = BTreeMap::new();
    for (operation, change) in changes {
        let Some(object) = &change.after else { continue };
        if let AnyObject::AuthorizationPolicy(policy) = object {
            let target = policy.spec.target_ref.as_ref().map_or("", |target| &target.name);
            let place = change.name.sibling(target);
            if policy.spec.action == Action::Deny {
                for backend in view.denied_through(&place) {
                    backends.entry(backend).or_default().insert((*operation, "spec.rules"));
                }
            }
            places.entry(place).or_default().insert(*operation);
        }
        for backend in backends_of(object) {
            backends.entry(backend).or_default().insert((*operation, "spec.rules"));
        }
        if change.kind == ObjectKind::Service {
            services.entry(change.name.clone()).or_default().insert((*operation, "spec.ports"));
            // Which rules come with a route is a matter of the ports at both of its ends.
            for backend in view.denied_through(&change.name) {
                backends.entry(backend).or_default().insert((*operation, "spec.ports"));
            }
        }
        for parent in parents(object).into_iter().flatten() {
            let service = change.name.sibling(&parent.name);
            services.entry(service).or_default().insert((*operation, "spec.rules"));
        }
    }
    for (service, operations) in services {
        if let Some(message) = too_large(view, &service) {
            faults.extend(
                operations
                    .into_iter()
                    .map(|(operation, path)| OperationFault { operation, fault: Fault::new(path, message.clone()) }),
            );
        }
    }
    for (place, operations) in places {
        if let Some(message) = too_many_policies(view, &place) {
            faults.extend(
                operations
                    .into_iter()
                    .map(|operation| OperationFault { operation, fault: Fault::new("spec.rules", message.clone()) }),
            );
        }
    }
    for (backend, operations) in backends {
        if let Some(message) = too_many_inherited(view, &backend) {
            faults.extend(
                operations
                    .into_iter()
                    .map(|(operation, path)| OperationFault { operation, fault: Fault::new(path, message.clone()) }),
            );
        }
    }
    faults.len() > before
}

/// What is too much of the routes of a service, if anything.
fn too_large(view: &View, service: &Name) -> Option<String> {
    let mut of_port: BTreeMap<u16, Vec<(String, usize)>> = BTreeMap::new();
    let (mut regexes, mut bytes) = (Vec::new(), Vec::new());
    for object in view.referrers(service) {
        let name = object.name();
        let attached = parents(object).into_iter().flatten().filter(|parent| name.sibling(&parent.name) == *service);
        let ports: BTreeSet<u16> = attached.flat_map(|parent| ports(view, &name, parent)).collect();
        if ports.is_empty() {
            continue;
        }
        let (weight, shown) = (weight(object), object.to_string());
        regexes.push((shown.clone(), weight.regexes * ports.len()));
        bytes.push((shown.clone(), weight.bytes * ports.len()));
        for port in ports {
            of_port.entry(port).or_default().push((shown.clone(), weight.rules));
        }
    }
    let sum = |parts: &[(String, usize)]| parts.iter().map(|(_, count)| count).sum::<usize>();
    for (port, rules) in of_port {
        let count = sum(&rules);
        if count > MAX_PORT_RULES {
            let of = list(rules);
            return Some(format!(
                "port {port} of service {service} would have {count} rules, one for each host name and match; at most \
                 {MAX_PORT_RULES} ({of})"
            ));
        }
    }
    let count = sum(&regexes);
    if count > MAX_SERVICE_REGEXES {
        let of = list(regexes);
        return Some(format!(
            "service {service} would have {count} regular expressions, each counted for each host name and port; at \
             most {MAX_SERVICE_REGEXES} ({of})"
        ));
    }
    let count = sum(&bytes);
    if count > MAX_SERVICE_BYTES {
        let of = list(bytes);
        return Some(format!(
            "the routes of service {service} would take {count} bytes, each rule counted for each host name, match and \
             port; at most {MAX_SERVICE_BYTES} ({of})"
        ));
    }
    None
}

/// What is too much of the policies at one place, if anything.
fn too_many_policies(view: &View, place: &Name) -> Option<String> {
    let policies: Vec<_> = view
        .referrers(place)
        .filter_map(|object| match object {
            AnyObject::AuthorizationPolicy(policy) => Some((object.to_string(), policy)),
            _ => None,
        })
        .collect();
    let at = if place.name.is_empty() { format!("namespace {}", place.namespace) } else { format!("service {place}") };
    let rules: usize = policies.iter().map(|(_, policy)| policy.spec.rules.len()).sum();
    if rules > MAX_PLACE_RULES {
        let of = list(policies.iter().map(|(shown, policy)| (shown.clone(), policy.spec.rules.len())).collect());
        return Some(format!("the policies of {at} would have {rules} rules; at most {MAX_PLACE_RULES} ({of})"));
    }
    let sizes: Vec<_> = policies.iter().map(|(shown, policy)| (shown.clone(), size(&policy.spec.rules))).collect();
    let bytes: usize = sizes.iter().map(|(_, size)| size).sum();
    if bytes > MAX_PLACE_BYTES {
        let of = list(sizes);
        return Some(format!("the policies of {at} would take {bytes} bytes; at most {MAX_PLACE_BYTES} ({of})"));
    }
    None
}

/// The largest parts of a sum: `HTTPRoute shop/a 4800, HTTPRoute shop/b 300`.
pub(super) fn list(mut parts: Vec<(String, usize)>) -> String {
    parts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let more = if parts.len() > SHOWN { ", ..." } else { "" };
    let shown: Vec<_> = parts.iter().take(SHOWN).map(|(object, count)| format!("{object} {count}")).collect();
    format!("{}{more}", shown.join(", "))
}

/// What a route makes for each port that it attaches to.
pub(super) fn weight(object: &AnyObject) -> Weight {
    let mut weight = Weight::default();
    match object {
        AnyObject::HttpRoute(route) => {
            let hosts = route.spec.hostnames.len().max(1);
            for rule in &route.spec.rules {
                let regexes = rule.matches.iter().map(http_regexes).sum();
                weight.add(
                    hosts,
                    rule.matches.len(),
                    regexes,
                    size(&rule.matches),
                    (&rule.filters, &rule.backend_refs),
                );
            }
        }
        AnyObject::GrpcRoute(route) => {
            let hosts = route.spec.hostnames.len().max(1);
            for rule in &route.spec.rules {
                let regexes = rule.matches.iter().map(|wanted| {
                    // A method alone is found by an expression, too.
                    let by_path = wanted.method.as_ref().is_some_and(|method| {
                        method.r#type == MatchType::RegularExpression || method.service.is_none()
                    });
                    usize::from(by_path) + header_regexes(&wanted.headers)
                });
                let regexes = regexes.sum();
                weight.add(
                    hosts,
                    rule.matches.len(),
                    regexes,
                    size(&rule.matches),
                    (&rule.filters, &rule.backend_refs),
                );
            }
        }
        AnyObject::TcpRoute(route) => weight.bytes = size(&route.spec.rules),
        _ => {}
    }
    weight
}

impl Weight {
    fn add(&mut self, hosts: usize, matches: usize, regexes: usize, matched: usize, same: impl Serialize) {
        let rules = hosts * matches.max(1);
        self.rules += rules;
        self.regexes += hosts * regexes;
        self.bytes += hosts * matched + rules * (size(same) + RULE_BYTES);
    }
}

fn http_regexes(wanted: &HttpRouteMatch) -> usize {
    let is_regex = |param: &&QueryParamMatch| param.r#type == MatchType::RegularExpression;
    let path = wanted.path.as_ref().is_some_and(|path| path.r#type == PathMatchType::RegularExpression);
    usize::from(path) + header_regexes(&wanted.headers) + wanted.query_params.iter().filter(is_regex).count()
}

fn header_regexes(headers: &[HeaderMatch]) -> usize {
    headers.iter().filter(|header| header.r#type == MatchType::RegularExpression).count()
}

/// How long a value is as JSON, which is longer than it will be for proxies.
pub(super) fn size(value: impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail; what is no JSON could not have been stored.
    let _ = serde_json::to_writer(&mut count, &value);
    count.0
}
