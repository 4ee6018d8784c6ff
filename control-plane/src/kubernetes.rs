//! The Kubernetes cluster that the mesh lives in, if it lives in one.
//!
//! [`connect`] makes the one client of its API server that the control plane has. [`Cluster::follow`] keeps the mesh at
//! what the cluster is: `watch` follows Services, EndpointSlices and Pods, of which `objects` keeps what is needed, and
//! `reduce` makes changes of the mesh of them. Nothing of it is stored: the API server is the truth.

mod objects;
mod reduce;
mod watch;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use heddle_runtime::drain;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use self::{
    objects::Followed,
    reduce::{ClusterEvent, Event, Reducer},
};
use crate::{discovery::Hub, metrics::Metrics, registry::Registry};

pub use self::objects::PERMISSIVE_ANNOTATION;

/// After this, it is told that the cluster is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events of one kind that may wait to be taken in.
const QUEUE: usize = 512;
/// Events that are taken in at once, so that what they touch together is worked out once.
const AT_ONCE: usize = 1024;

/// How the API server is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// From a pod of the cluster, by its service account.
    InCluster,
    /// By the current context of a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why there is no client. Whether the API server answers is not asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not in a pod, or in one without a service account's token.
    #[error(
        "setting kubernetes: this is no pod of a cluster with a service account's token; outside of one, set kubeconfig"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The file cannot be used.
    #[error("setting kubeconfig: {} cannot be used", file.display())]
    Kubeconfig {
        /// Which.
        file: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// What they say cannot be used.
    #[error("no client of the Kubernetes API server can be made")]
    Client(#[source] kube::Error),
}

/// The cluster's API server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// A client of the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Keeps registry and hub at what the cluster is, until drained. `known` is told when they are for the first time:
    /// a mesh without it would tell proxies that their destinations are gone.
    pub async fn follow(
        self,
        registry: Arc<Registry>,
        hub: Hub,
        metrics: Metrics,
        known: oneshot::Sender<()>,
        drain: drain::Watch,
    ) {
        let (services, slices, pods) =
            (self.start(&metrics, &drain), self.start(&metrics, &drain), self.start(&metrics, &drain));
        let feed = Feed { services, slices, pods };
        tokio::select! {
            () = take_in(feed, &registry, &hub, &metrics, known) => {}
            () = drain.drained() => {}
        }
    }

    fn start<F: Followed>(&self, metrics: &Metrics, drain: &drain::Watch) -> mpsc::Receiver<Event<F>> {
        let (events, receiver) = mpsc::channel(QUEUE);
        let failures = metrics.kubernetes_failures.with_label_values(&[F::RESOURCE]);
        drain.spawn(watch::follow::<F>(self.client.clone(), events, move || failures.inc()));
        receiver
    }
}

/// Waits until the cluster is known, and says so if that takes long: a mesh without it would tell proxies that their
/// destinations are gone, and as long as nobody answers them they go on with what they have.
pub async fn wait(mut known: oneshot::Receiver<()>) {
    while timeout(PATIENCE, &mut known).await.is_err() {
        tracing::warn!("waiting for the Kubernetes API server; proxies go on with what they have");
    }
}

/// What is told of the cluster.
struct Feed {
    services: mpsc::Receiver<Event<objects::Service>>,
    slices: mpsc::Receiver<Event<objects::Slice>>,
    pods: mpsc::Receiver<Event<objects::Pod>>,
}

impl Feed {
    /// What happened since it was asked last; absent: nobody tells any more.
    async fn next(&mut self) -> Option<Vec<ClusterEvent>> {
        let (mut services, mut slices, mut pods) = (Vec::new(), Vec::new(), Vec::new());
        let some = tokio::select! {
            some = self.services.recv_many(&mut services, AT_ONCE) => some,
            some = self.slices.recv_many(&mut slices, AT_ONCE) => some,
            some = self.pods.recv_many(&mut pods, AT_ONCE) => some,
        };
        let services = services.into_iter().map(ClusterEvent::Service);
        let slices = slices.into_iter().map(ClusterEvent::Slice);
        (some > 0).then(|| services.chain(slices).chain(pods.into_iter().map(ClusterEvent::Pod)).collect())
    }
}

async fn take_in(mut feed: Feed, registry: &Registry, hub: &Hub, metrics: &Metrics, known: oneshot::Sender<()>) {
    let mut reducer = Reducer::default();
    let mut known = Some(known);
    let (mut listed, mut early) = ([false; 3], Vec::new());
    while let Some(events) = feed.next().await {
        for event in &events {
            match event {
                ClusterEvent::Service(Event::All(_)) => listed[0] = true,
                ClusterEvent::Slice(Event::All(_)) => listed[1] = true,
                ClusterEvent::Pod(Event::All(_)) => listed[2] = true,
                _ => {}
            }
        }
        early.extend(reducer.reduce(events));
        // Half of it would be taken for the whole: of pods that are not known, endpoints are missing.
        if listed.contains(&false) {
            continue;
        }
        let changes = reduce::last_of_each(std::mem::take(&mut early));
        if !changes.is_empty() {
            registry.derive(&changes);
            hub.change(0, |mesh| mesh.derive(&changes));
        }
        let (services, pods) = reducer.sizes();
        metrics.kubernetes_objects.with_label_values(&["services"]).set(services as i64);
        metrics.kubernetes_objects.with_label_values(&["pods"]).set(pods as i64);
        if let Some(known) = known.take() {
            tracing::info!(services, pods, "the Kubernetes cluster is known");
            // Whoever waited may have given up.
            let _ = known.send(());
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// Makes the client of the cluster's API server. A service account's token is read again as it is renewed.
pub async fn connect(access: &Access) -> Result<Cluster, AccessError> {
    let config = match access {
        Access::InCluster => Config::incluster().map_err(AccessError::InCluster)?,
        Access::Kubeconfig(file) => {
            let unusable = |source| AccessError::Kubeconfig { file: file.clone(), source };
            let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)?
        }
    };
    let client = Client::try_from(config).map_err(AccessError::Client)?;
    Ok(Cluster { client })
}

#[cfg(test)]
mod tests;
