//! Whether a port speaks what a route carries.

use heddle_api::resource::{PortProtocol, ServicePortSpec, ServiceSpec};

/// What a route carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http,
    Grpc,
    Tcp,
}

impl Speaks {
    /// The kind of route, for people.
    pub(super) fn route(self) -> &'static str {
        match self {
            Self::Http => "an HTTPRoute",
            Self::Grpc => "a GRPCRoute",
            Self::Tcp => "a TCPRoute",
        }
    }

    /// Whether this port can carry it. Undeclared ports can: what is spoken is seen from the first bytes.
    pub(super) fn check(self, port: &ServicePortSpec) -> Result<(), String> {
        let fits = match (self, port.protocol) {
            (_, None) => true,
            (Self::Tcp, Some(protocol)) => protocol == PortProtocol::Tcp,
            (Self::Http, Some(protocol)) => protocol != PortProtocol::Tcp,
            (Self::Grpc, Some(protocol)) => !matches!(protocol, PortProtocol::Tcp | PortProtocol::Http1),
        };
        if fits {
            return Ok(());
        }
        Err(format!("port {} speaks {}, which {} cannot carry", port.port, protocol(port.protocol), self.route()))
    }
}

fn protocol(protocol: Option<PortProtocol>) -> &'static str {
    match protocol {
        None => "anything",
        Some(PortProtocol::Http) => "http",
        Some(PortProtocol::Http1) => "http1",
        Some(PortProtocol::Http2) => "http2",
        Some(PortProtocol::Grpc) => "grpc",
        Some(PortProtocol::Tcp) => "tcp",
    }
}

/// `it has 80 (http), 9000 (tcp)`.
pub(super) fn list(service: &ServiceSpec) -> String {
    let port = |port: &ServicePortSpec| match port.protocol {
        None => port.port.to_string(),
        declared => format!("{} ({})", port.port, protocol(declared)),
    };
    format!("it has {}", service.ports.iter().map(port).collect::<Vec<_>>().join(", "))
}
