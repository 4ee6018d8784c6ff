//! The table: each kind of error, and what callers, logs, spans and metrics see of it.

use http::StatusCode;

use super::{ErrorKind, Row, Side};

// gRPC statuses (grpc/status.h).
const CANCELLED: u8 = 1;
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const NOT_FOUND: u8 = 5;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const ABORTED: u8 = 10;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;

// Status bytes of opaque connections between proxies.
const TCP_DENIED: u8 = 1;
const TCP_NOT_SERVED: u8 = 2;
const TCP_DRAINING: u8 = 3;
const TCP_APP_UNAVAILABLE: u8 = 4;
const TCP_OPAQUE_REFUSED: u8 = 5;
const TCP_OTHER: u8 = 6;

impl ErrorKind {
    /// Every kind, in the order of the declaration.
    pub const ALL: &'static [Self] = &[
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::HeaderTimeout,
        Self::BodyTimeout,
        Self::EgressDenied,
        Self::UnknownDestination,
        Self::DiscoveryTimeout,
        Self::UnknownPort,
        Self::NoRoute,
        Self::NoBackend,
        Self::NoEndpoints,
        Self::CircuitOpen,
        Self::Overloaded,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::PeerIdentity,
        Self::NoCertificate,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::UpstreamRefused,
        Self::RequestTimeout,
        Self::PerTryTimeout,
        Self::DeadlineExceeded,
        Self::Denied,
        Self::CertificateExpired,
        Self::PlaintextRefused,
        Self::OpaqueRefused,
        Self::NotServed,
        Self::Loop,
        Self::Draining,
        Self::NotReady,
        Self::AppUnavailable,
        Self::UpgradeRefused,
        Self::NotProxyRequest,
        Self::TooManyConnections,
        Self::ClientGone,
        Self::Internal,
    ];

    /// What others see of this kind.
    ///
    /// gRPC statuses follow the HTTP ones as other meshes' proxies map them (503 to UNAVAILABLE, 504
    /// to DEADLINE_EXCEEDED, 403 to PERMISSION_DENIED, ...), not as grpc.io tells *clients* to guess
    /// where no `grpc-status` came.
    pub fn row(self) -> Row {
        use Side::{Downstream, Local, Upstream};
        let row = |reason, status, grpc_status, proxy_status, tcp_status, side| Row {
            reason,
            status,
            grpc_status,
            proxy_status,
            tcp_status,
            side,
        };
        type S = StatusCode;
        #[rustfmt::skip]
        let row = match self {
            Self::BadRequest =>
                row("bad-request", S::BAD_REQUEST, INVALID_ARGUMENT, "http_request_error", TCP_OTHER, Downstream),
            Self::HeadersTooLarge =>
                row("headers-too-large", S::REQUEST_HEADER_FIELDS_TOO_LARGE, RESOURCE_EXHAUSTED, "http_request_error", TCP_OTHER, Downstream),
            Self::HeaderTimeout =>
                row("header-timeout", S::REQUEST_TIMEOUT, DEADLINE_EXCEEDED, "http_request_error", TCP_OTHER, Downstream),
            Self::BodyTimeout =>
                row("body-timeout", S::REQUEST_TIMEOUT, DEADLINE_EXCEEDED, "http_request_error", TCP_OTHER, Downstream),
            Self::EgressDenied =>
                row("egress-denied", S::FORBIDDEN, PERMISSION_DENIED, "http_request_denied", TCP_DENIED, Local),
            Self::UnknownDestination =>
                row("unknown-destination", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_not_found", TCP_OTHER, Local),
            Self::DiscoveryTimeout =>
                row("discovery-timeout", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_unavailable", TCP_OTHER, Local),
            Self::UnknownPort =>
                row("unknown-port", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_not_found", TCP_OTHER, Local),
            Self::NoRoute =>
                row("no-route", S::NOT_FOUND, NOT_FOUND, "destination_not_found", TCP_OTHER, Local),
            Self::NoBackend =>
                row("no-backend", S::INTERNAL_SERVER_ERROR, INTERNAL, "proxy_configuration_error", TCP_OTHER, Local),
            Self::NoEndpoints =>
                row("no-endpoints", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_unavailable", TCP_OTHER, Upstream),
            Self::CircuitOpen =>
                row("circuit-open", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_unavailable", TCP_OTHER, Upstream),
            Self::Overloaded =>
                row("overloaded", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "connection_limit_reached", TCP_OTHER, Local),
            Self::ConnectFailed =>
                row("connect-failed", S::BAD_GATEWAY, UNAVAILABLE, "connection_refused", TCP_OTHER, Upstream),
            Self::ConnectTimeout =>
                row("connect-timeout", S::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, "connection_timeout", TCP_OTHER, Upstream),
            Self::TlsFailed =>
                row("tls-failed", S::BAD_GATEWAY, UNAVAILABLE, "tls_protocol_error", TCP_OTHER, Upstream),
            Self::PeerIdentity =>
                row("peer-identity", S::BAD_GATEWAY, UNAVAILABLE, "tls_certificate_error", TCP_OTHER, Upstream),
            Self::NoCertificate =>
                row("no-certificate", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "proxy_configuration_error", TCP_OTHER, Local),
            Self::UpstreamReset =>
                row("upstream-reset", S::BAD_GATEWAY, UNAVAILABLE, "connection_terminated", TCP_OTHER, Upstream),
            Self::UpstreamProtocol =>
                row("upstream-protocol", S::BAD_GATEWAY, UNAVAILABLE, "http_protocol_error", TCP_OTHER, Upstream),
            Self::UpstreamRefused =>
                row("upstream-refused", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_unavailable", TCP_OTHER, Upstream),
            Self::RequestTimeout =>
                row("request-timeout", S::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, "http_response_timeout", TCP_OTHER, Upstream),
            Self::PerTryTimeout =>
                row("per-try-timeout", S::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, "http_response_timeout", TCP_OTHER, Upstream),
            Self::DeadlineExceeded =>
                row("deadline-exceeded", S::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, "http_response_timeout", TCP_OTHER, Downstream),
            Self::Denied =>
                row("denied", S::FORBIDDEN, PERMISSION_DENIED, "http_request_denied", TCP_DENIED, Local),
            Self::CertificateExpired =>
                row("certificate-expired", S::FORBIDDEN, PERMISSION_DENIED, "http_request_denied", TCP_OTHER, Downstream),
            Self::PlaintextRefused =>
                row("plaintext-refused", S::FORBIDDEN, PERMISSION_DENIED, "http_request_denied", TCP_DENIED, Local),
            Self::OpaqueRefused =>
                row("opaque-refused", S::FORBIDDEN, PERMISSION_DENIED, "http_request_denied", TCP_OPAQUE_REFUSED, Local),
            Self::NotServed =>
                row("not-served", S::MISDIRECTED_REQUEST, UNAVAILABLE, "destination_not_found", TCP_NOT_SERVED, Local),
            Self::Loop =>
                row("loop", S::LOOP_DETECTED, ABORTED, "proxy_loop_detected", TCP_OTHER, Local),
            Self::Draining =>
                row("draining", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "destination_unavailable", TCP_DRAINING, Local),
            Self::NotReady =>
                row("not-ready", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "proxy_configuration_error", TCP_OTHER, Local),
            Self::AppUnavailable =>
                row("app-unavailable", S::BAD_GATEWAY, UNAVAILABLE, "connection_refused", TCP_APP_UNAVAILABLE, Upstream),
            Self::UpgradeRefused =>
                row("upgrade-refused", S::FORBIDDEN, PERMISSION_DENIED, "http_upgrade_failed", TCP_OTHER, Downstream),
            Self::NotProxyRequest =>
                row("not-proxy-request", S::BAD_REQUEST, INVALID_ARGUMENT, "http_request_error", TCP_OTHER, Downstream),
            Self::TooManyConnections =>
                row("too-many-connections", S::SERVICE_UNAVAILABLE, UNAVAILABLE, "connection_limit_reached", TCP_OTHER, Local),
            Self::ClientGone =>
                row("client-gone", client_closed_request(), CANCELLED, "http_request_error", TCP_OTHER, Downstream),
            Self::Internal =>
                row("internal", S::INTERNAL_SERVER_ERROR, INTERNAL, "proxy_internal_error", TCP_OTHER, Local),
        };
        row
    }

    /// Whether a peer proxy that answers with this has sent nothing to its app, or nothing that the app took up, and
    /// another instance or another connection may do better.
    pub(crate) fn is_of_instance(self) -> bool {
        match self {
            Self::CertificateExpired
            | Self::NotServed
            | Self::Draining
            | Self::NotReady
            | Self::UpstreamRefused
            | Self::AppUnavailable => true,
            Self::BadRequest
            | Self::HeadersTooLarge
            | Self::HeaderTimeout
            | Self::BodyTimeout
            | Self::EgressDenied
            | Self::UnknownDestination
            | Self::DiscoveryTimeout
            | Self::UnknownPort
            | Self::NoRoute
            | Self::NoBackend
            | Self::NoEndpoints
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::PeerIdentity
            | Self::NoCertificate
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::RequestTimeout
            | Self::PerTryTimeout
            | Self::DeadlineExceeded
            | Self::Denied
            | Self::PlaintextRefused
            | Self::OpaqueRefused
            | Self::Loop
            | Self::UpgradeRefused
            | Self::NotProxyRequest
            | Self::TooManyConnections
            | Self::ClientGone
            | Self::Internal => false,
        }
    }
}

/// 499, as nginx logs it: nobody is left to receive it, it is for log and metrics only.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits")
}
