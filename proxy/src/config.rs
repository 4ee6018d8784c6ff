//! What the proxy is meant to do: every setting parsed, completed with its default and checked
//! against the others. What was typed (file, flags, environment) is in [mod@file].

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use heddle_certs::{SpiffeId, TrustBundle};

use crate::{probes::Probes, snapshot::ServiceName};

pub mod error;
pub mod file;
mod join;
mod meaning;
mod read;
#[cfg(test)]
mod tests;

/// Settings of one proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// Services that the workload beside this proxy serves; empty: it only calls.
    pub services: Vec<ServedService>,
    /// Instance name, unique in the namespace.
    pub workload: Option<String>,
    /// How to reach the control plane and to be known to it.
    pub join: Join,
    /// Where key, certificate and last good resources are kept; `None`: in memory only.
    pub state_dir: Option<PathBuf>,
    /// mTLS from peer proxies.
    pub inbound: Inbound,
    /// Calls of the application.
    pub outbound: Outbound,
    /// Config dump, log level, drain; loopback. `None`: off.
    pub admin: Option<SocketAddr>,
    /// `/live` `/ready` `/startup` `/metrics`.
    pub health: SocketAddr,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// Export of spans.
    pub tracing: Tracing,
    /// Shutting down.
    pub drain: Drain,
    /// What a peer or the application may use up.
    pub limits: Limits,
    /// Subscriptions to the control plane.
    pub discovery: DiscoverySettings,
    /// What the process logs.
    pub log: Log,
    /// What the health listener asks the application in the platform's place.
    pub probes: Probes,
}

/// A service that the workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedService {
    /// Canonical name.
    pub name: ServiceName,
    /// Its ports; empty: every port that the service declares, at the target port on loopback.
    pub ports: Vec<ServedPort>,
}

/// Where the application serves a port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedPort {
    /// Service port; `None`: the one whose target port is the application's, or the only one.
    pub port: Option<u16>,
    /// Where the application listens.
    pub app: SocketAddr,
}

/// The way to an identity: the content of a join file, or what Kubernetes gives each pod.
#[derive(Clone)]
pub struct Join {
    /// `host:port` of the control plane's mesh port.
    pub control_plane: String,
    /// Who this proxy will be; its namespace completes bare names.
    pub identity: SpiffeId,
    /// Roots under which the control plane must prove its reserved identity, until it names others.
    pub trust_anchors: TrustBundle,
    /// Proves the identity when there is no certificate to renew; `None`: only a stored certificate can.
    pub proof: Option<Proof>,
}

/// What proves an identity without a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The token of a join file.
    JoinToken(Secret),
    /// File of a service-account token that Kubernetes projects into the pod. It is replaced from time to time, so it
    /// is read whenever it is used.
    ServiceAccountToken(PathBuf),
}

/// Text that no log, dump or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// mTLS from peer proxies.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Where peers are accepted, and connections to the application that are redirected here; at least one.
    pub listen: Vec<SocketAddr>,
    /// What to register when it is not the listener's address: `ip:port`, `ip` or `:port`.
    pub advertise: Advertise,
}

/// Address under which peers reach the inbound listener; what is absent is the source address of
/// the registration or the port listened on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advertise {
    /// Address of this host.
    pub ip: Option<IpAddr>,
    /// Port, where it is mapped.
    pub port: Option<u16>,
}

/// Calls of the application.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Connections of the application that are redirected here (original destination); empty: nothing is captured.
    pub captured: Vec<SocketAddr>,
    /// HTTP proxy port; `None`: off.
    pub http_proxy: Option<SocketAddr>,
    /// Local ports that lead to one service each.
    pub upstreams: Vec<Upstream>,
}

/// A local port that leads to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// `host:port`, as the application would dial it.
    pub name: DialName,
    /// The name as it was typed, under which the bound address is told.
    pub typed: String,
    /// Where the application dials instead.
    pub listen: SocketAddr,
}

/// `host:port` as dialled: lower case, without a trailing dot, an address in its canonical form; port 80 where
/// none was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialName {
    /// Name or address (IPv6 without brackets).
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Export of spans; telemetry fills what is not set here from the `OTEL_*` variables.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// OTLP endpoint; `None`: no export, unless the variables name one.
    pub endpoint: Option<http::Uri>,
    /// How it is spoken to; `None`: gRPC, or as the variables say.
    pub protocol: Option<OtlpProtocol>,
    /// Share of new traces that are sampled; `None`: as the mesh says.
    pub sampling_ratio: Option<f64>,
}

/// Transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC, usually port 4317.
    Grpc,
    /// HTTP with protobuf, usually port 4318.
    Http,
}

/// Shutting down.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// After this the process exits, whatever is still open.
    pub deadline: Duration,
    /// How long callers may take to learn that this workload leaves, before it refuses.
    pub deregister_wait: Duration,
}

/// What a peer or the application may use up. Safe as they are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once on each listener.
    pub max_connections: usize,
    /// Bytes of a request's or response's header list.
    pub max_header_bytes: u32,
    /// Headers of a request or response.
    pub max_headers: usize,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// A TLS handshake.
    pub handshake_timeout: Duration,
    /// Silence on a connection of undeclared protocol after which it is dialled as opaque.
    pub detect_timeout: Duration,
    /// HTTP/2 streams open at once on a connection. Above 100 each has a smaller window, so that all together have room.
    pub max_streams: u32,
    /// HTTP/2 streams that a peer may reset before they are answered, until the connection is closed.
    pub max_resets: usize,
    /// For so long a request's body of known length, or a gRPC message in it, may give less than 1 KiB while it is
    /// waited for.
    pub body_timeout: Duration,
    /// A downstream connection without a request, or one that takes nothing of a response that is there; a request's
    /// body of unknown length that gives nothing before it is answered.
    pub idle_timeout: Duration,
}

/// Subscriptions to the control plane.
#[derive(Clone, Copy, Debug)]
pub struct DiscoverySettings {
    /// A destination that nobody dialled for so long is dropped.
    pub idle: Duration,
    /// How long a connection waits for the first answer about its destination.
    pub wait: Duration,
    /// Destinations held at once.
    pub max_destinations: usize,
}

/// What the process logs.
#[derive(Clone, Debug)]
pub struct Log {
    /// Filter directives, such as `info` or `info,heddle_proxy=debug`.
    pub filter: String,
    /// One JSON object a line, instead of text.
    pub json: bool,
    /// A line for each request; `None`: as the mesh says.
    pub access: Option<bool>,
}

impl DialName {
    /// Of a host and a port.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        // An address has one name, however it was written: `::ffff:10.0.0.1` is 10.0.0.1.
        let host = host.trim_end_matches('.');
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().to_string(),
            Err(_) => host.to_ascii_lowercase(),
        };
        Self { host, port }
    }
}

impl fmt::Display for DialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Text that is no `host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name; write service, service.namespace or a host name or address, with :port where it is not 80")]
pub struct InvalidDialName(pub String);

impl FromStr for DialName {
    type Err = InvalidDialName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDialName(text.to_owned());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(invalid)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
                match after {
                    "" => (host, None),
                    after => (host, Some(after.strip_prefix(':').ok_or_else(invalid)?)),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => 80,
            Some(port) if !port.bytes().all(|byte| byte.is_ascii_digit()) => return Err(invalid()),
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?,
        };
        let name = Self::new(host, port);
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !name.host.contains(':') && (name.host.len() > 253 || !name.host.split('.').all(label)) {
            return Err(invalid());
        }
        Ok(name)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join")
            .field("control_plane", &self.control_plane)
            .field("identity", &self.identity)
            .field("proof", &self.proof)
            .finish_non_exhaustive()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_header_bytes: 64 * 1024,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            detect_timeout: Duration::from_millis(50),
            max_streams: 200,
            max_resets: 50,
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), deregister_wait: Duration::from_secs(5) }
    }
}

impl Default for DiscoverySettings {
    fn default() -> Self {
        Self { idle: Duration::from_secs(600), wait: Duration::from_secs(2), max_destinations: 4096 }
    }
}
