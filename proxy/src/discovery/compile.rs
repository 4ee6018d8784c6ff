//! From a resource as sent to a resource as used: everything checked, every matcher made. What comes
//! in is untrusted: nothing here panics, and all sizes are bounded by the message's own.
//!
//! An error says which field and what is wrong with it; the control plane shows it to people.

mod inbound;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use heddle_api::proto::discovery as proto;
use heddle_certs::{CertificateDer, SpiffeId, TrustBundle, TrustDomain};
use ipnet::{IpNet, Ipv4Net};
use regex::{Regex, RegexBuilder};

pub(super) use self::{
    inbound::inbound,
    service::service,
    workload::{Workload, workload},
};
use crate::snapshot::{Endpoint, Endpoints, Mesh, Protocol, ServiceName};

/// Most bytes that one compiled regular expression may take.
const MAX_REGEX: usize = 1 << 18;
/// Most instances of one service.
const MAX_ENDPOINTS: usize = 20_000;
/// Most entries of any other list; the longest is that of a port's rules.
const MAX_LIST: usize = heddle_api::limits::MAX_PORT_RULES;

/// What is wrong, with the path of the field.
pub(super) type Reason = String;

/// Says which field an error is about.
trait At<T> {
    fn at(self, field: impl FnOnce() -> String) -> Result<T, Reason>;
}

impl<T, E: std::fmt::Display> At<T> for Result<T, E> {
    fn at(self, field: impl FnOnce() -> String) -> Result<T, Reason> {
        self.map_err(|error| format!("{}: {error}", field()))
    }
}

/// Every element by its own function, with `name[index]` before what is wrong with it.
fn each<T, U>(name: &str, list: Vec<T>, mut compile: impl FnMut(T) -> Result<U, Reason>) -> Result<Vec<U>, Reason> {
    if list.len() > MAX_LIST {
        return Err(format!("{name}: {} entries are more than {MAX_LIST}", list.len()));
    }
    let mut compiled = Vec::with_capacity(list.len());
    for (index, element) in list.into_iter().enumerate() {
        compiled.push(compile(element).map_err(|reason| match reason.strip_prefix(": ") {
            // The element itself is wrong, not a field of it.
            Some(reason) => format!("{name}[{index}]: {reason}"),
            None => format!("{name}[{index}].{reason}"),
        })?);
    }
    Ok(compiled)
}

/// The canonical name of a service, `<namespace>/<name>`.
pub(super) fn service_name(text: &str) -> Result<ServiceName, Reason> {
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_label(name) => {
            Ok(ServiceName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("{text:?} is no <namespace>/<name>")),
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn port(number: u32) -> Result<u16, Reason> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| format!("{number} is no port"))
}

fn protocol(number: i32) -> Result<Protocol, Reason> {
    match proto::Protocol::try_from(number) {
        Ok(proto::Protocol::Unspecified) => Ok(Protocol::Detect),
        Ok(proto::Protocol::Http) => Ok(Protocol::Http),
        Ok(proto::Protocol::Http1) => Ok(Protocol::Http1),
        Ok(proto::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(proto::Protocol::Grpc) => Ok(Protocol::Grpc),
        Ok(proto::Protocol::Tcp) => Ok(Protocol::Tcp),
        Err(_) => Err(format!("protocol {number} is unknown to this proxy")),
    }
}

/// A regular expression that must match the whole value.
fn regex(pattern: &str) -> Result<Regex, Reason> {
    RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(MAX_REGEX)
        .dfa_size_limit(MAX_REGEX)
        .build()
        .map_err(|error| format!("{pattern:?} is no usable regular expression: {error}"))
        // `a)|(b` would escape the anchors.
        .and_then(|anchored| match regex_syntax_alone(pattern) {
            true => Ok(anchored),
            false => Err(format!("{pattern:?} is no regular expression on its own")),
        })
}

fn regex_syntax_alone(pattern: &str) -> bool {
    RegexBuilder::new(pattern).size_limit(MAX_REGEX).build().is_ok()
}

/// A range of addresses; one of IPv4 addresses mapped into IPv6 is the range of these.
fn cidr(text: &str) -> Result<IpNet, Reason> {
    let net = text.parse::<IpNet>().map_err(|_| format!(": {text:?} is no CIDR"))?;
    let mapped = net.prefix_len().checked_sub(96).filter(|_| matches!(net, IpNet::V6(_)));
    let canonical = match (mapped, net.network().to_canonical()) {
        (Some(length), IpAddr::V4(network)) => Ipv4Net::new(network, length).ok().map(IpNet::V4),
        _ => None,
    };
    Ok(canonical.unwrap_or(net))
}

/// Longer than anybody waits, and short enough to be added to any point in time.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn millis(number: u64) -> Option<Duration> {
    (number != 0).then(|| Duration::from_millis(number).min(LONGEST))
}

fn millis_or(number: u64, default: Duration) -> Duration {
    millis(number).unwrap_or(default)
}

fn same_name(expected: &str, said: &str) -> Result<ServiceName, Reason> {
    if expected == said { service_name(said) } else { Err(format!("service: {said:?} is not the resource's name")) }
}

pub(super) fn mesh(name: &str, mesh: proto::MeshConfig) -> Result<Mesh, Reason> {
    if name != "mesh" {
        return Err(format!("{name:?} is not \"mesh\""));
    }
    let trust_domain = TrustDomain::new(&mesh.trust_domain).at(|| "trust_domain".to_owned())?;
    let suffixes = each("suffixes", mesh.suffixes, |suffix| {
        let suffix = suffix.to_ascii_lowercase();
        if suffix.split('.').all(is_label) { Ok(suffix) } else { Err(format!(": {suffix:?} is no name suffix")) }
    })?;
    let cidrs = each("cidrs", mesh.cidrs, |text| cidr(&text))?;
    let mut namespaces = BTreeSet::new();
    // As many as there are: the message's own size bounds them.
    for (index, namespace) in mesh.namespaces.into_iter().enumerate() {
        if !is_label(&namespace) {
            return Err(format!("namespaces[{index}]: {namespace:?} is no namespace"));
        }
        namespaces.insert(namespace.into());
    }
    let telemetry = mesh.telemetry.unwrap_or_default();
    if !(0.0..=1.0).contains(&telemetry.sampling_ratio) {
        return Err(format!("telemetry.sampling_ratio: {} is not between 0 and 1", telemetry.sampling_ratio));
    }
    Ok(Mesh {
        trust_domain,
        suffixes,
        cidrs,
        egress_allow: mesh.egress_allow,
        namespaces,
        sampling_ratio: telemetry.sampling_ratio,
        access_log: telemetry.access_log,
    })
}

pub(super) fn trust_bundle(name: &str, bundle: proto::TrustBundle) -> Result<TrustBundle, Reason> {
    if name != bundle.trust_domain {
        return Err(format!("trust_domain: {:?} is not the resource's name", bundle.trust_domain));
    }
    let trust_domain = TrustDomain::new(&bundle.trust_domain).at(|| "trust_domain".to_owned())?;
    let roots = bundle.roots.into_iter().map(CertificateDer::from).collect();
    TrustBundle::new(trust_domain, bundle.epoch, roots).at(|| "roots".to_owned())
}

pub(super) fn endpoints(name: &str, version: &str, endpoints: proto::Endpoints) -> Result<Endpoints, Reason> {
    let service = same_name(name, &endpoints.service)?;
    if endpoints.endpoints.len() > MAX_ENDPOINTS {
        return Err(format!("endpoints: {} are more than {MAX_ENDPOINTS}", endpoints.endpoints.len()));
    }
    let mut compiled = BTreeMap::new();
    for (index, sent) in endpoints.endpoints.into_iter().enumerate() {
        let endpoint = endpoint(sent).map_err(|reason| format!("endpoints[{index}].{reason}"))?;
        if let Some(other) = compiled.insert((endpoint.address, endpoint.workload.clone()), endpoint.into()) {
            let other: std::sync::Arc<Endpoint> = other;
            return Err(format!("endpoints[{index}].address: {} is there twice", other.address));
        }
    }
    Ok(Endpoints { service, endpoints: compiled.into_values().collect(), version: version.to_owned() })
}

fn endpoint(sent: proto::Endpoint) -> Result<Endpoint, Reason> {
    let address: SocketAddr = sent.address.parse().map_err(|_| format!("address: {:?} is no ip:port", sent.address))?;
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("address: {address} cannot be dialled"));
    }
    let identities =
        each("identities", sent.identities, |id| id.parse::<SpiffeId>().map_err(|error| format!(": {id:?}: {error}")))?;
    if sent.meshed && identities.is_empty() {
        // To be dialled with mTLS, but nobody there could be believed.
        return Err("identities: a meshed endpoint needs at least one".to_owned());
    }
    let ports = each("ports", sent.ports, |sent_port| {
        let target = match sent_port.target_port {
            0 if sent.meshed => 0,
            target => port(target).at(|| "target_port".to_owned())?,
        };
        Ok((port(sent_port.port).at(|| "port".to_owned())?, target))
    })?;
    Ok(Endpoint {
        address,
        identities,
        meshed: sent.meshed,
        ports: ports.into_iter().collect(),
        zone: sent.zone,
        weight: sent.weight.clamp(1, 1_000_000),
        ready: sent.ready,
        workload: sent.workload,
        hostname: Some(sent.hostname).filter(|hostname| !hostname.is_empty()).map(String::into_boxed_str),
    })
}
