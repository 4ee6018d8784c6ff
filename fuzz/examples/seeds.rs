//! Writes the seeds anew: `cargo run --example seeds` in `fuzz/`. They go together with the root that
//! is written beside them, whose key is not kept.

use std::{
    fs, io,
    time::{Duration, UNIX_EPOCH},
};

use heddle_certs::{Authority, CertificateDer, SignOptions, SpiffeId, TrustDomain, csr};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let domain = TrustDomain::new("fuzz.test")?;
    let authority = Authority::create(domain.clone(), now)?;
    fs::write("seeds/root.pem", authority.bundle().to_pem())?;

    let (_, request) = csr::generate()?;
    seed("csr", "p256", &request)?;
    let id = SpiffeId::workload(&domain, "shop", "orders")?;
    let mut options = SignOptions::new(Duration::from_secs(86_400), now);
    let plain = authority.sign(&request, &id, &options)?;
    options.dns_names.push("orders.shop".to_owned());
    options.ip_addresses.push([127, 0, 0, 1].into());
    let names = authority.sign(&request, &id, &options)?;
    options.now = now - Duration::from_secs(3600);
    options.ttl = Duration::from_secs(60);
    let expired = Authority::create(domain.clone(), options.now)?.sign(&request, &id, &options)?;
    let root = authority.bundle().roots().to_vec();
    for (name, chain) in [
        ("accepted", &plain[..]),
        ("with_names", &names),
        ("leaf_only", &plain[..1]),
        ("with_root", &[&plain[..], &root].concat()),
        ("foreign_and_expired", &expired),
        ("ca_as_leaf", &plain[1..]),
        ("root_as_leaf", &root),
    ] {
        seed("verify", name, &encode(chain))?;
    }

    let longest = format!("spiffe://td/{}", "a".repeat(2036));
    for (name, text) in [
        ("workload", id.as_str()),
        ("control_plane", SpiffeId::control_plane(&domain).as_str()),
        ("no_path", "spiffe://fuzz.test"),
        ("all_characters", "spiffe://a-z_0.9/A-Z_a.z/..."),
        ("dots", "spiffe://td/a/../b"),
        ("longest", &longest),
        ("port", "spiffe://td:80/a"),
    ] {
        seed("spiffe_id", name, text.as_bytes())?;
    }
    Ok(())
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::write(format!("seeds/{target}/{name}"), bytes)
}

fn encode(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let len = |certificate: &CertificateDer<'_>| (certificate.len() as u16).to_be_bytes();
    chain.iter().flat_map(|certificate| [&len(certificate)[..], certificate].concat()).collect()
}
