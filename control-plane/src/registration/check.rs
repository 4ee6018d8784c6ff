//! What a workload may register.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use heddle_api::{
    proto::registration::RegisterRequest,
    resource::Name,
    validate::{is_dns_label, label},
};
use heddle_certs::SpiffeId;
use tonic::Status;

use super::{Registrations, not_yours};
use crate::{compile::may_serve, peer::Peer, registry::Registration};

/// Workloads of one identity.
pub(super) const MAX_INSTANCES: usize = 10_000;
const MAX_SERVICES: usize = 64;
const MAX_PORTS: usize = 64;
const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;

impl Registrations {
    /// A request, if all of it is the caller's to say.
    pub(super) fn check(
        &self,
        peer: &Peer,
        identity: &SpiffeId,
        namespace: &str,
        account: &str,
        request: RegisterRequest,
    ) -> Result<Registration, Status> {
        let name = workload_name(namespace, &request.workload)?;
        let view = self.0.registry.view();
        if let Some(known) = view.registration(&name)
            && *known.identity != *identity.as_str()
        {
            return Err(not_yours(&name));
        }
        let declared = self.0.hub.read(|mesh| mesh.workload(&name).cloned());
        // A registration stands in for the declared workload of its name.
        if let Some(declared) = &declared
            && declared.spec.service_account.as_deref() != Some(account)
        {
            return Err(not_yours(&name));
        }
        let declared_ip = declared.and_then(|declared| declared.spec.address.parse().ok());
        let address = address(&request.address, peer.address.ip(), declared_ip)?;
        let text = |field: &str, value: &str| match value.len() {
            0..=MAX_TEXT => Ok(()),
            length => Err(Status::invalid_argument(format!("{field} has {length} bytes; at most {MAX_TEXT}"))),
        };
        text("zone", &request.zone)?;
        text("version", &request.version)?;
        if request.labels.len() > MAX_LABELS {
            return Err(Status::invalid_argument(format!("more than {MAX_LABELS} labels")));
        }
        for (key, value) in &request.labels {
            label(key, value).map_err(|why| {
                let shown: String = key.chars().take(100).collect();
                Status::invalid_argument(format!("label {shown:?}: {}", why.chars().take(300).collect::<String>()))
            })?;
        }
        Ok(Registration {
            services: self.services(identity, &request)?,
            app_ports: app_ports(&request)?,
            name,
            revision: 0,
            identity: identity.to_string(),
            address,
            labels: request.labels.into_iter().collect(),
            zone: request.zone,
            version: request.version,
            ready: request.ready,
        })
    }

    fn services(&self, identity: &SpiffeId, request: &RegisterRequest) -> Result<BTreeMap<String, Vec<u16>>, Status> {
        if request.instances.len() > MAX_SERVICES {
            return Err(Status::invalid_argument(format!("more than {MAX_SERVICES} services")));
        }
        let mut services = BTreeMap::new();
        for instance in &request.instances {
            let shown: String = instance.service.chars().take(2 * MAX_TEXT).collect();
            let Some(service) = Name::parse(&instance.service) else {
                return Err(Status::invalid_argument(format!("{shown:?} is no service; write <namespace>/<name>")));
            };
            let allowed =
                self.0.hub.read(|mesh| mesh.service(&service).is_some_and(|service| may_serve(service, identity)));
            if !allowed {
                let said = format!(
                    "{identity} may not serve {shown}: there is no such service, or it does not list the service account"
                );
                return Err(Status::permission_denied(said));
            }
            let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
            let ports: Option<Vec<u16>> = instance.ports.iter().map(port).collect();
            let ports = ports.filter(|ports| ports.len() <= MAX_PORTS);
            let Some(mut ports) = ports else {
                return Err(Status::invalid_argument(format!("{shown}: ports are 1 to 65535, at most {MAX_PORTS}")));
            };
            ports.sort_unstable();
            ports.dedup();
            if services.insert(instance.service.clone(), ports).is_some() {
                return Err(Status::invalid_argument(format!("{shown} is listed twice")));
            }
        }
        Ok(services)
    }
}

/// Where the app listens, by service and service port.
fn app_ports(request: &RegisterRequest) -> Result<BTreeMap<String, BTreeMap<u16, u16>>, Status> {
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    let mut all = BTreeMap::new();
    for instance in &request.instances {
        let ports = instance.app_ports.iter().map(|(service, app)| Some((port(*service)?, port(*app)?)));
        let ports: Option<BTreeMap<u16, u16>> = ports.collect();
        match ports {
            Some(ports)
                if ports.len() <= MAX_PORTS && ports.keys().all(|p| instance.ports.contains(&u32::from(*p))) =>
            {
                if !ports.is_empty() {
                    all.insert(instance.service.clone(), ports);
                }
            }
            _ => {
                let said = format!("{}: app_ports are from ports that are served to 1 to 65535", instance.service);
                return Err(Status::invalid_argument(said));
            }
        }
    }
    Ok(all)
}

/// A workload's name in the namespace of its identity: a DNS label.
pub(super) fn workload_name(namespace: &str, workload: &str) -> Result<Name, Status> {
    if is_dns_label(workload) {
        return Ok(Name::new(namespace, workload));
    }
    let shown: String = workload.chars().take(100).collect();
    Err(Status::invalid_argument(format!(
        "workload {shown:?}: write a DNS label: 1 to 63 of a-z, 0-9 and -, without - at either end"
    )))
}

/// Where peers reach the workload: the source of the call, or what was declared for it.
fn address(text: &str, source: IpAddr, declared: Option<IpAddr>) -> Result<SocketAddr, Status> {
    let no_address =
        || Status::invalid_argument("address must be \"ip:port\", or \":port\" for the source of the call");
    let address = match text.strip_prefix(':') {
        Some(port) => SocketAddr::new(source, port.parse().map_err(|_| no_address())?),
        None => text.parse::<SocketAddr>().map_err(|_| no_address())?,
    };
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if address.port() == 0 {
        return Err(no_address());
    }
    if address.ip() != source && Some(address.ip()) != declared {
        return Err(Status::permission_denied(format!(
            "address {} is neither the source of the call ({source}) nor that of a declared Workload of this name",
            address.ip()
        )));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_callers_own_or_a_declared_one() {
        let source: IpAddr = "10.0.0.7".parse().unwrap();
        let other: IpAddr = "10.0.0.8".parse().unwrap();
        let read = |text| address(text, source, None);
        assert_eq!(read(":15006").unwrap(), "10.0.0.7:15006".parse().unwrap());
        assert_eq!(read("10.0.0.7:15006").unwrap(), "10.0.0.7:15006".parse().unwrap());
        assert_eq!(read("[::ffff:10.0.0.7]:15006").unwrap(), "10.0.0.7:15006".parse().unwrap());
        assert_eq!(read("10.0.0.8:15006").unwrap_err().code(), tonic::Code::PermissionDenied);
        assert_eq!(address("10.0.0.8:15006", source, Some(other)).unwrap(), "10.0.0.8:15006".parse().unwrap());
        for bad in ["", ":", ":0", "10.0.0.7", "10.0.0.7:0", "host:80", ":65536"] {
            assert_eq!(read(bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_workloads_name_is_plain() {
        for good in ["orders-1", "a", "0"] {
            assert_eq!(workload_name("shop", good).unwrap(), Name::new("shop", good));
        }
        for bad in ["", "a/b", "-a", "a-", "A", "ä", "../x", "orders.7f", &"a".repeat(64)] {
            assert!(workload_name("shop", bad).is_err(), "{bad}");
        }
    }
}
