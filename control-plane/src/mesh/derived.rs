//! What comes from Kubernetes: Services with their instances, and Pods. The API server is the truth of it; the mesh
//! only shows it beside what is declared and registered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_api::resource::{AnyObject, Name, Object, ObjectKind, ServiceSpec};
use heddle_certs::SpiffeId;

use super::{Affected, Mesh, Scope};

/// Where the proxy that was injected into a pod takes what comes in.
pub const INBOUND_PORT: u16 = 15006;

/// A Kubernetes Service, as the mesh sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// As if it had been declared.
    pub service: Arc<Object<ServiceSpec>>,
    /// In order of address and workload.
    pub instances: Vec<Instance>,
}

/// An endpoint of a Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The pod; or, of an address that is no pod's, a name made of the address.
    pub workload: Name,
    /// The DNS name that a headless Service gives it, if any.
    pub hostname: Option<Arc<str>>,
    /// Its address.
    pub ip: IpAddr,
    /// Service account of the pod, if it has a proxy: then it is called by mTLS only.
    pub account: Option<Arc<str>>,
    /// Service port and the app's own.
    pub ports: Vec<(u16, u16)>,
    /// Availability zone; empty: unknown.
    pub zone: Arc<str>,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Whether the same pod is there by an address of the service's own family: then only who dials this address is
    /// sent here.
    pub secondary: bool,
}

/// A pod that has a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// What tells it from an earlier pod of the same name.
    pub uid: Arc<str>,
    /// Of both families.
    pub ips: Vec<IpAddr>,
    /// Service account.
    pub account: Arc<str>,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// `Kind.name` of what it is controlled by; empty: nothing.
    pub owner: Arc<str>,
    /// What it serves: service port to the app's own.
    pub services: BTreeMap<Name, Vec<(u16, u16)>>,
}

/// What changed in the cluster; absent is what is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A Service.
    Service(Name, Option<Arc<Derived>>),
    /// A pod.
    Pod(Name, Option<Arc<Pod>>),
}

impl Derived {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.instances.iter().map(|instance| instance.ip).collect()
    }

    fn hostnames(&self) -> BTreeSet<Arc<str>> {
        self.instances.iter().filter_map(|instance| instance.hostname.clone()).collect()
    }

    /// What is at an address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = &Instance> {
        let first = self.instances.partition_point(|instance| instance.ip < address);
        self.instances[first..].iter().take_while(move |instance| instance.ip == address)
    }

    fn ports_at(&self, address: IpAddr) -> Vec<&[(u16, u16)]> {
        self.at(address).map(|instance| instance.ports.as_slice()).collect()
    }

    /// Whether an app at this address serves at this port.
    pub(super) fn serves(&self, address: IpAddr, port: u16) -> bool {
        self.at(address).any(|instance| instance.ports.iter().any(|(_, target)| *target == port))
    }

    /// Whether a single instance has this DNS name.
    pub(super) fn has_hostname(&self, hostname: &str) -> bool {
        self.instances.iter().any(|instance| instance.hostname.as_deref() == Some(hostname))
    }
}

impl Instance {
    /// Where callers connect to: its proxy, or else the app at its first port.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let port = if self.account.is_some() { INBOUND_PORT } else { self.ports.first()?.1 };
        Some(SocketAddr::new(self.ip, port))
    }
}

impl Mesh {
    /// Takes in what changed in the cluster.
    pub fn derive(&mut self, changes: &[Change]) -> Affected {
        let mut affected = Affected::default();
        for change in changes {
            match change {
                Change::Service(name, derived) => self.derive_service(name, derived.clone(), &mut affected),
                Change::Pod(name, pod) => self.derive_pod(name, pod.clone(), &mut affected),
            }
        }
        affected
    }

    /// Takes over what is known of the cluster from the mesh that this one replaces.
    pub fn inherit(&mut self, from: &mut Self) {
        self.cluster_domain = from.cluster_domain.take();
        let services = std::mem::take(&mut from.derived).into_iter();
        let services = services.map(|(name, derived)| Change::Service(name, Some(derived)));
        let pods = std::mem::take(&mut from.pods).into_iter().map(|(name, pod)| Change::Pod(name, Some(pod)));
        let changes: Vec<_> = services.chain(pods).collect();
        self.leaving = std::mem::take(&mut from.leaving);
        self.derive(&changes);
    }

    /// A Kubernetes Service, unless a declared one of its name hides it.
    pub fn derived(&self, name: &Name) -> Option<&Arc<Derived>> {
        self.derived.get(name).filter(|derived| self.is_in_effect(name, derived))
    }

    /// Whether a Kubernetes Service is hidden by a declared one.
    pub(crate) fn is_hidden(&self, name: &Name) -> bool {
        self.derived.get(name).is_some_and(|derived| !self.is_in_effect(name, derived))
    }

    fn is_in_effect(&self, name: &Name, derived: &Derived) -> bool {
        self.services.get(name).is_some_and(|service| Arc::ptr_eq(service, &derived.service))
    }

    /// A pod with a proxy.
    pub fn pod(&self, name: &Name) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// Whether a pod takes traffic, of any of the services that it serves.
    pub fn is_pod_ready(&self, pod: &Pod) -> bool {
        let takes = |service: &Name| {
            let derived = self.derived(service);
            let here = derived.into_iter().flat_map(|derived| pod.ips.iter().flat_map(|ip| derived.at(*ip)));
            here.into_iter().any(|instance| instance.ready && instance.workload == pod.name)
        };
        !self.is_leaving(&pod.name) && pod.services.keys().any(takes)
    }

    /// Whether a pod with a proxy has this identity.
    pub fn is_pod_of(&self, pod: &Name, identity: &SpiffeId) -> bool {
        let named = identity.as_workload().filter(|_| identity.trust_domain() == &self.trust_domain);
        let pod = self.pods.get(pod);
        pod.is_some_and(|pod| named == Some((&*pod.name.namespace, &*pod.account)))
    }

    /// Endpoints of a Kubernetes Service.
    pub(crate) fn instances(&self, service: &Name) -> &[Instance] {
        self.derived(service).map_or(&[], |derived| &derived.instances)
    }

    /// Whether the proxy of a pod has said that it leaves.
    pub(crate) fn is_leaving(&self, pod: &Name) -> bool {
        self.leaving.contains(pod)
    }

    /// A pod's proxy says that it leaves, or that it stays after all; Kubernetes says so later, or not at all.
    pub fn leave(&mut self, pod: &Name, leaves: bool) -> Affected {
        let mut affected = Affected::default();
        let Some(known) = self.pods.get(pod) else { return affected };
        let changed = if leaves { self.leaving.insert(pod.clone()) } else { self.leaving.remove(pod) };
        if changed {
            affected.endpoints.extend(known.services.keys().cloned().map(Scope::Service));
        }
        affected
    }

    fn derive_service(&mut self, name: &Name, derived: Option<Arc<Derived>>, affected: &mut Affected) {
        let before = self.derived.remove(name);
        let old = before.as_ref().map(|before| before.addresses()).unwrap_or_default();
        let new = derived.as_ref().map(|derived| derived.addresses()).unwrap_or_default();
        for address in old.difference(&new) {
            self.instances_at.remove(address, name);
        }
        for address in new.difference(&old) {
            self.instances_at.insert(*address, name.clone());
        }
        let declared = self
            .services
            .get(name)
            .is_some_and(|service| before.as_ref().is_none_or(|before| !Arc::ptr_eq(service, &before.service)));
        if declared {
            self.derived.extend(derived.map(|derived| (name.clone(), derived)));
            return;
        }
        if let (Some(before), Some(derived)) = (&before, &derived)
            && Arc::ptr_eq(&before.service, &derived.service)
        {
            // Instances come and go far more often than anything else changes.
            affected.endpoints.insert(Scope::Service(name.clone()));
            let changed = |address: &&IpAddr| before.ports_at(**address) != derived.ports_at(**address);
            old.union(&new).filter(changed).for_each(|address| affected.add_address(*address));
            self.mark_hostnames(name, before.hostnames().symmetric_difference(&derived.hostnames()), affected);
            self.derived.insert(name.clone(), Arc::clone(derived));
            return;
        }
        old.union(&new).for_each(|address| affected.add_address(*address));
        let hostnames: BTreeSet<_> =
            [&before, &derived].into_iter().flatten().flat_map(|one| one.hostnames()).collect();
        self.mark_hostnames(name, hostnames.iter(), affected);
        let was_known = self.namespaces.contains_key(&name.namespace);
        self.unlink(ObjectKind::Service, name, affected);
        if let Some(derived) = derived {
            let service = Arc::clone(&derived.service);
            self.derived.insert(name.clone(), derived);
            self.link(name, AnyObject::Service(service), affected);
        }
        affected.mesh_config |= was_known != self.namespaces.contains_key(&name.namespace);
    }

    /// The names of single instances of a headless service may mean something else now.
    fn mark_hostnames<'a>(
        &self,
        service: &Name,
        hostnames: impl Iterator<Item = &'a Arc<str>>,
        affected: &mut Affected,
    ) {
        for hostname in hostnames {
            let own = format!("{hostname}.{}.{}", service.name, service.namespace);
            for suffix in self.suffixes() {
                affected.add_host(&format!("{own}.{}", suffix.to_ascii_lowercase()));
            }
            affected.add_host(&own);
        }
    }

    fn derive_pod(&mut self, name: &Name, pod: Option<Arc<Pod>>, affected: &mut Affected) {
        affected.workloads.insert(name.clone());
        match pod {
            Some(pod) => {
                // Another pod of the same name has left nothing.
                let before = self.pods.insert(name.clone(), Arc::clone(&pod));
                if before.is_some_and(|before| before.uid != pod.uid) {
                    self.leaving.remove(name);
                }
            }
            None => {
                self.pods.remove(name);
                self.leaving.remove(name);
            }
        }
    }
}

#[cfg(test)]
impl Mesh {
    /// Whether nothing of a cluster is kept.
    pub(crate) fn is_without_cluster(&self) -> bool {
        let kept = [self.derived.len(), self.pods.len(), self.leaving.len(), self.services.len()];
        kept == [0; 4] && self.instances_at.is_empty() && self.addresses.is_empty()
    }
}
