//! This proxy's identity: its SVID and trust bundle, got from the control plane, renewed in time and
//! swapped under running connections.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use heddle_certs::{SpiffeId, Svid, SystemClock, TrustBundle, tls};
use tokio::sync::watch;

use crate::outcome::{Error, ErrorKind};

/// Handle to the identity; cheap to clone, shared by all threads.
#[derive(Clone, Debug)]
pub struct Identity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwapOption<Credentials>,
    changed: watch::Sender<u64>,
}

/// An SVID with the roots to verify peers by, and what TLS makes of them. Connections keep the one
/// they began with.
#[derive(Debug)]
pub struct Credentials {
    /// Who this proxy is.
    pub svid: Svid,
    /// Who may vouch for peers.
    pub bundle: TrustBundle,
    /// For the inbound listener: client certificates required, Heddle's three protocols.
    pub server: Arc<rustls::ServerConfig>,
    /// Grows with each new SVID or bundle; part of the key of pooled connections.
    pub epoch: u64,
}

impl Identity {
    /// Without credentials yet.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { current: ArcSwapOption::empty(), changed: watch::Sender::new(0) }) }
    }

    /// The credentials to use for a new connection; `None` before the first certificate, and from
    /// the moment that the last one expired.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.shared.current.load_full()
    }

    /// Tells of each new epoch.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

impl Credentials {
    /// For one connection to a peer that must prove any of these identities, with one protocol of
    /// ALPN. Kept, so that asking again costs little.
    pub fn client_config(&self, expected: &[SpiffeId], alpn: &[u8]) -> Result<Arc<rustls::ClientConfig>, Error> {
        tls::client_config(Some(&self.svid), &self.bundle, expected.into(), &[alpn], SystemClock::shared())
            .map(Arc::new)
            .map_err(|error| Error::new(ErrorKind::NoCertificate, error.to_string()))
    }
}
