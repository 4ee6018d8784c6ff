//! What the compiler reads: every object of the mesh by name, and who refers to whom.
//!
//! Pure and single-threaded. The registry's changes and the registrations of workloads go in through
//! [`Mesh::put`], [`Mesh::remove`], [`Mesh::register`] and [`Mesh::deregister`]; each of them answers
//! with what is [`Affected`], so that only that needs to be compiled again.

mod affected;
pub mod derived;
mod index;
mod resolve;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_api::resource::{
    AnyObject, AuthorizationPolicySpec, DefaultAction, GrpcRouteSpec, HttpRouteSpec, MeshConfigSpec, Name, Object,
    ObjectKind, ServiceSpec, TargetRef, TcpRouteSpec, TrafficPolicySpec, WorkloadSpec,
};
use heddle_certs::{SpiffeId, TrustDomain};

pub use self::{
    affected::{Affected, Hosts, Scope},
    resolve::{MAX_ALIAS, parse_alias},
};
use self::{
    derived::{Derived, Pod},
    index::Multimap,
};
use crate::compile::inherited::{self, Objects, Route};

/// The namespace whose policies without a target hold for the whole mesh.
pub const MESH_NAMESPACE: &str = "heddle";

/// A workload that its own proxy registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Instance name in the namespace of its identity.
    pub name: Name,
    /// Who it is: verified when it registered.
    pub identity: SpiffeId,
    /// Its inbound listener.
    pub address: SocketAddr,
    /// What it serves; no ports: all of them.
    pub services: Vec<(Name, Vec<u16>)>,
    /// Service port to the app's own, where that is not the service's target port.
    pub app_ports: BTreeMap<Name, BTreeMap<u16, u16>>,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// Whether it takes traffic.
    pub ready: bool,
}

/// A route of any kind, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct RouteName {
    kind: ObjectKind,
    name: Name,
}

/// Every object of the mesh, with indices.
#[derive(Debug)]
pub struct Mesh {
    trust_domain: TrustDomain,
    config: Option<Arc<Object<MeshConfigSpec>>>,
    /// Namespaces that have objects, and how many.
    namespaces: BTreeMap<Arc<str>, usize>,
    services: HashMap<Name, Arc<Object<ServiceSpec>>>,
    workloads: HashMap<Name, Arc<Object<WorkloadSpec>>>,
    registered: HashMap<Name, Arc<Registered>>,
    /// Kubernetes Services, those that a declared one hides among them.
    derived: HashMap<Name, Arc<Derived>>,
    /// Pods with a proxy.
    pods: HashMap<Name, Arc<Pod>>,
    /// Of these, the ones whose proxy has said that it leaves.
    leaving: BTreeSet<Name>,
    /// Of the cluster's DNS names; absent: there is no cluster.
    cluster_domain: Option<Arc<str>>,
    http_routes: HashMap<Name, Arc<Object<HttpRouteSpec>>>,
    grpc_routes: HashMap<Name, Arc<Object<GrpcRouteSpec>>>,
    tcp_routes: HashMap<Name, Arc<Object<TcpRouteSpec>>>,
    traffic: HashMap<Name, Arc<Object<TrafficPolicySpec>>>,
    authorization: HashMap<Name, Arc<Object<AuthorizationPolicySpec>>>,
    /// Extra host name -> services that claim it.
    extra_hosts: Multimap<Arc<str>, Name>,
    /// Virtual address -> services that claim it.
    addresses: Multimap<IpAddr, Name>,
    /// Address -> declared workloads there.
    workloads_at: Multimap<IpAddr, Name>,
    /// Address -> registered workloads there.
    registered_at: Multimap<IpAddr, Name>,
    /// Address -> Kubernetes Services with an endpoint there.
    instances_at: Multimap<IpAddr, Name>,
    /// Service -> declared workloads that serve it.
    workloads_of: Multimap<Name, Name>,
    /// Service -> registered workloads that serve it.
    registered_of: Multimap<Name, Name>,
    /// Service -> routes that its callers follow.
    routes_of: Multimap<Name, RouteName>,
    /// Service -> routes that send requests to it.
    routes_to: Multimap<Name, RouteName>,
    /// Namespace -> its routes that send requests to services of others.
    routes_abroad: Multimap<Arc<str>, RouteName>,
    traffic_of: Multimap<Scope, Name>,
    authorization_of: Multimap<Scope, Name>,
}

impl Mesh {
    /// A mesh without objects.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            config: None,
            namespaces: BTreeMap::new(),
            services: HashMap::new(),
            workloads: HashMap::new(),
            registered: HashMap::new(),
            derived: HashMap::new(),
            pods: HashMap::new(),
            leaving: BTreeSet::new(),
            cluster_domain: None,
            http_routes: HashMap::new(),
            grpc_routes: HashMap::new(),
            tcp_routes: HashMap::new(),
            traffic: HashMap::new(),
            authorization: HashMap::new(),
            extra_hosts: Multimap::default(),
            addresses: Multimap::default(),
            workloads_at: Multimap::default(),
            registered_at: Multimap::default(),
            instances_at: Multimap::default(),
            workloads_of: Multimap::default(),
            registered_of: Multimap::default(),
            routes_of: Multimap::default(),
            routes_to: Multimap::default(),
            routes_abroad: Multimap::default(),
            traffic_of: Multimap::default(),
            authorization_of: Multimap::default(),
        }
    }

    /// In a Kubernetes cluster with DNS names below this domain, which are the mesh's, too.
    pub fn in_cluster(mut self, domain: Option<&str>) -> Self {
        self.cluster_domain = domain.map(Arc::from);
        self
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A service by name.
    pub fn service(&self, name: &Name) -> Option<&Arc<Object<ServiceSpec>>> {
        self.services.get(name)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The mesh's settings, or the defaults of a new mesh.
    pub fn settings(&self) -> MeshConfigSpec {
        match &self.config {
            Some(config) => config.spec.clone(),
            None => default_settings(),
        }
    }

    /// The mesh's name suffixes, those of its cluster among them.
    pub fn suffixes(&self) -> Vec<String> {
        let mut suffixes = match &self.config {
            Some(config) => config.spec.suffixes.clone(),
            None => default_settings().suffixes,
        };
        suffixes.extend(self.cluster_domain.iter().flat_map(|domain| cluster_suffixes(domain)));
        suffixes.dedup();
        suffixes
    }

    /// Namespaces that have objects, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(|namespace| &**namespace)
    }

    /// What holds where no authorization rule matches.
    pub fn default_allow(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.spec.default_authorization == DefaultAction::Allow)
    }

    /// Declared workloads that serve a service. One that its proxy has registered too counts as
    /// registered only.
    pub fn declared_workloads(&self, service: &Name) -> impl Iterator<Item = &Arc<Object<WorkloadSpec>>> {
        self.workloads_of
            .of(service)
            .filter(|name| !self.registered.contains_key(*name))
            .filter_map(|name| self.workloads.get(name))
    }

    /// A declared workload by name.
    pub fn workload(&self, name: &Name) -> Option<&Arc<Object<WorkloadSpec>>> {
        self.workloads.get(name)
    }

    /// A registered workload by name.
    pub fn registered(&self, name: &Name) -> Option<&Arc<Registered>> {
        self.registered.get(name)
    }

    /// Registered workloads that serve a service.
    pub fn registered_workloads(&self, service: &Name) -> impl Iterator<Item = &Arc<Registered>> {
        self.registered_of.of(service).filter_map(|name| self.registered.get(name))
    }

    /// HTTPRoutes that callers of a service follow.
    pub fn http_routes(&self, service: &Name) -> impl Iterator<Item = &Arc<Object<HttpRouteSpec>>> {
        self.routes_of.of(service).filter_map(|route| match route.kind {
            ObjectKind::HttpRoute => self.http_routes.get(&route.name),
            _ => None,
        })
    }

    /// GRPCRoutes that callers of a service follow.
    pub fn grpc_routes(&self, service: &Name) -> impl Iterator<Item = &Arc<Object<GrpcRouteSpec>>> {
        self.routes_of.of(service).filter_map(|route| match route.kind {
            ObjectKind::GrpcRoute => self.grpc_routes.get(&route.name),
            _ => None,
        })
    }

    /// TCPRoutes that callers of a service follow.
    pub fn tcp_routes(&self, service: &Name) -> impl Iterator<Item = &Arc<Object<TcpRouteSpec>>> {
        self.routes_of.of(service).filter_map(|route| match route.kind {
            ObjectKind::TcpRoute => self.tcp_routes.get(&route.name),
            _ => None,
        })
    }

    /// Traffic policies attached exactly to this scope.
    pub fn traffic_policies(&self, scope: &Scope) -> impl Iterator<Item = &Arc<Object<TrafficPolicySpec>>> {
        self.traffic_of.of(scope).filter_map(|name| self.traffic.get(name))
    }

    /// Authorization policies attached exactly to this scope.
    pub fn authorization_policies(&self, scope: &Scope) -> impl Iterator<Item = &Arc<Object<AuthorizationPolicySpec>>> {
        self.authorization_of.of(scope).filter_map(|name| self.authorization.get(name))
    }

    fn route(&self, route: &RouteName) -> Option<Route<'_>> {
        match route.kind {
            ObjectKind::HttpRoute => self.http_routes.get(&route.name).map(|route| Route::Http(route)),
            ObjectKind::GrpcRoute => self.grpc_routes.get(&route.name).map(|route| Route::Grpc(route)),
            ObjectKind::TcpRoute => self.tcp_routes.get(&route.name).map(|route| Route::Tcp(route)),
            _ => None,
        }
    }

    /// The services that a route names.
    pub(crate) fn links(&self, kind: ObjectKind, name: &Name) -> Option<RouteLinks> {
        match kind {
            ObjectKind::HttpRoute => self.http_routes.get(name).map(|object| http_links(name, object)),
            ObjectKind::GrpcRoute => self.grpc_routes.get(name).map(|object| grpc_links(name, object)),
            ObjectKind::TcpRoute => self.tcp_routes.get(name).map(|object| tcp_links(name, object)),
            _ => None,
        }
    }

    /// Where a route leads: services, and the ports that it names.
    pub(crate) fn backends(&self, kind: ObjectKind, name: &Name) -> Vec<(Name, Option<u16>)> {
        let route = self.route(&RouteName { kind, name: name.clone() });
        let references = route.map(Route::backends).unwrap_or_default().into_iter();
        references.map(|backend| (name.relative(backend.namespace.as_deref(), &backend.name), backend.port)).collect()
    }

    /// Services that the routes of a service lead to.
    pub(crate) fn backends_of(&self, service: &Name) -> BTreeSet<Name> {
        let links = self.routes_of.of(service).filter_map(|route| self.links(route.kind, &route.name));
        links.flat_map(|links| links.backends).collect()
    }

    /// An authorization policy, and what it is attached to.
    pub(crate) fn authorization_policy(&self, name: &Name) -> Option<(&Object<AuthorizationPolicySpec>, Scope)> {
        let policy = self.authorization.get(name)?;
        Some((policy, scope(name, policy.spec.target_ref.as_ref())))
    }

    /// Services for which a policy holds only because routes lead there.
    pub(crate) fn inheriting(&self, policy: &Name) -> BTreeSet<Name> {
        let uses = self.uses(ObjectKind::AuthorizationPolicy, policy).inbound;
        let inherits = |service: &Name| inherited::of(self, service).keys().any(|(inherited, _)| inherited == policy);
        let services = uses.into_iter().filter_map(|scope| match scope {
            Scope::Service(service) => Some(service),
            Scope::Mesh | Scope::Namespace(_) => None,
        });
        services.filter(inherits).collect()
    }

    /// Which compiled resources an object goes into, as the mesh is now.
    pub fn uses(&self, kind: ObjectKind, name: &Name) -> Affected {
        let mut affected = Affected::default();
        self.mark(kind, name, &mut affected);
        affected
    }

    /// Makes or replaces an object.
    pub fn put(&mut self, object: AnyObject) -> Affected {
        let mut affected = Affected::default();
        let (kind, name) = (object.kind(), object.name());
        let was_known = self.namespaces.contains_key(&name.namespace);
        let before = self.unlink(kind, &name, &mut affected);
        self.link(&name, object, &mut affected);
        if let (Some(AnyObject::MeshConfig(before)), Some(after)) = (&before, &self.config)
            && before.spec.default_authorization == after.spec.default_authorization
            && before.spec.suffixes == after.spec.suffixes
        {
            affected = Affected { mesh_config: true, ..Affected::default() };
        }
        affected.mesh_config |= was_known != self.namespaces.contains_key(&name.namespace);
        affected
    }

    /// Removes an object.
    pub fn remove(&mut self, kind: ObjectKind, name: &Name) -> Affected {
        let mut affected = Affected::default();
        let was_known = self.namespaces.contains_key(&name.namespace);
        self.unlink(kind, name, &mut affected);
        if kind == ObjectKind::Service
            && let Some(derived) = self.derived.get(name)
        {
            // What it hid comes to light.
            let service = Arc::clone(&derived.service);
            self.link(name, AnyObject::Service(service), &mut affected);
        }
        affected.mesh_config |= was_known != self.namespaces.contains_key(&name.namespace);
        affected
    }

    /// Makes or replaces a registered workload.
    pub fn register(&mut self, workload: Arc<Registered>) -> Affected {
        let mut affected = self.deregister(&workload.name);
        for (service, _) in &workload.services {
            self.registered_of.insert(service.clone(), workload.name.clone());
            affected.endpoints.insert(Scope::Service(service.clone()));
        }
        self.registered_at.insert(workload.address.ip(), workload.name.clone());
        affected.add_address(workload.address.ip());
        self.mark_declared(&workload.name, &mut affected);
        self.registered.insert(workload.name.clone(), workload);
        affected
    }

    /// Removes a registered workload.
    pub fn deregister(&mut self, name: &Name) -> Affected {
        let mut affected = Affected::default();
        if let Some(workload) = self.registered.remove(name) {
            for (service, _) in &workload.services {
                self.registered_of.remove(service, name);
                affected.endpoints.insert(Scope::Service(service.clone()));
            }
            self.registered_at.remove(&workload.address.ip(), name);
            affected.add_address(workload.address.ip());
            self.mark_declared(name, &mut affected);
        }
        affected
    }

    /// A registration hides the declared workload of the same name, or shows it again.
    fn mark_declared(&self, name: &Name, affected: &mut Affected) {
        if self.workloads.contains_key(name) {
            self.mark(ObjectKind::Workload, name, affected);
        }
    }

    fn link(&mut self, name: &Name, object: AnyObject, affected: &mut Affected) {
        let kind = object.kind();
        if kind.is_namespaced() {
            *self.namespaces.entry(Arc::clone(&name.namespace)).or_default() += 1;
        }
        match object {
            AnyObject::MeshConfig(object) => self.config = Some(object),
            AnyObject::Service(object) => {
                for host in &object.spec.hosts {
                    self.extra_hosts.insert(host.to_ascii_lowercase().into(), name.clone());
                }
                for address in virtual_addresses(&object) {
                    self.addresses.insert(address, name.clone());
                }
                self.services.insert(name.clone(), object);
            }
            AnyObject::Workload(object) => {
                for service in workload_services(name, &object) {
                    self.workloads_of.insert(service, name.clone());
                }
                if let Some(address) = declared_address(&object) {
                    self.workloads_at.insert(address, name.clone());
                }
                self.workloads.insert(name.clone(), object);
            }
            AnyObject::HttpRoute(object) => {
                self.link_route(kind, name, http_links(name, &object));
                self.http_routes.insert(name.clone(), object);
            }
            AnyObject::GrpcRoute(object) => {
                self.link_route(kind, name, grpc_links(name, &object));
                self.grpc_routes.insert(name.clone(), object);
            }
            AnyObject::TcpRoute(object) => {
                self.link_route(kind, name, tcp_links(name, &object));
                self.tcp_routes.insert(name.clone(), object);
            }
            AnyObject::TrafficPolicy(object) => {
                self.traffic_of.insert(scope(name, object.spec.target_ref.as_ref()), name.clone());
                self.traffic.insert(name.clone(), object);
            }
            AnyObject::AuthorizationPolicy(object) => {
                self.authorization_of.insert(scope(name, object.spec.target_ref.as_ref()), name.clone());
                self.authorization.insert(name.clone(), object);
            }
        }
        self.mark(kind, name, affected);
    }

    fn unlink(&mut self, kind: ObjectKind, name: &Name, affected: &mut Affected) -> Option<AnyObject> {
        self.mark(kind, name, affected);
        let object = self.take(kind, name)?;
        if let Some(objects) = self.namespaces.get_mut(&name.namespace) {
            *objects -= 1;
            if *objects == 0 {
                self.namespaces.remove(&name.namespace);
            }
        }
        Some(object)
    }

    /// Takes an object out of all indices but that of namespaces.
    fn take(&mut self, kind: ObjectKind, name: &Name) -> Option<AnyObject> {
        Some(match kind {
            ObjectKind::MeshConfig => AnyObject::MeshConfig(self.config.take()?),
            ObjectKind::Service => {
                let object = self.services.remove(name)?;
                for host in &object.spec.hosts {
                    self.extra_hosts.remove(host.to_ascii_lowercase().as_str(), name);
                }
                for address in virtual_addresses(&object) {
                    self.addresses.remove(&address, name);
                }
                AnyObject::Service(object)
            }
            ObjectKind::Workload => {
                let object = self.workloads.remove(name)?;
                for service in workload_services(name, &object) {
                    self.workloads_of.remove(&service, name);
                }
                if let Some(address) = declared_address(&object) {
                    self.workloads_at.remove(&address, name);
                }
                AnyObject::Workload(object)
            }
            ObjectKind::HttpRoute => {
                let object = self.http_routes.remove(name)?;
                self.unlink_route(kind, name, http_links(name, &object));
                AnyObject::HttpRoute(object)
            }
            ObjectKind::GrpcRoute => {
                let object = self.grpc_routes.remove(name)?;
                self.unlink_route(kind, name, grpc_links(name, &object));
                AnyObject::GrpcRoute(object)
            }
            ObjectKind::TcpRoute => {
                let object = self.tcp_routes.remove(name)?;
                self.unlink_route(kind, name, tcp_links(name, &object));
                AnyObject::TcpRoute(object)
            }
            ObjectKind::TrafficPolicy => {
                let object = self.traffic.remove(name)?;
                self.traffic_of.remove(&scope(name, object.spec.target_ref.as_ref()), name);
                AnyObject::TrafficPolicy(object)
            }
            ObjectKind::AuthorizationPolicy => {
                let object = self.authorization.remove(name)?;
                self.authorization_of.remove(&scope(name, object.spec.target_ref.as_ref()), name);
                AnyObject::AuthorizationPolicy(object)
            }
        })
    }

    fn link_route(&mut self, kind: ObjectKind, name: &Name, links: RouteLinks) {
        let route = RouteName { kind, name: name.clone() };
        for parent in links.parents {
            self.routes_of.insert(parent, route.clone());
        }
        for backend in links.backends {
            if backend.namespace != name.namespace {
                self.routes_abroad.insert(Arc::clone(&name.namespace), route.clone());
            }
            self.routes_to.insert(backend, route.clone());
        }
    }

    fn unlink_route(&mut self, kind: ObjectKind, name: &Name, links: RouteLinks) {
        let route = RouteName { kind, name: name.clone() };
        for parent in links.parents {
            self.routes_of.remove(&parent, &route);
        }
        for backend in links.backends {
            self.routes_to.remove(&backend, &route);
        }
        self.routes_abroad.remove(&name.namespace, &route);
    }
}

impl Objects for Mesh {
    fn service(&self, name: &Name) -> Option<&Object<ServiceSpec>> {
        self.services.get(name).map(Arc::as_ref)
    }

    fn routes_to(&self, backend: &Name) -> Vec<Route<'_>> {
        self.routes_to.of(backend).filter_map(|route| self.route(route)).collect()
    }

    fn policies(&self, scope: &Scope) -> Vec<&Object<AuthorizationPolicySpec>> {
        self.authorization_policies(scope).map(Arc::as_ref).collect()
    }
}

/// The services that a route names.
pub(crate) struct RouteLinks {
    pub(crate) parents: BTreeSet<Name>,
    pub(crate) backends: BTreeSet<Name>,
}

fn http_links(name: &Name, route: &Object<HttpRouteSpec>) -> RouteLinks {
    RouteLinks {
        parents: route.spec.parent_refs.iter().map(|parent| name.sibling(&parent.name)).collect(),
        backends: (route.spec.rules.iter().flat_map(|rule| &rule.backend_refs))
            .map(|backend| name.relative(backend.namespace.as_deref(), &backend.name))
            .collect(),
    }
}

fn grpc_links(name: &Name, route: &Object<GrpcRouteSpec>) -> RouteLinks {
    RouteLinks {
        parents: route.spec.parent_refs.iter().map(|parent| name.sibling(&parent.name)).collect(),
        backends: (route.spec.rules.iter().flat_map(|rule| &rule.backend_refs))
            .map(|backend| name.relative(backend.namespace.as_deref(), &backend.name))
            .collect(),
    }
}

fn tcp_links(name: &Name, route: &Object<TcpRouteSpec>) -> RouteLinks {
    RouteLinks {
        parents: route.spec.parent_refs.iter().map(|parent| name.sibling(&parent.name)).collect(),
        backends: (route.spec.rules.iter().flat_map(|rule| &rule.backend_refs))
            .map(|backend| name.relative(backend.namespace.as_deref(), &backend.name))
            .collect(),
    }
}

fn workload_services(name: &Name, workload: &Object<WorkloadSpec>) -> BTreeSet<Name> {
    workload.spec.services.iter().map(|service| name.sibling(&service.name)).collect()
}

/// What a service may be dialled at besides its instances.
fn virtual_addresses(service: &Object<ServiceSpec>) -> impl Iterator<Item = IpAddr> {
    service.spec.addresses.iter().filter_map(|address| address.parse().ok())
}

fn declared_address(workload: &Object<WorkloadSpec>) -> Option<IpAddr> {
    workload.spec.address.parse().ok()
}

/// What a policy attaches to.
fn scope(policy: &Name, target: Option<&TargetRef>) -> Scope {
    match target {
        Some(target) => Scope::Service(policy.sibling(&target.name)),
        None if &*policy.namespace == MESH_NAMESPACE => Scope::Mesh,
        None => Scope::Namespace(Arc::clone(&policy.namespace)),
    }
}

/// Below which the names of a cluster's Services are.
pub(crate) fn cluster_suffixes(domain: &str) -> [String; 2] {
    ["svc".to_owned(), format!("svc.{domain}")]
}

/// What a mesh is like for which no MeshConfig was written.
fn default_settings() -> MeshConfigSpec {
    // The derived Default would leave the suffixes empty; those of an empty document are meant.
    serde_json::from_value(serde_json::json!({})).expect("every field of MeshConfig has a default")
}
