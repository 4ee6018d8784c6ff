//! What proxies made of the objects, as told by the discovery service.

use heddle_api::resource::{AnyObject, ObjectStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Knows the connected proxies.
pub trait StatusSource: std::fmt::Debug + Send + Sync + 'static {
    /// What became of an object of the newest view; its metadata says which generation and revision.
    fn status(&self, object: &AnyObject) -> ObjectStatus;

    /// All proxies that are known, by name.
    fn proxies(&self) -> Vec<ProxyStatus>;
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyStatus {
    /// `<namespace>/<workload>`.
    pub name: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// What it serves, `<namespace>/<service>`.
    pub services: Vec<String>,
    /// Where peers reach it; absent before it registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether its discovery stream is open.
    pub connected: bool,
    /// Since when it is, RFC 3339; absent while its stream is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Whether it takes traffic: not before its app accepts connections. Absent before it registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Whether several proxies seem to call themselves this, and take turns.
    #[serde(default)]
    pub contested: bool,
    /// Version of the proxy.
    pub version: String,
    /// What it holds.
    pub resources: ProxyResources,
    /// When its SVID expires, RFC 3339; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expiry: Option<String>,
}

/// What a proxy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyResources {
    /// Resources that it acknowledged.
    pub applied: u32,
    /// Resources that were sent and not answered yet.
    pub pending: u32,
    /// Resources that it refused, keeping the last good ones.
    #[serde(default)]
    pub rejected: Vec<RejectedResource>,
}

/// A discovery resource that a proxy refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RejectedResource {
    /// E.g. `Service shop/orders`.
    pub resource: String,
    /// In the proxy's words.
    pub reason: String,
}
