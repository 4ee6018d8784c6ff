//! Workloads that their own proxies register.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use heddle_api::resource::{API_VERSION, Metadata, Name, Object, ObjectKind, WorkloadService, WorkloadSpec};
use serde::{Deserialize, Serialize};

use super::{Registry, codec};
use crate::store::{Outcome, Revision, StoreError, Transaction};

/// The label that tells a registered workload from a declared one.
pub(super) const REGISTERED_LABEL: &str = "heddle.dev/registered";

/// What a workload's proxy registered. Whether it is alive and ready is not kept in the store: a
/// control plane that was away removes nobody.
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
    /// Writes a registration; returns when it is in the view. Writes nothing if nothing changed.
    pub async fn register(&self, registration: &Registration) -> Result<(), StoreError> {
        if let Some(known) = self.view().registration(&registration.name)
            && (Registration { revision: known.revision, ..registration.clone() }) == **known
        {
            return Ok(());
        }
        let value = serde_json::to_vec(registration).expect("a registration is JSON: its maps have text keys");
        self.commit_registration(Transaction::new().put(codec::registration_key(&registration.name), value)).await
    }

    /// Removes a registration; returns when it is gone from the view.
    pub async fn deregister(&self, name: &Name) -> Result<(), StoreError> {
        self.commit_registration(Transaction::new().delete(codec::registration_key(name))).await
    }

    /// Removes a registration if it is still this one.
    pub async fn deregister_unchanged(&self, registration: &Arc<Registration>) -> Result<(), StoreError> {
        let key = codec::registration_key(&registration.name);
        self.commit_registration(Transaction::new().when(Arc::clone(&key), registration.revision).delete(key)).await
    }

    async fn commit_registration(&self, transaction: Transaction) -> Result<(), StoreError> {
        match self.store.commit(transaction).await? {
            Outcome::Committed(revision) => self.reached(revision).await,
            Outcome::Conflict { .. } => Ok(()),
        }
    }
}
