//! MeshConfig: what holds for the whole mesh.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the mesh; one object, named `mesh`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// What holds where no rule matches; a new mesh denies.
    #[serde(default)]
    pub default_authorization: DefaultAction,
    /// Name suffixes of the mesh; default `mesh`.
    #[serde(default = "default_suffixes")]
    #[schemars(length(max = 16))]
    pub suffixes: Vec<String>,
    /// Address ranges of the mesh: a destination inside them that is no endpoint of the mesh is
    /// refused, never sent in plaintext.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub cidrs: Vec<String>,
    /// Whether destinations outside the mesh may be called.
    #[serde(default)]
    pub egress: EgressMode,
    /// Traces and access logs.
    #[serde(default)]
    pub telemetry: TelemetrySpec,
}

fn default_suffixes() -> Vec<String> {
    vec!["mesh".to_owned()]
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAction {
    /// Refuse.
    #[default]
    Deny,
    /// Let in.
    Allow,
}

/// What happens to calls that leave the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// Refused.
    #[default]
    Deny,
    /// Sent as the app sends them.
    Allow,
}

/// Traces and access logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetrySpec {
    /// Share of traces started in the mesh that are kept, 0 to 1; default 0.01. The decision of a
    /// caller outside the mesh is kept as it came.
    #[serde(default = "default_sampling")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sampling_ratio: f64,
    /// Whether proxies write a JSON line per request; default false.
    #[serde(default)]
    pub access_log: bool,
}

fn default_sampling() -> f64 {
    0.01
}

impl Default for TelemetrySpec {
    fn default() -> Self {
        Self { sampling_ratio: default_sampling(), access_log: false }
    }
}
