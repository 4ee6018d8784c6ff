//! The authority of this control plane: made at the first start or loaded, kept at rest, and shared
//! by all who sign.

mod external;
mod roots;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use heddle_certs::{
    Authority, AuthorityError, AuthorityPem, CertificateDer, Clock, SignOptions, SlotPem, SpiffeId, Svid, TrustBundle,
    TrustDomain, rotation,
};
use heddle_runtime::private_dir::{PrivateDir, PrivateDirError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::Status;

pub use self::external::ExternalError;
use self::external::{External, Stamps};
pub use self::roots::{Phase, Root, RootError, Roots};
use crate::{metrics::Metrics, peer::Peer};

/// Everything about the own authority, in one file so that it changes as one.
const AUTHORITY: &str = "authority.json";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityFileError {
    /// The data folder or a file in it cannot be used.
    #[error(transparent)]
    Folder(#[from] PrivateDirError),
    /// A file of somebody else's authority cannot be used.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// The file is damaged.
    #[error("{AUTHORITY} in the data folder cannot be read: restore it from a backup")]
    Damaged(#[source] serde_json::Error),
    /// It speaks for another trust domain.
    #[error(
        "setting trustDomain: {asked:?}, but the data folder has the authority of {made_for:?}; \
         another trust domain needs another data folder"
    )]
    TrustDomain {
        /// The authority's.
        made_for: String,
        /// The setting.
        asked: String,
    },
    /// What is in the files is no authority for this trust domain.
    #[error("{place} holds no authority for this trust domain")]
    Unusable {
        /// Where.
        place: String,
        /// Why.
        source: Box<AuthorityError>,
    },
}

/// The authority in use.
#[derive(Debug)]
pub struct Signer {
    current: ArcSwap<Authority>,
    /// Until when SVIDs of before the last step may be valid. Locked while the authority is changed.
    earlier_svids_end: Mutex<Option<SystemTime>>,
    trust_domain: TrustDomain,
    origin: Origin,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// The trust bundle's epoch, for those who are to look again when it changes.
    epoch: watch::Sender<u64>,
}

/// Where an authority comes from.
#[derive(Debug)]
enum Origin {
    /// Made here, and kept in the data folder.
    Own(Arc<PrivateDir>),
    /// Somebody else's files, who replaces them when it is time.
    External {
        path: PathBuf,
        data: Arc<PrivateDir>,
        /// As they were when they were read last.
        seen: Mutex<Option<Stamps>>,
    },
}

/// The own authority at rest.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AtRest {
    trust_domain: String,
    epoch: u64,
    roots_pem: String,
    issuer_chain_pem: String,
    issuer_key_pem: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_key_pem: Option<String>,
    /// What is to sign next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prepared: Option<SlotAtRest>,
    /// Until when SVIDs of before the last step may be valid, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier_svids_end: Option<u64>,
}

/// A prepared issuer at rest; its root is among the others.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SlotAtRest {
    issuer_chain_pem: String,
    issuer_key_pem: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_key_pem: Option<String>,
}

impl Signer {
    /// The control plane's own authority in its data folder, made if there is none; or, given
    /// `external`, the one in the PEM files of that folder, which is never written to.
    pub fn open(
        trust_domain: &TrustDomain,
        data: &Arc<PrivateDir>,
        external: Option<&Path>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, AuthorityFileError> {
        let (authority, earlier_svids_end, origin) = match external {
            Some(path) => {
                // Stamped first: what changes while it is read is read again.
                let seen = Mutex::new(External { path }.stamps());
                let pem = External { path }.read(data)?;
                let authority = parse(trust_domain, &pem, &path.display().to_string())?;
                (authority, None, Origin::External { path: path.to_owned(), data: Arc::clone(data), seen })
            }
            None => {
                let (authority, earlier_svids_end) = load_or_make(trust_domain, data, &*clock)?;
                (authority, earlier_svids_end, Origin::Own(Arc::clone(data)))
            }
        };
        let signer = Self {
            current: ArcSwap::from_pointee(authority),
            earlier_svids_end: Mutex::new(earlier_svids_end),
            trust_domain: trust_domain.clone(),
            origin,
            clock,
            metrics,
            epoch: watch::Sender::new(0),
        };
        signer.report();
        Ok(signer)
    }

    /// The roots.
    pub fn bundle(&self) -> TrustBundle {
        self.current.load().bundle().clone()
    }

    /// Signs an SVID for an attested identity.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        options: &SignOptions,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.current.load().sign(csr, id, options)
    }

    /// Signs an SVID for a key made here.
    pub fn issue(&self, id: &SpiffeId, options: &SignOptions) -> Result<Svid, AuthorityError> {
        self.current.load().issue(id, options)
    }

    /// Judges a peer by the roots of now: those of its handshake may have been replaced since.
    pub fn verify_again(&self, peer: &Peer) -> Result<(), Status> {
        let Some(shown) = &peer.shown else { return Ok(()) };
        shown.verify(&self.bundle(), self.clock.now()).map_err(|error| {
            Status::unauthenticated(format!(
                "the certificate of this connection is no longer of a root that is trusted: {error}; connect with a \
                 new one"
            ))
        })
    }

    /// Returns when the roots have changed such that a peer is trusted no more, with what it is told.
    pub async fn distrusts(&self, peer: &Peer) -> Status {
        let mut epoch = self.epoch.subscribe();
        loop {
            if let Err(status) = self.verify_again(peer) {
                return status;
            }
            // The sender is in this value.
            let _ = epoch.changed().await;
        }
    }

    /// Replaces the issuing certificate when it is time, or takes up what somebody else has put in the place
    /// of theirs. Says whether the authority is another one now.
    pub fn maintain(&self) -> bool {
        let earlier_svids_end = self.earlier_svids_end.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        let state = current.issuer_state(self.clock.now());
        let ends_soon = matches!(state, rotation::State::Renew | rotation::State::Expired);
        let replaced = match &self.origin {
            Origin::Own(data) if ends_soon => self.renew_issuer(&current, *earlier_svids_end, data).map(|()| true),
            Origin::Own(_) => Ok(false),
            Origin::External { path, data, seen } => self.reload(path, data, seen),
        };
        match &replaced {
            Ok(false) if ends_soon => tracing::error!(
                "the issuing certificate ends soon; put a new one into the folder that --authority-dir names"
            ),
            Ok(_) => {}
            Err(error) => {
                self.metrics.authority_errors.inc();
                let error: &dyn std::error::Error = error;
                tracing::error!(error, "the authority cannot be replaced; the one before is used on");
            }
        }
        self.report();
        replaced.unwrap_or(false)
    }

    /// Reads somebody else's files again if they changed. All of them must fit together: one that was
    /// replaced before the others is refused, and looked at again.
    fn reload(&self, path: &Path, data: &PrivateDir, seen: &Mutex<Option<Stamps>>) -> Result<bool, AuthorityFileError> {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = External { path }.stamps();
        if stamps.is_some() && *seen == stamps {
            return Ok(false);
        }
        let place = path.display().to_string();
        let renewed = parse(&self.trust_domain, &External { path }.read(data)?, &place)?;
        if renewed.issuer_not_after() <= self.clock.now() {
            return Err(unusable(&place, AuthorityError::IssuerExpired));
        }
        tracing::info!(path = place, "took up another authority");
        self.current.store(Arc::new(renewed));
        *seen = stamps;
        Ok(true)
    }

    fn renew_issuer(
        &self,
        current: &Authority,
        earlier_svids_end: Option<SystemTime>,
        data: &PrivateDir,
    ) -> Result<(), AuthorityFileError> {
        let renewed = current.renew_issuer(self.clock.now()).map_err(|source| unusable(AUTHORITY, source))?;
        save(data, &renewed, earlier_svids_end)?;
        tracing::info!("made a new issuing certificate");
        self.current.store(Arc::new(renewed));
        Ok(())
    }

    fn report(&self) {
        let current = self.current.load();
        let (expiry, epoch) = (seconds(current.issuer_not_after()), current.bundle().epoch());
        self.epoch.send_if_modified(|known| std::mem::replace(known, epoch) != epoch);
        self.metrics.certificate_expiry.with_label_values(&["issuer"]).set(expiry);
    }
}

/// Seconds since 1970, for metrics.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn unusable(place: &str, source: AuthorityError) -> AuthorityFileError {
    AuthorityFileError::Unusable { place: place.to_owned(), source: Box::new(source) }
}

fn parse(trust_domain: &TrustDomain, pem: &AuthorityPem, place: &str) -> Result<Authority, AuthorityFileError> {
    Authority::from_pem(trust_domain.clone(), pem).map_err(|source| unusable(place, source))
}

fn load_or_make(
    trust_domain: &TrustDomain,
    data: &PrivateDir,
    clock: &dyn Clock,
) -> Result<(Authority, Option<SystemTime>), AuthorityFileError> {
    let Some(bytes) = data.read(AUTHORITY)? else {
        let made = Authority::create(trust_domain.clone(), clock.now());
        let made = made.map_err(|source| unusable(AUTHORITY, source))?;
        save(data, &made, None)?;
        tracing::info!(%trust_domain, "made a new authority");
        return Ok((made, None));
    };
    let rest: AtRest = serde_json::from_slice(&bytes).map_err(AuthorityFileError::Damaged)?;
    if rest.trust_domain != trust_domain.as_str() {
        let (made_for, asked) = (rest.trust_domain, trust_domain.to_string());
        return Err(AuthorityFileError::TrustDomain { made_for, asked });
    }
    let pem = AuthorityPem {
        epoch: rest.epoch,
        roots_pem: rest.roots_pem,
        issuer_chain_pem: rest.issuer_chain_pem,
        issuer_key_pem: rest.issuer_key_pem,
        root_key_pem: rest.root_key_pem,
        prepared: rest.prepared.map(|SlotAtRest { issuer_chain_pem, issuer_key_pem, root_key_pem }| SlotPem {
            issuer_chain_pem,
            issuer_key_pem,
            root_key_pem,
        }),
    };
    let earlier_svids_end = rest.earlier_svids_end.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    Ok((parse(trust_domain, &pem, AUTHORITY)?, earlier_svids_end))
}

/// All of it at once: whoever reads it after a crash finds one step or the next, whole.
fn save(
    data: &PrivateDir,
    authority: &Authority,
    earlier_svids_end: Option<SystemTime>,
) -> Result<(), PrivateDirError> {
    let pem = authority.to_pem();
    let rest = AtRest {
        trust_domain: authority.bundle().trust_domain().to_string(),
        epoch: pem.epoch,
        roots_pem: pem.roots_pem,
        issuer_chain_pem: pem.issuer_chain_pem,
        issuer_key_pem: pem.issuer_key_pem,
        root_key_pem: pem.root_key_pem,
        prepared: pem.prepared.map(|SlotPem { issuer_chain_pem, issuer_key_pem, root_key_pem }| SlotAtRest {
            issuer_chain_pem,
            issuer_key_pem,
            root_key_pem,
        }),
        // Rounded up: none may be left then.
        earlier_svids_end: earlier_svids_end.map(|end| u64::try_from(seconds(end)).unwrap_or_default() + 1),
    };
    let text = serde_json::to_vec_pretty(&rest).expect("text and numbers are JSON");
    data.write(AUTHORITY, &text)
}

#[cfg(test)]
mod tests;
