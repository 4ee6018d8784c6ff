use rcgen::{
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
    PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    testing::{Ca, signing_params, td, uri},
    verify::Role,
};

fn root_with(algorithm: &'static SignatureAlgorithm) -> CertificateDer<'static> {
    let key = KeyPair::generate_for(algorithm).unwrap();
    signing_params("root").self_signed(&key).unwrap().der().clone()
}

fn roots(count: usize) -> Vec<CertificateDer<'static>> {
    (0..count).map(|_| Ca::new().root).collect()
}

#[test]
fn survives_pem_and_json() {
    let bundle = TrustBundle::new(td(), 7, roots(3)).unwrap();
    assert_eq!(TrustBundle::from_pem(td(), 7, bundle.to_pem().as_bytes()), Ok(bundle.clone()));
    assert_eq!(TrustBundle::from_spiffe_json(td(), &bundle.to_spiffe_json()), Ok(bundle.clone()));
    assert_eq!((bundle.trust_domain(), bundle.epoch(), bundle.roots().len()), (&td(), 7, 3));
}

#[test]
fn is_a_set_and_never_empty() {
    let one = roots(1);
    let bundle = TrustBundle::new(td(), 1, [one.clone(), one.clone()].concat()).unwrap();
    assert_eq!(bundle.roots(), one);
    assert_eq!(TrustBundle::new(td(), 1, vec![]), Err(TrustBundleError::NoRoots));
    assert_eq!(TrustBundle::from_pem(td(), 1, b""), Err(TrustBundleError::NoRoots));
    assert_eq!(TrustBundle::from_spiffe_json(td(), r#"{"keys": []}"#), Err(TrustBundleError::NoRoots));
}

#[test]
fn holds_signing_certificates_only() {
    let refused = |certificate| match TrustBundle::new(td(), 1, vec![roots(1).remove(0), certificate]) {
        Err(TrustBundleError::Root { index: 1, source }) => source,
        other => panic!("{other:?}"),
    };
    let ca = Ca::new();
    assert_eq!(refused(ca.leaf(|_| {})), VerifyError::SigningNotCa);
    assert_eq!(refused(vec![0x30, 0].into()), VerifyError::Malformed { role: Role::Signing });
    assert_eq!(refused(Ca::with(|p| p.is_ca = IsCa::ExplicitNoCa, |_| {}).root), VerifyError::SigningNotCa);
    let no_sign = Ca::with(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], |_| {}).root;
    assert_eq!(refused(no_sign), VerifyError::SigningWithoutKeyCertSign);
    let with_path = Ca::with(|p| p.subject_alt_names = vec![uri("spiffe://td.test/ca")], |_| {}).root;
    assert!(matches!(refused(with_path), VerifyError::SigningWithPath { .. }));
    // An intermediate may be trusted by itself; that it be self-signed is a SHOULD.
    assert!(TrustBundle::new(td(), 1, vec![ca.intermediate]).is_ok());
}

#[test]
fn broken_pem_is_refused() {
    let pem = TrustBundle::new(td(), 1, roots(1)).unwrap().to_pem();
    for broken in [&pem[..100], &pem.replace("MII", "M*I")] {
        let result = TrustBundle::from_pem(td(), 1, broken.as_bytes());
        assert!(matches!(result, Err(TrustBundleError::Pem { .. })), "{result:?}");
    }
    // Text around the sections is a comment.
    assert!(TrustBundle::from_pem(td(), 1, format!("the root\n{pem}").as_bytes()).is_ok());
}

#[test]
fn the_document_is_as_the_specification_has_it() {
    let size = |text: &Value| base64_len(text.as_str().unwrap());
    for (algorithm, kty, crv, coordinate) in [
        (&PKCS_ECDSA_P256_SHA256, "EC", "P-256", 32),
        (&PKCS_ECDSA_P384_SHA384, "EC", "P-384", 48),
        (&PKCS_ECDSA_P521_SHA512, "EC", "P-521", 66),
        (&PKCS_ED25519, "OKP", "Ed25519", 32),
    ] {
        let bundle = TrustBundle::new(td(), 3, vec![root_with(algorithm)]).unwrap();
        let document: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
        assert_eq!(document["spiffe_sequence"], 3);
        let key = &document["keys"][0];
        assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("x509-svid"), &json!(kty), &json!(crv)));
        assert_eq!(size(&key["x"]), coordinate);
        if kty == "EC" {
            assert_eq!(size(&key["y"]), coordinate);
        }
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
        assert_eq!(key.get("kid"), None, "MUST NOT be set");
    }
    let bundle = TrustBundle::new(td(), 3, vec![root_with(&PKCS_RSA_SHA256)]).unwrap();
    let document: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    let key = &document["keys"][0];
    assert_eq!((&key["kty"], &key["e"]), (&json!("RSA"), &json!("AQAB")));
    assert_eq!(size(&key["n"]), 256, "without the sign byte");
}

fn base64_len(text: &str) -> usize {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap().len()
}

#[test]
fn what_a_document_may_hold_besides_is_ignored() {
    let bundle = TrustBundle::new(td(), 3, roots(2)).unwrap();
    let mut document: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    document["spiffe_refresh_hint"] = json!(300);
    let other = document["keys"][1]["x5c"][0].clone();
    document["keys"][0]["x5c"].as_array_mut().unwrap().push(other);
    document["keys"][0]["kid"] = json!("a");
    let keys = document["keys"].as_array_mut().unwrap();
    keys.remove(1);
    keys.push(json!({"use": "jwt-svid", "kty": "EC", "kid": "b", "x5c": ["AAAA"]}));
    keys.push(json!({"use": "x509-svid", "kty": "EC"}));
    keys.push(json!({"use": "x509-svid", "kty": "EC", "x5c": []}));
    keys.push(json!({"kty": "EC", "x5c": ["AAAA"]}));
    let parsed = TrustBundle::from_spiffe_json(td(), &document.to_string()).unwrap();
    assert_eq!(parsed.roots(), &bundle.roots()[..1]);
}

#[test]
fn a_document_that_is_none_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys": {}}"#,
        r#"{"keys": [], "spiffe_sequence": -1}"#,
        r#"{"keys": [{"use": "x509-svid", "x5c": ["*"]}]}"#,
        r#"{"keys": [{"use": "x509-svid", "x5c": "AAAA"}]}"#,
        r#"{"keys": [{"use": "x509-svid", "x5c": [1]}]}"#,
    ] {
        let result = TrustBundle::from_spiffe_json(td(), text);
        assert!(matches!(result, Err(TrustBundleError::Json { .. })), "{text}: {result:?}");
    }
    let result = TrustBundle::from_spiffe_json(td(), r#"{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}"#);
    assert!(matches!(result, Err(TrustBundleError::Root { index: 0, .. })));
}
