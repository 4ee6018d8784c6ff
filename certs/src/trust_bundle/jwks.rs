//! The SPIFFE bundle document: a JWK set (RFC 7517) in which each root is one key with `use`
//! `x509-svid` and the certificate in `x5c` (X509-SVID section 6).

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_parser::{
    certificate::X509Certificate,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519},
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::{TrustBundle, TrustBundleError};

const USE: &str = "x509-svid";

#[derive(Serialize)]
struct Document<'a> {
    keys: Vec<Key<'a>>,
    spiffe_sequence: u64,
}

#[derive(Serialize)]
struct Key<'a> {
    #[serde(rename = "use")]
    usage: &'a str,
    x5c: [String; 1],
    #[serde(flatten)]
    parameters: KeyParameters,
}

/// What RFC 7518 section 6 and RFC 8037 require of a key of each kind.
#[derive(Serialize)]
#[serde(tag = "kty")]
pub(super) enum KeyParameters {
    #[serde(rename = "EC")]
    Ec { crv: &'static str, x: String, y: String },
    #[serde(rename = "OKP")]
    Okp { crv: &'static str, x: String },
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
}

pub(super) fn write(bundle: &TrustBundle) -> String {
    let keys = bundle
        .roots()
        .iter()
        .filter_map(|root| Some(Key { usage: USE, x5c: [STANDARD.encode(root)], parameters: key_parameters(root)? }))
        .collect();
    let document = Document { keys, spiffe_sequence: bundle.epoch() };
    serde_json::to_string(&document).expect("strings and numbers only")
}

/// `None` for a kind of key that is not supported.
pub(super) fn key_parameters(certificate: &CertificateDer<'_>) -> Option<KeyParameters> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let key = certificate.public_key();
    let bits: &[u8] = &key.subject_public_key.data;
    match key.parsed().ok()? {
        PublicKey::RSA(rsa) => Some(KeyParameters::Rsa { n: unsigned(rsa.modulus), e: unsigned(rsa.exponent) }),
        PublicKey::EC(_) => {
            let (crv, size) = curve(key)?;
            // Only the uncompressed form holds both coordinates.
            let [4, coordinates @ ..] = bits else { return None };
            let (x, y) = coordinates.split_at_checked(size)?;
            let encode = |coordinate| URL_SAFE_NO_PAD.encode(coordinate);
            (y.len() == size).then(|| KeyParameters::Ec { crv, x: encode(x), y: encode(y) })
        }
        _ if key.algorithm.algorithm == OID_SIG_ED25519 && bits.len() == 32 => {
            Some(KeyParameters::Okp { crv: "Ed25519", x: URL_SAFE_NO_PAD.encode(bits) })
        }
        _ => None,
    }
}

fn curve(key: &SubjectPublicKeyInfo<'_>) -> Option<(&'static str, usize)> {
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return None;
    }
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let known = [(OID_EC_P256, "P-256", 32), (OID_NIST_EC_P384, "P-384", 48), (OID_NIST_EC_P521, "P-521", 66)];
    known.into_iter().find(|(oid, ..)| *oid == curve).map(|(_, name, size)| (name, size))
}

/// Big-endian without leading zeros (RFC 7518 section 2).
fn unsigned(integer: &[u8]) -> String {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    URL_SAFE_NO_PAD.encode(&integer[zeros..])
}

#[derive(Deserialize)]
struct AnyDocument {
    keys: Vec<Value>,
    #[serde(default)]
    spiffe_sequence: u64,
}

/// Sequence and roots. What the specification says to ignore is ignored: keys for other uses, keys
/// without certificate, certificates after the first.
pub(super) fn parse(json: &str) -> Result<(u64, Vec<CertificateDer<'static>>), TrustBundleError> {
    let document: AnyDocument =
        serde_json::from_str(json).map_err(|error| TrustBundleError::Json { reason: error.to_string() })?;
    let mut roots = Vec::new();
    for (index, key) in document.keys.iter().enumerate() {
        if key["use"] != USE {
            continue;
        }
        let der = match &key["x5c"] {
            Value::Null => continue,
            Value::Array(chain) if chain.is_empty() => continue,
            Value::Array(chain) => chain[0].as_str().and_then(|text| STANDARD.decode(text).ok()),
            _ => None,
        };
        let Some(der) = der else {
            return Err(TrustBundleError::Json { reason: format!("keys[{index}].x5c is no base64 certificate") });
        };
        roots.push(der.into());
    }
    Ok((document.spiffe_sequence, roots))
}
