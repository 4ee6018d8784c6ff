//! The name of this instance, and what telemetry says of it.

use heddle_api::validate::is_dns_label;
use rand::Rng;

use crate::{
    config::{Config, OtlpProtocol},
    state::StateDir,
    telemetry::{Protocol, Resource, TracingConfig},
};

const FILE: &str = "workload";
/// Letters and digits that are not easily mistaken for one another.
const ALPHABET: &[u8] = b"bcdfghjkmnpqrstvwxz23456789";

/// As set, or as an earlier process was called, or made of the host's name.
pub(super) fn name(config: &Config, state: Option<&StateDir>) -> String {
    if let Some(name) = &config.workload {
        return name.clone();
    }
    let stored = state.and_then(|state| match state.read(FILE) {
        Ok(stored) => stored.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|name| is_dns_label(name)),
        Err(error) => {
            tracing::warn!(%error, "the workload's name is not read back");
            None
        }
    });
    if let Some(name) = stored {
        return name;
    }
    let name = generate();
    if let Some(Err(error)) = state.map(|state| state.write(FILE, name.as_bytes())) {
        tracing::warn!(%error, "the workload's name is not kept");
    }
    name
}

fn generate() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase();
    let host: String =
        host.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).take(50).collect();
    let host = host.trim_matches('-');
    let mut rng = rand::rng();
    let random: String = (0..6).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    if host.is_empty() { format!("workload-{random}") } else { format!("{host}-{random}") }
}

/// Who this is, for spans and log lines: the service it serves, or its account if it only calls.
pub(super) fn resource(config: &Config, namespace: &str, workload: &str) -> Resource {
    let account = config.join.identity.as_workload().map(|(_, account)| account).unwrap_or_default();
    let service = config.services.first().map_or(account, |service| &service.name.name);
    Resource { service: service.to_owned(), namespace: namespace.to_owned(), instance: workload.to_owned() }
}

pub(super) fn tracing(config: &Config) -> TracingConfig {
    TracingConfig {
        endpoint: config.tracing.endpoint.as_ref().map(ToString::to_string),
        protocol: config.tracing.protocol.map(|protocol| match protocol {
            OtlpProtocol::Grpc => Protocol::Grpc,
            OtlpProtocol::Http => Protocol::Http,
        }),
        sampling_ratio: config.tracing.sampling_ratio,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_made_can_be_registered() {
        for _ in 0..20 {
            let name = generate();
            assert!(is_dns_label(&name), "{name}");
        }
        assert_ne!(generate(), generate());
    }
}
