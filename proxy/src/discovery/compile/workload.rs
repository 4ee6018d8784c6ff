//! What the platform says that this workload serves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use heddle_api::proto::discovery as proto;

use super::{At, Reason, each, port, service_name};
use crate::{
    listener,
    snapshot::{InboundPolicy, ServiceName},
};

/// A workload as its platform describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::discovery) struct Workload {
    /// Where its app is reached.
    pub(in crate::discovery) address: IpAddr,
    /// Service port to the app's own, by service.
    pub(in crate::discovery) services: BTreeMap<ServiceName, BTreeMap<u16, u16>>,
}

/// The proxy's own workload.
pub(in crate::discovery) fn workload(name: &str, _version: &str, sent: proto::Workload) -> Result<Workload, Reason> {
    if sent.workload != name {
        return Err(format!("workload: {:?} is not the resource's name", sent.workload));
    }
    let addresses = each("addresses", sent.addresses, |text| {
        text.parse::<IpAddr>().map_err(|_| format!(": {text:?} is no IP address"))
    })?;
    let address = *addresses.first().ok_or("addresses: is empty")?;
    let services = each("services", sent.services, |served| {
        let service = service_name(&served.service).at(|| "service".to_owned())?;
        let ports = each("ports", served.ports, |sent| {
            let number = port(sent.port).at(|| "port".to_owned())?;
            Ok((number, port(sent.target_port).at(|| "target_port".to_owned())?))
        })?;
        Ok((service, ports.into_iter().collect()))
    })?;
    Ok(Workload { address, services: services.into_iter().collect() })
}

impl Workload {
    /// A policy with the app where it is in this workload: at the workload's own address, so that what the app has bound
    /// to loopback alone stays private. What is not said to be served is not.
    pub(in crate::discovery) fn place(&self, policy: &InboundPolicy, own: &[SocketAddr]) -> InboundPolicy {
        let targets = self.services.get(&policy.service);
        let mut placed = policy.clone();
        for (number, port) in &mut placed.ports {
            let target = targets.and_then(|targets| targets.get(number));
            let app = target.map(|target| SocketAddr::new(self.address, *target));
            // Peers would come to the admin listener, or go out again as this workload.
            port.app = app.filter(|app| !listener::is_own(own, *app, Some(self.address)));
        }
        placed
    }
}
