//! AuthorizationPolicy: who may call what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may call the services that this attaches to. A DENY rule that matches wins, then any ALLOW
/// rule, then the mesh's default.
///
/// Where a route leads from such a service to others, DENY rules hold for these too (for the ports that
/// the route leads to, and for paths as the route rewrites them, besides those that are written), and for
/// all of their callers. ALLOW rules do not: whom they let in is for the policies of these others to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it attaches to; absent: its namespace (in the namespace `heddle`: the mesh).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What a matching rule does.
    pub action: Action,
    /// Any rule that matches decides. No rule: nothing matches.
    #[schemars(length(max = 256))]
    pub rules: Vec<RuleSpec>,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets it in.
    Allow,
    /// Refuses it, whatever else allows it.
    Deny,
}

/// An object that a policy attaches to, in the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// `Service`.
    pub kind: TargetKind,
    /// Its name.
    #[schemars(regex(pattern = crate::schema::DNS_LABEL))]
    pub name: String,
}

/// Kinds that policies attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A service.
    Service,
}

/// One rule: a source and an operation, of those that are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Shown where the rule decided; its index when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = crate::schema::DNS_LABEL))]
    pub name: Option<String>,
    /// Any of them; absent or empty: any caller, even an unauthenticated one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<SourceSpec>,
    /// Any of them; absent or empty: any operation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<OperationSpec>,
}

/// A caller. All fields that are given must match; within a field, any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec {
    /// SPIFFE IDs, in full or in short form `<namespace>/<service account>`; a segment may be `*`,
    /// and a full ID may end in `/**`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub identities: Vec<String>,
    /// Namespaces of verified identities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// Address ranges of the peer of the connection, e.g. `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub cidrs: Vec<String>,
    /// True: callers without a verified identity only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
}

/// What is called. All fields that are given must match; within a field, any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperationSpec {
    /// Ports of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<u16>,
    /// HTTP methods, upper case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub methods: Vec<String>,
    /// `/exact`, `/prefix/*` (anything below it) or `*`; gRPC methods as `/pkg.Service/Method`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub paths: Vec<String>,
}
