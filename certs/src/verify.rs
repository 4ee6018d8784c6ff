//! The rules of X.509-SVID, for the certificates of others.
//!
//! A certificate speaks for a SPIFFE ID only if all of this holds (sections of X509-SVID.md):
//!
//! | rule | section |
//! | --- | --- |
//! | leaf: exactly one URI SAN, a SPIFFE ID with a path; SAN critical if there is no subject | 2, 3.1 |
//! | leaf: `cA` is false | 4.1 |
//! | leaf: key usage present and critical, `digitalSignature`, no `keyCertSign`, no `cRLSign` | 4.3 |
//! | leaf: extended key usage absent, or with both `serverAuth` and `clientAuth` | 4.4 |
//! | signing: `cA` is true; key usage present and critical, with `keyCertSign` | 3.2, 4.1, 4.3 |
//! | signing: its SPIFFE ID, if it has one, is the only URI SAN and has no path | 3.2 |
//! | a path by RFC 5280 from the leaf to a root of the bundle, all of it valid now, the root too | 5.1 |
//! | the leaf's trust domain is the bundle's | 5.2 |
//!
//! The path is webpki's work. webpki does not look at key usage, takes any URI, and knows no bundle:
//! the rest is in [`rules`]. Two parsers read each leaf, and both must see the same single URI, so
//! that no trick of encoding has one certificate validated and another one's name believed. URI name
//! constraints are refused, not skipped: webpki cannot evaluate them.
//!
//! There is no revocation list: SVIDs are short-lived, and policy is what takes access away at once.

pub mod rules;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::{SpiffeId, SpiffeIdError, Svid, TrustBundle, TrustDomain};

/// Which rule a certificate breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer sent no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// Not an X.509 v3 certificate in DER, or an extension that cannot be read, or one twice.
    #[error("malformed {role} certificate")]
    Malformed {
        /// What it was to be used as.
        role: Role,
    },
    /// X509-SVID section 2: exactly one URI SAN.
    #[error("{count} URI SANs where an SVID has exactly one")]
    UriSans {
        /// How many it has.
        count: usize,
    },
    /// X509-SVID section 2: the URI SAN is a SPIFFE ID.
    #[error("the URI SAN of the {role} certificate is no SPIFFE ID")]
    SpiffeId {
        /// Whose.
        role: Role,
        /// What is wrong with it.
        source: SpiffeIdError,
    },
    /// X509-SVID section 3.1: a leaf's SPIFFE ID has a path.
    #[error("the leaf's SPIFFE ID {id} has no path")]
    LeafWithoutPath {
        /// The ID.
        id: SpiffeId,
    },
    /// X509-SVID section 3.1: without a subject, the SAN is critical.
    #[error("the leaf has no subject and its SAN is not critical")]
    SanNotCritical,
    /// X509-SVID section 4.1: a leaf is no CA.
    #[error("the leaf is a CA certificate")]
    LeafIsCa,
    /// X509-SVID section 4.3: every SVID has a key usage.
    #[error("the {role} certificate has no key usage")]
    KeyUsageMissing {
        /// Whose.
        role: Role,
    },
    /// X509-SVID section 4.3: it is critical.
    #[error("the key usage of the {role} certificate is not critical")]
    KeyUsageNotCritical {
        /// Whose.
        role: Role,
    },
    /// X509-SVID section 4.3: a leaf's key usage.
    #[error("the leaf's key usage lacks digitalSignature")]
    LeafWithoutDigitalSignature,
    /// X509-SVID section 4.3: a leaf's key usage.
    #[error("the leaf's key usage has keyCertSign")]
    LeafWithKeyCertSign,
    /// X509-SVID section 4.3: a leaf's key usage.
    #[error("the leaf's key usage has cRLSign")]
    LeafWithCrlSign,
    /// X509-SVID section 4.4: both purposes, if any are named.
    #[error("the leaf's extended key usage lacks {missing}")]
    ExtendedKeyUsage {
        /// `serverAuth` or `clientAuth`.
        missing: &'static str,
    },
    /// X509-SVID section 4.1: a signing certificate is a CA.
    #[error("the signing certificate is no CA certificate")]
    SigningNotCa,
    /// X509-SVID section 4.3: a signing certificate's key usage.
    #[error("the signing certificate's key usage lacks keyCertSign")]
    SigningWithoutKeyCertSign,
    /// X509-SVID section 3.2: a signing certificate's SPIFFE ID has no path.
    #[error("the signing certificate's SPIFFE ID {id} has a path")]
    SigningWithPath {
        /// The ID.
        id: SpiffeId,
    },
    /// The certificate's time has passed.
    #[error("a certificate has expired")]
    Expired {
        /// When, in seconds since 1970.
        not_after: u64,
    },
    /// The certificate's time has not come; or a clock is wrong.
    #[error("a certificate is not valid yet")]
    NotYetValid {
        /// From when it is, in seconds since 1970.
        not_before: u64,
    },
    /// No path to a root of the bundle that is valid now.
    #[error("signed by nobody in the trust bundle of {trust_domain}")]
    UnknownIssuer {
        /// Whose bundle it was judged by.
        trust_domain: TrustDomain,
    },
    /// A path is there and breaks a rule of RFC 5280.
    #[error("path validation")]
    Path(#[from] webpki::Error),
    /// More intermediates than the root's path length constraint allows.
    #[error("more intermediates than the root allows")]
    RootPathLength,
    /// X509-SVID section 5.2: the trust domain is not the one that the roots speak for.
    #[error("{found} is not of trust domain {expected}")]
    TrustDomain {
        /// The leaf's SPIFFE ID.
        found: SpiffeId,
        /// The bundle's.
        expected: TrustDomain,
    },
    /// A valid SVID, of somebody else.
    #[error("the peer is {found}, who was not expected")]
    UnexpectedPeer {
        /// Who it is.
        found: SpiffeId,
    },
    /// The certificate that this side would prove itself with is not valid now.
    #[error("own certificate")]
    Own(#[source] Box<Self>),
}

/// What a certificate is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It identifies its holder.
    Leaf,
    /// It signs others.
    Signing,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Leaf => "leaf",
            Self::Signing => "signing",
        })
    }
}

/// On which side of a connection the holder of a leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It accepted the connection.
    Server,
    /// It made the connection.
    Client,
}

/// What a verified leaf says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// A connection with this peer is not to outlive this.
    pub not_after: SystemTime,
}

/// Reads the peer from a chain that a handshake has already verified.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, VerifyError> {
    let leaf = rules::leaf(chain.first().ok_or(VerifyError::NoCertificate)?)?;
    Ok(Peer { id: leaf.id, not_after: leaf.not_after })
}

/// Reads the peer's identity from a chain that a handshake has already verified.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    Ok(peer(chain)?.id)
}

/// Verifies chains by one trust bundle.
#[derive(Clone, Debug)]
pub struct Verifier {
    bundle: TrustBundle,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

impl Verifier {
    /// A verifier that knows these roots.
    pub fn new(bundle: TrustBundle) -> Self {
        let algorithms = crate::tls::provider().signature_verification_algorithms.all;
        Self { bundle, algorithms }
    }

    /// Whom a leaf speaks for at `now`, or the rule that it or its path breaks. The intermediates may
    /// come in any order.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: SystemTime,
    ) -> Result<Peer, VerifyError> {
        let leaf = rules::leaf(end_entity)?;
        if leaf.id.trust_domain() != self.bundle.trust_domain() {
            let expected = self.bundle.trust_domain().clone();
            return Err(VerifyError::TrustDomain { found: leaf.id, expected });
        }
        self.verify_path(end_entity, intermediates, side, now)?;
        Ok(Peer { id: leaf.id, not_after: leaf.not_after })
    }

    /// Whether others who know this bundle would take an SVID for what it says, on both sides.
    pub fn verify_svid(&self, svid: &Svid, now: SystemTime) -> Result<(), VerifyError> {
        let (leaf, intermediates) = svid.chain().split_first().ok_or(VerifyError::NoCertificate)?;
        self.verify(leaf, intermediates, Side::Server, now)?;
        self.verify(leaf, intermediates, Side::Client, now)?;
        Ok(())
    }

    fn verify_path(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        // webpki takes a trust anchor as it is, without asking for its validity.
        let valid: Vec<_> = self.bundle.parsed_roots().iter().filter(|root| root.valid_at(now)).collect();
        let anchors: Vec<TrustAnchor<'_>> = valid.iter().map(|root| root.anchor.clone()).collect();
        let usage = match side {
            Side::Server => KeyUsage::server_auth(),
            Side::Client => KeyUsage::client_auth(),
        };
        let end_entity = EndEntityCert::try_from(end_entity)?;
        let path = end_entity
            .verify_for_usage(self.algorithms, &anchors, intermediates, unix_time(now), usage, None, None)
            .map_err(|error| self.path_error(error))?;
        let mut count = 0;
        for certificate in path.intermediate_certificates() {
            rules::signing(&certificate.der())?;
            count += 1;
        }
        let root = anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor())).map(|index| valid[index]);
        match root {
            Some(root) if root.path_len.is_none_or(|allowed| count <= allowed) => Ok(()),
            _ => Err(VerifyError::RootPathLength),
        }
    }

    fn path_error(&self, error: webpki::Error) -> VerifyError {
        match error {
            webpki::Error::CertExpired { not_after, .. } => VerifyError::Expired { not_after: not_after.as_secs() },
            webpki::Error::CertNotValidYet { not_before, .. } => {
                VerifyError::NotYetValid { not_before: not_before.as_secs() }
            }
            webpki::Error::UnknownIssuer => {
                VerifyError::UnknownIssuer { trust_domain: self.bundle.trust_domain().clone() }
            }
            error => VerifyError::Path(error),
        }
    }
}

/// Both ends are inclusive, as RFC 5280 section 4.1.2.5 has it, and in whole seconds.
pub(crate) fn check_validity(
    not_before: SystemTime,
    not_after: SystemTime,
    now: SystemTime,
) -> Result<(), VerifyError> {
    if now < not_before {
        Err(VerifyError::NotYetValid { not_before: unix_time(not_before).as_secs() })
    } else if unix_time(now).as_secs() > unix_time(not_after).as_secs() {
        Err(VerifyError::Expired { not_after: unix_time(not_after).as_secs() })
    } else {
        Ok(())
    }
}

/// A time before 1970 counts as 1970, when no certificate of ours is valid.
pub(crate) fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        // The rule must survive the way through rustls, for the log of this side; the peer is told no
        // more than "certificate unknown".
        CertificateError::Other(OtherError(std::sync::Arc::new(error))).into()
    }
}

/// The rule that made a handshake fail on this side, if it was one of these.
pub fn refusal(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
