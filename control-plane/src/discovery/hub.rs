//! All streams and what they hold, behind one lock that is never kept across an await.

mod report;
mod roots;
mod settling;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use heddle_api::{
    proto::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    resource::{Name, ObjectKind, ObjectStatus},
};
use heddle_certs::{SpiffeId, TrustBundle};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use self::report::ProxyReport;
use super::{
    catalog::{Catalog, Key, StreamId, Touched, Viewer},
    session::{Next, Session, Standing},
};
use crate::{
    compile::ResourceKind,
    mesh::{Affected, Mesh, Scope},
    metrics::Metrics,
};

/// Names that all streams of one identity may subscribe to, together.
const MAX_NAMES_PER_IDENTITY: usize = 512 * 1024;
/// Names of a message taken in at once, so that the lock goes to others in between.
const NAMES_AT_ONCE: usize = 256;
/// Streams of one identity at once: its instances, and some that are being replaced.
const MAX_STREAMS_PER_IDENTITY: usize = 10_000;

/// The hub. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Revision of the store that the mesh is at.
    revision: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    streams: BTreeMap<StreamId, Stream>,
    by_proxy: HashMap<(SpiffeId, String), StreamId>,
    by_identity: HashMap<SpiffeId, Share>,
    /// Who waits for the endpoints of a service to be settled.
    settling: HashMap<Arc<str>, settling::Waiters>,
    last_id: StreamId,
    last_waiting: u64,
}

/// What the streams of one identity come to.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    streams: usize,
    names: usize,
}

#[derive(Debug)]
struct Stream {
    session: Session,
    proxy: Proxy,
    wake: Arc<Notify>,
    replaced: CancellationToken,
}

/// A connected proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `<namespace>/<workload>`.
    pub node: String,
    /// Who it is: verified.
    pub identity: SpiffeId,
    /// Where it connects from.
    pub address: SocketAddr,
    /// Its version, as it says.
    pub version: String,
    /// Since when it is connected.
    pub since: SystemTime,
    /// When its certificate ends.
    pub certificate_expiry: SystemTime,
}

/// A stream's end of the hub. Dropping it ends the stream's subscriptions.
#[derive(Debug)]
pub(super) struct Handle {
    hub: Hub,
    id: StreamId,
    /// Something may be to be said.
    pub(super) wake: Arc<Notify>,
    /// A newer stream of the same proxy has taken over.
    pub(super) replaced: CancellationToken,
}

impl Hub {
    /// A hub over a mesh, without streams.
    pub fn new(mesh: Mesh, bundle: TrustBundle, metrics: Metrics) -> Self {
        let inner = Inner {
            catalog: Catalog::new(mesh, bundle),
            streams: BTreeMap::new(),
            by_proxy: HashMap::new(),
            by_identity: HashMap::new(),
            settling: HashMap::new(),
            last_id: 0,
            last_waiting: 0,
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), revision: watch::Sender::new(0), metrics }))
    }

    /// Changes the mesh and wakes those whom it concerns. All of one transaction goes in one call, so
    /// that no stream sees half of it.
    pub fn change(&self, revision: u64, change: impl FnOnce(&mut Mesh) -> Affected) {
        let mut inner = self.lock();
        let affected = change(&mut inner.catalog.mesh);
        inner.catalog.revision = revision.max(inner.catalog.revision);
        let touched = inner.catalog.invalidate(&affected);
        inner.wake(&touched);
        let revision = inner.catalog.revision;
        drop(inner);
        self.0.metrics.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.0.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }

    /// Waits until the mesh is at a revision of the store, or until `deadline`. Says whether it is.
    pub async fn reached(&self, revision: u64, deadline: Instant) -> bool {
        let mut seen = self.0.revision.subscribe();
        let reached = seen.wait_for(|seen| *seen >= revision);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }

    /// Puts another mesh in the place of this one, when changes may have been missed. What it knows of a Kubernetes
    /// cluster stays.
    pub fn replace(&self, revision: u64, mut mesh: Mesh) {
        let everything = Affected {
            services: BTreeSet::from([Scope::Mesh]),
            endpoints: BTreeSet::from([Scope::Mesh]),
            inbound: BTreeSet::from([Scope::Mesh]),
            hosts: crate::mesh::Hosts::All,
            mesh_config: true,
            workloads: BTreeSet::new(),
        };
        self.change(revision, |current| {
            mesh.inherit(current);
            *current = mesh;
            everything
        });
    }

    /// Changes the roots of the trust domain.
    pub fn set_bundle(&self, bundle: TrustBundle) {
        let mut inner = self.lock();
        let touched = inner.catalog.set_bundle(bundle);
        inner.wake(&touched);
    }

    /// Reads the mesh as the streams see it.
    pub fn read<T>(&self, read: impl FnOnce(&Mesh) -> T) -> T {
        read(&self.lock().catalog.mesh)
    }

    /// What the connected proxies made of an object of this generation, which was written at this
    /// revision of the store. As long as the mesh is not there yet, nobody was told of it.
    pub fn object_status(&self, kind: ObjectKind, name: &Name, generation: u64, revision: u64) -> ObjectStatus {
        self.lock().object_status(kind, name, generation, revision)
    }

    /// All connected proxies.
    pub fn proxies(&self) -> Vec<ProxyReport> {
        self.lock().proxies()
    }

    /// How many proxies are connected.
    pub fn connected(&self) -> usize {
        self.lock().streams.len()
    }

    /// Takes up a stream. An older one of the same proxy and identity is ended.
    pub(super) fn open(&self, proxy: Proxy) -> Result<Handle, Status> {
        let viewer = viewer(&proxy)?;
        let mut inner = self.lock();
        // Its status would be taken for that of the workload of this name.
        let mesh = &inner.catalog.mesh;
        let belongs_to_another = Name::parse(&proxy.node).is_some_and(|name| {
            let registered = mesh.registered(&name);
            let is_another = registered.is_some_and(|registered| registered.identity != proxy.identity);
            is_another || (mesh.pod(&name).is_some() && !mesh.is_pod_of(&name, &proxy.identity))
        });
        if belongs_to_another {
            return Err(Status::permission_denied(format!(
                "workload {:?} is of another identity than {}; choose another name",
                clip(&proxy.node),
                proxy.identity
            )));
        }
        let of_identity = inner.by_identity.get(&proxy.identity).copied().unwrap_or_default().streams;
        if of_identity >= MAX_STREAMS_PER_IDENTITY {
            return Err(Status::resource_exhausted(format!("{} has {of_identity} streams already", proxy.identity)));
        }
        inner.last_id += 1;
        let id = inner.last_id;
        let key = (proxy.identity.clone(), proxy.node.clone());
        if let Some(older) = inner.by_proxy.insert(key, id)
            && let Some(stream) = inner.streams.get(&older)
        {
            stream.replaced.cancel();
        }
        inner.by_identity.entry(proxy.identity.clone()).or_default().streams += 1;
        let (wake, replaced) = (Arc::new(Notify::new()), CancellationToken::new());
        let session = Session::new(id, viewer);
        inner.streams.insert(id, Stream { session, proxy, wake: Arc::clone(&wake), replaced: replaced.clone() });
        self.0.metrics.connected_proxies.set(inner.streams.len() as i64);
        Ok(Handle { hub: self.clone(), id, wake, replaced })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of the state is complete at each point where code of others could panic.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Takes in a message, in slices: one with many names must not keep others from the mesh.
    pub(super) async fn handle(&self, mut request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let mut subscribe = std::mem::take(&mut request.resource_names_subscribe).into_iter();
        let mut unsubscribe = std::mem::take(&mut request.resource_names_unsubscribe).into_iter();
        let type_url = request.type_url.clone();
        let mut slice = request;
        loop {
            slice.resource_names_unsubscribe = unsubscribe.by_ref().take(NAMES_AT_ONCE).collect();
            // In the order in which one message is read: what it leaves goes first.
            if unsubscribe.len() == 0 {
                slice.resource_names_subscribe = subscribe.by_ref().take(NAMES_AT_ONCE).collect();
            }
            self.handle_slice(slice)?;
            if unsubscribe.len() == 0 && subscribe.len() == 0 {
                return Ok(());
            }
            tokio::task::yield_now().await;
            slice = DeltaDiscoveryRequest { type_url: type_url.clone(), ..DeltaDiscoveryRequest::default() };
        }
    }

    fn handle_slice(&self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let Some(kind) = ResourceKind::from_type_url(&request.type_url) else {
            if request.type_url.is_empty() {
                return Err(Status::invalid_argument("a message must carry a type_url"));
            }
            // A later proxy asks for what only a later control plane has: it gets everything else.
            self.hub.0.metrics.refused_subscriptions.inc_by(request.resource_names_subscribe.len() as u64);
            tracing::debug!(type_url = clip(&request.type_url), "a proxy asks for an unknown type");
            return Ok(());
        };
        if request.resource_names_subscribe.iter().any(|name| name == "*") {
            return Err(Status::invalid_argument("there is no wildcard subscription; subscribe to names"));
        }
        let mut inner = self.hub.lock();
        let Inner { catalog, streams, by_identity, .. } = &mut *inner;
        let Some(stream) = streams.get_mut(&self.id) else {
            return Ok(());
        };
        let share = by_identity.entry(stream.proxy.identity.clone()).or_default();
        let others = share.names - stream.session.names();
        let room = MAX_NAMES_PER_IDENTITY.saturating_sub(share.names);
        let handled = stream.session.handle(catalog, kind, request, room);
        share.names = others + stream.session.names();
        if kind == ResourceKind::Endpoints {
            inner.settle(self.id, &handled.settled);
        }
        drop(inner);
        let metrics = &self.hub.0.metrics;
        if handled.acknowledged {
            metrics.answers.with_label_values(&[kind.label(), "ack"]).inc();
        }
        if handled.rejected {
            metrics.answers.with_label_values(&[kind.label(), "nack"]).inc();
        }
        metrics.refused_subscriptions.inc_by(handled.refused_names as u64);
        Ok(())
    }

    /// The next response, if there is anything to say.
    pub(super) async fn next(&self) -> Option<DeltaDiscoveryResponse> {
        loop {
            let started = Instant::now();
            match self.look()? {
                Next::Response(kind, response) => {
                    let metrics = &self.hub.0.metrics;
                    metrics.compile_seconds.observe(started.elapsed().as_secs_f64());
                    metrics.pushes.with_label_values(&[kind.label()]).inc();
                    return Some(response);
                }
                // The lock goes to others in between, and so does the thread.
                Next::Again => tokio::task::yield_now().await,
                Next::Idle => return None,
            }
        }
    }

    fn look(&self) -> Option<Next> {
        let mut inner = self.hub.lock();
        let Inner { catalog, streams, .. } = &mut *inner;
        let next = streams.get_mut(&self.id)?.session.next(catalog);
        if let Next::Response(ResourceKind::Endpoints, response) = &next {
            // What is gone is settled as soon as it is said: nobody answers it by name.
            let removed: Vec<_> = response.removed_resources.iter().map(|name| name.as_str().into()).collect();
            inner.settle(self.id, &removed);
        }
        Some(next)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        let Inner { catalog, streams, by_proxy, by_identity, .. } = &mut *inner;
        if let Some(stream) = streams.remove(&self.id) {
            let key = (stream.proxy.identity.clone(), stream.proxy.node.clone());
            if by_proxy.get(&key) == Some(&self.id) {
                by_proxy.remove(&key);
            }
            if let Some(share) = by_identity.get_mut(&key.0) {
                share.streams -= 1;
                share.names -= stream.session.names();
                if share.streams == 0 {
                    by_identity.remove(&key.0);
                }
            }
            let held: Vec<_> = stream.session.held(ResourceKind::Endpoints).cloned().collect();
            stream.session.close(catalog);
            inner.settle(self.id, &held);
        }
        self.hub.0.metrics.connected_proxies.set(inner.streams.len() as i64);
    }
}

impl Inner {
    fn wake(&mut self, touched: &[(StreamId, Touched)]) {
        for (id, touched) in touched {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.session.touch(touched);
                stream.wake.notify_one();
            }
        }
    }

    fn standing(&mut self, id: StreamId, key: &Key) -> Option<Standing> {
        let stream = self.streams.get(&id)?;
        let current = self.catalog.resource(key.0, &key.1, stream.session.viewer());
        stream.session.standing(key.0, &key.1, current.as_ref().map(|compiled| &*compiled.version))
    }
}

/// What a proxy may see follows from its verified identity alone.
fn viewer(proxy: &Proxy) -> Result<Viewer, Status> {
    let Some((namespace, _)) = proxy.identity.as_workload() else {
        return Err(Status::permission_denied(format!("{} is not a workload's identity", proxy.identity)));
    };
    let in_namespace = Name::parse(&proxy.node).is_some_and(|name| *name.namespace == *namespace);
    if !in_namespace || proxy.node.len() > 320 {
        return Err(Status::permission_denied(format!(
            "node.id must be \"{namespace}/<workload>\" for {}, not {:?}",
            proxy.identity,
            clip(&proxy.node)
        )));
    }
    Ok(Viewer { identity: proxy.identity.clone(), namespace: namespace.into() })
}

/// What a peer sent, short enough for a message.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}
