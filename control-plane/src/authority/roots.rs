//! Replacing the root, in steps: each is on disk before it takes effect, and safe once the one before has reached
//! every proxy.

use std::{
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest;
use heddle_certs::{Authority, AuthorityError};
use heddle_runtime::private_dir::PrivateDirError;

use super::{Origin, Signer, save};
use crate::tokens::hex;

/// How far the replacement of the root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one root, or the roots are somebody else's.
    Steady,
    /// A new root is trusted, and signs nothing yet.
    Prepared,
    /// The new root signs; what an old one signed is trusted still.
    Activated,
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// Whether SVIDs are signed under it; not known of somebody else's.
    pub signs: bool,
}

/// The roots, as of one moment.
#[derive(Clone, Debug)]
pub struct Roots {
    /// How far their replacement is.
    pub phase: Phase,
    /// Grows with each change.
    pub epoch: u64,
    /// All that are trusted.
    pub roots: Vec<Root>,
    /// Until when SVIDs of before the last step may be valid: whoever has been away since it knows nothing of it.
    pub earlier_svids_end: Option<SystemTime>,
    /// All of them, PEM.
    pub pem: String,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The roots are somebody else's.
    #[error("the roots are those of --authority-dir: who made them replaces them there")]
    External,
    /// Another step has its turn.
    #[error("{0}")]
    Turn(&'static str),
    /// The authority cannot do it.
    #[error("the authority cannot take this step")]
    Authority(#[from] AuthorityError),
    /// It cannot be written; nothing has changed.
    #[error("the step cannot be written to the data folder")]
    Folder(#[from] PrivateDirError),
}

impl Signer {
    /// The roots as they are now.
    pub fn roots(&self) -> Roots {
        let earlier_svids_end = *self.earlier_svids_end.lock().unwrap_or_else(PoisonError::into_inner);
        let authority = self.current.load();
        let bundle = authority.bundle();
        let roots = bundle
            .roots()
            .iter()
            .map(|root| Root { fingerprint: fingerprint(root), signs: authority.signing_root() == Some(root) });
        Roots {
            phase: phase(&authority),
            epoch: bundle.epoch(),
            roots: roots.collect(),
            earlier_svids_end,
            pem: bundle.to_pem(),
        }
    }

    /// Makes a new root and adds it to those that are trusted. `earlier_svids_end`: when the last SVID of before ends.
    pub fn prepare_root(&self, earlier_svids_end: SystemTime) -> Result<(), RootError> {
        self.step(|authority| match phase(authority) {
            Phase::Steady => Ok(Some((authority.prepare_root(self.clock.now())?, Some(earlier_svids_end)))),
            Phase::Prepared => Err(RootError::Turn("a root is prepared already; activate it")),
            Phase::Activated => Err(RootError::Turn("the old root is still trusted; retire it first")),
        })
    }

    /// Signs under the prepared root from now on, if it does not already. `earlier_svids_end`: when the last SVID of
    /// before ends.
    pub fn activate_root(&self, earlier_svids_end: SystemTime) -> Result<(), RootError> {
        self.step(|authority| match (phase(authority), authority.activate()) {
            (_, Some(activated)) => Ok(Some((activated, Some(earlier_svids_end)))),
            (Phase::Activated, None) => Ok(None),
            (_, None) => Err(RootError::Turn("no root is prepared; prepare one first")),
        })
    }

    /// Trusts only the root that signs from now on, if it is not the only one already.
    pub fn retire_roots(&self) -> Result<(), RootError> {
        self.step(|authority| match phase(authority) {
            Phase::Activated => Ok(Some((authority.retire_old_roots()?, None))),
            Phase::Prepared => Err(RootError::Turn("the prepared root does not sign yet; activate it first")),
            Phase::Steady => Ok(None),
        })
    }

    /// `change`: the authority of after the step, and when the last SVID of before ends; nothing where it is taken.
    fn step(
        &self,
        change: impl FnOnce(&Authority) -> Result<Option<(Authority, Option<SystemTime>)>, RootError>,
    ) -> Result<(), RootError> {
        let Origin::Own(data) = &self.origin else { return Err(RootError::External) };
        let mut earlier_svids_end = self.earlier_svids_end.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((changed, end)) = change(&self.current.load())? else { return Ok(()) };
        save(data, &changed, end)?;
        *earlier_svids_end = end;
        self.current.store(Arc::new(changed));
        self.report();
        Ok(())
    }
}

fn phase(authority: &Authority) -> Phase {
    if authority.prepared_root().is_some() {
        Phase::Prepared
    } else if authority.signing_root().is_some() && authority.bundle().roots().len() > 1 {
        Phase::Activated
    } else {
        Phase::Steady
    }
}

fn fingerprint(root: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, root).as_ref())
}
