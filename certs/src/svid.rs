//! X.509-SVIDs: a certificate chain that names a workload, with its key.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::SpiffeId;

/// A certificate chain and its private key, known to fit each other and the rules for leaves. Cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct Svid {
    id: SpiffeId,
}

/// Why something is no SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate in the chain.
    #[error("the chain holds no certificate")]
    EmptyChain,
}

impl Svid {
    /// Checks the leaf by the rules of X.509-SVID, and that the key is the leaf's. The chain is leaf
    /// first, then intermediates, no root.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        todo!("{chain:?} {key:?}")
    }

    /// Parses what [`Svid::to_pem`] and [`Svid::key_pem`] wrote.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        todo!("{chain:?} {}", key.len())
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        todo!()
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        todo!()
    }

    /// Not valid before this.
    pub fn not_before(&self) -> SystemTime {
        todo!()
    }

    /// Not valid after this.
    pub fn not_after(&self) -> SystemTime {
        todo!()
    }

    /// The chain as PEM.
    pub fn to_pem(&self) -> String {
        todo!()
    }

    /// The key as PEM (PKCS#8).
    pub fn key_pem(&self) -> String {
        todo!()
    }
}
