//! Certificate signing requests (PKCS#10, RFC 2986). Of a request only the public key is ever used:
//! the identity comes from attestation, and whatever else a request asks for is not looked at.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm};
use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519};

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
    let request = Request::parse(der).ok_or(CsrError::Malformed)?;
    let is_kind = |known: &&&dyn SignatureVerificationAlgorithm| *known.public_key_alg_id() == *request.key_algorithm;
    let kind = ALGORITHMS.iter().find(is_kind).ok_or(CsrError::KeyKind)?;
    // Of elliptic curve points, the uncompressed form only, as everybody writes it: one key, one encoding.
    if kind.public_key_alg_id() != ED25519.public_key_alg_id() && request.key[0] != 4 {
        return Err(CsrError::KeyKind);
    }
    let algorithm = ALGORITHMS
        .iter()
        .filter(is_kind)
        .find(|known| *known.signature_alg_id() == *request.signature_algorithm)
        .ok_or(CsrError::SignatureAlgorithm)?;
    algorithm
        .verify_signature(request.key, request.signed, request.signature)
        .map_err(|_| CsrError::ProofOfPossession)?;
    SubjectPublicKeyInfo::from_der(request.key_info).map_err(|_| CsrError::KeyKind)
}

/// The public key of a request (SubjectPublicKeyInfo, DER), once its possession is proven: the same for
/// every request that is made for one key.
pub fn public_key(der: &[u8]) -> Result<Vec<u8>, CsrError> {
    Ok(verify(der)?.subject_public_key_info())
}

const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 5] =
    [ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519];

/// What is looked at of a request. The parsers at hand would read the subject and the attributes too,
/// whose contents are nobody's business here, and are less strict with the rest.
struct Request<'a> {
    signed: &'a [u8],
    key_info: &'a [u8],
    key_algorithm: &'a [u8],
    key: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const ATTRIBUTES: u8 = 0xa0;

impl<'a> Request<'a> {
    fn parse(der: &'a [u8]) -> Option<Self> {
        let mut request = only(der, SEQUENCE)?;
        let (signed, mut info) = next(&mut request, SEQUENCE)?;
        let (_, signature_algorithm) = next(&mut request, SEQUENCE)?;
        let signature = bits(only(request, BIT_STRING)?)?;

        let (_, version) = next(&mut info, INTEGER)?;
        let _subject = next(&mut info, SEQUENCE)?;
        let (key_info, mut key) = next(&mut info, SEQUENCE)?;
        let _attributes = only(info, ATTRIBUTES)?;
        let (_, key_algorithm) = next(&mut key, SEQUENCE)?;
        let key = bits(only(key, BIT_STRING)?)?;
        (version == [0]).then_some(Self { signed, key_info, key_algorithm, key, signature_algorithm, signature })
    }
}

/// Takes the next element off `input`: the whole of it, and its content. Lengths as DER has them, in
/// the shortest form.
fn next<'a>(input: &mut &'a [u8], tag: u8) -> Option<(&'a [u8], &'a [u8])> {
    let (header, len) = match **input {
        [found, len @ ..=0x7f, ..] if found == tag => (2, usize::from(len)),
        [found, 0x81, len, ..] if found == tag && len >= 0x80 => (3, usize::from(len)),
        [found, 0x82, high, low, ..] if found == tag && high > 0 => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return None,
    };
    let (whole, rest) = input.split_at_checked(header + len)?;
    *input = rest;
    Some((whole, &whole[header..]))
}

/// The content of the only element in `input`.
fn only(mut input: &[u8], tag: u8) -> Option<&[u8]> {
    let (_, content) = next(&mut input, tag)?;
    input.is_empty().then_some(content)
}

/// The bytes of a bit string that has whole ones, at least one.
fn bits(content: &[u8]) -> Option<&[u8]> {
    match content {
        [0, bytes @ ..] if !bytes.is_empty() => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
