//! Workload: what a pod serves, for its own proxy.

use heddle_api::{proto::discovery as proto, resource::Name};

use crate::mesh::Mesh;

pub(super) fn compile(mesh: &Mesh, name: &Name) -> Option<proto::Workload> {
    let pod = mesh.pod(name)?;
    let service = |(service, ports): (&Name, &Vec<(u16, u16)>)| proto::ServedService {
        service: service.to_string(),
        ports: ports
            .iter()
            .map(|(port, target)| proto::EndpointPort { port: (*port).into(), target_port: (*target).into() })
            .collect(),
    };
    Some(proto::Workload {
        workload: name.to_string(),
        addresses: pod.ips.iter().map(ToString::to_string).collect(),
        services: pod.services.iter().map(service).collect(),
    })
}
