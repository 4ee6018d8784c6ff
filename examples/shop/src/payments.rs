//! Payments: an HTTP service that charges cards, and gives money back.
//!
//! A charge is named by its caller: `PUT /charges/{name}` may be sent again and again, through
//! whichever instance, and takes the money once. `DELETE` gives it back; a charge that is not known
//! is then void, so that a `PUT` which was overtaken is refused.

mod store;

use std::path::PathBuf;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, put},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub(crate) use store::{SCHEMA, Store};

use crate::{
    database::Database,
    service::{self, Input, Refusal, ServeArgs},
};

/// Settings of payments.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
    /// The database; instances share it.
    #[arg(long, env = "SHOP_DB", default_value = "payments.db")]
    db: PathBuf,
    /// What this instance says that it is.
    #[arg(long = "charge-version", env = "SHOP_VERSION", default_value = "v1")]
    version: String,
}

/// Whose card is to be charged how much.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChargeRequest {
    pub(crate) card: String,
    pub(crate) amount_cents: u64,
}

/// What became of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChargeState {
    /// The money was taken.
    Charged,
    /// The card cannot pay.
    Declined,
    /// The money was given back, or never taken.
    Refunded,
}

/// A charge, as it is answered and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) id: String,
    pub(crate) state: ChargeState,
    pub(crate) amount_cents: u64,
    pub(crate) card_last4: String,
    /// Why it was declined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Of the instance that decided.
    pub(crate) version: String,
}

/// Runs until `stop`.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let store = Store::new(Database::open(&args.db, SCHEMA).await?);
    service::serve(&args.serve, router(store, args.version), stop).await
}

#[derive(Clone)]
struct App {
    store: Store,
    version: String,
}

/// The HTTP service.
pub(crate) fn router(store: Store, version: String) -> Router {
    Router::new()
        .route("/charges/{id}", put(charge).delete(refund).get(show))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(App { store, version })
}

async fn charge(
    State(app): State<App>,
    Path(id): Path<String>,
    Input(request): Input<ChargeRequest>,
) -> Result<(StatusCode, Json<Charge>), Refusal> {
    check_id(&id)?;
    if request.amount_cents == 0 {
        return Err(Refusal::invalid("amount_cents: at least 1"));
    }
    if !(12..=19).contains(&request.card.len()) || !request.card.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::invalid("card: 12 to 19 digits"));
    }
    let charge = app.store.charge(id, request, app.version).await?;
    let status = match charge.state {
        ChargeState::Charged => StatusCode::OK,
        ChargeState::Declined => StatusCode::PAYMENT_REQUIRED,
        ChargeState::Refunded => StatusCode::CONFLICT,
    };
    Ok((status, Json(charge)))
}

async fn refund(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Charge>, Refusal> {
    check_id(&id)?;
    Ok(Json(app.store.refund(id, app.version).await?))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Charge>, Refusal> {
    let charge = app.store.find(id.clone()).await?;
    charge.map(Json).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("there is no charge {id:?}")))
}

fn check_id(id: &str) -> Result<(), Refusal> {
    if id.is_empty() || id.len() > 100 {
        return Err(Refusal::invalid("the name of a charge has 1 to 100 characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
