//! Proxies, as the discovery service knows them.

use axum::response::Response;
use http::StatusCode;

use super::{call::Call, refusal::Refusal, types::ProxyList};

pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    call.answer(StatusCode::OK, &ProxyList { items: call.api.state.status.proxies() })
}
