//! Test vectors: each rule with a certificate that keeps it and one that breaks only it.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, SanType,
};

use super::*;
use crate::testing::{
    BASIC_CONSTRAINTS, Ca, DAY, EXTENDED_KEY_USAGE, ID, KEY_USAGE, SUBJECT_ALT_NAME, extension, leaf, leaf_params, now,
    san_of_uris, signed, signing_params, td, uri,
};

type Change = fn(&mut CertificateParams);

/// What a verifier says, on both sides alike, of a leaf under an intermediate under a root.
fn judge(ca: &Ca, leaf: &CertificateDer<'_>) -> Result<Peer, VerifyError> {
    judge_chain(ca, &[leaf.clone(), ca.intermediate.clone()])
}

fn judge_chain(ca: &Ca, chain: &[CertificateDer<'_>]) -> Result<Peer, VerifyError> {
    judge_at(ca.bundle(), chain, now())
}

fn judge_at(bundle: TrustBundle, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Peer, VerifyError> {
    let verifier = Verifier::new(bundle);
    let server = verifier.verify(&chain[0], &chain[1..], Side::Server, now);
    let client = verifier.verify(&chain[0], &chain[1..], Side::Client, now);
    assert_eq!(server, client);
    server
}

fn id() -> SpiffeId {
    ID.parse().unwrap()
}

fn malformed_leaf() -> VerifyError {
    VerifyError::Malformed { role: Role::Leaf }
}

#[test]
fn a_leaf_that_keeps_every_rule_is_accepted() {
    let ca = Ca::new();
    let peer = judge(&ca, &ca.leaf(|_| {})).unwrap();
    assert_eq!(peer, Peer { id: id(), not_after: now() + DAY });
    assert_eq!(super::peer(&[ca.leaf(|_| {})]), Ok(peer));
}

#[test]
fn what_the_spec_leaves_open_is_accepted() {
    let ca = Ca::new();
    let changes: &[(&str, Change)] = &[
        ("DNS, IP and mail names beside the URI", |p| {
            p.subject_alt_names.push(SanType::DnsName("orders.shop".try_into().unwrap()));
            p.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
            p.subject_alt_names.insert(0, SanType::Rfc822Name("a@b".try_into().unwrap()));
        }),
        ("no extended key usage", |p| p.extended_key_usages.clear()),
        ("further purposes", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
        ("critical extended key usage", |p| {
            p.extended_key_usages.clear();
            let both = [0x30, 0x14, 6, 8, 43, 6, 1, 5, 5, 7, 3, 1, 6, 8, 43, 6, 1, 5, 5, 7, 3, 2];
            p.custom_extensions.push(extension(EXTENDED_KEY_USAGE, true, &both));
        }),
        ("keyEncipherment and keyAgreement", |p| {
            p.key_usages.extend([KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement]);
        }),
        ("no basic constraints: cA is false by default", |p| p.is_ca = IsCa::NoCa),
        ("a subject, and so a SAN that is not critical", |p| {
            p.distinguished_name.push(DnType::CommonName, "orders");
        }),
        ("an unknown extension that is not critical", |p| {
            p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 55555, 1], false, &[5, 0]));
        }),
    ];
    for (what, change) in changes {
        assert_eq!(judge(&ca, &ca.leaf(*change)).map(|peer| peer.id), Ok(id()), "{what}");
    }
}

#[test]
fn a_leaf_has_exactly_one_uri() {
    let ca = Ca::new();
    let with = |names: Vec<SanType>| judge(&ca, &ca.leaf(|p| p.subject_alt_names = names));
    let dns = || SanType::DnsName("orders.shop".try_into().unwrap());
    assert_eq!(with(vec![]), Err(VerifyError::UriSans { count: 0 }));
    assert_eq!(with(vec![dns()]), Err(VerifyError::UriSans { count: 0 }));
    assert_eq!(with(vec![uri(ID), uri(ID)]), Err(VerifyError::UriSans { count: 2 }));
    assert_eq!(with(vec![uri(ID), dns(), uri("https://example.org")]), Err(VerifyError::UriSans { count: 2 }));
    assert_eq!(with(vec![uri("https://example.org"), uri(ID)]), Err(VerifyError::UriSans { count: 2 }));
}

#[test]
fn the_uri_is_a_spiffe_id_with_a_path() {
    let ca = Ca::new();
    let with = |text: &str| judge(&ca, &ca.leaf(|p| p.subject_alt_names = vec![uri(text)]));
    let not = |source| Err(VerifyError::SpiffeId { role: Role::Leaf, source });
    assert_eq!(with("https://td.test/ns/shop/sa/orders"), not(SpiffeIdError::Scheme));
    assert_eq!(with("SPIFFE://td.test/a"), not(SpiffeIdError::Scheme));
    assert_eq!(with("spiffe://TD.test/a"), not(SpiffeIdError::TrustDomainChar { found: 'T' }));
    assert_eq!(with("spiffe://td.test/a/../b"), not(SpiffeIdError::DotSegment { segment: ".." }));
    assert_eq!(with("spiffe://td.test/"), not(SpiffeIdError::TrailingSlash));
    assert_eq!(with("spiffe://td.test/%61"), not(SpiffeIdError::PathChar { found: '%' }));
    assert_eq!(with("spiffe://td.test/a\0b"), not(SpiffeIdError::PathChar { found: '\0' }));
    let id = SpiffeId::authority(&td());
    assert_eq!(with("spiffe://td.test"), Err(VerifyError::LeafWithoutPath { id }));
    let longest = format!("spiffe://td.test/{}", "a".repeat(2048 - 17));
    assert!(with(&longest).is_ok());
    assert_eq!(with(&format!("{longest}a")), not(SpiffeIdError::TooLong { len: 2049 }));
}

#[test]
fn a_san_that_cannot_be_read_is_no_san() {
    let ca = Ca::new();
    let with = |contents: &[&[u8]]| {
        judge(
            &ca,
            &ca.leaf(|p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, "orders");
                p.custom_extensions.extend(contents.iter().map(|bytes| extension(SUBJECT_ALT_NAME, false, bytes)));
            }),
        )
    };
    let good = san_of_uris(&[ID.as_bytes()]);
    assert!(with(&[&good]).is_ok());
    assert_eq!(with(&[&good, &good]), Err(malformed_leaf()), "the extension twice");
    assert_eq!(with(&[&san_of_uris(&[ID.as_bytes(), b"spiffe://\xff"])]), Err(malformed_leaf()), "a URI not in UTF-8");
    assert_eq!(with(&[&san_of_uris(&[b"\xff"])]), Err(malformed_leaf()));
    assert_eq!(with(&[b"\x30\x03\x86\x09a"]), Err(malformed_leaf()), "truncated");
    assert_eq!(with(&[&[&good[..], b"\0"].concat()]), Err(malformed_leaf()), "trailing bytes");
    assert!(with(&[b""]).is_err());
    // Two more names hidden behind the first in a list that says it is shorter.
    let mut short = san_of_uris(&[ID.as_bytes(), b"spiffe://td.test/x"]);
    short[1] = 2 + ID.len() as u8;
    assert_eq!(with(&[&short]), Err(malformed_leaf()));
}

#[test]
fn without_a_subject_the_san_is_critical() {
    let ca = Ca::new();
    let with = |critical| {
        judge(
            &ca,
            &ca.leaf(|p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(extension(SUBJECT_ALT_NAME, critical, &san_of_uris(&[ID.as_bytes()])));
            }),
        )
    };
    assert!(with(true).is_ok());
    assert_eq!(with(false), Err(VerifyError::SanNotCritical));
}

#[test]
fn a_leaf_is_no_ca() {
    let ca = Ca::new();
    for constraints in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(0)] {
        assert_eq!(judge(&ca, &ca.leaf(|p| p.is_ca = IsCa::Ca(constraints))), Err(VerifyError::LeafIsCa));
    }
    let with = |content: &[u8]| {
        judge(
            &ca,
            &ca.leaf(|p| {
                p.is_ca = IsCa::NoCa;
                p.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, content));
            }),
        )
    };
    assert_eq!(with(&[0x30, 0]).map(|peer| peer.id), Ok(id()));
    assert_eq!(with(&[0x30, 3, 1, 1, 0xff]), Err(VerifyError::LeafIsCa));
    assert_eq!(with(&[0x30, 3, 1, 1]), Err(malformed_leaf()), "unreadable is not absent");
    assert_eq!(with(&[4, 0]), Err(malformed_leaf()));
    // The CA's own certificates identify nobody.
    assert!(judge_chain(&ca, std::slice::from_ref(&ca.root)).is_err());
    assert!(judge_chain(&ca, std::slice::from_ref(&ca.intermediate)).is_err());
}

#[test]
fn a_leafs_key_usage() {
    use KeyUsagePurpose as K;
    let ca = Ca::new();
    let with = |usages: &[K]| judge(&ca, &ca.leaf(|p| p.key_usages = usages.to_vec()));
    assert_eq!(with(&[]), Err(VerifyError::KeyUsageMissing { role: Role::Leaf }));
    assert_eq!(with(&[K::KeyAgreement]), Err(VerifyError::LeafWithoutDigitalSignature));
    assert_eq!(with(&[K::DigitalSignature, K::KeyCertSign]), Err(VerifyError::LeafWithKeyCertSign));
    assert_eq!(with(&[K::DigitalSignature, K::CrlSign]), Err(VerifyError::LeafWithCrlSign));

    let with = |extensions: &[(bool, &[u8])]| {
        judge(
            &ca,
            &ca.leaf(|p| {
                p.key_usages.clear();
                p.custom_extensions = extensions.iter().map(|(c, bytes)| extension(KEY_USAGE, *c, bytes)).collect();
            }),
        )
    };
    let digital_signature: &[u8] = &[3, 2, 7, 0x80];
    assert_eq!(with(&[(true, digital_signature)]).map(|peer| peer.id), Ok(id()));
    assert_eq!(with(&[(false, digital_signature)]), Err(VerifyError::KeyUsageNotCritical { role: Role::Leaf }));
    assert_eq!(with(&[(true, digital_signature), (true, digital_signature)]), Err(malformed_leaf()));
    assert_eq!(with(&[(true, &[3, 2, 7])]), Err(malformed_leaf()));
    assert_eq!(with(&[(true, &[5, 0])]), Err(malformed_leaf()));
}

#[test]
fn a_leafs_extended_key_usage_has_both_purposes_or_is_absent() {
    use ExtendedKeyUsagePurpose as E;
    let ca = Ca::new();
    let with = |purposes: &[E]| judge(&ca, &ca.leaf(|p| p.extended_key_usages = purposes.to_vec()));
    assert_eq!(with(&[E::ClientAuth]), Err(VerifyError::ExtendedKeyUsage { missing: "serverAuth" }));
    assert_eq!(with(&[E::ServerAuth]), Err(VerifyError::ExtendedKeyUsage { missing: "clientAuth" }));
    assert_eq!(with(&[E::Any]), Err(VerifyError::ExtendedKeyUsage { missing: "serverAuth" }));
    assert_eq!(with(&[E::CodeSigning]), Err(VerifyError::ExtendedKeyUsage { missing: "serverAuth" }));
    let empty = ca.leaf(|p| {
        p.extended_key_usages.clear();
        p.custom_extensions.push(extension(EXTENDED_KEY_USAGE, false, &[0x30, 0]));
    });
    assert!(judge(&ca, &empty).is_err());
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let ca = Ca::new();
    let leaf = ca.leaf(|p| p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 55555, 1], true, &[5, 0])));
    assert!(judge(&ca, &leaf).is_err());
}

#[test]
fn anything_that_is_no_certificate_is_refused() {
    let ca = Ca::new();
    let leaf = ca.leaf(|_| {});
    assert_eq!(judge_chain(&ca, &[vec![].into()]), Err(malformed_leaf()));
    assert_eq!(judge_chain(&ca, &[vec![0x30, 0].into()]), Err(malformed_leaf()));
    assert_eq!(judge(&ca, &[&leaf[..], &[0]].concat().into()), Err(malformed_leaf()), "trailing bytes");
    for len in 0..leaf.len() {
        assert!(judge(&ca, &leaf[..len].to_vec().into()).is_err());
    }
    assert_eq!(peer(&[]), Err(VerifyError::NoCertificate));
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let ca = Ca::new();
    let leaf = ca.leaf(|_| {});
    let verifier = Verifier::new(ca.bundle());
    for index in 0..leaf.len() {
        let mut bytes = leaf.to_vec();
        bytes[index] ^= 1;
        let changed = bytes.into();
        for side in [Side::Server, Side::Client] {
            let result = verifier.verify(&changed, std::slice::from_ref(&ca.intermediate), side, now());
            assert!(result.is_err(), "byte {index}");
        }
    }
}

#[test]
fn validity_is_inclusive_and_of_every_certificate_in_the_path() {
    // The root ends first, then the intermediate, then the leaf; and they begin in that order too.
    let ca = Ca::with(
        |p| {
            p.not_before = (now() - 30 * DAY).into();
            p.not_after = (now() + 30 * DAY).into();
        },
        |p| {
            p.not_before = (now() - 20 * DAY).into();
            p.not_after = (now() + 20 * DAY).into();
        },
    );
    let valid = |from: SystemTime, to: SystemTime| {
        let leaf = ca.leaf(|p| {
            p.not_before = from.into();
            p.not_after = to.into();
        });
        let chain = [leaf, ca.intermediate.clone()];
        move |bundle, at| judge_at(bundle, &chain, at).map(drop)
    };
    let second = Duration::from_secs(1);
    let (from, to) = (now() - 10 * DAY, now() + 10 * DAY);
    let judge = valid(from, to);
    assert_eq!(judge(ca.bundle(), from), Ok(()));
    assert_eq!(judge(ca.bundle(), to), Ok(()));
    let not_before = unix_time(from).as_secs();
    assert_eq!(judge(ca.bundle(), from - second), Err(VerifyError::NotYetValid { not_before }));
    let not_after = unix_time(to).as_secs();
    assert_eq!(judge(ca.bundle(), to + second), Err(VerifyError::Expired { not_after }));
    assert!(judge(ca.bundle(), UNIX_EPOCH - second).is_err());

    let judge = valid(now() - 100 * DAY, now() + 100 * DAY);
    assert_eq!(judge(ca.bundle(), now() + 20 * DAY), Ok(()));
    let not_after = unix_time(now() + 20 * DAY).as_secs();
    assert_eq!(judge(ca.bundle(), now() + 21 * DAY), Err(VerifyError::Expired { not_after }), "intermediate");
    let not_before = unix_time(now() - 20 * DAY).as_secs();
    assert_eq!(judge(ca.bundle(), now() - 21 * DAY), Err(VerifyError::NotYetValid { not_before }), "intermediate");

    let ca = Ca::with(|p| p.not_after = (now() - DAY / 2).into(), |_| {});
    assert_eq!(
        judge_chain(&ca, &[ca.leaf(|_| {}), ca.intermediate.clone()]),
        Err(VerifyError::UnknownIssuer { trust_domain: td() }),
        "an expired root speaks for nobody"
    );
}

#[test]
fn a_renewed_root_with_the_same_key_takes_the_place_of_an_expired_one() {
    let key = KeyPair::generate().unwrap();
    let mut params = signing_params("root");
    let new = params.self_signed(&key).unwrap().der().clone();
    params.not_after = (now() - DAY / 2).into();
    let old = params.self_signed(&key).unwrap().der().clone();
    let (leaf, _) = leaf(&rcgen::Issuer::new(params, key), |_| {});
    let bundle = |roots| TrustBundle::new(td(), 1, roots).unwrap();
    assert!(judge_at(bundle(vec![old.clone()]), std::slice::from_ref(&leaf), now()).is_err());
    assert!(judge_at(bundle(vec![old, new]), &[leaf], now()).is_ok());
}

#[test]
fn only_the_bundles_roots_are_trusted() {
    let ca = Ca::new();
    let other = Ca::new();
    let unknown = Err(VerifyError::UnknownIssuer { trust_domain: td() });
    // The names are the same; a signature by another key is none.
    assert!(judge(&ca, &other.leaf(|_| {})).is_err());
    assert!(judge_chain(&ca, &[other.leaf(|_| {}), other.intermediate.clone()]).is_err());
    // A chain that brings its own root.
    assert!(judge_chain(&ca, &[other.leaf(|_| {}), other.intermediate.clone(), other.root.clone()]).is_err());
    assert_eq!(judge_chain(&ca, &[ca.leaf(|_| {})]), unknown, "the intermediate is missing");
    let key = KeyPair::generate().unwrap();
    let self_signed = leaf_params().self_signed(&key).unwrap().der().clone();
    assert_eq!(judge(&ca, &self_signed), unknown);
    let both = TrustBundle::new(td(), 2, vec![ca.root.clone(), other.root.clone()]).unwrap();
    for ca in [&ca, &other] {
        assert!(judge_at(both.clone(), &[ca.leaf(|_| {}), ca.intermediate.clone()], now()).is_ok());
    }
}

#[test]
fn paths_directly_under_the_root_and_long_ones() {
    let ca = Ca::new();
    assert!(judge_chain(&ca, &[leaf(&ca.root_issuer, |_| {}).0]).is_ok());
    let (second, issuer) = signed(&ca.issuer, "second", |_| {});
    let leaf = leaf(&issuer, |_| {}).0;
    assert!(judge_chain(&ca, &[leaf.clone(), ca.intermediate.clone(), second.clone()]).is_ok(), "in any order");
    assert!(judge_chain(&ca, &[leaf, second]).is_err());
}

#[test]
fn path_length_constraints_bind_intermediates_and_root() {
    let zero: Change = |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let one: Change = |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let chain = |root: Change, intermediate: Change| {
        let ca = Ca::with(root, intermediate);
        let (second, issuer) = signed(&ca.issuer, "second", |_| {});
        let long = judge_chain(&ca, &[leaf(&issuer, |_| {}).0, second, ca.intermediate.clone()]);
        let short = judge(&ca, &ca.leaf(|_| {}));
        (short.map(drop), long.map(drop))
    };
    assert_eq!(chain(|_| {}, one), (Ok(()), Ok(())));
    let (short, long) = chain(|_| {}, zero);
    assert_eq!(short, Ok(()));
    assert_eq!(long, Err(VerifyError::Path(webpki::Error::PathLenConstraintViolated)));
    assert_eq!(chain(one, |_| {}), (Ok(()), Err(VerifyError::RootPathLength)));
    assert_eq!(chain(zero, |_| {}), (Err(VerifyError::RootPathLength), Err(VerifyError::RootPathLength)));
}

#[test]
fn an_intermediate_is_a_signing_certificate() {
    let with = |change: Change| {
        let ca = Ca::with(|_| {}, change);
        judge(&ca, &ca.leaf(|_| {})).map(drop)
    };
    let role = Role::Signing;
    assert_eq!(with(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]), Ok(()));
    assert_eq!(with(|p| p.subject_alt_names.clear()), Ok(()), "it need not be an SVID");
    assert_eq!(with(|p| p.subject_alt_names = vec![uri("https://ca.example"), uri("ldap://x")]), Ok(()));
    assert_eq!(with(|p| p.subject_alt_names = vec![uri("spiffe://other.test")]), Ok(()), "that is a SHOULD");
    assert_eq!(with(|p| p.is_ca = IsCa::NoCa), Err(VerifyError::Path(webpki::Error::EndEntityUsedAsCa)));
    assert_eq!(with(|p| p.key_usages.clear()), Err(VerifyError::KeyUsageMissing { role }));
    assert_eq!(
        with(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        Err(VerifyError::SigningWithoutKeyCertSign)
    );
    assert_eq!(
        with(|p| {
            p.key_usages.clear();
            p.custom_extensions.push(extension(KEY_USAGE, false, &[3, 2, 2, 4]));
        }),
        Err(VerifyError::KeyUsageNotCritical { role })
    );
    assert_eq!(with(|p| p.subject_alt_names = vec![uri(ID)]), Err(VerifyError::SigningWithPath { id: id() }));
    assert_eq!(
        with(|p| p.subject_alt_names = vec![uri("spiffe://td.test"), uri("https://ca.example")]),
        Err(VerifyError::UriSans { count: 2 })
    );
    assert_eq!(
        with(|p| p.subject_alt_names = vec![uri("SPIFFE://td.test")]),
        Err(VerifyError::SpiffeId { role, source: SpiffeIdError::Scheme })
    );
    assert_eq!(
        with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]),
        Ok(())
    );
}

#[test]
fn a_leaf_cannot_sign() {
    let ca = Ca::new();
    let (middle, key) = leaf(&ca.issuer, |p| p.distinguished_name.push(DnType::CommonName, "middle"));
    let mut params = leaf_params();
    params.distinguished_name.push(DnType::CommonName, "middle");
    let (forged, _) = leaf(&rcgen::Issuer::new(params, key), |_| {});
    assert_eq!(
        judge_chain(&ca, &[forged, middle, ca.intermediate.clone()]),
        Err(VerifyError::Path(webpki::Error::EndEntityUsedAsCa))
    );
}

#[test]
fn a_purpose_that_an_intermediate_excludes_is_excluded() {
    let ca = Ca::with(|_| {}, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let verifier = Verifier::new(ca.bundle());
    let (leaf, intermediates) = (ca.leaf(|_| {}), [ca.intermediate.clone()]);
    assert!(verifier.verify(&leaf, &intermediates, Side::Server, now()).is_ok());
    assert!(matches!(verifier.verify(&leaf, &intermediates, Side::Client, now()), Err(VerifyError::Path(_))));
}

#[test]
fn name_constraints_are_kept_and_those_on_uris_refused() {
    let with = |constraints: NameConstraints, name: Option<&str>| {
        let ca = Ca::with(|_| {}, |p| p.name_constraints = Some(constraints));
        let leaf = ca.leaf(|p| {
            p.subject_alt_names.extend(name.map(|name| SanType::DnsName(name.try_into().unwrap())));
        });
        judge(&ca, &leaf).map(drop)
    };
    let permitted = |subtree| NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] };
    let shop = || permitted(GeneralSubtree::DnsName("shop.example".to_owned()));
    assert_eq!(with(shop(), Some("orders.shop.example")), Ok(()));
    assert_eq!(with(shop(), None), Ok(()));
    let violated = Err(VerifyError::Path(webpki::Error::NameConstraintViolation));
    assert_eq!(with(shop(), Some("orders.bank.example")), violated);

    // rcgen writes no URI constraints: nameConstraints { permitted: [uniformResourceIdentifier "td.test"] }
    let ca = Ca::with(
        |_| {},
        |p| {
            let content = [&[0x30, 13, 0xa0, 11, 0x30, 9, 0x86, 7][..], b"td.test"].concat();
            p.custom_extensions.push(extension(&[2, 5, 29, 30], true, &content));
        },
    );
    assert_eq!(judge(&ca, &ca.leaf(|_| {})).map(drop), violated, "not supported, so refused");
}

#[test]
fn the_trust_domain_is_the_bundles() {
    let ca = Ca::new();
    let found: SpiffeId = "spiffe://other.test/ns/shop/sa/orders".parse().unwrap();
    let leaf = ca.leaf(|p| p.subject_alt_names = vec![uri(found.as_str())]);
    assert_eq!(judge(&ca, &leaf), Err(VerifyError::TrustDomain { found: found.clone(), expected: td() }));
    let sub = ca.leaf(|p| p.subject_alt_names = vec![uri("spiffe://sub.td.test/a")]);
    assert!(matches!(judge(&ca, &sub), Err(VerifyError::TrustDomain { .. })));
    let other = TrustBundle::new(found.trust_domain().clone(), 1, vec![ca.root.clone()]).unwrap();
    assert_eq!(judge_at(other, &[leaf, ca.intermediate.clone()], now()).map(|peer| peer.id), Ok(found));
}

#[test]
fn refusals_say_which_rule() {
    assert_eq!(VerifyError::LeafIsCa.to_string(), "the leaf is a CA certificate");
    let error = rustls::Error::from(VerifyError::UriSans { count: 2 });
    assert_eq!(refusal(&error), Some(&VerifyError::UriSans { count: 2 }));
    assert_eq!(refusal(&rustls::Error::DecryptError), None);
}
