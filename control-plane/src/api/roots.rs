//! The mesh's roots, and the steps by which one replaces another.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::Call,
    refusal::{Refusal, Why},
};

/// Keeps the roots.
pub trait RootKeeper: std::fmt::Debug + Send + Sync + 'static {
    /// The roots, and how far proxies are, as of one moment. Blocks while a step is taken.
    fn status(&self) -> RootStatus;

    /// Takes a step, whether or not every proxy is ready for it if `force` is set. Blocks: it writes to disk.
    fn step(&self, step: RootStep, force: bool) -> Result<RootStatus, RootRefusal>;
}

/// A step on the way from one root to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootStep {
    /// A new root is made and trusted.
    Prepare,
    /// It signs.
    Activate,
    /// Others are trusted no more.
    Retire,
}

/// Why a step was not taken.
#[derive(Debug)]
pub enum RootRefusal {
    /// It is not its turn, or a proxy is not ready for it.
    Conflict(String),
    /// The control plane failed; nothing has changed.
    Failed(String),
}

/// How far the replacement of the root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RootPhase {
    /// Nothing is under way; `prepare` begins.
    Steady,
    /// A new root is trusted and signs nothing yet; `activate` is next.
    Prepared,
    /// The new root signs, and what the old one signed is trusted still; `retire` is next.
    Activated,
}

/// A root certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootInfo {
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// Whether certificates are signed under it; false of every root of an external authority, where it is not known.
    pub signs: bool,
}

/// The mesh's roots, and how far proxies are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootStatus {
    /// How far the replacement of the root is.
    pub phase: RootPhase,
    /// Grows with each change of the roots.
    pub epoch: u64,
    /// All that are trusted.
    pub roots: Vec<RootInfo>,
    /// All of them, PEM: what clients of the API and proxies that join must trust.
    pub trust_anchors: String,
    /// Proxies that are connected or registered.
    pub proxies: u32,
    /// How many of them have not applied these roots yet; `activate` waits for them.
    pub behind_count: u32,
    /// Their names, at most 20.
    pub behind: Vec<String>,
    /// How many of them show a certificate of a root that signs no more, or are away and may; `retire` waits for them.
    pub old_certificates_count: u32,
    /// Their names, at most 20.
    pub old_certificates: Vec<String>,
    /// Until when such certificates can be valid at all, RFC 3339; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_certificates_until: Option<String>,
    /// Until when `activate` or `retire`, whichever is next, waits for proxies that are away, RFC 3339: they may have a
    /// certificate of before the last step, and know nothing of that; absent where it waits for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<String>,
}

pub(super) async fn get(call: Call) -> Result<Response, Refusal> {
    let keeper = Arc::clone(&call.api.state.roots);
    let status = tokio::task::spawn_blocking(move || keeper.status()).await;
    let status = status
        .map_err(|_| Refusal::new(Why::Internal, "the roots cannot be told; the control plane's log says more"))?;
    call.answer(StatusCode::OK, &status)
}

pub(super) async fn prepare(call: Call) -> Result<Response, Refusal> {
    step(call, RootStep::Prepare).await
}

pub(super) async fn activate(call: Call) -> Result<Response, Refusal> {
    step(call, RootStep::Activate).await
}

pub(super) async fn retire(call: Call) -> Result<Response, Refusal> {
    step(call, RootStep::Retire).await
}

async fn step(call: Call, step: RootStep) -> Result<Response, Refusal> {
    let (keeper, force, by) = (Arc::clone(&call.api.state.roots), call.flag("force"), call.token.name.clone());
    let taken = tokio::task::spawn_blocking(move || {
        let taken = keeper.step(step, force);
        // Here, since the step is taken even if the client has gone meanwhile.
        match &taken {
            Ok(status) => tracing::info!(by, ?step, force, epoch = status.epoch, "changed the mesh's roots"),
            Err(RootRefusal::Conflict(why)) => {
                tracing::info!(by, ?step, force, why, "refused to change the mesh's roots")
            }
            Err(RootRefusal::Failed(why)) => tracing::error!(by, ?step, force, why, "cannot change the mesh's roots"),
        }
        taken
    });
    let taken = taken.await;
    match taken.map_err(|_| Refusal::new(Why::Internal, "the step failed; the control plane's log says more"))? {
        Ok(status) => call.answer(StatusCode::OK, &status),
        Err(RootRefusal::Conflict(why)) => Err(Refusal::new(Why::Conflict, why)),
        Err(RootRefusal::Failed(why)) => Err(Refusal::new(Why::Internal, why)),
    }
}
