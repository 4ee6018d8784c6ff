//! Who vouches for callers: a root that is taken out of the trust bundle takes out whom it let in.

use std::{collections::HashMap, fmt, rc::Rc, time::SystemTime};

use heddle_certs::{
    CertificateDer, TrustBundle,
    verify::{Side, Verifier},
};
use tokio::task::yield_now;

use super::access::Connections;
use crate::{
    outcome::{Error, ErrorKind},
    worker::Worker,
};

/// Callers that are judged anew at once, before others have their turn: each costs a few signatures.
const BATCH: usize = 16;

/// What a caller proved itself with.
#[derive(Clone)]
pub(super) struct Proof {
    /// The leaf first.
    pub(super) chain: Rc<[CertificateDer<'static>]>,
    /// When. Judged again, it is as of then: that a certificate expires ends nothing that has begun.
    pub(super) at: SystemTime,
}

impl Proof {
    /// Whether these roots vouch for it.
    pub(super) fn check(&self, verifier: &Verifier) -> Result<(), Error> {
        let refused = |error: &dyn std::error::Error| {
            let why = crate::control_plane::causes(error);
            Error::new(ErrorKind::CertificateExpired, format!("the caller's certificate is no longer trusted: {why}"))
        };
        let Some((leaf, intermediates)) = self.chain.split_first() else { return Ok(()) };
        verifier.verify(leaf, intermediates, Side::Client, self.at).map(drop).map_err(|error| refused(&error))
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Judges callers anew whenever a root is gone.
pub(crate) async fn follow_roots(worker: Rc<Worker>) {
    let identity = &worker.common.identity;
    let mut changed = identity.changed();
    let mut known = identity.bundle();
    while changed.changed().await.is_ok() {
        let Some(bundle) = identity.bundle() else { continue };
        let lost = known.as_ref().is_some_and(|known| lacks_a_root(&bundle, known));
        known = Some(bundle.clone());
        if lost {
            recheck(&worker.inbound, &Verifier::new(bundle)).await;
        }
    }
}

/// Whether a bundle lacks a root that another has.
pub(super) fn lacks_a_root(bundle: &TrustBundle, other: &TrustBundle) -> bool {
    other.roots().iter().any(|root| !bundle.roots().contains(root))
}

async fn recheck(connections: &Connections, verifier: &Verifier) {
    // Many connections are of few callers.
    let mut known: HashMap<CertificateDer<'static>, Option<Error>> = HashMap::new();
    for connection in connections.all() {
        let Some(connection) = connection.upgrade() else { continue };
        let Some(proof) = connection.proof() else { continue };
        let Some(leaf) = proof.chain.first() else { continue };
        if !known.contains_key(leaf) {
            if known.len() % BATCH == BATCH - 1 {
                yield_now().await;
            }
            known.insert(leaf.clone(), proof.check(verifier).err());
        }
        if let Some(Some(error)) = known.get(leaf) {
            connection.distrust(error);
        }
    }
}
