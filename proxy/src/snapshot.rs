//! What this proxy believes: policy, already validated and compiled, immutable, swapped whole.
//!
//! [`Snapshot`] is made by `discovery` (from the control plane, or from the state directory at a
//! start without one) and read by the request path through an [`arc_swap::ArcSwap`]. It holds policy
//! only: pools, latencies, ejections and budgets are state of [`crate::cluster`], keyed by
//! [`ClusterName`], and outlive any change that leaves their cluster be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use heddle_certs::{SpiffeId, TrustDomain};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use regex::Regex;

use crate::authorize::Authorizer;

/// Everything that the request path reads. Cheap to make anew: maps of `Arc`s, of the few
/// destinations in use.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What holds for the whole mesh; `None` until first received.
    pub mesh: Option<Arc<Mesh>>,
    /// Services that this workload serves, by its settings or by its platform; `None` until that is known.
    pub served: Option<Vec<ServiceName>>,
    /// Inbound policy of each service that this workload serves; the proxy is not ready without.
    pub inbound: BTreeMap<ServiceName, Arc<InboundPolicy>>,
    /// Services by each name that was dialled (`host:port`, `ip:port`, lower case).
    pub destinations: HashMap<String, Destination>,
    /// Services in use by canonical name: dialled ones and backends of their routes.
    pub services: HashMap<ServiceName, Arc<Service>>,
    /// Endpoints of the services in use.
    pub endpoints: HashMap<ServiceName, Arc<Endpoints>>,
}

/// What the control plane said of a dialled name.
#[derive(Clone, Debug)]
pub enum Destination {
    /// It is this port of this service.
    Service {
        /// The service; to be found in [`Snapshot::services`].
        service: ServiceName,
        /// The port dialled.
        port: u16,
        /// An endpoint's own address was dialled: this one instance is meant (its address in
        /// [`Snapshot::endpoints`]), and no route.
        instance: Option<SocketAddr>,
    },
    /// No service of the mesh has this name.
    Unknown,
    /// No service has it any more; one had since this proxy started, and the name is the mesh's by its form, so it is
    /// not dialled as a host outside.
    Gone,
    /// The control plane's resource for it cannot be used; why.
    Rejected(Arc<str>),
}

/// Canonical name of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// DNS label.
    pub namespace: Arc<str>,
    /// DNS label.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A balanced group of endpoints: one port of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// The mesh's own trust domain.
    pub trust_domain: TrustDomain,
    /// Name suffixes of the mesh, lower case.
    pub suffixes: Vec<String>,
    /// Address ranges of the mesh.
    pub cidrs: Vec<IpNet>,
    /// Whether destinations outside the mesh may be dialled.
    pub egress_allow: bool,
    /// Its namespaces, as the control plane now has them. `<name>.<namespace>` is taken for a service of one.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Share of new traces that are sampled.
    pub sampling_ratio: f64,
    /// Whether to write the access log.
    pub access_log: bool,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Not declared: detect.
    Detect,
    /// HTTP of a version to be detected.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC, over HTTP/2.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// A service as its callers see it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Canonical name.
    pub name: ServiceName,
    /// Host names that select it, lower case.
    pub hosts: Vec<String>,
    /// Virtual addresses that select it.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: BTreeMap<u16, ServicePort>,
    /// How its clusters are treated.
    pub policy: Arc<TrafficPolicy>,
    /// Version of the resource, for the config dump.
    pub version: String,
}

/// One port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// What it speaks.
    pub protocol: Protocol,
    /// In order of precedence, the first match decides; empty: all to the service itself.
    pub http_rules: Vec<Arc<HttpRule>>,
    /// Empty: to the service itself.
    pub tcp_backends: Vec<Backend>,
    /// Where `tcp_backends` came from.
    pub tcp_route: Arc<str>,
}

/// One match with what follows from it.
#[derive(Clone, Debug)]
pub struct HttpRule {
    /// `HTTPRoute <namespace>/<name>`.
    pub route: Arc<str>,
    /// Its name or index.
    pub rule: Arc<str>,
    /// Empty: any.
    pub hostnames: Vec<HostPattern>,
    /// What a request must have.
    pub matches: HttpMatch,
    /// In order.
    pub filters: Vec<Filter>,
    /// Chosen by weight.
    pub backends: Vec<Backend>,
    /// Overrides the cluster's.
    pub request_timeout: Option<Duration>,
    /// Overrides the cluster's.
    pub per_try_timeout: Option<Duration>,
    /// Overrides the cluster's.
    pub retry: Option<Arc<RetryPolicy>>,
}

/// A host name, or a suffix with at least one label before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// The whole name, lower case.
    Exact(String),
    /// `*.example` is kept as `.example`.
    Suffix(String),
}

/// What a request must have; all of it.
#[derive(Clone, Debug, Default)]
pub struct HttpMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// All of them.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// All of them, percent-decoded.
    pub query: Vec<(String, ValueMatch)>,
    /// The method.
    pub method: Option<Method>,
}

/// A match of a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments, kept without a trailing slash (`/` is kept empty).
    Prefix(String),
    /// Anchored at both ends.
    Regex(Regex),
}

/// A match of a value.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// Anchored at both ends.
    Regex(Regex),
}

/// A change to a request or response.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Of the request.
    RequestHeaders(HeaderModifier),
    /// Of the response.
    ResponseHeaders(HeaderModifier),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Change path or host before forwarding.
    Rewrite(Rewrite),
}

/// Changes of headers, applied as set, add, remove.
#[derive(Clone, Debug, Default)]
pub struct HeaderModifier {
    /// Replace or make.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Take away.
    pub remove: Vec<HeaderName>,
}

/// A redirect; `None` keeps.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathModifier>,
    /// A 3xx.
    pub status: StatusCode,
}

/// A rewrite; `None` keeps.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// Host.
    pub hostname: Option<HeaderValue>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A change of the path.
#[derive(Clone, Debug)]
pub enum PathModifier {
    /// The whole path; the query stays.
    Full(String),
    /// The prefix that the rule's [`PathMatch::Prefix`] matched.
    Prefix(String),
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The cluster.
    pub cluster: ClusterName,
    /// Share among its siblings.
    pub weight: u32,
    /// For this backend only.
    pub filters: Vec<Filter>,
    /// Why no request can go there, if so.
    pub invalid: Option<Arc<str>>,
}

/// How callers treat a service.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub balancing: Balancing,
    /// The whole request, until the response is complete.
    pub request_timeout: Option<Duration>,
    /// One try, until response headers.
    pub per_try_timeout: Option<Duration>,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// Unused pooled connections, silent opaque ones.
    pub idle_timeout: Duration,
    /// What to try again.
    pub retry: Arc<RetryPolicy>,
    /// How much at once.
    pub limits: Limits,
    /// When to eject an endpoint.
    pub outlier: OutlierDetection,
    /// `TrafficPolicy <namespace>/<name>`, or `default`.
    pub source: Arc<str>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// Power of two choices by peak EWMA.
    #[default]
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
}

/// What to try again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub max_retries: u32,
    /// Of responses.
    pub statuses: Vec<StatusCode>,
    /// gRPC statuses of trailers-only responses.
    pub grpc_statuses: Vec<u32>,
    /// No connection could be made.
    pub on_connect_failure: bool,
    /// The connection ended before response headers.
    pub on_reset: bool,
    /// REFUSED_STREAM, or GOAWAY below the stream.
    pub on_refused_stream: bool,
    /// First pause.
    pub backoff_base: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Largest body kept for replay, bytes.
    pub replay_bytes: usize,
    /// Share of requests, percent.
    pub budget_percent: u32,
    /// Always allowed a second.
    pub budget_min_per_second: u32,
    /// Besides the idempotent ones.
    pub methods: Vec<Method>,
}

/// How much at once, for one cluster in this proxy, with all its workers; but each of them may have one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub max_connections: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Requests waiting for a connection.
    pub max_pending: u32,
}

/// When to eject an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// In a row; 0: off.
    pub consecutive_failures: u32,
    /// First ejection.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// 0 to 50.
    pub max_ejected_percent: u32,
}

/// Instances of a service.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The service.
    pub service: ServiceName,
    /// In order of address.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Version of the resource, for the config dump.
    pub version: String,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its inbound listener, or the app itself (with the app's port of `ports`) if not `meshed`.
    pub address: SocketAddr,
    /// Any of these must be the peer's; not empty if `meshed`.
    pub identities: Vec<SpiffeId>,
    /// Whether it has a proxy: then only mTLS, never plaintext.
    pub meshed: bool,
    /// Service port to the app's own (0: not known, if `meshed`).
    pub ports: BTreeMap<u16, u16>,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// At least 1.
    pub weight: u32,
    /// Whether it takes traffic.
    pub ready: bool,
    /// `<namespace>/<workload>`.
    pub workload: String,
    /// Who dials `<hostname>.` before a name of the service means this instance.
    pub hostname: Option<Box<str>>,
}

/// Who may come in.
#[derive(Clone, Debug)]
pub struct InboundPolicy {
    /// The service.
    pub service: ServiceName,
    /// Its ports.
    pub ports: BTreeMap<u16, InboundPort>,
    /// Rules and default, compiled.
    pub authorizer: Authorizer,
    /// Plaintext `GET`/`HEAD` of exactly this path on this port needs nothing.
    pub probe_exemptions: Vec<(u16, String)>,
    /// Version of the resource, for the config dump.
    pub version: String,
}

/// A port of a service that this workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the app listens, by the proxy's own settings or else the service's target port on
    /// loopback; `None`: the service has this port, but this workload does not serve it.
    pub app: Option<SocketAddr>,
    /// Whether plaintext may come in.
    pub permissive: bool,
}

impl Endpoints {
    /// Those with this address; several workloads may say that it is theirs.
    pub fn at_address(&self, address: SocketAddr) -> impl Iterator<Item = &Arc<Endpoint>> {
        let first = self.endpoints.partition_point(|endpoint| endpoint.address < address);
        self.endpoints[first..].iter().take_while(move |endpoint| endpoint.address == address)
    }

    /// The instance with this host name, below a name of the service.
    pub fn with_hostname(&self, hostname: &str) -> Option<&Arc<Endpoint>> {
        let mut named = self.endpoints.iter().filter(|endpoint| endpoint.hostname.as_deref() == Some(hostname));
        // A pod that is there by addresses of both families is called by that of the service's own.
        let first = named.next()?;
        Some(named.find(|endpoint| endpoint.ready && !first.ready).unwrap_or(first))
    }

    /// The instance whose app listens at this address, and the service port that it serves there.
    pub fn at(&self, app: SocketAddr) -> Option<(&Arc<Endpoint>, u16)> {
        let first = self.endpoints.partition_point(|endpoint| endpoint.address.ip() < app.ip());
        let here = self.endpoints[first..].iter().take_while(|endpoint| endpoint.address.ip() == app.ip());
        here.flat_map(|endpoint| endpoint.ports.iter().map(move |(port, target)| (endpoint, *port, *target)))
            .find(|(_, _, target)| *target == app.port())
            .map(|(endpoint, port, _)| (endpoint, port))
    }
}

impl Mesh {
    /// Whether a host is one of the mesh's suffixes, or below one.
    pub fn is_below_suffix(&self, host: &str) -> bool {
        let below = |suffix: &String| {
            host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.suffixes.iter().any(below)
    }
}

impl Snapshot {
    /// Whether an address belongs to the mesh, so that it is never dialled in plaintext unless it is
    /// a known endpoint.
    pub fn is_mesh_address(&self, ip: IpAddr) -> bool {
        // `::ffff:10.0.0.1` is where 10.0.0.1 is.
        let ip = ip.to_canonical();
        self.mesh.as_ref().is_some_and(|mesh| mesh.cidrs.iter().any(|cidr| cidr.contains(&ip)))
    }
}
