//! Verification: any chain, against a fixed root. The input is certificates, each behind its length in
//! two bytes; the seeds are chains that this root accepts, and near misses.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_certs::{
    CertificateDer, Svid, TrustBundle, TrustDomain,
    verify::{self, Side, Verifier, rules},
};
use libfuzzer_sys::fuzz_target;

static BUNDLE: LazyLock<TrustBundle> = LazyLock::new(|| {
    let domain = TrustDomain::new("fuzz.test").unwrap();
    TrustBundle::from_pem(domain, 1, include_bytes!("../seeds/root.pem")).unwrap()
});
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(BUNDLE.clone()));

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fuzz_target!(|input: &[u8]| {
    let chain = chain(input);
    let id = verify::peer_id(&chain);
    for certificate in &chain {
        let _ = rules::signing(certificate);
    }
    let _ = TrustBundle::new(BUNDLE.trust_domain().clone(), 1, chain.clone());
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    for side in [Side::Server, Side::Client] {
        if let Ok(peer) = VERIFIER.verify(leaf, intermediates, side, now()) {
            assert_eq!(id.as_ref(), Ok(&peer.id));
            assert_eq!(peer.id.trust_domain(), BUNDLE.trust_domain());
            assert!(!peer.id.path().is_empty() && peer.not_after >= now());
            assert!(rules::signing(leaf).is_err(), "no certificate is both leaf and CA");
        }
    }
    let key = heddle_certs::PrivateKeyDer::Pkcs8(vec![0x30, 0].into());
    assert!(Svid::from_der(chain, key).is_err());
});

fn chain(mut input: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut chain = Vec::new();
    while let [high, low, rest @ ..] = input {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        chain.push(rest[..len].to_vec().into());
        input = &rest[len..];
    }
    chain
}
