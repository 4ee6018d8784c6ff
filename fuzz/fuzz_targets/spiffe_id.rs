//! SPIFFE IDs: the parser agrees with a grammar written another way, and what it accepts survives a
//! round trip.
#![no_main]

use heddle_certs::{SpiffeId, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parsed: Result<SpiffeId, _> = text.parse();
    assert_eq!(parsed.is_ok(), is_spiffe_id(text.as_bytes()), "{parsed:?}");
    assert_eq!(TrustDomain::new(text).is_ok(), is_trust_domain(text.as_bytes()));
    let Ok(id) = parsed else { return };
    assert_eq!(id.as_str(), text);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    assert_eq!(SpiffeId::with_path(id.trust_domain(), id.path()).as_ref(), Ok(&id));
    if let Some((namespace, service_account)) = id.as_workload() {
        assert_eq!(SpiffeId::workload(id.trust_domain(), namespace, service_account), Ok(id.clone()));
        assert!(!id.is_control_plane());
    }
});

fn is_spiffe_id(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"spiffe://") else { return false };
    let mut parts = rest.split(|byte| *byte == b'/');
    text.len() <= 2048 && is_trust_domain(parts.next().unwrap_or_default()) && parts.all(is_segment)
}

fn is_trust_domain(name: &[u8]) -> bool {
    let allowed = b"abcdefghijklmnopqrstuvwxyz0123456789.-_";
    (1..=255).contains(&name.len()) && name.iter().all(|byte| allowed.contains(byte))
}

fn is_segment(segment: &[u8]) -> bool {
    let allowed = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    ![&b""[..], b".", b".."].contains(&segment) && segment.iter().all(|byte| allowed.contains(byte))
}
