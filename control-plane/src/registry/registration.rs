//! Workloads that their own proxies register.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use heddle_api::resource::{API_VERSION, Metadata, Name, Object, ObjectKind, WorkloadService, WorkloadSpec};
use serde::{Deserialize, Serialize};

use super::{Registry, codec};
use crate::store::{Outcome, Revision, StoreError, Transaction};

/// The label that tells a registered workload from a declared one.
pub(super) const REGISTERED_LABEL: &str = "heddle.dev/registered";

/// What a workload's proxy registered. Whether it is alive is not kept in the store: a control plane that was
/// away removes nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Instance name, in the namespace of its identity.
    #[serde(skip, default = "nameless")]
    pub name: Name,
    /// When it last changed.
    #[serde(skip)]
    pub revision: Revision,
    /// Its SPIFFE ID, verified when it registered.
    pub identity: String,
    /// Its inbound listener.
    pub address: SocketAddr,
    /// What it serves: services as `<namespace>/<name>`; no ports: all of them.
    pub services: BTreeMap<String, Vec<u16>>,
    /// By service: service port to the app's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub app_ports: BTreeMap<String, BTreeMap<u16, u16>>,
    /// As told by the proxy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Availability zone; empty: unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Version of the proxy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Whether it took traffic when it last said so: a control plane that starts must not send traffic to apps
    /// that do not take it.
    #[serde(default = "is_ready_unless_told", skip_serializing_if = "Clone::clone")]
    pub ready: bool,
}

fn is_ready_unless_told() -> bool {
    true
}

fn nameless() -> Name {
    Name::new("", "")
}

impl Registration {
    /// The same as a Workload, for those who list workloads.
    pub fn to_workload(&self) -> Object<WorkloadSpec> {
        let mut labels = self.labels.clone();
        labels.insert(REGISTERED_LABEL.to_owned(), "true".to_owned());
        let service = |(name, ports): (&String, &Vec<u16>)| WorkloadService {
            name: name.rsplit_once('/').map_or(name.as_str(), |(_, name)| name).to_owned(),
            ports: ports.clone(),
        };
        Object {
            api_version: API_VERSION.to_owned(),
            kind: ObjectKind::Workload.as_str().to_owned(),
            metadata: Metadata {
                name: self.name.name.to_string(),
                namespace: Some(self.name.namespace.to_string()),
                labels,
                resource_version: Some(self.revision.to_string()),
                ..Metadata::default()
            },
            spec: WorkloadSpec {
                address: self.address.ip().to_string(),
                inbound_port: Some(self.address.port()),
                service_account: self.identity.rsplit_once("/sa/").map(|(_, account)| account.to_owned()),
                services: self.services.iter().map(service).collect(),
                zone: (!self.zone.is_empty()).then(|| self.zone.clone()),
                weight: None,
            },
            status: None,
        }
    }
}

impl Registry {
    /// Writes a registration in the place of the one that was `known` under its name; returns when it is
    /// in the view. Says whether it was: not if another took the name meanwhile. Writes nothing if nothing
    /// changed.
    pub async fn register(
        &self,
        registration: &Registration,
        known: Option<&Registration>,
    ) -> Result<bool, StoreError> {
        if known.is_some_and(|known| Registration { revision: known.revision, ..registration.clone() } == *known) {
            return Ok(true);
        }
        let value = serde_json::to_vec(registration).expect("a registration is JSON: its maps have text keys");
        let key = codec::registration_key(&registration.name);
        let revision = known.map_or(0, |known| known.revision);
        self.commit_registration(Transaction::new().when(Arc::clone(&key), revision).put(key, value)).await
    }

    /// Removes registrations, in one transaction, if they all are still these; returns when they are gone
    /// from the view. Says whether they were.
    pub async fn deregister(&self, registrations: &[Arc<Registration>]) -> Result<bool, StoreError> {
        if registrations.is_empty() {
            return Ok(true);
        }
        let transaction = registrations.iter().fold(Transaction::new(), |transaction, registration| {
            let key = codec::registration_key(&registration.name);
            transaction.when(Arc::clone(&key), registration.revision).delete(key)
        });
        self.commit_registration(transaction).await
    }

    async fn commit_registration(&self, transaction: Transaction) -> Result<bool, StoreError> {
        match self.store.commit(transaction).await? {
            Outcome::Committed(revision) => {
                self.reached(revision).await?;
                Ok(true)
            }
            Outcome::Conflict { mod_revision, .. } => {
                self.reached(mod_revision).await?;
                Ok(false)
            }
        }
    }
}
