//! What there is to be told, and who watches it. Pure.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use heddle_api::{
    limits::MAX_RESOURCE,
    resource::{MESH_CONFIG_NAME, Name},
};
use heddle_certs::{SpiffeId, TrustBundle};

use crate::{
    compile::{self, Compiled, ResourceKind, may_serve},
    mesh::{Affected, Hosts, Mesh, Scope, parse_alias},
};

/// Counts streams since the start of this control plane.
pub(super) type StreamId = u64;

/// A compiled resource's kind and canonical name.
pub(super) type Key = (ResourceKind, Arc<str>);

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Viewer {
    pub(super) identity: SpiffeId,
    pub(super) namespace: Arc<str>,
}

/// A stream to wake, and what may have changed for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Touched {
    Resource(Key),
    Host(Arc<str>),
}

/// The mesh, the resources compiled from it so far, and their watchers.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) mesh: Mesh,
    pub(super) revision: u64,
    bundle: TrustBundle,
    /// Only what is watched; `None`: there is no such resource.
    compiled: HashMap<Key, Option<Compiled>>,
    watchers: HashMap<Key, HashSet<StreamId>>,
    host_watchers: HashMap<Arc<str>, HashSet<StreamId>>,
}

impl Catalog {
    pub(super) fn new(mesh: Mesh, bundle: TrustBundle) -> Self {
        Self {
            mesh,
            revision: 0,
            bundle,
            compiled: HashMap::new(),
            watchers: HashMap::new(),
            host_watchers: HashMap::new(),
        }
    }

    /// The canonical name that a subscribed name stands for; an alias may stand for none.
    pub(super) fn target(&self, kind: ResourceKind, name: &Arc<str>, viewer: &Viewer) -> Option<Arc<str>> {
        if !is_alias(kind, name) {
            return Some(Arc::clone(name));
        }
        let (host, port) = parse_alias(name)?;
        let service = self.mesh.resolve(&host, port, &viewer.namespace)?;
        Some(service.to_string().into())
    }

    /// A resource by canonical name, if there is one that the viewer may see.
    pub(super) fn resource(&mut self, kind: ResourceKind, name: &Arc<str>, viewer: &Viewer) -> Option<Compiled> {
        if !self.exists(kind, name, viewer) {
            return None;
        }
        let key = (kind, Arc::clone(name));
        if let Some(compiled) = self.compiled.get(&key) {
            return compiled.clone();
        }
        let compiled = compile::compile(&self.mesh, &self.bundle, kind, name);
        if let Some(compiled) = &compiled
            && compiled.body.len() > MAX_RESOURCE
        {
            let size = compiled.body.len();
            tracing::error!(kind = kind.label(), %name, size, most = MAX_RESOURCE, "a resource is too large for proxies");
        }
        // What nobody watches would never be thrown away.
        if self.watchers.contains_key(&key) {
            self.compiled.insert(key, compiled.clone());
        }
        compiled
    }

    /// Whether there is a resource of this canonical name that the viewer may see.
    pub(super) fn exists(&self, kind: ResourceKind, name: &str, viewer: &Viewer) -> bool {
        match kind {
            ResourceKind::TrustBundle => name == self.bundle.trust_domain().as_str(),
            ResourceKind::MeshConfig => name == MESH_CONFIG_NAME,
            ResourceKind::Service | ResourceKind::Endpoints => {
                Name::parse(name).is_some_and(|name| self.mesh.is_visible(&name, &viewer.namespace))
            }
            // Only to the pod's own proxy.
            ResourceKind::Workload => {
                Name::parse(name).is_some_and(|name| self.mesh.is_pod_of(&name, &viewer.identity))
            }
            ResourceKind::InboundPolicy => Name::parse(name)
                .and_then(|name| self.mesh.service(&name))
                .is_some_and(|service| may_serve(service, &viewer.identity)),
        }
    }

    pub(super) fn watch(&mut self, kind: ResourceKind, name: &Arc<str>, stream: StreamId) {
        self.watchers.entry((kind, Arc::clone(name))).or_default().insert(stream);
    }

    pub(super) fn unwatch(&mut self, kind: ResourceKind, name: &Arc<str>, stream: StreamId) {
        let key = (kind, Arc::clone(name));
        if let Some(streams) = self.watchers.get_mut(&key) {
            streams.remove(&stream);
            if streams.is_empty() {
                self.watchers.remove(&key);
                self.compiled.remove(&key);
            }
        }
    }

    pub(super) fn watch_host(&mut self, host: &str, stream: StreamId) {
        self.host_watchers.entry(host.into()).or_default().insert(stream);
    }

    pub(super) fn unwatch_host(&mut self, host: &str, stream: StreamId) {
        if let Some(streams) = self.host_watchers.get_mut(host) {
            streams.remove(&stream);
            if streams.is_empty() {
                self.host_watchers.remove(host);
            }
        }
    }

    /// Streams that watch a resource.
    pub(super) fn watchers(&self, kind: ResourceKind, name: &str) -> impl Iterator<Item = StreamId> {
        self.watchers.get(&(kind, Arc::from(name))).into_iter().flatten().copied()
    }

    /// Watched resources of a kind within scopes.
    pub(super) fn watched(&self, kind: ResourceKind, scopes: &BTreeSet<Scope>) -> Vec<Key> {
        if scopes.iter().all(|scope| matches!(scope, Scope::Service(_))) {
            let names = scopes.iter().filter_map(|scope| match scope {
                Scope::Service(name) => Some((kind, Arc::from(name.to_string()))),
                _ => None,
            });
            return names.filter(|key| self.watchers.contains_key(key)).collect();
        }
        let covered = |name: &str| Name::parse(name).is_some_and(|name| Affected::covers(scopes, &name));
        self.watchers.keys().filter(|key| key.0 == kind && covered(&key.1)).cloned().collect()
    }

    /// Throws away what a change touches of the compiled resources; returns whom to wake for what.
    pub(super) fn invalidate(&mut self, affected: &Affected) -> Vec<(StreamId, Touched)> {
        let mut keys = self.watched(ResourceKind::Service, &affected.services);
        keys.extend(self.watched(ResourceKind::Endpoints, &affected.endpoints));
        keys.extend(self.watched(ResourceKind::InboundPolicy, &affected.inbound));
        if affected.mesh_config {
            keys.extend(self.watchers.keys().filter(|key| key.0 == ResourceKind::MeshConfig).cloned());
        }
        let workloads = affected.workloads.iter().map(|name| (ResourceKind::Workload, Arc::from(name.to_string())));
        keys.extend(workloads.filter(|key| self.watchers.contains_key(key)));
        let mut touched = self.touch(keys);
        let mut touch_host = |host: &Arc<str>, streams: &HashSet<StreamId>| {
            touched.extend(streams.iter().map(|stream| (*stream, Touched::Host(Arc::clone(host)))));
        };
        match &affected.hosts {
            Hosts::All => self.host_watchers.iter().for_each(|(host, streams)| touch_host(host, streams)),
            Hosts::Some(hosts) => {
                for host in hosts {
                    if let Some(streams) = self.host_watchers.get(host) {
                        touch_host(host, streams);
                    }
                }
            }
        }
        touched
    }

    /// Changes the roots. Whoever tells of them late does not bring back those of before.
    pub(super) fn set_bundle(&mut self, bundle: TrustBundle) -> Vec<(StreamId, Touched)> {
        if self.bundle == bundle || bundle.epoch() < self.bundle.epoch() {
            return Vec::new();
        }
        self.bundle = bundle;
        let keys = self.watchers.keys().filter(|key| key.0 == ResourceKind::TrustBundle).cloned().collect();
        self.touch(keys)
    }

    fn touch(&mut self, keys: Vec<Key>) -> Vec<(StreamId, Touched)> {
        let mut touched = Vec::new();
        for key in keys {
            self.compiled.remove(&key);
            for stream in self.watchers.get(&key).into_iter().flatten() {
                touched.push((*stream, Touched::Resource(key.clone())));
            }
        }
        touched
    }
}

#[cfg(test)]
impl Catalog {
    /// Whether nothing is kept for anybody.
    pub(super) fn is_unwatched(&self) -> bool {
        self.watchers.is_empty() && self.host_watchers.is_empty() && self.compiled.is_empty()
    }
}

/// Whether a subscribed name is a dialled name rather than a canonical one.
pub(super) fn is_alias(kind: ResourceKind, name: &str) -> bool {
    kind == ResourceKind::Service && !name.contains('/')
}
