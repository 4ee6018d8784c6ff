//! Certificate signing requests (PKCS#10, RFC 2986). Of a request only the public key is ever used:
//! the identity comes from attestation, and whatever else a request asks for is not looked at.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm};
use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519};
use x509_parser::{
    asn1_rs::BitString,
    certification_request::X509CertificationRequest,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
    },
    prelude::FromDer,
    x509,
};

/// The largest request that is read, in bytes; a real one has a few hundred.
pub const MAX_LEN: usize = 16 * 1024;

/// Why a signing request was refused or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than [`MAX_LEN`].
    #[error("the certificate signing request has {len} bytes, at most {MAX_LEN} are read")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not a PKCS#10 request in DER.
    #[error("malformed certificate signing request")]
    Malformed,
    /// The public key is of another kind.
    #[error("the requested key is neither ECDSA P-256, ECDSA P-384 nor Ed25519")]
    KeyKind,
    /// The request is signed by an algorithm that does not go with the key.
    #[error("the request is signed with an algorithm that does not go with its key")]
    SignatureAlgorithm,
    /// The requester does not hold the private key.
    #[error("the request is not signed by the key that it asks a certificate for")]
    ProofOfPossession,
    /// A key or request could not be made.
    #[error("no key or signing request could be made")]
    Generate(#[from] rcgen::Error),
}

/// A new ECDSA P-256 key (PKCS#8), and a PKCS#10 request (DER) that proves its possession.
pub fn generate() -> Result<(PrivateKeyDer<'static>, Vec<u8>), CsrError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // rcgen would put its own name there.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?.der().to_vec();
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), request))
}

/// The public key of a request, once its possession is proven.
pub fn verify(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > MAX_LEN {
        return Err(CsrError::TooLong { len: der.len() });
    }
    let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
        return Err(CsrError::Malformed);
    };
    let info = &request.certification_request_info;
    let algorithm = algorithm(&info.subject_pki, &request.signature_algorithm)?;
    let key = whole_bytes(&info.subject_pki.subject_public_key)?;
    let signature = whole_bytes(&request.signature_value)?;
    algorithm.verify_signature(key, info.raw, signature).map_err(|_| CsrError::ProofOfPossession)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::KeyKind)
}

fn algorithm(
    key: &x509::SubjectPublicKeyInfo<'_>,
    signature: &x509::AlgorithmIdentifier<'_>,
) -> Result<&'static dyn SignatureVerificationAlgorithm, CsrError> {
    let kind = &key.algorithm.algorithm;
    let signed_with = &signature.algorithm;
    if *kind == OID_SIG_ED25519 && key.algorithm.parameters.is_none() {
        return if *signed_with == OID_SIG_ED25519 { Ok(ED25519) } else { Err(CsrError::SignatureAlgorithm) };
    }
    if *kind != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(CsrError::KeyKind);
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).ok_or(CsrError::KeyKind)?;
    // Uncompressed points only, as everybody writes them: one key, one encoding.
    let is_point = |size: usize| matches!(&*key.subject_public_key.data, [4, xy @ ..] if xy.len() == 2 * size);
    let algorithms: [&'static dyn SignatureVerificationAlgorithm; 2] = if curve == OID_EC_P256 && is_point(32) {
        [ECDSA_P256_SHA256, ECDSA_P256_SHA384]
    } else if curve == OID_NIST_EC_P384 && is_point(48) {
        [ECDSA_P384_SHA256, ECDSA_P384_SHA384]
    } else {
        return Err(CsrError::KeyKind);
    };
    if *signed_with == OID_SIG_ECDSA_WITH_SHA256 {
        Ok(algorithms[0])
    } else if *signed_with == OID_SIG_ECDSA_WITH_SHA384 {
        Ok(algorithms[1])
    } else {
        Err(CsrError::SignatureAlgorithm)
    }
}

fn whole_bytes<'a>(bits: &'a BitString<'_>) -> Result<&'a [u8], CsrError> {
    if bits.unused_bits == 0 { Ok(&bits.data) } else { Err(CsrError::Malformed) }
}
