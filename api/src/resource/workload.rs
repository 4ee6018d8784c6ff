//! Workload: an instance that serves, declared by hand where no proxy registers it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An instance of services: declared through the API, or registered by its own proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// `ip` of the workload.
    pub address: String,
    /// Port of its proxy's inbound listener; without one the workload has no proxy, and is called in
    /// plaintext at its target ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub inbound_port: Option<u16>,
    /// Its service account in this namespace; required with `inboundPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// What it serves.
    #[schemars(length(min = 1, max = 64))]
    pub services: Vec<WorkloadService>,
    /// Availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Relative share of traffic, 1 to 1000; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
}

/// A service that a workload serves, in the workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadService {
    /// Name of the service.
    #[schemars(regex(pattern = crate::schema::DNS_LABEL))]
    pub name: String,
    /// Which of its ports; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<u16>,
}
