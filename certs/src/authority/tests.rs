use rcgen::{BasicConstraints, IsCa, PKCS_ED25519, PKCS_RSA_SHA256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::*;
use crate::{
    testing::{Ca, DAY, ID, now, signed, td},
    verify::{peer, peer_id},
};

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> SpiffeId {
    ID.parse().unwrap()
}

fn options() -> SignOptions {
    SignOptions::new(HOUR, now())
}

fn authority() -> Authority {
    Authority::create(td(), now()).unwrap()
}

fn sign(authority: &Authority, options: &SignOptions) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    authority.sign(&csr::generate().unwrap().1, &id(), options)
}

fn accepted(bundle: &TrustBundle, chain: &[CertificateDer<'_>], at: SystemTime) -> bool {
    let verifier = Verifier::new(bundle.clone());
    let server = verifier.verify(&chain[0], &chain[1..], Side::Server, at).is_ok();
    assert_eq!(verifier.verify(&chain[0], &chain[1..], Side::Client, at).is_ok(), server);
    server
}

#[test]
fn signs_what_the_bundle_accepts() {
    let authority = authority();
    let (key, csr) = csr::generate().unwrap();
    let chain = authority.sign(&csr, &id(), &options()).unwrap();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    assert!(!authority.bundle().roots().contains(&chain[1]));
    let svid = Svid::from_der(chain, key).unwrap();
    assert_eq!(svid.id(), &id());
    assert_eq!(svid.not_after(), now() + HOUR);
    assert_eq!(svid.not_before(), now() - HOUR / 6, "in proportion");
    let long = authority.issue(&id(), &SignOptions::new(DAY, now())).unwrap();
    assert_eq!(long.not_before(), now() - LONGEST_BACKDATE);
    assert_eq!(Verifier::new(authority.bundle().clone()).verify_svid(&svid, now()), Ok(()));
    let other = Authority::create(td(), now()).unwrap();
    assert!(!accepted(other.bundle(), svid.chain(), now()));
}

#[test]
fn the_leaf_holds_the_names_given_and_nothing_of_the_request() {
    let authority = authority();
    let mut request = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    request.distinguished_name.push(rcgen::DnType::CommonName, "evil");
    request.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    request.subject_alt_names.push(crate::testing::uri("spiffe://td.test/heddle/control-plane"));
    let csr = request.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let options = SignOptions {
        dns_names: vec!["localhost".to_owned(), "cp.heddle.svc".to_owned()],
        ip_addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        ..options()
    };
    let chain = authority.sign(csr.der(), &id(), &options).unwrap();
    assert_eq!(peer_id(&chain), Ok(id()));
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    let names: Vec<_> = san.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(!format!("{names:?}").contains("evil"));
    assert!(leaf.tbs_certificate.raw_serial().len() <= 20);
}

#[test]
fn serial_numbers_differ_even_for_one_key() {
    let authority = authority();
    let (_, csr) = csr::generate().unwrap();
    let serial = || {
        let chain = authority.sign(&csr, &id(), &options()).unwrap();
        X509Certificate::from_der(&chain[0]).unwrap().1.tbs_certificate.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_short_lived_leaf_is_not_due_for_renewal_when_it_is_made() {
    let authority = authority();
    for seconds in [3, 6, 60, 600, 86_400] {
        let ttl = Duration::from_secs(seconds);
        let svid = authority.issue(&id(), &SignOptions::new(ttl, now())).unwrap();
        assert_eq!(svid.not_after(), now() + ttl);
        let renew_at = rotation::renew_at(svid.not_before(), svid.not_after(), 0.0);
        assert!(renew_at > now() + ttl / 3, "{seconds}");
    }
    assert_eq!(
        sign(&authority, &SignOptions::new(Duration::ZERO, now())),
        Err(AuthorityError::Ttl { ttl: Duration::ZERO })
    );
}

#[test]
fn no_leaf_outlives_its_issuer() {
    let authority = authority();
    let end = authority.issuer_not_after();
    let chain = sign(&authority, &SignOptions::new(DAY, end - HOUR)).unwrap();
    assert_eq!(peer(&chain).unwrap().not_after, end);
    assert_eq!(sign(&authority, &SignOptions::new(DAY, end)), Err(AuthorityError::IssuerExpired));
    assert_eq!(sign(&authority, &SignOptions::new(DAY, now() - 2 * HOUR)), Err(AuthorityError::IssuerNotYetValid));
}

#[test]
fn only_identities_of_the_trust_domain_and_only_workloads() {
    let authority = authority();
    let (_, csr) = csr::generate().unwrap();
    let other: SpiffeId = "spiffe://other.test/a".parse().unwrap();
    let error = AuthorityError::TrustDomain { id: other.clone(), trust_domain: td() };
    assert_eq!(authority.sign(&csr, &other, &options()), Err(error));
    let none = SpiffeId::authority(&td());
    let error = AuthorityError::Refused(VerifyError::LeafWithoutPath { id: none.clone() });
    assert_eq!(authority.sign(&csr, &none, &options()), Err(error));
    assert!(authority.sign(&csr, &SpiffeId::control_plane(&td()), &options()).is_ok());
}

#[test]
fn bad_requests_and_names_are_refused() {
    let authority = authority();
    assert_eq!(authority.sign(b"", &id(), &options()), Err(AuthorityError::Csr(CsrError::Malformed)));
    let key = rcgen::KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let rsa = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    assert_eq!(authority.sign(rsa.der(), &id(), &options()), Err(AuthorityError::Csr(CsrError::KeyKind)));
    for name in ["", "a b", "*", "-", "a..b", "é"] {
        let options = SignOptions { dns_names: vec![name.to_owned()], ..options() };
        assert_eq!(sign(&authority, &options), Err(AuthorityError::DnsName { name: name.to_owned() }));
    }
}

#[test]
fn survives_pem_with_and_without_the_roots_key() {
    let authority = authority();
    let mut pem = authority.to_pem();
    assert!(pem.root_key_pem.is_some());
    let loaded = Authority::from_pem(td(), &pem).unwrap();
    assert_eq!(loaded.bundle(), authority.bundle());
    assert!(accepted(authority.bundle(), &sign(&loaded, &options()).unwrap(), now()));
    assert!(loaded.renew_issuer(now()).is_ok());

    pem.root_key_pem = None;
    let loaded = Authority::from_pem(td(), &pem).unwrap();
    assert!(accepted(authority.bundle(), &sign(&loaded, &options()).unwrap(), now()));
    assert_eq!(loaded.renew_issuer(now()).unwrap_err(), AuthorityError::NoRootKey);
    assert_eq!(loaded.retire_old_roots().unwrap_err(), AuthorityError::NoRootKey);
}

#[test]
fn keys_that_belong_elsewhere_are_not_loaded() {
    let (ours, other) = (authority().to_pem(), authority().to_pem());
    let refused = |pem: AuthorityPem| matches!(Authority::from_pem(td(), &pem), Err(AuthorityError::Load { .. }));
    assert!(refused(AuthorityPem { issuer_key_pem: other.issuer_key_pem.clone(), ..ours.clone() }));
    assert!(refused(AuthorityPem { root_key_pem: other.root_key_pem.clone(), ..ours.clone() }));
    assert!(refused(AuthorityPem { issuer_chain_pem: String::new(), ..ours.clone() }));
    assert!(refused(AuthorityPem { issuer_key_pem: "none".to_owned(), ..ours.clone() }));
    assert!(refused(AuthorityPem { issuer_chain_pem: other.issuer_chain_pem.clone(), ..ours.clone() }));
    let leaf = sign(&authority(), &options()).unwrap();
    let pem = AuthorityPem { roots_pem: pem::encode_certificates(&leaf[..1]), ..ours.clone() };
    assert!(matches!(Authority::from_pem(td(), &pem), Err(AuthorityError::Roots(_))));
    // All in order, but the issuer is not under the root: found at the first signing.
    let pem = AuthorityPem { roots_pem: other.roots_pem, root_key_pem: None, ..ours };
    let mixed = Authority::from_pem(td(), &pem).unwrap();
    assert!(matches!(sign(&mixed, &options()), Err(AuthorityError::Refused(VerifyError::UnknownIssuer { .. }))));
}

/// An authority whose intermediate was signed by `ca`, a chain of two above the leaf.
fn external(ca: &Ca, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Authority {
    let (certificate, issuer) = signed(&ca.issuer, "for heddle", change);
    let pem = AuthorityPem {
        epoch: 1,
        roots_pem: ca.bundle().to_pem(),
        issuer_chain_pem: pem::encode_certificates(&[certificate, ca.intermediate.clone()]),
        issuer_key_pem: issuer.key().serialize_pem(),
        ..AuthorityPem::default()
    };
    Authority::from_pem(td(), &pem).unwrap()
}

#[test]
fn an_external_intermediate_signs() {
    let ca = Ca::new();
    let authority = external(&ca, |_| {});
    let chain = sign(&authority, &options()).unwrap();
    assert_eq!(chain.len(), 3);
    assert!(accepted(&ca.bundle(), &chain, now()));
    assert_eq!(authority.issuer_state(now()), rotation::State::Valid);
    assert_eq!(authority.issuer_state(now() + 25 * DAY), rotation::State::Renew);
}

#[test]
fn what_peers_would_refuse_is_not_signed() {
    let ca = Ca::with(|_| {}, |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert!(matches!(sign(&external(&ca, |_| {}), &options()), Err(AuthorityError::Refused(_))), "path length");
    let authority = external(&Ca::new(), |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(sign(&authority, &options()), Err(AuthorityError::Refused(_))), "no client could use it");
}

#[test]
fn keys_of_other_kinds_can_sign_too() {
    let ca = Ca::new();
    let key = rcgen::KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = crate::testing::signing_params("ed25519");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = params.signed_by(&key, &ca.issuer).unwrap().der().clone();
    let pem = AuthorityPem {
        roots_pem: ca.bundle().to_pem(),
        issuer_chain_pem: pem::encode_certificates(&[certificate, ca.intermediate.clone()]),
        issuer_key_pem: key.serialize_pem(),
        ..AuthorityPem::default()
    };
    assert!(sign(&Authority::from_pem(td(), &pem).unwrap(), &options()).is_ok());
}

#[test]
fn a_new_intermediate_under_the_same_root() {
    let old = authority();
    let end = old.issuer_not_after();
    assert_eq!(old.issuer_state(now()), rotation::State::Valid);
    assert_eq!(old.issuer_state(end - 30 * DAY), rotation::State::Renew);
    let later = end - 30 * DAY;
    let new = old.renew_issuer(later).unwrap();
    assert_eq!(new.bundle(), old.bundle());
    assert_eq!(new.issuer_not_after(), later + ISSUER_LIFETIME);
    let chain = sign(&new, &SignOptions::new(DAY, end + DAY)).unwrap();
    assert!(accepted(old.bundle(), &chain, end + DAY));
    let past_the_root = now() + ROOT_LIFETIME + DAY;
    assert_eq!(old.renew_issuer(past_the_root).unwrap_err(), AuthorityError::IssuerExpired);
    let shortly_before = now() + ROOT_LIFETIME - DAY;
    let last = old.renew_issuer(shortly_before).unwrap();
    assert_eq!(last.issuer_not_after(), now() + ROOT_LIFETIME, "no intermediate outlives the root");
}

#[test]
fn a_root_is_replaced_without_a_gap() {
    let first = authority();
    let before = sign(&first, &options()).unwrap();

    let prepared = first.prepare_root(now()).unwrap();
    assert_eq!((prepared.bundle().epoch(), prepared.bundle().roots().len()), (2, 2));
    let during = sign(&prepared, &options()).unwrap();
    assert!(accepted(first.bundle(), &during, now()), "still the old root signs");
    assert_eq!(prepared.retire_old_roots().unwrap_err(), AuthorityError::RootPrepared);
    assert!(first.activate().is_none());
    let again = prepared.prepare_root(now()).unwrap();
    assert_eq!(again.bundle().roots().len(), 2, "what was prepared and not used is dropped");
    assert_eq!(again.bundle().epoch(), 3);

    // A restart in the middle loses nothing.
    let prepared = Authority::from_pem(td(), &prepared.to_pem()).unwrap();
    let active = prepared.activate().unwrap();
    let active = Authority::from_pem(td(), &active.to_pem()).unwrap();
    let after = sign(&active, &options()).unwrap();
    assert!(!accepted(first.bundle(), &after, now()), "now the new root signs");
    for chain in [&before, &during, &after] {
        assert!(accepted(active.bundle(), chain, now()));
    }

    let retired = active.retire_old_roots().unwrap();
    assert_eq!((retired.bundle().epoch(), retired.bundle().roots().len()), (3, 1));
    assert!(accepted(retired.bundle(), &after, now()));
    assert!(!accepted(retired.bundle(), &before, now()));
    assert_eq!(retired.retire_old_roots().unwrap().bundle().epoch(), 3, "nothing left to retire");
}

#[test]
fn debug_output_shows_no_key() {
    let authority = authority();
    let text = format!("{authority:?} {:?}", authority.to_pem());
    assert!(!text.contains("BEGIN"), "{text}");
}
