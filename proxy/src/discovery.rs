//! What the control plane says, as a [`Snapshot`]: destinations are subscribed to when the
//! application first dials them, and dropped when nobody has for a while.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    config::DialName,
    outcome::{Error, ErrorKind},
    snapshot::{ClusterName, Endpoints, Service, Snapshot},
};

/// Handle to what is known of the mesh; cheap to clone, shared by all threads.
#[derive(Clone, Debug)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

/// What a dialled name leads to.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// This port of a service of the mesh.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port dialled, which the service may not have.
        port: u16,
    },
    /// Nothing of the mesh, and policy lets it be dialled as it is.
    Outside,
}

impl Discovery {
    /// What this proxy believes now. Lock-free.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Tells of each new snapshot; open streams check their policy again then.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// What a name leads to: at once if it is known, else after asking the control plane, for at
    /// most the time that is set (2 s). A name without a dot is completed with the proxy's namespace.
    /// Marks the destination as used.
    ///
    /// # Errors
    /// `UnknownDestination` (of the mesh, but no service), `EgressDenied` (outside the mesh),
    /// `DiscoveryTimeout` (no answer in time), `NotReady` (nothing is known of the mesh yet).
    pub async fn resolve(&self, name: &DialName) -> Result<Resolved, Error> {
        Err(Error::new(ErrorKind::NotReady, format!("{name} is not known yet")))
    }

    /// A backend's service and its instances; those of every route in the snapshot are there.
    ///
    /// # Errors
    /// `NoBackend` (no such service), `DiscoveryTimeout`.
    pub async fn cluster(&self, name: &ClusterName) -> Result<(Arc<Service>, Arc<Endpoints>), Error> {
        Err(Error::new(ErrorKind::NoBackend, format!("there is no service {}", name.service)))
    }

    /// Marks a destination as used, for connections that live long without resolving it again.
    pub fn touch(&self, name: &DialName) {
        let _ = name;
    }
}
