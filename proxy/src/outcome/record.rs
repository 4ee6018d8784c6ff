//! The record of a request or connection, complete when it is over. Everything in it is cheap to
//! take along on the way: reference counts and plain numbers.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_certs::SpiffeId;
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use smallvec::SmallVec;

use super::Error;
use crate::{
    cluster::retry::Refusal,
    snapshot::{ClusterName, Endpoint, HttpRule, Protocol, ServiceName},
    trace_context::{SpanId, TraceContext},
};

/// What became of a request or of a connection.
#[derive(Debug)]
pub enum Outcome {
    /// An HTTP request.
    Request(Box<RequestOutcome>),
    /// An opaque connection, a CONNECT tunnel, or a connection that ended before any request.
    Connection(Box<ConnectionOutcome>),
}

/// Seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the app.
    Inbound,
    /// From the app.
    Outbound,
}

/// Who ended a connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClosedBy {
    /// The caller.
    Downstream,
    /// Who was called.
    Upstream,
    /// This proxy.
    Proxy,
}

/// The rule that let something in or refused it; both empty: the mesh's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    /// Whether it was let in.
    pub allowed: bool,
    /// `AuthorizationPolicy <namespace>/<name>`.
    pub policy: Option<Arc<str>>,
    /// Name or index of the rule.
    pub rule: Option<Arc<str>>,
}

/// What became of a request.
#[derive(Debug)]
pub struct RequestOutcome {
    /// Seen from the workload.
    pub direction: Direction,
    /// When its headers had come.
    pub started: SystemTime,
    /// Until the response was complete or given up.
    pub duration: Duration,
    /// Of the caller.
    pub version: Version,
    /// Whether it is a gRPC call.
    pub grpc: bool,
    /// Its method.
    pub method: Method,
    /// As forwarded (path normalised), or as received when refused before.
    pub uri: Uri,
    /// `Host` or `:authority` as received.
    pub authority: Option<HeaderValue>,
    /// `user-agent`.
    pub user_agent: Option<HeaderValue>,
    /// `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// Of the response sent; none if there was none.
    pub status: Option<StatusCode>,
    /// `grpc-status`, if seen.
    pub grpc_status: Option<u32>,
    /// Why the proxy answered itself or gave up.
    pub error: Option<Error>,
    /// Outbound: the service addressed; inbound: the one called here.
    pub service: Option<ServiceName>,
    /// Its port.
    pub port: u16,
    /// The rule that matched.
    pub rule: Option<Arc<HttpRule>>,
    /// The cluster chosen.
    pub cluster: Option<ClusterName>,
    /// What the inbound policy said.
    pub authorization: Option<Authorization>,
    /// Address of the caller.
    pub peer_address: SocketAddr,
    /// Inbound: verified identity of the caller; outbound: of who answered.
    pub peer: Option<SpiffeId>,
    /// Each try, in order, and nearly always one; inbound at most one, to the app.
    pub attempts: SmallVec<[Attempt; 1]>,
    /// Why the last try, which failed, was not made again.
    pub retry_refused: Option<Refusal>,
    /// Of the request's body, as received.
    pub request_bytes: u64,
    /// Of the response's body, as sent.
    pub response_bytes: u64,
    /// Inbound: the span that this request is; outbound: the caller's, of which each attempt is a
    /// child.
    pub trace: TraceContext,
}

impl RequestOutcome {
    /// Of a request whose headers have just come; all else is filled in as it becomes known.
    pub fn new(
        direction: Direction,
        (version, method, uri): (Version, Method, Uri),
        peer_address: SocketAddr,
        started: SystemTime,
        trace: TraceContext,
    ) -> Self {
        Self {
            direction,
            started,
            duration: Duration::ZERO,
            version,
            grpc: false,
            method,
            uri,
            authority: None,
            user_agent: None,
            request_id: None,
            status: None,
            grpc_status: None,
            error: None,
            service: None,
            port: 0,
            rule: None,
            cluster: None,
            authorization: None,
            peer_address,
            peer: None,
            attempts: SmallVec::new(),
            retry_refused: None,
            request_bytes: 0,
            response_bytes: 0,
            trace,
        }
    }
}

/// One try of a request.
#[derive(Debug)]
pub struct Attempt {
    /// The instance tried; none: the app, or none could be picked.
    pub endpoint: Option<Arc<Endpoint>>,
    /// When it began.
    pub started: SystemTime,
    /// Until the response was complete or the try given up.
    pub duration: Duration,
    /// TCP and TLS, where a connection was made for it.
    pub connect: Option<Duration>,
    /// Verified identity of who answered.
    pub peer: Option<SpiffeId>,
    /// Of its response.
    pub status: Option<StatusCode>,
    /// Of its response.
    pub grpc_status: Option<u32>,
    /// How it failed.
    pub error: Option<Error>,
    /// Who ended the connection, if it ended under the request.
    pub closed_by: Option<ClosedBy>,
    /// Whether its endpoint was ejected after it.
    pub ejected: bool,
    /// Its span.
    pub span_id: SpanId,
}

impl Attempt {
    /// Just begun.
    pub fn new(endpoint: Option<Arc<Endpoint>>, started: SystemTime, span_id: SpanId) -> Self {
        Self {
            endpoint,
            started,
            duration: Duration::ZERO,
            connect: None,
            peer: None,
            status: None,
            grpc_status: None,
            error: None,
            closed_by: None,
            ejected: false,
            span_id,
        }
    }
}

impl ConnectionOutcome {
    /// Just accepted.
    pub fn new(direction: Direction, peer_address: SocketAddr, started: SystemTime) -> Self {
        Self {
            direction,
            started,
            duration: Duration::ZERO,
            protocol: Protocol::Detect,
            tls: false,
            peer_address,
            peer: None,
            target: None,
            service: None,
            port: 0,
            cluster: None,
            route: None,
            endpoint: None,
            authorization: None,
            error: None,
            closed_by: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }
}

/// What became of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionOutcome {
    /// Seen from the workload.
    pub direction: Direction,
    /// When it was accepted.
    pub started: SystemTime,
    /// Until both sides were closed.
    pub duration: Duration,
    /// As declared or detected.
    pub protocol: Protocol,
    /// Whether mTLS came in (inbound) or went out (outbound).
    pub tls: bool,
    /// Address of the caller.
    pub peer_address: SocketAddr,
    /// Inbound: verified identity of the caller; outbound: of who was called.
    pub peer: Option<SpiffeId>,
    /// Outbound: what was dialled, as far as known; inbound: the SNI's or original destination.
    pub target: Option<Arc<str>>,
    /// Outbound: the service addressed; inbound: the one called here.
    pub service: Option<ServiceName>,
    /// Its port.
    pub port: u16,
    /// The cluster chosen.
    pub cluster: Option<ClusterName>,
    /// `TCPRoute <namespace>/<name>`.
    pub route: Option<Arc<str>>,
    /// The instance connected to.
    pub endpoint: Option<Arc<Endpoint>>,
    /// What the inbound policy said.
    pub authorization: Option<Authorization>,
    /// How it failed.
    pub error: Option<Error>,
    /// Who ended it first.
    pub closed_by: Option<ClosedBy>,
    /// From the caller.
    pub received_bytes: u64,
    /// To the caller.
    pub sent_bytes: u64,
}
