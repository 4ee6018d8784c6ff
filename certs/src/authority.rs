//! The authority: a root, an issuing intermediate under it, and the signing of SVIDs.
//!
//! The root's key signs intermediates and nothing else, so it may be kept elsewhere: an authority that
//! was loaded without it signs SVIDs all the same, until its intermediate ends. The root and the
//! intermediate may be somebody else's altogether.

mod issuer;

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;

use crate::{
    CsrError, SpiffeId, Svid, SvidError, TrustBundle, TrustBundleError, TrustDomain, VerifyError, csr, pem, rotation,
    verify::{Side, Verifier},
};
use issuer::Issuer;

/// How long a root of our own making is valid.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long an issuing intermediate of our own making is valid.
pub const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// At most this far before the time of signing does a certificate become valid, for peers whose clock
/// is behind; less for short-lived ones.
pub const LONGEST_BACKDATE: Duration = Duration::from_secs(3600);

/// Signs SVIDs for one trust domain. A value: cheap to clone, and what changes it makes another.
///
/// A root is replaced in steps, each of which is safe once the one before has reached everybody:
/// [`prepare_root`](Self::prepare_root), then [`activate`](Self::activate), and when the last SVID
/// under the old root has expired, [`retire_old_roots`](Self::retire_old_roots).
#[derive(Clone)]
pub struct Authority {
    bundle: TrustBundle,
    verifier: Verifier,
    active: Slot,
    prepared: Option<Slot>,
}

/// What signs, or is to.
#[derive(Clone)]
struct Slot {
    issuer: Arc<Issuer>,
    /// The root that signed the issuer, while its key is kept here.
    root: Option<Arc<Issuer>>,
}

/// An authority at rest.
#[derive(Clone, Default)]
pub struct AuthorityPem {
    /// The trust bundle's epoch.
    pub epoch: u64,
    /// The trust bundle's roots.
    pub roots_pem: String,
    /// The issuing certificate, then what leads from it to a root, without the root.
    pub issuer_chain_pem: String,
    /// The issuing certificate's private key.
    pub issuer_key_pem: String,
    /// The root's private key, if the authority made the root: without it there is no new intermediate.
    pub root_key_pem: Option<String>,
    /// What is to sign next, while a root is being replaced.
    pub prepared: Option<SlotPem>,
}

/// A prepared issuer at rest; its root is among [`AuthorityPem::roots_pem`].
#[derive(Clone, Default)]
pub struct SlotPem {
    /// As [`AuthorityPem::issuer_chain_pem`].
    pub issuer_chain_pem: String,
    /// As [`AuthorityPem::issuer_key_pem`].
    pub issuer_key_pem: String,
    /// As [`AuthorityPem::root_key_pem`].
    pub root_key_pem: Option<String>,
}

/// What a leaf gets besides its identity.
#[derive(Clone, Debug)]
pub struct SignOptions {
    /// How long it is valid from `now`; less if the issuing certificate ends before.
    pub ttl: Duration,
    /// DNS names, for clients that know nothing of SPIFFE.
    pub dns_names: Vec<String>,
    /// IP addresses, likewise.
    pub ip_addresses: Vec<IpAddr>,
    /// The time of signing.
    pub now: SystemTime,
}

impl SignOptions {
    /// Without names.
    pub fn new(ttl: Duration, now: SystemTime) -> Self {
        Self { ttl, dns_names: Vec::new(), ip_addresses: Vec::new(), now }
    }
}

/// Why an authority could not be made, loaded, or sign.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AuthorityError {
    /// The request was refused.
    #[error("the signing request was refused")]
    Csr(#[from] CsrError),
    /// The identity is of another trust domain.
    #[error("{id} is not of trust domain {trust_domain}")]
    TrustDomain {
        /// The identity that was asked for.
        id: SpiffeId,
        /// The authority's.
        trust_domain: TrustDomain,
    },
    /// Not a DNS name.
    #[error("{name:?} is no DNS name")]
    DnsName {
        /// What was given.
        name: String,
    },
    /// The lifetime is below a second, which is what X.509 counts in.
    #[error("a lifetime of {ttl:?} is too short")]
    Ttl {
        /// What was asked for.
        ttl: Duration,
    },
    /// The issuing certificate has expired, or ends within the second.
    #[error("the issuing certificate has expired")]
    IssuerExpired,
    /// The issuing certificate is not valid yet.
    #[error("the issuing certificate is not valid yet")]
    IssuerNotYetValid,
    /// The authority has no key of its root.
    #[error("the root's private key is not here")]
    NoRootKey,
    /// Another root is being prepared.
    #[error("a root is prepared and not yet activated")]
    RootPrepared,
    /// The roots are no trust bundle.
    #[error("the authority's roots")]
    Roots(#[from] TrustBundleError),
    /// A certificate or key of the authority at rest is unusable.
    #[error("the authority's {what}")]
    Load {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What it signs, a verifier would refuse.
    #[error("a certificate signed by this authority would be refused")]
    Refused(#[from] VerifyError),
    /// The SVID made for itself is unusable.
    #[error("SVID")]
    Svid(#[from] SvidError),
    /// A certificate could not be made.
    #[error("certificate")]
    Certificate(#[from] rcgen::Error),
}

impl Authority {
    /// A new root (10 years) and a new issuing intermediate (1 year) under it.
    pub fn create(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let root = Issuer::create_root(&trust_domain, now)?;
        let bundle = TrustBundle::new(trust_domain, 1, vec![root.certificate().clone()])?;
        let active = Slot::under(root, bundle.trust_domain(), now)?;
        Ok(Self::new(bundle, active, None))
    }

    /// Loads an authority: its own at rest, or an intermediate that somebody else's root signed.
    ///
    /// Each certificate is checked by itself, and each key against its certificate. Whether the chain
    /// leads to a root is a question of the time too, and is asked with each signing.
    pub fn from_pem(trust_domain: TrustDomain, text: &AuthorityPem) -> Result<Self, AuthorityError> {
        let bundle = TrustBundle::from_pem(trust_domain, text.epoch, text.roots_pem.as_bytes())?;
        let load = |chain: &str, key: &str, root_key: &Option<String>| Slot::load(&bundle, chain, key, root_key);
        let active = load(&text.issuer_chain_pem, &text.issuer_key_pem, &text.root_key_pem)?;
        let prepared = text
            .prepared
            .as_ref()
            .map(|slot| load(&slot.issuer_chain_pem, &slot.issuer_key_pem, &slot.root_key_pem))
            .transpose()?;
        Ok(Self::new(bundle, active, prepared))
    }

    /// The authority for keeping at rest. Holds private keys.
    pub fn to_pem(&self) -> AuthorityPem {
        let active = self.active.to_pem();
        AuthorityPem {
            epoch: self.bundle.epoch(),
            roots_pem: self.bundle.to_pem(),
            issuer_chain_pem: active.issuer_chain_pem,
            issuer_key_pem: active.issuer_key_pem,
            root_key_pem: active.root_key_pem,
            prepared: self.prepared.as_ref().map(Slot::to_pem),
        }
    }

    /// The roots by which others know the signed.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Signs an SVID for an identity that was attested; of the request only the key is used. Returns
    /// the leaf, then the intermediates, without the root.
    ///
    /// What is returned has passed the same verification that peers will put it to.
    pub fn sign(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        options: &SignOptions,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let key = csr::verify(csr_der)?;
        if id.trust_domain() != self.bundle.trust_domain() {
            let trust_domain = self.bundle.trust_domain().clone();
            return Err(AuthorityError::TrustDomain { id: id.clone(), trust_domain });
        }
        if id.path().is_empty() {
            return Err(VerifyError::LeafWithoutPath { id: id.clone() }.into());
        }
        let chain = self.active.issuer.sign_leaf(&key, id, options)?;
        self.verifier.verify(&chain[0], &chain[1..], Side::Server, options.now)?;
        self.verifier.verify(&chain[0], &chain[1..], Side::Client, options.now)?;
        Ok(chain)
    }

    /// Makes a key and signs an SVID for it: for the process that holds the authority.
    pub fn issue(&self, id: &SpiffeId, options: &SignOptions) -> Result<Svid, AuthorityError> {
        let (key, csr) = csr::generate()?;
        Ok(Svid::from_der(self.sign(&csr, id, options)?, key)?)
    }

    /// When what signs ends; SVIDs end no later.
    pub fn issuer_not_after(&self) -> SystemTime {
        self.active.issuer.not_after
    }

    /// Whether the issuing intermediate should be replaced ([`renew_issuer`](Self::renew_issuer), or a
    /// new one from whoever made it).
    pub fn issuer_state(&self, now: SystemTime) -> rotation::State {
        let Issuer { not_before, not_after, .. } = *self.active.issuer;
        rotation::state(now, not_before, not_after, rotation::renew_at(not_before, not_after, 0.0))
    }

    /// The same root with a new issuing intermediate. Nobody needs to be told: intermediates travel
    /// with the SVIDs.
    pub fn renew_issuer(&self, now: SystemTime) -> Result<Self, AuthorityError> {
        let root = self.active.root.as_ref().ok_or(AuthorityError::NoRootKey)?;
        let issuer = Issuer::create_intermediate(root, self.bundle.trust_domain(), now)?;
        let active = Slot { issuer: Arc::new(issuer), root: Some(Arc::clone(root)) };
        Ok(Self::new(self.bundle.clone(), active, self.prepared.clone()))
    }

    /// The root under which it signs; absent where its key is not here.
    pub fn signing_root(&self) -> Option<&CertificateDer<'static>> {
        self.active.root.as_ref().map(|root| root.certificate())
    }

    /// The root that is prepared to sign next.
    pub fn prepared_root(&self) -> Option<&CertificateDer<'static>> {
        self.prepared.as_ref()?.root.as_ref().map(|root| root.certificate())
    }

    /// Adds a new root to the bundle, under which nothing is signed yet. A root that was prepared
    /// before and never activated is dropped.
    pub fn prepare_root(&self, now: SystemTime) -> Result<Self, AuthorityError> {
        let unused = self.prepared.as_ref().and_then(|slot| slot.root.as_ref());
        let mut roots = self.bundle.roots().to_vec();
        roots.retain(|root| unused.is_none_or(|unused| unused.certificate() != root));
        let root = Issuer::create_root(self.bundle.trust_domain(), now)?;
        roots.push(root.certificate().clone());
        let bundle = self.next_bundle(roots)?;
        let prepared = Slot::under(root, bundle.trust_domain(), now)?;
        Ok(Self::new(bundle, self.active.clone(), Some(prepared)))
    }

    /// Signs with what was prepared from now on; `None` if nothing was. Only once every proxy has the
    /// bundle with the new root.
    pub fn activate(&self) -> Option<Self> {
        Some(Self::new(self.bundle.clone(), self.prepared.clone()?, None))
    }

    /// Removes every root but the one that signs. Only once every SVID under another has expired.
    /// Refused while a root is prepared, and where the authority does not know which root is its own.
    pub fn retire_old_roots(&self) -> Result<Self, AuthorityError> {
        let root = self.active.root.as_ref().ok_or(AuthorityError::NoRootKey)?;
        if self.prepared.is_some() {
            return Err(AuthorityError::RootPrepared);
        }
        if self.bundle.roots() == [root.certificate().clone()] {
            return Ok(self.clone());
        }
        let bundle = self.next_bundle(vec![root.certificate().clone()])?;
        Ok(Self::new(bundle, self.active.clone(), None))
    }

    fn next_bundle(&self, roots: Vec<CertificateDer<'static>>) -> Result<TrustBundle, TrustBundleError> {
        TrustBundle::new(self.bundle.trust_domain().clone(), self.bundle.epoch() + 1, roots)
    }

    fn new(bundle: TrustBundle, active: Slot, prepared: Option<Slot>) -> Self {
        Self { verifier: Verifier::new(bundle.clone()), bundle, active, prepared }
    }
}

impl Slot {
    /// A new issuing intermediate under `root`.
    fn under(root: Issuer, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let issuer = Issuer::create_intermediate(&root, trust_domain, now)?;
        Ok(Self { issuer: Arc::new(issuer), root: Some(Arc::new(root)) })
    }

    fn load(bundle: &TrustBundle, chain: &str, key: &str, root_key: &Option<String>) -> Result<Self, AuthorityError> {
        let chain = pem::certificates(chain.as_bytes())
            .map_err(|error| AuthorityError::Load { what: "issuing certificates", reason: error.to_string() })?;
        let issuer = Arc::new(Issuer::load(chain, key, "issuing key")?);
        let Some(root_key) = root_key else { return Ok(Self { issuer, root: None }) };
        let root = bundle.roots().iter().find_map(|root| Issuer::load(vec![root.clone()], root_key, "root key").ok());
        let root = root.ok_or_else(|| AuthorityError::Load {
            what: "root key",
            reason: "it belongs to none of the roots".to_owned(),
        })?;
        Ok(Self { issuer, root: Some(Arc::new(root)) })
    }

    fn to_pem(&self) -> SlotPem {
        SlotPem {
            issuer_chain_pem: pem::encode_certificates(&self.issuer.chain),
            issuer_key_pem: self.issuer.key_pem(),
            root_key_pem: self.root.as_ref().map(|root| root.key_pem()),
        }
    }
}

impl fmt::Debug for Authority {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("bundle", &self.bundle)
            .field("issuer_not_after", &self.issuer_not_after())
            .field("has_root_key", &self.active.root.is_some())
            .field("prepared", &self.prepared.is_some())
            .finish()
    }
}

impl fmt::Debug for AuthorityPem {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityPem").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
