//! From Services, EndpointSlices and Pods to the mesh's services, endpoints and pods. Pure: events in, changes out; only
//! what an event touches is worked out again.
//!
//! Nothing is guessed: an endpoint that names a pod is left out until that very pod is known with that address,
//! because only the pod says whether it must be called by mTLS.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use heddle_api::resource::{API_VERSION, Metadata, MtlsMode, Name, Object, ObjectKind, ServicePortSpec, ServiceSpec};

use super::objects::{Endpoint, Meshed, Pod, Service, Slice};
use crate::{
    mesh::derived::{Change, Derived, Instance, Pod as MeshPod},
    registry::KUBERNETES_LABEL,
};

/// What happened to objects of one kind.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// There is one, or it is another.
    Put(Name, T),
    /// It is gone, or of no use.
    Gone(Name),
    /// These are all.
    All(Vec<(Name, T)>),
}

/// What happened in the cluster.
#[derive(Debug)]
pub(super) enum ClusterEvent {
    Service(Event<Service>),
    Slice(Event<Slice>),
    Pod(Event<Pod>),
}

/// Of several changes of one thing, the last one.
pub(super) fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let mut seen = BTreeSet::new();
    let mut last: Vec<_> = (changes.into_iter().rev())
        .filter(|change| {
            seen.insert(match change {
                Change::Service(name, _) => (0, name.clone()),
                Change::Pod(name, _) => (1, name.clone()),
            })
        })
        .collect();
    last.reverse();
    last
}

/// What an endpoint depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Needs {
    Pod(Name),
    Address(IpAddr),
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Reducer {
    services: HashMap<Name, Service>,
    slices: HashMap<Name, Slice>,
    /// By service.
    slices_of: HashMap<Name, BTreeSet<Name>>,
    pods: HashMap<Name, Pod>,
    /// Pods with addresses of their own.
    pods_at: HashMap<IpAddr, BTreeSet<Name>>,
    /// What the endpoints of a service depend on, both ways.
    needs: HashMap<Name, BTreeSet<Needs>>,
    needed_by: HashMap<Needs, BTreeSet<Name>>,
    /// What pods serve.
    serves: HashMap<Name, BTreeMap<Name, Vec<(u16, u16)>>>,
    /// What was told last.
    derived: HashMap<Name, Arc<Derived>>,
    told_pods: HashMap<Name, Arc<MeshPod>>,
}

/// What is to be worked out again.
#[derive(Default)]
struct Dirty {
    services: BTreeSet<Name>,
    pods: BTreeSet<Name>,
}

impl Reducer {
    /// Takes in what happened, and says what that changes.
    pub(super) fn reduce(&mut self, events: impl IntoIterator<Item = ClusterEvent>) -> Vec<Change> {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                ClusterEvent::Service(event) => {
                    for (name, service) in each(event, self.services.keys()) {
                        self.service(name, service, &mut dirty);
                    }
                }
                ClusterEvent::Slice(event) => {
                    for (name, slice) in each(event, self.slices.keys()) {
                        self.slice(name, slice, &mut dirty);
                    }
                }
                ClusterEvent::Pod(event) => {
                    for (name, pod) in each(event, self.pods.keys()) {
                        self.pod(name, pod, &mut dirty);
                    }
                }
            }
        }
        let mut changes = Vec::new();
        for name in std::mem::take(&mut dirty.services) {
            changes.extend(self.derive_service(&name, &mut dirty));
        }
        changes.extend(dirty.pods.into_iter().filter_map(|name| self.derive_pod(&name)));
        changes
    }

    /// Services and pods that are known, for metrics.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.derived.len(), self.told_pods.len())
    }

    fn service(&mut self, name: Name, service: Option<Service>, dirty: &mut Dirty) {
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        dirty.services.insert(name.clone());
        replace(&mut self.services, name, service);
    }

    fn slice(&mut self, name: Name, slice: Option<Slice>, dirty: &mut Dirty) {
        let before = self.slices.get(&name);
        if before == slice.as_ref() {
            return;
        }
        if let Some(before) = before {
            dirty.services.insert(before.service.clone());
            forget(&mut self.slices_of, &before.service, &name);
        }
        if let Some(slice) = &slice {
            dirty.services.insert(slice.service.clone());
            self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
        }
        replace(&mut self.slices, name, slice);
    }

    fn pod(&mut self, name: Name, pod: Option<Pod>, dirty: &mut Dirty) {
        let before = self.pods.get(&name);
        if before == pod.as_ref() {
            return;
        }
        let addresses = |pod: Option<&Pod>| -> BTreeSet<IpAddr> {
            pod.filter(|pod| !pod.host_network).into_iter().flat_map(|pod| pod.ips.iter().copied()).collect()
        };
        let (old, new) = (addresses(before), addresses(pod.as_ref()));
        for address in old.difference(&new) {
            forget(&mut self.pods_at, address, &name);
        }
        for address in new.difference(&old) {
            self.pods_at.entry(*address).or_default().insert(name.clone());
        }
        let touched = old.union(&new).copied().map(Needs::Address).chain([Needs::Pod(name.clone())]);
        dirty.services.extend(touched.filter_map(|needs| self.needed_by.get(&needs)).flatten().cloned());
        dirty.pods.insert(name.clone());
        replace(&mut self.pods, name, pod);
    }

    fn derive_service(&mut self, name: &Name, dirty: &mut Dirty) -> Option<Change> {
        let (instances, needs) = match self.services.get(name) {
            Some(service) => self.instances(name, service),
            None => Default::default(),
        };
        self.note_needs(name, needs);
        let before = self.derived.get(name).cloned();
        let after = self.services.get(name).map(|service| {
            let object = object(name, service, &instances, &self.slices_named(name));
            // The same one, so that it is seen that nothing but instances changed.
            let service = match &before {
                Some(before) if *before.service == object => Arc::clone(&before.service),
                _ => Arc::new(object),
            };
            Arc::new(Derived { service, instances })
        });
        let served = |derived: Option<&Arc<Derived>>| {
            let mut served: BTreeMap<Name, Vec<(u16, u16)>> = BTreeMap::new();
            let meshed = derived.into_iter().flat_map(|derived| &derived.instances).filter(|one| one.account.is_some());
            for instance in meshed {
                let ports = served.entry(instance.workload.clone()).or_default();
                ports.extend(&instance.ports);
                ports.sort_unstable();
                ports.dedup();
            }
            served
        };
        let (old, new) = (served(before.as_ref()), served(after.as_ref()));
        for pod in old.keys().chain(new.keys()) {
            if old.get(pod) == new.get(pod) {
                continue;
            }
            dirty.pods.insert(pod.clone());
            let serves = self.serves.entry(pod.clone()).or_default();
            match new.get(pod) {
                Some(ports) => _ = serves.insert(name.clone(), ports.clone()),
                None => _ = serves.remove(name),
            }
            if serves.is_empty() {
                self.serves.remove(pod);
            }
        }
        let is_same = match (&before, &after) {
            (Some(before), Some(after)) => {
                Arc::ptr_eq(&before.service, &after.service) && before.instances == after.instances
            }
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return None;
        }
        replace(&mut self.derived, name.clone(), after.clone());
        Some(Change::Service(name.clone(), after))
    }

    fn derive_pod(&mut self, name: &Name) -> Option<Change> {
        let pod = self.pods.get(name).and_then(|pod| {
            let meshed = pod.meshed.as_ref()?;
            Some(MeshPod {
                name: name.clone(),
                uid: Arc::clone(&pod.uid),
                ips: pod.ips.clone(),
                account: Arc::clone(&meshed.account),
                labels: Arc::clone(&meshed.labels),
                owner: Arc::clone(&meshed.owner),
                services: self.serves.get(name).cloned().unwrap_or_default(),
            })
        });
        if self.told_pods.get(name).map(Arc::as_ref) == pod.as_ref() {
            return None;
        }
        let pod = pod.map(Arc::new);
        replace(&mut self.told_pods, name.clone(), pod.clone());
        Some(Change::Pod(name.clone(), pod))
    }

    fn slices_named(&self, service: &Name) -> Vec<&Slice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name)).collect()
    }

    /// The endpoints of a service, and what they depend on.
    fn instances(&self, name: &Name, service: &Service) -> (Vec<Instance>, BTreeSet<Needs>) {
        let mut needs = BTreeSet::new();
        let mut found: BTreeMap<(IpAddr, Name), (Instance, bool)> = BTreeMap::new();
        for slice in self.slices_named(name) {
            let ports: Vec<(u16, u16)> = (service.ports.iter())
                .filter_map(|port| {
                    let target = slice.ports.iter().find(|(named, _)| *named == port.name);
                    target.map(|(_, target)| (port.port, *target))
                })
                .collect();
            for endpoint in &slice.endpoints {
                needs.insert(match &endpoint.pod {
                    Some((pod, _)) => Needs::Pod(pod.clone()),
                    None => Needs::Address(endpoint.ip),
                });
                let Some((workload, meshed)) = self.workload(name, endpoint) else { continue };
                let instance = Instance {
                    hostname: endpoint.hostname.clone(),
                    ip: endpoint.ip,
                    account: meshed.map(|meshed| Arc::clone(&meshed.account)),
                    ports: ports.clone(),
                    zone: Arc::clone(&endpoint.zone),
                    ready: endpoint.ready,
                    secondary: false,
                    workload: workload.clone(),
                };
                // While slices are rearranged, one endpoint may be in two of them.
                let (known, serving_last) = found
                    .entry((endpoint.ip, workload))
                    .or_insert_with(|| (Instance { ready: false, ports: Vec::new(), ..instance.clone() }, false));
                known.ports.extend(instance.ports);
                known.ports.sort_unstable();
                known.ports.dedup();
                known.ready |= instance.ready;
                *serving_last |= endpoint.serving_last;
            }
        }
        // As kube-proxy does: rather those that are about to end than nobody.
        let nobody_else = found.values().all(|(instance, _)| !instance.ready);
        let primary: BTreeSet<Name> = (found.values())
            .filter(|(instance, _)| instance.ip.is_ipv6() == service.prefers_ipv6)
            .map(|(instance, _)| instance.workload.clone())
            .collect();
        let instances = found.into_values().map(|(mut instance, serving_last)| {
            instance.ready |= nobody_else && serving_last;
            instance.secondary = instance.ip.is_ipv6() != service.prefers_ipv6 && primary.contains(&instance.workload);
            instance
        });
        (instances.collect(), needs)
    }

    /// Whose an endpoint is, and of what identity; `None`: that is not known yet.
    fn workload(&self, service: &Name, endpoint: &Endpoint) -> Option<(Name, Option<&Meshed>)> {
        if let Some((name, uid)) = &endpoint.pod {
            let pod = self.pods.get(name)?;
            let is_it = (uid.is_empty() || pod.uid == *uid) && pod.ips.contains(&endpoint.ip);
            return is_it.then(|| (name.clone(), pod.meshed.as_ref()));
        }
        // Named by its address alone it may be a pod's, too, and then is called as that pod is.
        let here = self.pods_at.get(&endpoint.ip).into_iter().flatten();
        let meshed = here.filter_map(|name| Some((name, self.pods.get(name)?.meshed.as_ref()?))).next();
        if let Some((name, meshed)) = meshed.filter(|(name, _)| name.namespace == service.namespace) {
            return Some((name.clone(), Some(meshed)));
        }
        if meshed.is_some() {
            // A pod of another namespace has not said that it serves here.
            return None;
        }
        let address = endpoint.ip.to_string().replace([':', '.'], "-");
        Some((service.sibling(&address), None))
    }

    fn note_needs(&mut self, service: &Name, needs: BTreeSet<Needs>) {
        let before = self.needs.get(service).cloned().unwrap_or_default();
        for gone in before.difference(&needs) {
            forget(&mut self.needed_by, gone, service);
        }
        for new in needs.difference(&before) {
            self.needed_by.entry(new.clone()).or_default().insert(service.clone());
        }
        replace(&mut self.needs, service.clone(), Some(needs).filter(|needs| !needs.is_empty()));
    }
}

/// A Service as if it had been declared.
fn object(name: &Name, service: &Service, instances: &[Instance], slices: &[&Slice]) -> Object<ServiceSpec> {
    let accounts: BTreeSet<_> = instances.iter().filter_map(|instance| instance.account.as_deref()).collect();
    let ports = service.ports.iter().map(|port| {
        let resolved = || {
            let mut named = slices.iter().flat_map(|slice| &slice.ports).filter(|(named, _)| *named == port.name);
            named.next().map(|(_, target)| *target)
        };
        ServicePortSpec {
            port: port.port,
            name: Some(port.name.to_string()).filter(|name| !name.is_empty()),
            protocol: port.protocol,
            target_port: port.target.or_else(resolved).filter(|target| *target != port.port),
            mtls: if port.permissive { MtlsMode::Permissive } else { MtlsMode::Strict },
        }
    });
    let mut labels = service.labels.clone();
    labels.insert(KUBERNETES_LABEL.to_owned(), "true".to_owned());
    Object {
        api_version: API_VERSION.to_owned(),
        kind: ObjectKind::Service.as_str().to_owned(),
        metadata: Metadata {
            name: name.name.to_string(),
            namespace: Some(name.namespace.to_string()),
            labels,
            creation_timestamp: service.created.clone(),
            ..Metadata::default()
        },
        spec: ServiceSpec {
            ports: ports.collect(),
            service_accounts: accounts.into_iter().map(str::to_owned).collect(),
            hosts: Vec::new(),
            addresses: service.cluster_ips.iter().map(ToString::to_string).collect(),
            export_to: Vec::new(),
            probe_exemptions: Vec::new(),
        },
        status: None,
    }
}

/// One by one; of all that are `known`, those that are not among all of them are gone.
fn each<'a, T>(event: Event<T>, known: impl Iterator<Item = &'a Name>) -> Vec<(Name, Option<T>)> {
    match event {
        Event::Put(name, object) => vec![(name, Some(object))],
        Event::Gone(name) => vec![(name, None)],
        Event::All(all) => {
            let gone: Vec<_> = {
                let there: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
                known.filter(|name| !there.contains(name)).map(|name| (name.clone(), None)).collect()
            };
            gone.into_iter().chain(all.into_iter().map(|(name, object)| (name, Some(object)))).collect()
        }
    }
}

fn replace<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
}

fn forget<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
