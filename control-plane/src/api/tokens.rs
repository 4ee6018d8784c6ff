//! Join tokens and API tokens.

use std::time::{Duration, SystemTime};

use axum::response::{IntoResponse as _, Response};
use heddle_api::{problem::Fault, resource};
use heddle_certs::SpiffeId;
use http::StatusCode;

use super::{
    call::Call,
    refusal::{Refusal, Why},
    types::{
        ApiTokenList, ApiTokenRequest, JoinTokenList, JoinTokenRequest, NewApiTokenAnswer, NewJoinTokenAnswer,
        RevocationList, RevocationRequest,
    },
};
use crate::tokens::{JoinTokens, NewJoinToken};

/// How long a join token can be used, unless asked otherwise.
const TTL: Duration = Duration::from_secs(3600);

pub(super) async fn create_join(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let request: JoinTokenRequest =
        call.api.shapes.join_token.read(&body).map_err(|faults| Refusal::faults(Why::Malformed, faults))?;
    let ttl = request.ttl.map_or(TTL, |ttl| ttl.0);
    if ttl.is_zero() || ttl > JoinTokens::MAX_TTL {
        let longest = resource::Duration(JoinTokens::MAX_TTL);
        let message = format!("is {}; above 0s and at most {longest} is wanted", resource::Duration(ttl));
        return Err(Refusal::faults(Why::Invalid, vec![Fault::new("ttl", message)]));
    }
    let state = &call.api.state;
    let identity = SpiffeId::workload(&state.trust_domain, &request.namespace, &request.service_account)
        .map_err(|error| Refusal::faults(Why::Invalid, vec![Fault::new("serviceAccount", error.to_string())]))?;
    let new = NewJoinToken {
        namespace: request.namespace,
        service_account: request.service_account,
        ttl,
        uses: request.uses.unwrap_or(1),
    };
    let (about, token) = state.join_tokens.create(new, SystemTime::now()).await?;
    tracing::info!(by = call.token.name, id = about.id, %identity, "made a join token");
    let answer = NewJoinTokenAnswer {
        about,
        control_plane: state.join.mesh_address(),
        trust_domain: state.trust_domain.to_string(),
        identity: identity.to_string(),
        trust_anchors: state.join.trust_anchors(),
        token,
    };
    call.answer(StatusCode::CREATED, &answer)
}

pub(super) async fn list_join(call: Call) -> Result<Response, Refusal> {
    let items = call.api.state.join_tokens.list().await?;
    call.answer(StatusCode::OK, &JoinTokenList { items })
}

pub(super) async fn delete_join(call: Call) -> Result<Response, Refusal> {
    call.api.state.join_tokens.delete(call.part("id")).await?;
    tracing::info!(by = call.token.name, id = call.part("id"), "deleted a join token");
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn create_revocation(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let request: RevocationRequest =
        call.api.shapes.revocation.read(&body).map_err(|faults| Refusal::faults(Why::Malformed, faults))?;
    let state = &call.api.state;
    let (namespace, account) = (&request.namespace, &request.service_account);
    SpiffeId::workload(&state.trust_domain, namespace, account)
        .map_err(|error| Refusal::faults(Why::Invalid, vec![Fault::new("serviceAccount", error.to_string())]))?;
    let revocation = state.revocations.revoke(namespace, account, &call.token.name, SystemTime::now()).await?;
    call.answer(StatusCode::CREATED, &revocation)
}

pub(super) async fn list_revocations(call: Call) -> Result<Response, Refusal> {
    let items = call.api.state.revocations.list(SystemTime::now());
    call.answer(StatusCode::OK, &RevocationList { items })
}

pub(super) async fn create_api(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let request: ApiTokenRequest =
        call.api.shapes.api_token.read(&body).map_err(|faults| Refusal::faults(Why::Malformed, faults))?;
    let (about, token) = call.api.state.api_tokens.create(&request.name, request.role).await?;
    tracing::info!(
        by = call.token.name,
        id = about.id,
        name = about.name,
        role = about.role.as_str(),
        "made an API token"
    );
    call.answer(StatusCode::CREATED, &NewApiTokenAnswer { about, token })
}

pub(super) async fn list_api(call: Call) -> Result<Response, Refusal> {
    let items = call.api.state.api_tokens.list().await?;
    call.answer(StatusCode::OK, &ApiTokenList { items })
}

pub(super) async fn delete_api(call: Call) -> Result<Response, Refusal> {
    if call.part("id") == call.token.id {
        return Err(Refusal::new(Why::Conflict, "a token cannot delete itself; use another one, so that one is left"));
    }
    call.api.state.api_tokens.delete(call.part("id")).await?;
    tracing::info!(by = call.token.name, id = call.part("id"), "deleted an API token");
    Ok(StatusCode::NO_CONTENT.into_response())
}
