//! Trust bundles: the roots that speak for a trust domain.

use rustls_pki_types::CertificateDer;

use crate::TrustDomain;

/// The roots of one trust domain. A bundle is a set: while a root is being replaced it holds both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    epoch: u64,
    roots: Vec<CertificateDer<'static>>,
}

/// Why something is no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustBundleError {
    /// There is no root in it.
    #[error("the trust bundle holds no root")]
    NoRoots,
}

impl TrustBundle {
    /// A bundle of these roots; `epoch` grows with each change of the set.
    pub fn new(
        trust_domain: TrustDomain,
        epoch: u64,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TrustBundleError> {
        Ok(Self { trust_domain, epoch, roots })
    }

    /// Parses PEM certificates.
    pub fn from_pem(trust_domain: TrustDomain, epoch: u64, pem: &[u8]) -> Result<Self, TrustBundleError> {
        todo!("{trust_domain} {epoch} {pem:?}")
    }

    /// Parses a SPIFFE bundle document (JWKS); the epoch is its `spiffe_sequence`.
    pub fn from_spiffe_json(trust_domain: TrustDomain, json: &str) -> Result<Self, TrustBundleError> {
        todo!("{trust_domain} {json}")
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        todo!()
    }

    /// The bundle as a SPIFFE bundle document.
    pub fn to_spiffe_json(&self) -> String {
        todo!()
    }

    /// Whom these roots speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with each change of the set.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The roots; at least one.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}
