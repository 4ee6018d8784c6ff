//! Service and Workload.

use std::net::IpAddr;

use super::{
    common,
    faults::{Faults, Path},
    http::check_path,
};
use crate::resource::{PortProtocol, ServiceSpec, WorkloadSpec};

pub(super) fn check_service(spec: &ServiceSpec, path: &Path<'_>, faults: &mut Faults) {
    let ports = path.field("ports");
    for (index, port) in spec.ports.iter().enumerate() {
        let entry = ports.index(index);
        let before = &spec.ports[..index];
        if let Some(first) = before.iter().position(|other| other.port == port.port) {
            faults.add(&entry.field("port"), format!("{} is the port of entry {first} already", port.port));
        }
        if let Some(name) = &port.name {
            faults.check(&entry.field("name"), common::dns_label(name));
            if let Some(first) = before.iter().position(|other| other.name.as_ref() == Some(name)) {
                faults.add(&entry.field("name"), format!("{name:?} is the name of entry {first} already"));
            }
        }
    }
    let accounts = path.field("serviceAccounts");
    for (index, account) in spec.service_accounts.iter().enumerate() {
        faults.check(&accounts.index(index), common::service_account(account));
    }
    faults.unique(&accounts, &spec.service_accounts, |account| format!("{account:?}"));
    let hosts = path.field("hosts");
    for (index, host) in spec.hosts.iter().enumerate() {
        let mut outcome = common::hostname(host);
        if outcome.is_ok() && !host.contains('.') {
            outcome =
                Err(format!("{host:?} has no dot, so it reads as the name of a service in the caller's namespace"));
        }
        faults.check(&hosts.index(index), outcome);
    }
    faults.unique(&hosts, &spec.hosts, |host| format!("{host:?}"));
    let addresses = path.field("addresses");
    for (index, address) in spec.addresses.iter().enumerate() {
        faults.check(&addresses.index(index), virtual_address(address));
    }
    faults.unique(&addresses, &spec.addresses, |address| format!("{address:?}"));
    let exports = path.field("exportTo");
    for (index, namespace) in spec.export_to.iter().enumerate() {
        let outcome = match namespace.as_str() {
            "*" | "." => Ok(()),
            other => common::dns_label(other).map_err(|_| format!("{other:?} is no namespace, \"*\" or \".\"")),
        };
        faults.check(&exports.index(index), outcome);
    }
    faults.unique(&exports, &spec.export_to, |namespace| format!("{namespace:?}"));
    if spec.export_to.len() > 1 && spec.export_to.iter().any(|namespace| namespace == "*") {
        faults.add(&exports, "\"*\" is all namespaces; leave the others out");
    }
    check_probes(spec, path, faults);
}

fn virtual_address(text: &str) -> Result<(), String> {
    match text.parse::<IpAddr>() {
        Err(_) => Err(format!("{text:?} is no IP address (without port)")),
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || ip == IpAddr::from([255; 4]) => {
            Err(format!("{ip} is no address that other hosts could dial"))
        }
        Ok(ip) if ip.to_canonical() != ip => Err(format!("{ip} is an IPv4 address: write {}", ip.to_canonical())),
        Ok(_) => Ok(()),
    }
}

fn check_probes(spec: &ServiceSpec, path: &Path<'_>, faults: &mut Faults) {
    let probes = path.field("probeExemptions");
    for (index, probe) in spec.probe_exemptions.iter().enumerate() {
        let entry = probes.index(index);
        match spec.ports.iter().find(|port| port.port == probe.port) {
            None => faults.add(&entry.field("port"), format!("{} is no port of this service", probe.port)),
            Some(port) if port.protocol == Some(PortProtocol::Tcp) => {
                faults.add(&entry.field("port"), format!("port {} speaks tcp, and has no paths", probe.port));
            }
            Some(_) => {}
        }
        faults.check(&entry.field("path"), check_path(&probe.path));
    }
    faults.unique(&probes, &spec.probe_exemptions, |probe| format!("{} on port {}", probe.path, probe.port));
}

pub(super) fn check_workload(spec: &WorkloadSpec, path: &Path<'_>, faults: &mut Faults) {
    let address = path.field("address");
    match spec.address.parse::<IpAddr>() {
        Err(_) => faults.add(&address, format!("{:?} is no IP address (without port)", spec.address)),
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255; 4]) => {
            faults.add(&address, format!("{ip} is no address of one workload"));
        }
        Ok(_) => {}
    }
    if let Some(account) = &spec.service_account {
        faults.check(&path.field("serviceAccount"), common::service_account(account));
    } else if spec.inbound_port.is_some() {
        faults.add(
            &path.field("serviceAccount"),
            "is missing; with inboundPort the workload has a proxy, which needs an identity",
        );
    }
    if let Some(zone) = &spec.zone
        && (zone.is_empty() || zone.len() > 63 || !zone.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        faults.add(&path.field("zone"), format!("{zone:?} is no zone: 1 to 63 visible ASCII characters"));
    }
    let services = path.field("services");
    for (index, service) in spec.services.iter().enumerate() {
        let entry = services.index(index);
        faults.check(&entry.field("name"), common::dns_label(&service.name));
        if let Some(first) = spec.services[..index].iter().position(|other| other.name == service.name) {
            faults.add(
                &entry.field("name"),
                format!("{:?} is entry {first} already; put their ports together", service.name),
            );
        }
        let ports = entry.field("ports");
        for (index, port) in service.ports.iter().enumerate() {
            faults.check(&ports.index(index), common::port(*port));
        }
        faults.unique(&ports, &service.ports, |port| format!("port {port}"));
    }
}
