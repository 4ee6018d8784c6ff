//! Trust bundles: the roots that speak for a trust domain.

use std::{collections::HashSet, fmt, sync::Arc, time::SystemTime};

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::{
    TrustDomain, VerifyError, pem,
    verify::{check_validity, rules},
};

mod jwks;

/// The roots of one trust domain, each a CA certificate by the rules of X.509-SVID.
///
/// A bundle is a set: while a root is being replaced it holds both, and `epoch` grows with each change.
/// Cheap to clone.
#[derive(Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    epoch: u64,
    roots: Arc<Roots>,
}

struct Roots {
    der: Vec<CertificateDer<'static>>,
    parsed: Vec<Root>,
}

/// A root, read once.
pub(crate) struct Root {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) path_len: Option<u32>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why something is no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustBundleError {
    /// There is no root in it.
    #[error("the trust bundle holds no root")]
    NoRoots,
    /// A root is no signing certificate.
    #[error("root {index} of the trust bundle")]
    Root {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        source: VerifyError,
    },
    /// A root's key is of a kind that cannot be verified with, or put in a SPIFFE bundle.
    #[error("root {index} of the trust bundle has a key that is neither ECDSA P-256, P-384, P-521, Ed25519 nor RSA")]
    RootKey {
        /// Which one, from 0.
        index: usize,
    },
    /// The PEM text is broken.
    #[error("the trust bundle is no PEM: {reason}")]
    Pem {
        /// What is wrong with it.
        reason: String,
    },
    /// The JSON document is no SPIFFE bundle.
    #[error("the trust bundle is no SPIFFE bundle document: {reason}")]
    Json {
        /// What is wrong with it.
        reason: String,
    },
}

impl TrustBundle {
    /// A bundle of these roots, without doubles; `epoch` grows with each change of the set.
    pub fn new(
        trust_domain: TrustDomain,
        epoch: u64,
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TrustBundleError> {
        let mut seen = HashSet::new();
        roots.retain(|root| seen.insert(root.clone()));
        if roots.is_empty() {
            return Err(TrustBundleError::NoRoots);
        }
        let parsed = roots.iter().enumerate().map(|(index, der)| parse_root(index, der)).collect::<Result<_, _>>()?;
        Ok(Self { trust_domain, epoch, roots: Arc::new(Roots { der: roots, parsed }) })
    }

    /// Parses PEM certificates.
    pub fn from_pem(trust_domain: TrustDomain, epoch: u64, text: &[u8]) -> Result<Self, TrustBundleError> {
        let roots = pem::certificates(text).map_err(|error| TrustBundleError::Pem { reason: error.to_string() })?;
        Self::new(trust_domain, epoch, roots)
    }

    /// Parses a SPIFFE bundle document (JWKS); the epoch is its `spiffe_sequence`.
    pub fn from_spiffe_json(trust_domain: TrustDomain, json: &str) -> Result<Self, TrustBundleError> {
        let (epoch, roots) = jwks::parse(json)?;
        Self::new(trust_domain, epoch, roots)
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode_certificates(self.roots())
    }

    /// The bundle as a SPIFFE bundle document.
    pub fn to_spiffe_json(&self) -> String {
        jwks::write(self)
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
        &self.roots.der
    }

    pub(crate) fn parsed_roots(&self) -> &[Root] {
        &self.roots.parsed
    }
}

impl Root {
    pub(crate) fn valid_at(&self, now: SystemTime) -> bool {
        check_validity(self.not_before, self.not_after, now).is_ok()
    }
}

fn parse_root(index: usize, der: &CertificateDer<'_>) -> Result<Root, TrustBundleError> {
    let signing = rules::signing(der).map_err(|source| TrustBundleError::Root { index, source })?;
    let anchor = webpki::anchor_from_trusted_cert(der)
        .map_err(|error| TrustBundleError::Root { index, source: error.into() })?
        .to_owned();
    jwks::key_parameters(der).ok_or(TrustBundleError::RootKey { index })?;
    Ok(Root { anchor, path_len: signing.path_len, not_before: signing.not_before, not_after: signing.not_after })
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        (&self.trust_domain, self.epoch, self.roots()) == (&other.trust_domain, other.epoch, other.roots())
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("epoch", &self.epoch)
            .field("roots", &self.roots().len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
