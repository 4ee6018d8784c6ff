//! Bodies of requests and answers besides the objects themselves.

use heddle_api::{
    resource::{Duration, ObjectKind},
    schema::{DNS_LABEL, Definitions, SERVICE_ACCOUNT, SERVICE_ACCOUNT_LENGTH, reference},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::status::ProxyStatus;
use crate::{
    registry::{Action, Difference, RevisionNumber, RevisionSummary},
    tokens::{ApiToken, JoinToken, JoinTokens, Revocation, Role},
};

/// Most operations of a transaction.
pub(super) const MAX_OPERATIONS: usize = 100_000;

/// What a list's answer is called.
pub(super) fn list_name(kind: ObjectKind) -> String {
    format!("{}List", kind.as_str())
}

/// Adds what is made by hand: where an object of any kind may stand.
pub(super) fn add(definitions: &mut Definitions) {
    for kind in ObjectKind::ALL {
        let list = json!({
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "items"],
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string", "enum": [list_name(*kind)] },
                "metadata": definitions.of::<ListMetadata>(),
                "items": { "type": "array", "items": reference(kind.as_str()) },
            },
            "additionalProperties": false,
        });
        definitions.add(&list_name(*kind), list);
    }
    let kinds: Vec<_> = ObjectKind::ALL.iter().map(|kind| reference(kind.as_str())).collect();
    let any = definitions.add("AnyObject", json!({ "oneOf": kinds }));
    let action = definitions.of::<Action>();
    let result = definitions.add(
        "OperationResult",
        json!({
            "type": "object",
            "required": ["action", "object"],
            "properties": { "action": action, "object": any },
            "additionalProperties": false,
        }),
    );
    definitions.add(
        "TransactionResult",
        json!({
            "type": "object",
            "required": ["revision", "results"],
            "properties": {
                "revision": { "type": "integer", "minimum": 0 },
                "results": { "type": "array", "items": result },
            },
            "additionalProperties": false,
        }),
    );
    let if_match = json!({
        "type": "string", "pattern": "^(\\*|[0-9]{1,19})$",
        "description": "Only if the object is at this resourceVersion, exists (`*`) or does not (`0`).",
    });
    let reference = definitions.of::<ObjectReference>();
    definitions.add(
        "Transaction",
        json!({
            "type": "object",
            "required": ["operations"],
            "properties": {
                "operations": { "type": "array", "minItems": 1, "maxItems": MAX_OPERATIONS, "items": { "oneOf": [
                    {
                        "type": "object", "required": ["apply"], "additionalProperties": false,
                        "properties": { "apply": any, "ifMatch": if_match },
                    },
                    {
                        "type": "object", "required": ["delete"], "additionalProperties": false,
                        "properties": { "delete": reference, "ifMatch": if_match },
                    },
                ] } },
            },
            "additionalProperties": false,
        }),
    );
    definitions.add("WatchEvent", json!({
        "type": "object",
        "required": ["type", "object"],
        "properties": {
            "type": { "type": "string", "enum": ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"] },
            "object": { "type": "object", "description": "The object; of a BOOKMARK only its resourceVersion counts." },
        },
        "additionalProperties": false,
    }));
    definitions.of::<heddle_api::problem::Problem>();
}

/// What a list is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListMetadata {
    /// As of when; a watch goes on from here.
    pub(super) resource_version: String,
    /// Leads to the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// Names an object.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ObjectReference {
    /// Its kind.
    #[schemars(schema_with = "kind_schema")]
    pub(super) kind: String,
    /// Its namespace; absent for kinds without.
    #[serde(default)]
    #[schemars(regex(pattern = DNS_LABEL))]
    pub(super) namespace: Option<String>,
    /// Its name.
    #[schemars(regex(pattern = DNS_LABEL))]
    pub(super) name: String,
}

fn kind_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let kinds: Vec<_> = ObjectKind::ALL.iter().map(|kind| Value::from(kind.as_str())).collect();
    schemars::json_schema!({ "type": "string", "enum": kinds })
}

/// Asks for a rollback.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RollbackRequest {
    /// The revision whose state is wanted; 0 is the empty mesh.
    #[schemars(range(max = i64::MAX))]
    pub(super) revision: RevisionNumber,
    /// Only if this is the newest revision still: else somebody's change that nobody has looked at would
    /// be undone, too.
    #[serde(default)]
    #[schemars(range(max = i64::MAX))]
    pub(super) if_revision: Option<RevisionNumber>,
}

/// A revision and what it changed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RevisionDetail {
    #[serde(flatten)]
    pub(super) summary: RevisionSummary,
    /// Each object that it changed.
    pub(super) changes: Vec<Difference>,
}

/// Asks for a join token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JoinTokenRequest {
    /// Namespace of the identity.
    #[schemars(regex(pattern = DNS_LABEL))]
    pub(super) namespace: String,
    /// Service account of the identity.
    #[schemars(regex(pattern = SERVICE_ACCOUNT), length(max = SERVICE_ACCOUNT_LENGTH))]
    pub(super) service_account: String,
    /// How long it can be used; default 1h, at most a year.
    #[serde(default)]
    pub(super) ttl: Option<Duration>,
    /// How many workloads may join with it; default 1.
    #[serde(default)]
    #[schemars(range(min = 1, max = JoinTokens::MAX_USES))]
    pub(super) uses: Option<u32>,
}

/// A new join token. Its fields `controlPlane`, `trustDomain`, `identity`, `trustAnchors` and `token`
/// are a proxy's join file.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewJoinTokenAnswer {
    #[serde(flatten)]
    pub(super) about: JoinToken,
    /// `host:port` at which proxies reach the control plane.
    pub(super) control_plane: String,
    /// The mesh's trust domain.
    pub(super) trust_domain: String,
    /// The SPIFFE ID that it is good for.
    pub(super) identity: String,
    /// Roots under which the control plane's certificate must be, PEM.
    pub(super) trust_anchors: String,
    /// The token itself: shown now, never again.
    pub(super) token: String,
}

/// Revokes the certificates of an identity.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RevocationRequest {
    /// Namespace of the identity.
    #[schemars(regex(pattern = DNS_LABEL))]
    pub(super) namespace: String,
    /// Service account of the identity.
    #[schemars(regex(pattern = SERVICE_ACCOUNT), length(max = SERVICE_ACCOUNT_LENGTH))]
    pub(super) service_account: String,
}

/// Asks for an API token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ApiTokenRequest {
    /// Who will use it: shown in the list of revisions.
    #[schemars(regex(pattern = TOKEN_NAME))]
    pub(super) name: String,
    /// What for.
    pub(super) role: Role,
}

/// What API tokens may be called.
const TOKEN_NAME: &str = "^[A-Za-z0-9][-A-Za-z0-9_.@ ]{0,62}$";

/// A new API token.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewApiTokenAnswer {
    #[serde(flatten)]
    pub(super) about: ApiToken,
    /// The token itself: shown now, never again.
    pub(super) token: String,
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident of $item:ty,)*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, Serialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name {
            /// All of them.
            pub(super) items: Vec<$item>,
        })*
    };
}

lists! {
    /// Revisions, oldest first.
    RevisionList of RevisionSummary,
    /// Objects that differ, by kind and name.
    DifferenceList of Difference,
    /// Join tokens, oldest first.
    JoinTokenList of JoinToken,
    /// API tokens, oldest first.
    ApiTokenList of ApiToken,
    /// Revocations, by identity.
    RevocationList of Revocation,
    /// Proxies by name.
    ProxyList of ProxyStatus,
}
