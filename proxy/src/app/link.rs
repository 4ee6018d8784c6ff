//! The one connection to the control plane: made for the discovery stream, used by registration too.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use heddle_certs::TrustBundle;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{
    control_plane::{ControlPlane, causes},
    discovery::Connect,
    identity::Identity,
};

/// Connects with the certificate of the moment.
pub(super) struct Link {
    pub control_plane: ControlPlane,
    pub identity: Identity,
    pub anchors: TrustBundle,
    /// The connection that is up.
    pub channel: watch::Sender<Option<Channel>>,
    /// Which credentials it was made with.
    pub epoch: Arc<AtomicU64>,
}

impl Connect for Link {
    async fn connect(&mut self) -> Result<Channel, String> {
        self.channel.send_replace(None);
        let mut changed = self.identity.changed();
        let credentials = loop {
            changed.borrow_and_update();
            match self.identity.current() {
                Some(credentials) => break credentials,
                None => _ = changed.changed().await,
            }
        };
        let roots = self.identity.control_plane_roots(&self.anchors);
        self.epoch.store(credentials.epoch, Ordering::Relaxed);
        let connected = self.control_plane.connect(Some(&credentials.svid), &roots).await;
        let channel = connected.map_err(|error| causes(&error))?;
        self.channel.send_replace(Some(channel.clone()));
        Ok(channel)
    }
}
