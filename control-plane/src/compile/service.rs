//! Service: ports, routes, and how callers treat it.

use heddle_api::{
    proto::discovery as proto,
    resource::{PortProtocol, ServicePortSpec},
};

use super::{routes, traffic};
use crate::mesh::Mesh;
use heddle_api::resource::Name;

pub(super) fn compile(mesh: &Mesh, name: &Name) -> Option<proto::Service> {
    let service = mesh.service(name)?;
    let ports = service.spec.ports.iter().map(|port| compile_port(mesh, name, port)).collect();
    Some(proto::Service {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        hosts: mesh.hosts(name),
        ports,
        traffic_policy: Some(traffic::effective(mesh, name)),
        addresses: service.spec.addresses.clone(),
    })
}

fn compile_port(mesh: &Mesh, name: &Name, port: &ServicePortSpec) -> proto::ServicePort {
    let opaque = port.protocol == Some(PortProtocol::Tcp);
    let may_be_opaque = matches!(port.protocol, None | Some(PortProtocol::Tcp));
    let http_rules = if opaque { Vec::new() } else { routes::http_rules(mesh, name, port.port) };
    let tcp = if may_be_opaque { routes::tcp_backends(mesh, name, port.port) } else { None };
    let (tcp_route, tcp_backends) = tcp.unwrap_or_default();
    proto::ServicePort {
        port: port.port.into(),
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol).into(),
        http_rules,
        tcp_backends,
        tcp_route,
    }
}

/// What a port speaks, as proxies are told.
pub(super) fn protocol(declared: Option<PortProtocol>) -> proto::Protocol {
    match declared {
        None => proto::Protocol::Unspecified,
        Some(PortProtocol::Http) => proto::Protocol::Http,
        Some(PortProtocol::Http1) => proto::Protocol::Http1,
        Some(PortProtocol::Http2) => proto::Protocol::Http2,
        Some(PortProtocol::Grpc) => proto::Protocol::Grpc,
        Some(PortProtocol::Tcp) => proto::Protocol::Tcp,
    }
}
