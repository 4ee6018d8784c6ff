//! The authority: a root, an issuing intermediate, and the signing of SVIDs.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;

use crate::{SpiffeId, TrustBundle, TrustDomain};

/// Signs SVIDs for one trust domain.
#[derive(Debug)]
pub struct Authority {
    bundle: TrustBundle,
}

/// An authority at rest.
#[derive(Clone)]
pub struct AuthorityPem {
    /// The trust bundle's roots.
    pub roots_pem: String,
    /// The issuing certificate, and what leads from it to a root.
    pub issuer_chain_pem: String,
    /// The issuing certificate's private key.
    pub issuer_key_pem: String,
    /// The root's private key, if the authority made the root.
    pub root_key_pem: Option<String>,
}

/// What a leaf gets besides its identity.
#[derive(Clone, Debug)]
pub struct SignOptions {
    /// How long it is valid from `now`.
    pub ttl: Duration,
    /// DNS names, for clients that know nothing of SPIFFE.
    pub dns_names: Vec<String>,
    /// IP addresses, likewise.
    pub ip_addresses: Vec<IpAddr>,
    /// The time of signing.
    pub now: SystemTime,
}

/// Why an authority could not be made, loaded, or sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The issuing certificate has expired.
    #[error("the issuing certificate has expired")]
    IssuerExpired,
}

impl Authority {
    /// A new root (10 years) and a new issuing intermediate (1 year) under it.
    pub fn create(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        todo!("{trust_domain} {now:?}")
    }

    /// Loads an authority: its own at rest, or an intermediate that somebody else's root signed.
    pub fn from_pem(trust_domain: TrustDomain, pem: &AuthorityPem) -> Result<Self, AuthorityError> {
        todo!("{trust_domain} {}", pem.roots_pem)
    }

    /// The authority for keeping at rest. Holds private keys.
    pub fn to_pem(&self) -> AuthorityPem {
        todo!()
    }

    /// The roots by which others know the signed.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Signs an SVID for an identity that was attested; of the request only the key is used. Returns
    /// the leaf, then the intermediates, without the root.
    pub fn sign(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        options: &SignOptions,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        todo!("{csr_der:?} {id} {options:?}")
    }
}
