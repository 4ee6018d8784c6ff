//! User-visible revisions: list, get, compare, roll back.

use axum::response::Response;
use http::StatusCode;

use super::{
    call::Call,
    refusal::{Refusal, Why},
    transactions,
    types::{DifferenceList, RevisionDetail, RevisionList, RollbackRequest},
};

pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    let items = call.api.state.registry.revisions().list().await?;
    call.answer(StatusCode::OK, &RevisionList { items })
}

pub(super) async fn get(call: Call) -> Result<Response, Refusal> {
    let (summary, changes) = call.api.state.registry.revisions().get(call.number("revision")).await?;
    call.answer(StatusCode::OK, &RevisionDetail { summary, changes })
}

pub(super) async fn diff(call: Call) -> Result<Response, Refusal> {
    let (from, to) = (call.number("from"), call.number("to"));
    let items = call.api.state.registry.revisions().diff(from, to).await?;
    call.answer(StatusCode::OK, &DifferenceList { items })
}

pub(super) async fn rollback(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let request: RollbackRequest =
        call.api.shapes.rollback.read(&body).map_err(|faults| Refusal::faults(Why::Malformed, faults))?;
    let (to, newest) = (request.revision, request.if_revision);
    let applied = call.api.state.registry.rollback(to, newest, &call.author(), call.flag("dryRun")).await?;
    transactions::answer(&call, applied)
}
