//! Service: a name that others call, its ports, and who may serve it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service. It answers to `<name>`, `<name>.<namespace>` and `<name>.<namespace>.<suffix>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// At least one; ports and names are unique.
    #[schemars(length(min = 1, max = 64))]
    pub ports: Vec<ServicePortSpec>,
    /// Which service accounts of this namespace may serve it. Default: the one named like the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub service_accounts: Vec<String>,
    /// More host names that select it, e.g. `orders.example.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub hosts: Vec<String>,
    /// Virtual addresses that select it, IPv4 or IPv6, such as the cluster IPs of a Kubernetes Service: captured
    /// connections to one of them and a port of the service are balanced over its instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
    /// Namespaces whose workloads may discover it; `*` is all, `.` its own. Default: `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub export_to: Vec<String>,
    /// Health probes of the platform that need no identity and no rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub probe_exemptions: Vec<ProbeExemptionSpec>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePortSpec {
    /// The port that callers name.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// DNS label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = crate::schema::DNS_LABEL))]
    pub name: Option<String>,
    /// What is spoken; detected from the first bytes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<PortProtocol>,
    /// The app's port where the proxy does not say otherwise; `port` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<u16>,
    /// Whether clients without a sidecar may come in.
    #[serde(default)]
    pub mtls: MtlsMode,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// HTTP, version detected.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// Who gets in at the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// Only callers with a sidecar of this mesh.
    #[default]
    Strict,
    /// Callers without a sidecar too, as `unauthenticated` in rules.
    Permissive,
}

/// A plaintext `GET` or `HEAD` of exactly `path` on `port` that needs no identity and no rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeExemptionSpec {
    /// A port of this service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Begins with `/`; no query.
    pub path: String,
}
