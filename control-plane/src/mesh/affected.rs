//! Which compiled resources a change touches.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use heddle_api::resource::{Action, Name, ObjectKind};

use super::{Mesh, RouteName, declared_address, scope, virtual_addresses, workload_services};
use crate::compile::inherited;

/// A set of services: what a policy attaches to, or what a change touches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of the mesh.
    Mesh,
    /// All of a namespace.
    Namespace(Arc<str>),
    /// One service.
    Service(Name),
}

/// Host names whose meaning may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// These (without port, lower case).
    Some(BTreeSet<Arc<str>>),
    /// All of them.
    All,
}

impl Default for Hosts {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

/// What has to be compiled or resolved again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Service resources.
    pub services: BTreeSet<Scope>,
    /// Endpoints resources.
    pub endpoints: BTreeSet<Scope>,
    /// InboundPolicy resources.
    pub inbound: BTreeSet<Scope>,
    /// Workload resources.
    pub workloads: BTreeSet<Name>,
    /// Aliases.
    pub hosts: Hosts,
    /// The MeshConfig resource.
    pub mesh_config: bool,
}

impl Affected {
    /// Notes that aliases with this address may mean something else now.
    pub(super) fn add_address(&mut self, address: IpAddr) {
        if let Hosts::Some(hosts) = &mut self.hosts {
            hosts.insert(address.to_string().into());
        }
    }

    /// Notes that aliases with this host (lower case) may mean something else now.
    pub(super) fn add_host(&mut self, host: &str) {
        if let Hosts::Some(hosts) = &mut self.hosts {
            hosts.insert(host.into());
        }
    }

    /// Takes in what another change touches.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.inbound.extend(other.inbound);
        self.workloads.extend(other.workloads);
        self.mesh_config |= other.mesh_config;
        match (&mut self.hosts, other.hosts) {
            (Hosts::All, _) => {}
            (mine, Hosts::All) => *mine = Hosts::All,
            (Hosts::Some(mine), Hosts::Some(others)) => mine.extend(others),
        }
    }

    /// Whether a set of scopes contains a service.
    pub fn covers(scopes: &BTreeSet<Scope>, service: &Name) -> bool {
        // Sets are small, or consist of single services: three look-ups either way.
        scopes.contains(&Scope::Mesh)
            || scopes.contains(&Scope::Service(service.clone()))
            || scopes.contains(&Scope::Namespace(Arc::clone(&service.namespace)))
    }
}

impl Mesh {
    /// Adds what an object, as it is in the mesh now, goes into. Called before and after a change.
    pub(super) fn mark(&self, kind: ObjectKind, name: &Name, affected: &mut Affected) {
        match kind {
            ObjectKind::MeshConfig => {
                affected.mesh_config = true;
                // Service resources list their hosts with all suffixes.
                affected.services.insert(Scope::Mesh);
                affected.inbound.insert(Scope::Mesh);
                affected.hosts = Hosts::All;
            }
            ObjectKind::Service => self.mark_service(name, affected),
            ObjectKind::Workload => {
                if let Some(workload) = self.workloads.get(name) {
                    affected.endpoints.extend(workload_services(name, workload).into_iter().map(Scope::Service));
                    declared_address(workload).into_iter().for_each(|address| affected.add_address(address));
                }
            }
            ObjectKind::HttpRoute | ObjectKind::GrpcRoute | ObjectKind::TcpRoute => {
                affected.services.extend(self.parents(kind, name).into_iter().map(Scope::Service));
                self.mark_denied(kind, name, affected);
            }
            ObjectKind::TrafficPolicy => {
                if let Some(policy) = self.traffic.get(name) {
                    affected.services.insert(scope(name, policy.spec.target_ref.as_ref()));
                }
            }
            ObjectKind::AuthorizationPolicy => {
                if let Some(policy) = self.authorization.get(name) {
                    let scope = scope(name, policy.spec.target_ref.as_ref());
                    if policy.spec.action == Action::Deny && !policy.spec.rules.is_empty() {
                        self.mark_inheriting(&scope, affected);
                    }
                    affected.inbound.insert(scope);
                }
            }
        }
    }

    fn mark_service(&self, name: &Name, affected: &mut Affected) {
        let itself = Scope::Service(name.clone());
        affected.services.insert(itself.clone());
        affected.endpoints.insert(itself.clone());
        affected.inbound.insert(itself);
        // Routes that lead here are compiled into their parents: whether this backend exists, and
        // which port it has.
        for RouteName { kind, name } in self.routes_to.of(name) {
            affected.services.extend(self.parents(*kind, name).into_iter().map(Scope::Service));
        }
        // Denials for its ports hold for the ports of backends, as routes translate them.
        for RouteName { kind, name } in self.routes_of.of(name) {
            self.mark_denied(*kind, name, affected);
        }
        if let Hosts::Some(hosts) = &mut affected.hosts {
            hosts.extend(self.hosts(name).into_iter().map(Arc::from));
        }
        // Which of its ports an instance's address means, and to whom, is the service's to say.
        let instances = self.registered_workloads(name).map(|workload| workload.address.ip());
        let declared = self.declared_workloads(name).filter_map(|workload| declared_address(workload));
        let derived = self.instances(name).iter().map(|instance| instance.ip);
        let claimed = self.services.get(name).into_iter().flat_map(|service| virtual_addresses(service));
        instances.chain(declared).chain(derived).chain(claimed).for_each(|address| affected.add_address(address));
    }

    /// Marks the backends of a route that inherit denials by it.
    fn mark_denied(&self, kind: ObjectKind, name: &Name, affected: &mut Affected) {
        let Some(route) = self.route(&RouteName { kind, name: name.clone() }) else { return };
        for backend in self.links(kind, name).into_iter().flat_map(|links| links.backends) {
            let mut found = inherited::Found::new();
            inherited::by_route(self, route, &backend, &mut found);
            if !found.is_empty() {
                affected.inbound.insert(Scope::Service(backend));
            }
        }
    }

    /// Marks the services that inherit denials from here and are not here themselves.
    fn mark_inheriting(&self, scope: &Scope, affected: &mut Affected) {
        let routes: Vec<_> = match scope {
            Scope::Mesh => return,
            Scope::Namespace(namespace) => self.routes_abroad.of(namespace).collect(),
            Scope::Service(service) => self.routes_of.of(service).collect(),
        };
        for RouteName { kind, name } in routes {
            self.mark_denied(*kind, name, affected);
        }
    }

    fn parents(&self, kind: ObjectKind, route: &Name) -> BTreeSet<Name> {
        self.links(kind, route).map(|links| links.parents).unwrap_or_default()
    }
}
