//! Carries the registry's changes to the discovery service, and its findings back to the API.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

use heddle_api::resource::{AnyObject, Name, ObjectStatus};
use heddle_certs::TrustDomain;
use heddle_runtime::drain;
use jiff::Timestamp;

use crate::{
    api::{ProxyResources, ProxyStatus, RejectedResource, StatusSource},
    discovery::{Hub, ProxyReport},
    mesh::{Affected, Mesh, derived::INBOUND_PORT},
    registration::Registrations,
    registry::{ChangeSet, Changes, Registry, Update, View},
};

/// Tells the hub of every change, until drained. Returns when the registry is gone.
pub async fn follow(
    mut changes: Changes,
    hub: Hub,
    registrations: Registrations,
    trust_domain: TrustDomain,
    drain: drain::Watch,
) {
    loop {
        let update = tokio::select! {
            update = changes.next() => update,
            () = drain.drained() => return,
        };
        match update {
            Some(Update::Changed(changes)) => {
                hub.change(changes.revision, |mesh| advance(mesh, &changes, &registrations));
            }
            Some(Update::Resync(view)) => {
                tracing::warn!(
                    revision = view.revision(),
                    "changes came faster than they could be followed; starting over"
                );
                hub.replace(view.revision(), mesh_of(&view, &trust_domain, &registrations));
            }
            None => return,
        }
    }
}

/// The mesh as it is in a view. Everyone registered gets a full lease.
pub fn mesh_of(view: &View, trust_domain: &TrustDomain, registrations: &Registrations) -> Mesh {
    let mut mesh = Mesh::new(trust_domain.clone());
    for object in view.objects() {
        mesh.put(object.clone());
    }
    for registration in view.registrations(None, None) {
        if let Some(workload) = registrations.admit(registration) {
            mesh.register(workload);
        }
    }
    mesh
}

fn advance(mesh: &mut Mesh, changes: &ChangeSet, registrations: &Registrations) -> Affected {
    let mut affected = Affected::default();
    for change in &changes.objects {
        affected.merge(match &change.after {
            Some(object) => mesh.put(object.clone()),
            None => mesh.remove(change.kind, &change.name),
        });
    }
    for (name, registration) in &changes.registrations {
        let workload = registration.as_ref().and_then(|registration| registrations.admit(registration));
        affected.merge(match workload {
            Some(workload) => mesh.register(workload),
            None => {
                registrations.forget(name);
                mesh.deregister(name)
            }
        });
    }
    affected
}

/// What the API asks about proxies.
#[derive(Debug)]
pub struct Findings {
    /// Connected proxies.
    pub hub: Hub,
    /// Registered workloads.
    pub registry: Arc<Registry>,
    /// Whether they take traffic.
    pub registrations: Registrations,
}

impl StatusSource for Findings {
    fn status(&self, object: &AnyObject) -> ObjectStatus {
        let generation = object.metadata().generation.unwrap_or_default();
        let written = object.metadata().resource_version.as_deref();
        let revision = written.and_then(|revision| revision.parse().ok()).unwrap_or_default();
        self.hub.object_status(object.kind(), &object.name(), generation, revision)
    }

    fn proxies(&self) -> Vec<ProxyStatus> {
        let view = self.registry.view();
        // By both: a name that one identity registered says nothing about a stream of another.
        let mut proxies: BTreeMap<(String, String), ProxyStatus> = (view.registrations(None, None))
            .map(|registration| {
                let status = ProxyStatus {
                    name: registration.name.to_string(),
                    identity: registration.identity.clone(),
                    services: registration.services.keys().cloned().collect(),
                    address: Some(registration.address.to_string()),
                    connected: false,
                    ready: Some(self.registrations.is_ready(&registration.name)),
                    contested: self.registrations.is_contested(&registration.name),
                    since: None,
                    version: registration.version.clone(),
                    resources: ProxyResources::default(),
                    certificate_expiry: None,
                };
                ((status.name.clone(), status.identity.clone()), status)
            })
            .collect();
        for report in self.hub.proxies() {
            let key = (report.proxy.node.clone(), report.proxy.identity.to_string());
            let registered = proxies.remove(&key);
            let mut status = connected(report, registered);
            self.add_pod(&mut status);
            proxies.insert(key, status);
        }
        proxies.into_values().collect()
    }
}

impl Findings {
    /// Of the proxy of a pod, Kubernetes says where it is and whether its app takes traffic.
    fn add_pod(&self, status: &mut ProxyStatus) {
        let Some(name) = Name::parse(&status.name) else { return };
        self.hub.read(|mesh| {
            let Some(pod) = mesh.pod(&name) else { return };
            status.address = pod.ips.first().map(|ip| SocketAddr::new(*ip, INBOUND_PORT).to_string());
            status.ready = (!pod.services.is_empty()).then(|| mesh.is_pod_ready(pod));
        });
    }
}

fn connected(report: ProxyReport, registered: Option<ProxyStatus>) -> ProxyStatus {
    let contested = registered.as_ref().is_some_and(|registered| registered.contested);
    let (address, ready) = registered.map_or((None, None), |registered| (registered.address, registered.ready));
    let rejected = |(resource, reason)| RejectedResource { resource, reason };
    ProxyStatus {
        name: report.proxy.node,
        identity: report.proxy.identity.to_string(),
        services: report.services,
        address,
        connected: true,
        ready,
        contested,
        since: Some(rfc3339(report.proxy.since)),
        version: report.proxy.version,
        resources: ProxyResources {
            applied: u32::try_from(report.applied).unwrap_or(u32::MAX),
            pending: u32::try_from(report.pending).unwrap_or(u32::MAX),
            rejected: report.rejected.into_iter().map(rejected).collect(),
        },
        certificate_expiry: Some(rfc3339(report.proxy.certificate_expiry)),
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| format!("{time:.0}")).unwrap_or_default()
}
