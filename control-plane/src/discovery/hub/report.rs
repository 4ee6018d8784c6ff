//! What the connected proxies made of what they were told.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::resource::{Condition, MESH_CONFIG_NAME, Name, ObjectKind, ObjectStatus, Rejection};

use super::{
    super::{
        catalog::{Key, StreamId},
        session::Standing,
    },
    Inner, Proxy,
};
use crate::{
    compile::{ResourceKind, conditions},
    mesh::Scope,
};

/// Rejections listed in an object's status.
const MAX_REJECTIONS: usize = 20;

/// What is known of a connected proxy.
#[derive(Clone, Debug)]
pub struct ProxyReport {
    /// The proxy.
    pub proxy: Proxy,
    /// Services whose inbound policy it holds, which it serves therefore.
    pub services: Vec<String>,
    /// Resources that it applied in their present version.
    pub applied: usize,
    /// Resources that it has not answered yet.
    pub pending: usize,
    /// Resources whose present version it rejected: kind and name, and why.
    pub rejected: Vec<(String, String)>,
}

impl Inner {
    pub(super) fn object_status(
        &mut self,
        kind: ObjectKind,
        name: &Name,
        generation: u64,
        revision: u64,
    ) -> ObjectStatus {
        // Applied is then what was there before.
        let is_told = self.catalog.revision >= revision;
        let mut keys = Vec::new();
        match kind {
            ObjectKind::Service => {
                let itself = BTreeSet::from([Scope::Service(name.clone())]);
                for kind in [ResourceKind::Service, ResourceKind::InboundPolicy] {
                    keys.extend(self.catalog.watched(kind, &itself));
                }
            }
            ObjectKind::MeshConfig => {
                keys.push((ResourceKind::MeshConfig, MESH_CONFIG_NAME.into()));
            }
            _ => {
                let uses = self.catalog.mesh.uses(kind, name);
                keys.extend(self.catalog.watched(ResourceKind::Service, &uses.services));
                keys.extend(self.catalog.watched(ResourceKind::Endpoints, &uses.endpoints));
                keys.extend(self.catalog.watched(ResourceKind::InboundPolicy, &uses.inbound));
            }
        }
        let is_part = !matches!(kind, ObjectKind::Service | ObjectKind::MeshConfig);
        let mut conditions = conditions::of(&self.catalog.mesh, kind, name);
        let mut worst: BTreeMap<StreamId, Standing> = BTreeMap::new();
        for key in keys {
            let watchers: Vec<_> = self.catalog.watchers(key.0, &key.1).collect();
            for id in watchers {
                if let Some(standing) = self.standing(id, &key) {
                    if matches!(standing, Standing::Rejected(_)) && is_part && conditions.len() < MAX_REJECTIONS {
                        conditions.extend(rejected_as_part(&key, &conditions));
                    }
                    let entry = worst.entry(id).or_insert(Standing::Applied);
                    if rank(&standing) > rank(entry) {
                        *entry = standing;
                    }
                }
            }
        }
        let observed_generation = if is_told { generation } else { generation.saturating_sub(1) };
        let mut status = ObjectStatus { observed_generation, conditions, ..ObjectStatus::default() };
        for (id, standing) in worst {
            match standing {
                _ if !is_told => status.pending += 1,
                Standing::Applied => status.applied += 1,
                Standing::Pending => status.pending += 1,
                Standing::Rejected(reason) => {
                    status.rejected_count += 1;
                    if status.rejected.len() < MAX_REJECTIONS
                        && let Some(stream) = self.streams.get(&id)
                    {
                        status.rejected.push(Rejection { proxy: stream.proxy.node.clone(), reason });
                    }
                }
            }
        }
        status
    }

    pub(super) fn proxies(&mut self) -> Vec<ProxyReport> {
        let Self { catalog, streams, .. } = self;
        let mut reports: Vec<_> = streams
            .values()
            .filter(|stream| !stream.replaced.is_cancelled())
            .map(|stream| {
                let session = &stream.session;
                let mut report = ProxyReport {
                    proxy: stream.proxy.clone(),
                    services: Vec::new(),
                    applied: 0,
                    pending: 0,
                    rejected: Vec::new(),
                };
                for kind in ResourceKind::ALL {
                    for name in session.held(kind) {
                        let current = catalog.resource(kind, name, session.viewer());
                        if kind == ResourceKind::InboundPolicy && current.is_some() {
                            report.services.push(name.to_string());
                        }
                        match session.standing(kind, name, current.as_ref().map(|compiled| &*compiled.version)) {
                            Some(Standing::Applied) if current.is_some() => report.applied += 1,
                            Some(Standing::Pending) => report.pending += 1,
                            Some(Standing::Rejected(why)) => {
                                report.rejected.push((format!("{} {name}", kind.label()), why));
                            }
                            _ => {}
                        }
                    }
                }
                report
            })
            .collect();
        reports.sort_by(|a, b| a.proxy.node.cmp(&b.proxy.node));
        reports
    }
}

/// Proxies take a service with all of its routes and policies, or nothing of it.
fn rejected_as_part(key: &Key, known: &[Condition]) -> Option<Condition> {
    let message = format!(
        "rejected as part of {} {}: the fault may be in this object, or in another one of it",
        key.0.label(),
        key.1
    );
    let condition = Condition { r#type: "RejectedAsPart".to_owned(), message };
    (!known.contains(&condition)).then_some(condition)
}

fn rank(standing: &Standing) -> u8 {
    match standing {
        Standing::Applied => 0,
        Standing::Pending => 1,
        Standing::Rejected(_) => 2,
    }
}
