//! X.509-SVIDs: a certificate chain that names a workload, with its key.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    SpiffeId, VerifyError, pem, tls,
    verify::{check_validity, rules},
};

/// A certificate chain and its private key, known to fit each other and to keep the rules for their
/// kind. Who signed it is for others to judge. Cheap to clone.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    leaf: rules::Leaf,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
    /// Whether its time was seen to have come.
    begun: AtomicBool,
}

/// Why something is no SVID.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SvidError {
    /// A certificate of the chain breaks a rule.
    #[error("certificate {index} of the chain")]
    Certificate {
        /// Which one, the leaf being 0.
        index: usize,
        /// The rule.
        source: VerifyError,
    },
    /// The private key cannot be read, or is of a kind that is not supported.
    #[error("the private key cannot be used")]
    Key(#[source] rustls::Error),
    /// The private key belongs to another certificate.
    #[error("the private key is not the leaf's")]
    KeyMismatch,
    /// The PEM text is broken.
    #[error("no PEM: {reason}")]
    Pem {
        /// What is wrong with it.
        reason: String,
    },
}

impl Svid {
    /// Checks each certificate by the rules of X.509-SVID, and that the key is the leaf's. The chain is
    /// leaf first, then intermediates, no root.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        let of = |index| move |source| SvidError::Certificate { index, source };
        let leaf = rules::leaf(chain.first().ok_or(VerifyError::NoCertificate).map_err(of(0))?).map_err(of(0))?;
        for (index, certificate) in chain.iter().enumerate().skip(1) {
            rules::signing(certificate).map_err(of(index))?;
        }
        let signing_key = tls::provider().key_provider.load_private_key(key.clone_key()).map_err(SvidError::Key)?;
        let certified = CertifiedKey::new(chain, signing_key);
        // A key that cannot tell its public half counts as the wrong one.
        certified.keys_match().map_err(|_| SvidError::KeyMismatch)?;
        Ok(Self(Arc::new(Inner { leaf, key, certified: Arc::new(certified), begun: AtomicBool::new(false) })))
    }

    /// Parses what [`Svid::to_pem`] and [`Svid::key_pem`] wrote.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        let broken = |error: rustls_pki_types::pem::Error| SvidError::Pem { reason: error.to_string() };
        Self::from_der(pem::certificates(chain).map_err(broken)?, pem::private_key(key).map_err(broken)?)
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.0.leaf.id
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified.cert
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.0.key
    }

    /// Not valid before this.
    pub fn not_before(&self) -> SystemTime {
        self.0.leaf.not_before
    }

    /// Not valid after this.
    pub fn not_after(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    /// Whether this process may prove itself with it at `now`. Once it could, a clock that is stepped back takes it
    /// out of use no more: peers judge it by clocks of their own.
    pub fn check_validity(&self, now: SystemTime) -> Result<(), VerifyError> {
        match check_validity(self.not_before(), self.not_after(), now) {
            Ok(()) => self.0.begun.store(true, Ordering::Relaxed),
            Err(VerifyError::NotYetValid { .. }) if self.0.begun.load(Ordering::Relaxed) => {}
            Err(error) => return Err(VerifyError::Own(Box::new(error))),
        }
        Ok(())
    }

    /// The chain as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode_certificates(self.chain())
    }

    /// The key as PEM.
    pub fn key_pem(&self) -> String {
        let label = match self.key() {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => pem::PRIVATE_KEY,
        };
        pem::encode(label, [self.key().secret_der()])
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.0.certified
    }
}

impl fmt::Debug for Svid {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", self.id()).field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, KeyUsagePurpose};
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::testing::{Ca, DAY, ID, leaf, now};

    fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(key.serialize_der()).into()
    }

    #[test]
    fn tells_what_the_leaf_says_and_survives_pem() {
        let ca = Ca::new();
        let svid = ca.svid(|_| {});
        assert_eq!(svid.id().as_str(), ID);
        assert_eq!((svid.not_before(), svid.not_after()), (now() - DAY, now() + DAY));
        assert_eq!(svid.chain().len(), 2);
        let again = Svid::from_pem(svid.to_pem().as_bytes(), svid.key_pem().as_bytes()).unwrap();
        assert_eq!((again.chain(), again.key()), (svid.chain(), svid.key()));
        assert!(!svid.to_pem().contains("PRIVATE") && !svid.key_pem().contains("CERTIFICATE"));
    }

    #[test]
    fn the_key_is_the_leafs() {
        let ca = Ca::new();
        let (certificate, key) = leaf(&ca.issuer, |_| {});
        let other = KeyPair::generate().unwrap();
        let chain = vec![certificate, ca.intermediate.clone()];
        assert!(Svid::from_der(chain.clone(), der(&key)).is_ok());
        assert_eq!(Svid::from_der(chain.clone(), der(&other)).unwrap_err(), SvidError::KeyMismatch);
        let broken = PrivatePkcs8KeyDer::from(vec![0x30, 0]).into();
        assert!(matches!(Svid::from_der(chain, broken), Err(SvidError::Key(_))));
    }

    #[test]
    fn every_certificate_of_the_chain_keeps_its_rules() {
        let ca = Ca::new();
        let (bad, key) = leaf(&ca.issuer, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
        let error = Svid::from_der(vec![bad], der(&key)).unwrap_err();
        let source = VerifyError::LeafWithoutDigitalSignature;
        assert_eq!(error, SvidError::Certificate { index: 0, source });
        let (good, key) = leaf(&ca.issuer, |_| {});
        let error = Svid::from_der(vec![good.clone(), good], der(&key)).unwrap_err();
        assert_eq!(error, SvidError::Certificate { index: 1, source: VerifyError::SigningNotCa });
        let error = Svid::from_der(vec![], der(&key)).unwrap_err();
        assert_eq!(error, SvidError::Certificate { index: 0, source: VerifyError::NoCertificate });
    }

    #[test]
    fn broken_pem_is_refused() {
        let svid = Ca::new().svid(|_| {});
        let (chain, key) = (svid.to_pem(), svid.key_pem());
        assert!(Svid::from_pem(b"", key.as_bytes()).is_err());
        assert!(matches!(Svid::from_pem(chain.as_bytes(), b""), Err(SvidError::Pem { .. })));
        assert!(Svid::from_pem(&chain.as_bytes()[..200], key.as_bytes()).is_err());
    }

    #[test]
    fn its_own_validity_is_judged_by_the_time_given() {
        let svid = Ca::new().svid(|_| {});
        for wrong in [now() - 2 * DAY, now() + 2 * DAY] {
            assert!(matches!(svid.check_validity(wrong), Err(VerifyError::Own(_))));
        }
        assert_eq!(svid.check_validity(now()), Ok(()));
        assert_eq!(svid.clone().check_validity(now() - 2 * DAY), Ok(()), "the clock was stepped back");
        assert!(matches!(svid.check_validity(now() + 2 * DAY), Err(VerifyError::Own(_))));
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let svid = Ca::new().svid(|_| {});
        let text = format!("{svid:?}");
        assert!(text.contains(ID) && text.len() < 200, "{text}");
    }
}
