use rcgen::{
    BasicConstraints, DnType, IsCa, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
    PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};

use super::*;
use crate::testing::uri;

fn request(params: &CertificateParams, key: &impl SigningKey) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn plain(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
    request(&CertificateParams::default(), &key(algorithm))
}

#[test]
fn a_generated_request_proves_its_key() {
    let (key, request) = generate().unwrap();
    let PrivateKeyDer::Pkcs8(der) = &key else { panic!("PKCS#8") };
    let key = KeyPair::from_pkcs8_der_and_sign_algo(der, &PKCS_ECDSA_P256_SHA256).unwrap();
    assert_eq!(verify(&request).unwrap().subject_public_key_info(), key.subject_public_key_info());
    let (_, again) = generate().unwrap();
    assert_ne!(verify(&again).unwrap(), verify(&request).unwrap(), "a new key each time");
}

#[test]
fn the_three_kinds_of_key_are_accepted_and_no_other() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = key(algorithm);
        let verified = verify(&request(&CertificateParams::default(), &key)).unwrap();
        assert_eq!(verified.subject_public_key_info(), key.subject_public_key_info());
    }
    assert_eq!(verify(&plain(&PKCS_RSA_SHA256)), Err(CsrError::KeyKind));
    assert_eq!(verify(&plain(&PKCS_ECDSA_P521_SHA512)), Err(CsrError::KeyKind));
}

/// Signs with one key and says that it is another.
struct Impostor {
    signer: KeyPair,
    shown: KeyPair,
}

impl PublicKeyData for Impostor {
    fn der_bytes(&self) -> &[u8] {
        self.shown.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.shown)
    }
}

impl SigningKey for Impostor {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer.sign(message)
    }
}

#[test]
fn a_request_for_a_key_that_is_not_held_is_refused() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let impostor = Impostor { signer: key(algorithm), shown: key(algorithm) };
        let request = request(&CertificateParams::default(), &impostor);
        assert_eq!(verify(&request), Err(CsrError::ProofOfPossession));
    }
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let (_, request) = generate().unwrap();
    for index in 0..request.len() {
        let mut bytes = request.clone();
        bytes[index] ^= 1;
        assert!(verify(&bytes).is_err(), "byte {index}");
    }
}

#[test]
fn the_signature_algorithm_goes_with_the_key() {
    // ecdsa-with-SHA256 becomes SHA384, SHA512 and SHA1: well-formed, and not what was signed.
    let (_, request) = generate().unwrap();
    let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let at = request.windows(8).rposition(|bytes| bytes == sha256).unwrap();
    let with = |last: u8| {
        let mut bytes = request.clone();
        bytes[at + 7] = last;
        verify(&bytes)
    };
    assert_eq!(with(3), Err(CsrError::ProofOfPossession));
    assert_eq!(with(4), Err(CsrError::SignatureAlgorithm));

    let ed25519 = plain(&PKCS_ED25519);
    let at = ed25519.windows(3).rposition(|bytes| bytes == [0x2b, 0x65, 0x70]).unwrap();
    let mut bytes = ed25519;
    bytes[at + 2] = 0x71; // Ed448
    assert_eq!(verify(&bytes), Err(CsrError::SignatureAlgorithm));
}

#[test]
fn malformed_requests_are_refused() {
    let (_, request) = generate().unwrap();
    assert_eq!(verify(&[]), Err(CsrError::Malformed));
    assert_eq!(verify(b"-----BEGIN CERTIFICATE REQUEST-----"), Err(CsrError::Malformed));
    assert_eq!(verify(&[&request[..], &[0]].concat()), Err(CsrError::Malformed), "trailing bytes");
    for len in 0..request.len() {
        assert_eq!(verify(&request[..len]), Err(CsrError::Malformed));
    }
    assert_eq!(verify(&vec![0x30; MAX_LEN + 1]), Err(CsrError::TooLong { len: MAX_LEN + 1 }));
}

#[test]
fn whatever_else_a_request_asks_for_is_not_read() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.subject_alt_names = vec![uri("spiffe://td.test/heddle/control-plane")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = key(&PKCS_ECDSA_P256_SHA256);
    assert!(verify(&request(&params, &key)).is_ok());
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(content.len()).unwrap();
    let len = if len < 0x80 { vec![len] } else { vec![0x81, len] };
    [&[tag][..], &len, content].concat()
}

/// A request for a P-256 key, made and signed by hand.
fn by_hand(version: &[u8], point: impl FnOnce(&[u8]) -> Vec<u8>, after_attributes: &[u8]) -> Vec<u8> {
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let key_algorithm = element(SEQUENCE, &ECDSA_P256_SHA256.public_key_alg_id());
    let point = element(BIT_STRING, &[&[0], &point(key.public_key_raw())[..]].concat());
    let info = [
        &element(INTEGER, version)[..],
        &element(SEQUENCE, &[]),
        &element(SEQUENCE, &[key_algorithm, point].concat()),
        &element(ATTRIBUTES, &[]),
        after_attributes,
    ];
    let info = element(SEQUENCE, &info.concat());
    let signature = element(BIT_STRING, &[&[0], &key.sign(&info).unwrap()[..]].concat());
    let signature_algorithm = element(SEQUENCE, &ECDSA_P256_SHA256.signature_alg_id());
    element(SEQUENCE, &[info, signature_algorithm, signature].concat())
}

#[test]
fn requests_by_hand_keep_to_the_form() {
    let whole = |point: &[u8]| point.to_vec();
    assert!(verify(&by_hand(&[0], whole, &[])).is_ok());
    assert_eq!(verify(&by_hand(&[1], whole, &[])), Err(CsrError::Malformed), "version");
    assert_eq!(verify(&by_hand(&[0, 0], whole, &[])), Err(CsrError::Malformed), "version in two bytes");
    assert_eq!(verify(&by_hand(&[0], whole, &[5, 0])), Err(CsrError::Malformed), "something after the attributes");
    let compressed = |point: &[u8]| [&[2 + point[64] % 2], &point[1..33]].concat();
    assert_eq!(verify(&by_hand(&[0], compressed, &[])), Err(CsrError::KeyKind));
    assert_eq!(verify(&by_hand(&[0], |_| vec![], &[])), Err(CsrError::Malformed), "no key");
    assert!(verify(&by_hand(&[0], |point| point[..64].to_vec(), &[])).is_err());
    assert!(
        verify(&by_hand(&[0], |point| [&[4], &vec![1; point.len() - 1][..]].concat(), &[])).is_err(),
        "off the curve"
    );
}

#[test]
fn lengths_are_in_their_shortest_form() {
    let read = |der: &[u8]| next(&mut &der[..], SEQUENCE).map(|(_, content)| content.len());
    let with = |header: &[u8], len: usize| [header, &vec![0; len]].concat();
    assert_eq!(read(&with(&[0x30, 0x7f], 0x7f)), Some(0x7f));
    assert_eq!(read(&with(&[0x30, 0x81, 0x80], 0x80)), Some(0x80));
    assert_eq!(read(&with(&[0x30, 0x82, 1, 0], 0x100)), Some(0x100));
    for longer in [&[0x30, 0x81, 0x7f][..], &[0x30, 0x82, 0, 0x80], &[0x30, 0x83, 0, 1, 0], &[0x30, 0x80]] {
        assert_eq!(read(&with(longer, 0x100)), None, "{longer:x?}");
    }
    assert_eq!(read(&with(&[0x31, 1], 1)), None, "another tag");
    assert_eq!(read(&with(&[0x30, 2], 1)), None, "truncated");
}
