//! What every object has besides its spec.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name, namespace, labels, and what the server keeps about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// DNS label (RFC 1123): lower-case letters, digits and `-`, 1 to 63 characters.
    pub name: String,
    /// DNS label; required for namespaced kinds, absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// For label selectors. Keys and values as in Kubernetes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text for people and tools; not used by Heddle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Set by the server: counts changes of the spec, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Set by the server: the store's revision of the last change of this object, as decimal text.
    /// Sent back in `If-Match`, a change is made only if nobody else made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Set by the server: when the object was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
}

/// What became of an object in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectStatus {
    /// The generation that the counts below are about.
    pub observed_generation: u64,
    /// How many connected proxies acknowledged this generation.
    pub applied: u32,
    /// How many connected proxies hold an earlier one and have not answered yet.
    pub pending: u32,
    /// How many connected proxies rejected it.
    #[serde(default)]
    pub rejected_count: u32,
    /// Which proxies rejected it, and why; at most 20 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejection>,
    /// Findings about the object itself, e.g. a backend that does not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One proxy's reason to keep its last good version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rejection {
    /// `<namespace>/<workload>` of the proxy.
    pub proxy: String,
    /// In the proxy's words.
    pub reason: String,
}

/// A finding about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// Of a route `ParentNotFound`, `BackendNotFound`, `BackendPortNotFound`, `BackendNotExported`; of a service
    /// `ServiceAccountInvalid`, `InheritsDenials`; of an authorization policy `TargetNotFound`, `HoldsForBackends`,
    /// `NotForBackends`; of any object that proxies take with others, `RejectedAsPart`. There may be more in time.
    pub r#type: String,
    /// For people.
    pub message: String,
}
