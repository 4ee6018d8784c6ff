//! What became of a request or connection: one value, from which the log line, the metrics and the
//! span are made, and the one table from a kind of error to what others see of it.

mod record;
mod reply;
mod table;

use std::{fmt, str::FromStr, sync::Arc};

use http::StatusCode;

pub use self::record::{Attempt, Authorization, ClosedBy, ConnectionOutcome, Direction, Outcome, RequestOutcome};

/// Why the proxy itself refused or failed a request or connection. Every kind has one row in
/// [`ErrorKind::row`]; there is no catch-all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The request is malformed or its path ambiguous.
    BadRequest,
    /// Header list too large or too many headers.
    HeadersTooLarge,
    /// Request headers did not arrive in time.
    HeaderTimeout,
    /// A request's body did not go on in time.
    BodyTimeout,
    /// No service, and egress is denied.
    EgressDenied,
    /// A name or address of the mesh that no service has.
    UnknownDestination,
    /// The control plane did not answer in time about a destination that is not known yet.
    DiscoveryTimeout,
    /// The service has no such port.
    UnknownPort,
    /// The service has routes and none matches.
    NoRoute,
    /// The matched rule has no usable backend.
    NoBackend,
    /// No endpoint is known, or none is ready.
    NoEndpoints,
    /// Every endpoint is ejected: the circuit is open.
    CircuitOpen,
    /// More requests in flight or waiting than the cluster's limits allow, or more connections than this host gives.
    Overloaded,
    /// A TCP connection could not be made.
    ConnectFailed,
    /// A TCP connection or TLS handshake took too long.
    ConnectTimeout,
    /// The TLS handshake failed.
    TlsFailed,
    /// The peer's identity is not one that discovery names for the endpoint.
    PeerIdentity,
    /// This proxy has no valid certificate.
    NoCertificate,
    /// The connection ended before response headers.
    UpstreamReset,
    /// The upstream answered with something that is no HTTP.
    UpstreamProtocol,
    /// The upstream refused the stream, provably unprocessed.
    UpstreamRefused,
    /// The whole request took too long.
    RequestTimeout,
    /// A try took too long, and no other was left.
    PerTryTimeout,
    /// The deadline that the caller sent had passed.
    DeadlineExceeded,
    /// An authorization rule denies it, or none allows it.
    Denied,
    /// The caller's certificate has expired since its connection was made.
    CertificateExpired,
    /// Plaintext, where only callers with a sidecar may come in.
    PlaintextRefused,
    /// Opaque bytes on a port that is declared HTTP or has request rules.
    OpaqueRefused,
    /// The target port is not one that this workload registered.
    NotServed,
    /// The request came back to where it came from.
    Loop,
    /// This proxy is shutting down.
    Draining,
    /// This proxy has no policy yet.
    NotReady,
    /// The app closed or does not listen.
    AppUnavailable,
    /// An Upgrade or CONNECT that is not allowed here.
    UpgradeRefused,
    /// A request to an explicit proxy port without an absolute URI.
    NotProxyRequest,
    /// Connection limit of a listener.
    TooManyConnections,
    /// The client went away.
    ClientGone,
    /// A bug in this proxy.
    Internal,
}

/// Which side of this proxy erred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// Who is called.
    Upstream,
    /// This proxy, its policy or its limits.
    Local,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Value of `heddle-error`, the metrics' label, the log's and span's `error.type`.
    pub reason: &'static str,
    /// HTTP status of the answer.
    pub status: StatusCode,
    /// gRPC status of the answer to a gRPC call.
    pub grpc_status: u8,
    /// `error` of `Proxy-Status` (RFC 9209, section 2.3).
    pub proxy_status: &'static str,
    /// Status byte of the answer to an opaque connection between proxies (0 would be success).
    pub tcp_status: u8,
    /// Who erred.
    pub side: Side,
}

/// A failure on the request path.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What in particular, for people: which rule, which endpoint, which limit.
    pub detail: Arc<str>,
    /// Whether the request was provably never sent to an app.
    pub never_sent: bool,
}

impl Error {
    /// An error of this kind with its particulars; provably not sent unless said otherwise with
    /// [`Error::after_send`].
    pub fn new(kind: ErrorKind, detail: impl Into<Arc<str>>) -> Self {
        Self { kind, detail: detail.into(), never_sent: true }
    }

    /// The same, but the request may have reached an app.
    #[must_use]
    pub fn after_send(mut self) -> Self {
        self.never_sent = false;
        self
    }
}

impl FromStr for ErrorKind {
    type Err = ();

    /// Reads the `heddle-error` of a peer proxy.
    fn from_str(reason: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.row().reason == reason).ok_or(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.row().reason, self.detail)
    }
}

impl std::error::Error for Error {}
