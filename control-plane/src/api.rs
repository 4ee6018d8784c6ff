//! The REST API.
//!
//! [`router`] makes it from an [`ApiState`]; TLS and the listener are the caller's.

mod status;

use std::sync::Arc;

use axum::Router;
use heddle_certs::TrustDomain;

pub use self::status::{ProxyResources, ProxyStatus, RejectedResource, StatusSource};
use crate::{
    registry::Registry,
    tokens::{ApiTokens, JoinTokens},
};

/// What the API works on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Objects.
    pub registry: Arc<Registry>,
    /// Who may use the API.
    pub api_tokens: ApiTokens,
    /// Which workloads may join.
    pub join_tokens: JoinTokens,
    /// What proxies made of the objects.
    pub status: Arc<dyn StatusSource>,
    /// What a join file says besides the token.
    pub join: Arc<dyn JoinInfo>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
}

/// What a proxy needs besides its token to join.
pub trait JoinInfo: std::fmt::Debug + Send + Sync + 'static {
    /// `host:port` of the mesh listener, as proxies reach it.
    fn mesh_address(&self) -> String;

    /// The mesh's roots, PEM.
    fn trust_anchors(&self) -> String;
}

/// The whole API.
pub fn router(_state: ApiState) -> Router {
    Router::new()
}
