//! Endpoints: the workloads that serve a service, registered, declared and in Kubernetes.

use std::net::{IpAddr, SocketAddr};

use heddle_api::{
    proto::discovery as proto,
    resource::{Object, ServiceSpec, WorkloadSpec},
};
use heddle_certs::SpiffeId;

use crate::mesh::{Mesh, Registered, derived::Instance};
use heddle_api::resource::Name;

pub(super) fn compile(mesh: &Mesh, name: &Name) -> Option<proto::Endpoints> {
    let service = mesh.service(name)?;
    // Of a pod, Kubernetes says what it serves.
    let registered = mesh.registered_workloads(name).filter(|workload| mesh.pod(&workload.name).is_none());
    let registered = registered.filter_map(|workload| from_registered(service, name, workload));
    let declared = mesh.declared_workloads(name).filter_map(|workload| from_declared(mesh, service, name, workload));
    let derived = mesh.instances(name).iter().filter_map(|instance| from_instance(mesh, instance));
    let mut endpoints: Vec<(SocketAddr, proto::Endpoint)> = registered.chain(declared).chain(derived).collect();
    endpoints.sort_by(|a, b| (a.0, &a.1.workload).cmp(&(b.0, &b.1.workload)));
    Some(proto::Endpoints {
        service: name.to_string(),
        endpoints: endpoints.into_iter().map(|(_, endpoint)| endpoint).collect(),
    })
}

/// At which ports of its address the app of a registered workload serves a service.
pub(crate) fn registered_app_ports(service: &Object<ServiceSpec>, name: &Name, workload: &Registered) -> Vec<u16> {
    targets(from_registered(service, name, workload))
}

/// At which ports of its address a declared workload's app serves a service.
pub(crate) fn declared_app_ports(
    mesh: &Mesh,
    service: &Object<ServiceSpec>,
    name: &Name,
    workload: &Object<WorkloadSpec>,
) -> Vec<u16> {
    targets(from_declared(mesh, service, name, workload))
}

fn targets(endpoint: Option<(SocketAddr, proto::Endpoint)>) -> Vec<u16> {
    let ports = endpoint.into_iter().flat_map(|(_, endpoint)| endpoint.ports);
    ports.filter_map(|port| u16::try_from(port.target_port).ok()).collect()
}

/// Whether an identity may serve a service: one of its service accounts, in its namespace.
pub(crate) fn may_serve(service: &Object<ServiceSpec>, identity: &SpiffeId) -> bool {
    let Some((namespace, account)) = identity.as_workload() else {
        return false;
    };
    service.metadata.namespace.as_deref() == Some(namespace) && has_account(service, account)
}

fn has_account(service: &Object<ServiceSpec>, account: &str) -> bool {
    match service.spec.service_accounts.as_slice() {
        [] => service.metadata.name == account,
        accounts => accounts.iter().any(|listed| listed == account),
    }
}

fn from_registered(
    service: &Object<ServiceSpec>,
    name: &Name,
    workload: &Registered,
) -> Option<(SocketAddr, proto::Endpoint)> {
    // What was allowed when it registered may have been taken back since.
    if !may_serve(service, &workload.identity) {
        return None;
    }
    let served: Vec<u16> =
        workload.services.iter().filter(|(served, _)| served == name).flat_map(|(_, ports)| ports).copied().collect();
    let own = workload.app_ports.get(name);
    let ports = ports(service, &served, |port| own.and_then(|own| own.get(&port)).copied());
    if ports.is_empty() {
        return None;
    }
    let endpoint = proto::Endpoint {
        address: workload.address.to_string(),
        identities: vec![workload.identity.to_string()],
        meshed: true,
        ports,
        zone: workload.zone.clone(),
        weight: 1,
        ready: workload.ready,
        workload: workload.name.to_string(),
        hostname: String::new(),
    };
    Some((workload.address, endpoint))
}

fn from_declared(
    mesh: &Mesh,
    service: &Object<ServiceSpec>,
    name: &Name,
    workload: &Object<WorkloadSpec>,
) -> Option<(SocketAddr, proto::Endpoint)> {
    let ip: IpAddr = workload.spec.address.parse().ok()?;
    let meshed = workload.spec.inbound_port.is_some();
    let identities = match (meshed, &workload.spec.service_account) {
        (true, Some(account)) if has_account(service, account) => {
            vec![SpiffeId::workload(mesh.trust_domain(), &name.namespace, account).ok()?.to_string()]
        }
        // Its proxy could prove nothing that this service accepts.
        (true, _) => return None,
        (false, _) => Vec::new(),
    };
    let served: Vec<u16> = (workload.spec.services.iter())
        .filter(|served| *served.name == *name.name)
        .flat_map(|served| &served.ports)
        .copied()
        .collect();
    let ports = ports(service, &served, |_| None);
    let port = match workload.spec.inbound_port {
        Some(port) => port,
        None => u16::try_from(ports.first()?.target_port).ok()?,
    };
    let address = SocketAddr::new(ip, port);
    let endpoint = proto::Endpoint {
        address: address.to_string(),
        identities,
        meshed,
        ports,
        zone: workload.spec.zone.clone().unwrap_or_default(),
        weight: workload.spec.weight.unwrap_or(1),
        ready: true,
        workload: Name::of(&workload.metadata).to_string(),
        hostname: String::new(),
    };
    (!endpoint.ports.is_empty()).then_some((address, endpoint))
}

fn from_instance(mesh: &Mesh, instance: &Instance) -> Option<(SocketAddr, proto::Endpoint)> {
    let address = instance.address()?;
    let identities = match &instance.account {
        Some(account) => {
            let id = SpiffeId::workload(mesh.trust_domain(), &instance.workload.namespace, account).ok()?;
            vec![id.to_string()]
        }
        None => Vec::new(),
    };
    let port =
        |(port, target): &(u16, u16)| proto::EndpointPort { port: (*port).into(), target_port: (*target).into() };
    let endpoint = proto::Endpoint {
        address: address.to_string(),
        meshed: instance.account.is_some(),
        identities,
        ports: instance.ports.iter().map(port).collect(),
        zone: instance.zone.to_string(),
        weight: 1,
        ready: instance.ready && !instance.secondary && !mesh.is_leaving(&instance.workload),
        workload: instance.workload.to_string(),
        hostname: instance.hostname.as_deref().unwrap_or_default().to_owned(),
    };
    (!endpoint.ports.is_empty()).then_some((address, endpoint))
}

/// The service's ports that a workload serves (all, if it names none), with the app's own.
fn ports(service: &Object<ServiceSpec>, served: &[u16], own: impl Fn(u16) -> Option<u16>) -> Vec<proto::EndpointPort> {
    (service.spec.ports.iter())
        .filter(|port| served.is_empty() || served.contains(&port.port))
        .map(|port| proto::EndpointPort {
            port: port.port.into(),
            target_port: own(port.port).or(port.target_port).unwrap_or(port.port).into(),
        })
        .collect()
}
