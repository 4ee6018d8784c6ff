//! DENY rules that come with a route. What a route sends from one service to another arrives under the other's
//! name; what the first one's policies deny is denied there too, or a route would make them void.
//!
//! Only denials come along: whom the second service lets in is for its own policies to say. A denial holds for
//! all callers of the second service, since nothing that can be relied upon tells whether a call came by the
//! route. Ports are translated to the backend's, and paths follow a rewrite of the route.

mod paths;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_api::resource::{
    Action, AuthorizationPolicySpec, BackendRef, GrpcRouteSpec, HttpRouteFilterType, HttpRouteSpec, Name, Object,
    ObjectKind, OperationSpec, ParentRef, PathModifierSpec, PortProtocol, RuleSpec, ServiceSpec, TcpRouteSpec,
};

use super::routes::{attaches, port_of};
use crate::mesh::Scope;

/// Where objects are looked up.
pub(crate) trait Objects {
    /// A service.
    fn service(&self, name: &Name) -> Option<&Object<ServiceSpec>>;
    /// Routes that lead to a service.
    fn routes_to(&self, backend: &Name) -> Vec<Route<'_>>;
    /// Authorization policies attached exactly here.
    fn policies(&self, scope: &Scope) -> Vec<&Object<AuthorizationPolicySpec>>;
}

/// A route of any kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route<'a> {
    Http(&'a Object<HttpRouteSpec>),
    Grpc(&'a Object<GrpcRouteSpec>),
    Tcp(&'a Object<TcpRouteSpec>),
}

/// A DENY rule that holds for a service because routes lead there.
#[derive(Debug)]
pub(crate) struct Inherited<'a> {
    pub(crate) policy: &'a Object<AuthorizationPolicySpec>,
    pub(crate) rule: &'a RuleSpec,
    /// Its index in the policy.
    pub(crate) index: usize,
    /// What it denies there; never empty.
    pub(crate) operations: Vec<OperationSpec>,
    /// From which services.
    pub(crate) parents: BTreeSet<Name>,
    /// By which routes.
    pub(crate) routes: BTreeSet<(ObjectKind, Name)>,
}

/// Inherited rules, by policy and index.
pub(crate) type Found<'a> = BTreeMap<(Name, usize), Inherited<'a>>;

/// All that a service inherits, by policy and rule.
pub(crate) fn of<'a>(objects: &'a impl Objects, backend: &Name) -> Found<'a> {
    let mut found = Found::new();
    for route in objects.routes_to(backend) {
        by_route(objects, route, backend, &mut found);
    }
    found
}

/// Adds what a service inherits by one route.
pub(crate) fn by_route<'a>(objects: &'a impl Objects, route: Route<'a>, backend: &Name, found: &mut Found<'a>) {
    let name = route.name();
    let Some(service) = objects.service(backend) else { return };
    let parents: BTreeSet<Name> = route.parents().iter().map(|parent| name.sibling(&parent.name)).collect();
    for parent in parents {
        let ports = route.parent_ports(objects, &parent);
        let policies: Vec<_> = scopes(&parent)
            .into_iter()
            .flat_map(|scope| {
                let holds_anyway = scopes(backend).contains(&scope);
                objects.policies(&scope).into_iter().map(move |policy| (policy, holds_anyway))
            })
            .filter(|(policy, _)| policy.spec.action == Action::Deny)
            .collect();
        if ports.is_empty() || policies.is_empty() {
            continue;
        }
        for way in route.ways(backend) {
            let Ok(port) = port_of(service, backend, way.port) else { continue };
            for (policy, holds_anyway) in &policies {
                for (index, rule) in policy.spec.rules.iter().enumerate() {
                    let operations = translate(rule, &ports, port, &way, *holds_anyway);
                    if operations.is_empty() {
                        continue;
                    }
                    let entry = found.entry((Name::of(&policy.metadata), index)).or_insert_with(|| Inherited {
                        policy,
                        rule,
                        index,
                        operations: Vec::new(),
                        parents: BTreeSet::new(),
                        routes: BTreeSet::new(),
                    });
                    operations.into_iter().for_each(|operation| entry.add(operation));
                    entry.parents.insert(parent.clone());
                    entry.routes.insert((route.kind(), name.clone()));
                }
            }
        }
    }
}

/// Where policies are attached that hold for a service.
pub(crate) fn scopes(service: &Name) -> [Scope; 3] {
    [Scope::Mesh, Scope::Namespace(Arc::clone(&service.namespace)), Scope::Service(service.clone())]
}

/// One way by which requests come from a route to a backend.
struct Way<'a> {
    /// The backend's port, if the route names one.
    port: Option<u16>,
    /// How the path changes, with what the rule matches of paths.
    rewrite: Option<(&'a PathModifierSpec, Vec<paths::Matched<'a>>)>,
    /// Opaque connections come by it.
    opaque: bool,
}

/// What a rule of a parent denies at a port of the backend. Of what holds there anyway, only what would
/// otherwise be missed.
fn translate(
    rule: &RuleSpec,
    parent_ports: &[u16],
    port: u16,
    way: &Way<'_>,
    holds_anyway: bool,
) -> Vec<OperationSpec> {
    if rule.to.is_empty() {
        let all = OperationSpec { ports: vec![port], ..OperationSpec::default() };
        return if holds_anyway { Vec::new() } else { vec![all] };
    }
    let mut operations = Vec::new();
    for operation in &rule.to {
        if !operation.ports.is_empty() && !operation.ports.iter().any(|port| parent_ports.contains(port)) {
            continue;
        }
        let (mut methods, mut paths) = (operation.methods.clone(), operation.paths.clone());
        if way.opaque {
            // What is denied might be in these bytes; and a rule for requests would let nobody's through.
            (methods, paths) = (Vec::new(), Vec::new());
        } else if let Some((modifier, matched)) = &way.rewrite {
            let rewritten = operation.paths.iter().flat_map(|path| paths::rewritten(path, modifier, matched));
            paths.extend(rewritten);
            paths.sort_unstable();
            paths.dedup();
        }
        let same_port = operation.ports.is_empty() || operation.ports.contains(&port);
        if holds_anyway && same_port && (paths.len(), methods.len()) == (operation.paths.len(), operation.methods.len())
        {
            continue;
        }
        operations.push(OperationSpec { ports: vec![port], methods, paths });
    }
    operations
}

impl Inherited<'_> {
    fn add(&mut self, operation: OperationSpec) {
        let same = |known: &&mut OperationSpec| known.methods == operation.methods && known.paths == operation.paths;
        match self.operations.iter_mut().find(same) {
            Some(known) => {
                known.ports.extend(operation.ports);
                known.ports.sort_unstable();
                known.ports.dedup();
            }
            None => self.operations.push(operation),
        }
    }
}

impl<'a> Route<'a> {
    fn kind(self) -> ObjectKind {
        match self {
            Self::Http(_) => ObjectKind::HttpRoute,
            Self::Grpc(_) => ObjectKind::GrpcRoute,
            Self::Tcp(_) => ObjectKind::TcpRoute,
        }
    }

    fn name(self) -> Name {
        Name::of(match self {
            Self::Http(route) => &route.metadata,
            Self::Grpc(route) => &route.metadata,
            Self::Tcp(route) => &route.metadata,
        })
    }

    fn parents(self) -> &'a [ParentRef] {
        match self {
            Self::Http(route) => &route.spec.parent_refs,
            Self::Grpc(route) => &route.spec.parent_refs,
            Self::Tcp(route) => &route.spec.parent_refs,
        }
    }

    /// All of its references to backends.
    pub(crate) fn backends(self) -> Vec<&'a BackendRef> {
        match self {
            Self::Http(route) => route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect(),
            Self::Grpc(route) => route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect(),
            Self::Tcp(route) => route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect(),
        }
    }

    /// The ports of a parent whose callers follow this route.
    fn parent_ports(self, objects: &impl Objects, parent: &Name) -> Vec<u16> {
        let Some(service) = objects.service(parent) else { return Vec::new() };
        let follows = |protocol: Option<PortProtocol>| match self {
            Self::Http(_) | Self::Grpc(_) => protocol != Some(PortProtocol::Tcp),
            Self::Tcp(_) => matches!(protocol, None | Some(PortProtocol::Tcp)),
        };
        let ports = service.spec.ports.iter().filter(|port| follows(port.protocol)).map(|port| port.port);
        ports.filter(|port| attaches(self.parents(), parent, *port)).collect()
    }

    /// The ways to a backend.
    fn ways(self, backend: &Name) -> Vec<Way<'a>> {
        let own = self.name();
        let leads_there =
            move |reference: &&BackendRef| own.relative(reference.namespace.as_deref(), &reference.name) == *backend;
        let plain =
            |reference: &BackendRef| Way { port: reference.port, rewrite: None, opaque: matches!(self, Self::Tcp(_)) };
        match self {
            Self::Http(route) => {
                let of_rule = |rule: &'a heddle_api::resource::HttpRouteRule| {
                    let rewrite = rule.filters.iter().filter(|filter| filter.r#type == HttpRouteFilterType::UrlRewrite);
                    let modifier = rewrite.filter_map(|filter| filter.url_rewrite.as_ref()?.path.as_ref()).next();
                    let there = rule.backend_refs.iter().filter(leads_there.clone());
                    there.map(move |reference| Way {
                        port: reference.port,
                        rewrite: modifier.map(|modifier| (modifier, paths::matched(&rule.matches))),
                        opaque: false,
                    })
                };
                route.spec.rules.iter().flat_map(of_rule).collect()
            }
            Self::Grpc(_) | Self::Tcp(_) => self.backends().into_iter().filter(leads_there).map(plain).collect(),
        }
    }
}
