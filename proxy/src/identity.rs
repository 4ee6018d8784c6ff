//! This proxy's identity: its SVID and trust bundle, got from the control plane, renewed in time and
//! swapped under running connections.

mod issue;
mod renewal;
mod stored;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use heddle_certs::{
    Clock, SpiffeId, Svid, TrustBundle,
    tls::{self, ClientAuth},
};
use tokio::{sync::watch, time::Instant};

pub(crate) use self::{
    issue::{Attestation, Issue, IssueError, Issuer},
    renewal::{Renewal, Report},
    stored::Stored,
};
use crate::{
    outcome::{Error, ErrorKind},
    state::{StateDir, StateError},
};

/// Protocols between proxies, by what they carry (ALPN).
pub const ALPN: [&[u8]; 3] = [b"heddle-h2", b"heddle-h1", b"heddle-tcp/1"];
/// Client configurations kept for one set of credentials.
const MAX_CONFIGS: usize = 4096;

/// Handle to the identity; cheap to clone, shared by all threads.
#[derive(Clone, Debug)]
pub struct Identity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwapOption<Credentials>,
    changed: watch::Sender<u64>,
    /// Taken to write roots to the disk, so that the newest are the last to be written.
    keeping: Mutex<()>,
    /// Taken to change anything.
    parts: Mutex<Parts>,
    clock: Arc<dyn Clock>,
}

/// What credentials are made of.
#[derive(Debug, Default)]
struct Parts {
    svid: Option<Svid>,
    bundle: Option<TrustBundle>,
    /// Whether the control plane itself named the bundle since this process began.
    confirmed: bool,
    epoch: u64,
}

/// An SVID with the roots to verify peers by, and what TLS makes of them. Connections keep the one
/// they began with.
pub struct Credentials {
    /// Who this proxy is.
    pub svid: Svid,
    /// Who may vouch for peers.
    pub bundle: TrustBundle,
    /// For the inbound listener: client certificates required, Heddle's three protocols.
    pub server: Arc<rustls::ServerConfig>,
    /// Grows with each new SVID or bundle; part of the key of pooled connections.
    pub epoch: u64,
    clock: Arc<dyn Clock>,
    clients: Mutex<HashMap<ClientKey, Arc<rustls::ClientConfig>>>,
}

/// Expected identities and protocol.
type ClientKey = (Vec<SpiffeId>, Vec<u8>);

impl Identity {
    /// Without credentials yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            current: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            keeping: Mutex::default(),
            parts: Mutex::default(),
            clock,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The credentials to use for a new connection; `None` before the first certificate, and from
    /// the moment that the last one expired.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        let current = self.shared.current.load_full()?;
        current.is_valid().then_some(current)
    }

    /// The epoch of the credentials to use for a new connection; the greatest number where there are none.
    pub(crate) fn epoch(&self) -> u64 {
        let current = self.shared.current.load();
        current.as_ref().filter(|credentials| credentials.is_valid()).map_or(u64::MAX, |credentials| credentials.epoch)
    }

    /// Tells of each new epoch.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Uses another SVID from now on, and these roots if there are none, older ones, or only such as an earlier
    /// process kept.
    ///
    /// # Errors
    /// What TLS has against them; the old ones stay.
    pub fn set_svid(&self, svid: Svid, bundle: Option<TrustBundle>) -> Result<(), tls::TlsError> {
        self.change(|parts| {
            parts.svid = Some(svid);
            if let Some(bundle) = bundle
                && (!parts.confirmed || parts.bundle.as_ref().is_none_or(|held| held.epoch() <= bundle.epoch()))
            {
                parts.bundle = Some(bundle);
                parts.confirmed = true;
            }
        })
    }

    /// Uses other roots from now on.
    ///
    /// # Errors
    /// What TLS has against them; the old ones stay.
    pub fn set_bundle(&self, bundle: TrustBundle) -> Result<(), tls::TlsError> {
        self.change(|parts| {
            parts.bundle = Some(bundle);
            parts.confirmed = true;
        })
    }

    /// What an earlier process left: the roots are not the control plane's own word.
    ///
    /// # Errors
    /// What TLS has against them.
    pub(crate) fn restore(&self, stored: Stored) -> Result<(), tls::TlsError> {
        self.change(|parts| {
            parts.svid = stored.svid;
            parts.bundle = stored.bundle;
        })
    }

    /// Roots that an earlier process kept with its configuration; the newer of these and those of
    /// [`Identity::restore`], as long as the control plane has not said a word.
    ///
    /// # Errors
    /// What TLS has against them; the old ones stay.
    pub(crate) fn restore_bundle(&self, bundle: TrustBundle) -> Result<(), tls::TlsError> {
        self.change(|parts| {
            if !parts.confirmed && parts.bundle.as_ref().is_none_or(|held| held.epoch() < bundle.epoch()) {
                parts.bundle = Some(bundle);
            }
        })
    }

    /// Writes the roots of now to the state directory.
    ///
    /// # Errors
    /// The ones written before stay.
    pub(crate) fn keep_bundle(&self, state: &StateDir) -> Result<(), StateError> {
        let _keeping = self.shared.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        self.bundle().map_or(Ok(()), |bundle| Stored::save_bundle(state, &bundle))
    }

    /// The SVID, even if it is valid no longer.
    pub(crate) fn svid(&self) -> Option<Svid> {
        self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner).svid.clone()
    }

    /// The roots.
    pub(crate) fn bundle(&self) -> Option<TrustBundle> {
        self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner).bundle.clone()
    }

    /// Roots under which the control plane must prove itself: those that it named itself since this
    /// process began; before that the ones kept on disk and those of the join file, either of which
    /// may be the newer.
    pub(crate) fn control_plane_roots(&self, anchors: &TrustBundle) -> TrustBundle {
        let parts = self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match &parts.bundle {
            Some(bundle) if !parts.confirmed => {
                let mut roots = bundle.roots().to_vec();
                roots.extend(anchors.roots().iter().filter(|root| !bundle.roots().contains(root)).cloned());
                // Roots of both were good before.
                TrustBundle::new(bundle.trust_domain().clone(), bundle.epoch(), roots)
                    .unwrap_or_else(|_| bundle.clone())
            }
            Some(bundle) => bundle.clone(),
            None => anchors.clone(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) -> Result<(), tls::TlsError> {
        let mut held = self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Parts {
            svid: held.svid.clone(),
            bundle: held.bundle.clone(),
            confirmed: held.confirmed,
            epoch: held.epoch,
        };
        change(&mut parts);
        if parts.svid.as_ref().map(Svid::chain) == held.svid.as_ref().map(Svid::chain) && parts.bundle == held.bundle {
            held.confirmed = parts.confirmed;
            return Ok(());
        }
        parts.epoch += 1;
        let credentials = match (&parts.svid, &parts.bundle) {
            // Kept for its renewal alone, if that.
            (Some(svid), _) if !is_valid(svid, &*self.shared.clock) => None,
            (Some(svid), Some(bundle)) => {
                Some(Arc::new(Credentials::new(svid.clone(), bundle.clone(), parts.epoch, &self.shared.clock)?))
            }
            _ => None,
        };
        let epoch = parts.epoch;
        *held = parts;
        self.shared.current.store(credentials);
        self.shared.changed.send_replace(epoch);
        Ok(())
    }
}

impl Credentials {
    fn new(svid: Svid, bundle: TrustBundle, epoch: u64, clock: &Arc<dyn Clock>) -> Result<Self, tls::TlsError> {
        let server = tls::server_config(&svid, &bundle, &ALPN, ClientAuth::Required, Arc::clone(clock))?;
        Ok(Self { svid, bundle, server: Arc::new(server), epoch, clock: Arc::clone(clock), clients: Mutex::default() })
    }

    /// Whether the certificate is valid now.
    pub fn is_valid(&self) -> bool {
        is_valid(&self.svid, &*self.clock)
    }

    /// What time it is.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// A point of the day as a point of the monotonic clock.
    pub(crate) fn in_time(&self, at: SystemTime) -> Instant {
        let now = Instant::now();
        let left = at.duration_since(self.clock.now()).unwrap_or_default();
        // A certificate of centuries is no reason to overflow.
        now.checked_add(left).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
    }

    /// For one connection to a peer that must prove any of these identities, with one protocol of
    /// ALPN. Kept, so that asking again costs little.
    ///
    /// # Errors
    /// `NoCertificate`: the certificate has expired, or TLS cannot use it.
    pub fn client_config(&self, expected: &[SpiffeId], alpn: &[u8]) -> Result<Arc<rustls::ClientConfig>, Error> {
        if !self.is_valid() {
            return Err(Error::new(
                ErrorKind::NoCertificate,
                format!("the certificate of {} has expired", self.svid.id()),
            ));
        }
        let key = (expected.to_vec(), alpn.to_vec());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(&key) {
            return Ok(Arc::clone(config));
        }
        let config =
            tls::client_config(Some(&self.svid), &self.bundle, expected.into(), &[alpn], Arc::clone(&self.clock))
                .map_err(|error| Error::new(ErrorKind::NoCertificate, error.to_string()))?;
        let config = Arc::new(config);
        // Endpoints come and go; what is in use is soon here again.
        if clients.len() >= MAX_CONFIGS {
            clients.clear();
        }
        clients.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

fn is_valid(svid: &Svid, clock: &dyn Clock) -> bool {
    svid.check_validity(clock.now()).is_ok()
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", self.svid.id())
            .field("not_after", &self.svid.not_after())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
