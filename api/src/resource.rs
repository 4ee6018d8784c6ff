//! The declarative objects of the control-plane API, `apiVersion: heddle.dev/v1`.
//!
//! Each kind has a spec type in a module of its own. Parsing is strict: unknown fields are errors.
//! Routes take the shape of the Gateway API's, so that one model serves in and out of Kubernetes.

mod any;
mod authorization_policy;
mod duration;
mod mesh_config;
mod metadata;
mod name;
mod route;
mod service;
mod traffic_policy;
mod workload;

pub use any::{AnyObject, Kind, ObjectKind};
pub use authorization_policy::{
    Action, AuthorizationPolicySpec, OperationSpec, RuleSpec, SourceSpec, TargetKind, TargetRef,
};
pub use duration::Duration;
pub use mesh_config::{DefaultAction, EgressMode, MeshConfigSpec, TelemetrySpec};
pub use metadata::{Condition, Metadata, ObjectStatus, Rejection};
pub use name::Name;
pub use route::{
    BackendRef, GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec, HeaderMatch, HeaderModifierSpec,
    HeaderValue, HttpRouteFilter, HttpRouteFilterType, HttpRouteMatch, HttpRouteRule, HttpRouteSpec, MatchType,
    ParentRef, PathMatch, PathMatchType, PathModifierSpec, PathModifierType, QueryParamMatch, RedirectSpec,
    RewriteSpec, RouteRetry, RouteTimeouts, TcpRouteRule, TcpRouteSpec,
};
pub use service::{MtlsMode, PortProtocol, ProbeExemptionSpec, ServicePortSpec, ServiceSpec};
pub use traffic_policy::{
    BalancingSpec, LimitsSpec, OutlierSpec, RetryBudgetSpec, RetryCondition, RetrySpec, TimeoutsSpec, TrafficPolicySpec,
};
pub use workload::{WorkloadService, WorkloadSpec};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `apiVersion` of every object.
pub const API_VERSION: &str = "heddle.dev/v1";

/// The name of the one [`MeshConfigSpec`] object, which has no namespace.
pub const MESH_CONFIG_NAME: &str = "mesh";

/// An object of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    /// Always `heddle.dev/v1`.
    pub api_version: String,
    /// The kind, e.g. `Service`.
    pub kind: String,
    /// Name, namespace, labels, and what the server keeps about the object.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
    /// What is: written by the server, ignored when sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ObjectStatus>,
}
