//! What comes from Kubernetes, beside what is stored: shown and referred to as any object, and written by nobody.

use std::{ops::Bound, sync::Arc};

use heddle_api::resource::{
    API_VERSION, AnyObject, Metadata, Name, Object, ObjectKind, ServiceSpec, WorkloadService, WorkloadSpec,
};
use rpds::RedBlackTreeMapSync;

use super::{Registry, View};
use crate::mesh::{
    cluster_suffixes,
    derived::{Change, Derived, INBOUND_PORT, Pod},
};

/// The label that tells what comes from Kubernetes from what is declared.
pub const KUBERNETES_LABEL: &str = "heddle.dev/kubernetes";
/// The label that says what a pod is controlled by, as `Kind.name`.
const OWNER_LABEL: &str = "heddle.dev/owner";
/// Longest value of a label.
const LONGEST_LABEL: usize = 63;

/// Kubernetes Services and pods. Views share what did not change between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    services: RedBlackTreeMapSync<Name, Arc<Derived>>,
    pods: RedBlackTreeMapSync<Name, Arc<Pod>>,
    /// Below which its DNS names are; absent: there is no cluster.
    domain: Option<Arc<str>>,
}

impl Cluster {
    fn change(&mut self, change: &Change) {
        match change {
            Change::Service(name, Some(derived)) => self.services.insert_mut(name.clone(), Arc::clone(derived)),
            Change::Service(name, None) => _ = self.services.remove_mut(name),
            Change::Pod(name, Some(pod)) => self.pods.insert_mut(name.clone(), Arc::clone(pod)),
            Change::Pod(name, None) => _ = self.pods.remove_mut(name),
        }
    }
}

impl Registry {
    /// The mesh is in a cluster with DNS names below this domain.
    pub fn in_cluster(&self, domain: &str) {
        self.view.rcu(|view| {
            let mut next = View::clone(view);
            next.cluster.domain = Some(domain.into());
            next
        });
    }

    /// Takes in what changed in the cluster. Makes no revision.
    pub fn derive(&self, changes: &[Change]) {
        self.view.rcu(|view| {
            let mut next = View::clone(view);
            changes.iter().for_each(|change| next.cluster.change(change));
            next
        });
    }
}

impl View {
    /// Suffixes of the mesh that its cluster has by itself.
    pub(super) fn cluster_suffixes(&self) -> Vec<String> {
        self.cluster.domain.iter().flat_map(|domain| cluster_suffixes(domain)).collect()
    }

    /// A service by name, declared or of Kubernetes.
    pub fn service(&self, name: &Name) -> Option<&Arc<Object<ServiceSpec>>> {
        self.get::<ServiceSpec>(name).or_else(|| self.cluster.services.get(name).map(|derived| &derived.service))
    }

    /// Whether there is an object of this kind and name in Kubernetes.
    pub fn is_in_kubernetes(&self, kind: ObjectKind, name: &Name) -> bool {
        match kind {
            ObjectKind::Service => self.cluster.services.contains_key(name),
            ObjectKind::Workload => self.cluster.pods.contains_key(name),
            _ => false,
        }
    }

    /// What Kubernetes has of this kind and name, as an object.
    pub fn kubernetes_object(&self, kind: ObjectKind, name: &Name) -> Option<AnyObject> {
        match kind {
            ObjectKind::Service => {
                let derived = self.cluster.services.get(name)?;
                Some(AnyObject::Service(Arc::clone(&derived.service)))
            }
            ObjectKind::Workload => self.cluster.pods.get(name).map(|pod| workload(pod).into()),
            _ => None,
        }
    }

    /// All that Kubernetes has of a kind (in a namespace), by namespace and name, after a name.
    pub fn kubernetes_objects<'a>(
        &'a self,
        kind: ObjectKind,
        namespace: Option<&'a str>,
        after: Option<Name>,
    ) -> impl Iterator<Item = AnyObject> + use<'a> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(Name::new(namespace.unwrap_or_default(), "")),
        };
        let here = move |name: &Name| namespace.is_none_or(|namespace| *name.namespace == *namespace);
        let range = (start, Bound::Unbounded);
        let services = (kind == ObjectKind::Service).then(|| self.cluster.services.range(range.clone()));
        let services = services.into_iter().flatten().take_while(move |(name, _)| here(name));
        let pods = (kind == ObjectKind::Workload).then(|| self.cluster.pods.range(range));
        let pods = pods.into_iter().flatten().take_while(move |(name, _)| here(name));
        let services = services.map(|(_, derived)| AnyObject::Service(Arc::clone(&derived.service)));
        services.chain(pods.map(|(_, pod)| workload(pod).into()))
    }
}

/// A pod as a workload, for those who list workloads.
fn workload(pod: &Pod) -> Object<WorkloadSpec> {
    let mut labels = (*pod.labels).clone();
    labels.insert(KUBERNETES_LABEL.to_owned(), "true".to_owned());
    if (1..=LONGEST_LABEL).contains(&pod.owner.len()) {
        labels.insert(OWNER_LABEL.to_owned(), pod.owner.to_string());
    }
    let served = |(service, ports): (&Name, &Vec<(u16, u16)>)| WorkloadService {
        name: service.name.to_string(),
        ports: ports.iter().map(|(port, _)| *port).collect(),
    };
    Object {
        api_version: API_VERSION.to_owned(),
        kind: ObjectKind::Workload.as_str().to_owned(),
        metadata: Metadata {
            name: pod.name.name.to_string(),
            namespace: Some(pod.name.namespace.to_string()),
            labels,
            ..Metadata::default()
        },
        spec: WorkloadSpec {
            address: pod.ips.first().map(ToString::to_string).unwrap_or_default(),
            inbound_port: Some(INBOUND_PORT),
            service_account: Some(pod.account.to_string()),
            services: pod.services.iter().map(served).collect(),
            zone: None,
            weight: None,
        },
        status: None,
    }
}
