//! Orders: an HTTP service that takes orders and sees each through to its end, as a saga.

mod feed;
mod saga;
mod store;
mod suppliers;

use std::path::PathBuf;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub(crate) use saga::Saga;
pub(crate) use store::{Event, Order, OrderState, SCHEMA, Store};
pub(crate) use suppliers::{Suppliers, SuppliersArgs};

use crate::{
    database::Database,
    propagate::TraceHeaders,
    service::{self, Input, Refusal, ServeArgs},
};

/// Settings of orders.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
    /// The database.
    #[arg(long, env = "SHOP_DB", default_value = "orders.db")]
    db: PathBuf,
    #[command(flatten)]
    suppliers: SuppliersArgs,
}

/// One product, so many times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Item {
    pub(crate) sku: String,
    pub(crate) quantity: u32,
}

/// What a customer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOrder {
    pub(crate) customer: String,
    pub(crate) items: Vec<Item>,
    /// Number of the card that pays.
    pub(crate) card: String,
    /// Whether the customer tries new versions out.
    #[serde(default)]
    pub(crate) beta: bool,
}

impl NewOrder {
    /// The first fault, with the field that has it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.customer.trim().is_empty() || self.customer.chars().count() > 100 {
            return Err("customer: 1 to 100 characters".to_owned());
        }
        if self.items.is_empty() || self.items.len() > 20 {
            return Err("items: 1 to 20".to_owned());
        }
        for (index, item) in self.items.iter().enumerate() {
            let of_sku = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if item.sku.is_empty() || item.sku.len() > 40 || !item.sku.bytes().all(of_sku) {
                return Err(format!("items[{index}].sku: 1 to 40 lower-case letters, digits and hyphens"));
            }
            if !(1..=100).contains(&item.quantity) {
                return Err(format!("items[{index}].quantity: 1 to 100"));
            }
        }
        if !is_card_number(&self.card) {
            return Err("card: a card number has 12 to 19 digits, the last of which checks the others".to_owned());
        }
        Ok(())
    }
}

/// Luhn's check.
fn is_card_number(text: &str) -> bool {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(10)).collect();
    digits.is_some_and(|digits| {
        let sum: u32 = digits
            .iter()
            .rev()
            .enumerate()
            .map(|(place, &digit)| match place % 2 {
                0 => digit,
                _ => digit * 2 / 10 + digit * 2 % 10,
            })
            .sum();
        (12..=19).contains(&digits.len()) && sum.is_multiple_of(10)
    })
}

/// Runs until `stop`.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let store = Store::new(Database::open(&args.db, SCHEMA).await?);
    let saga = Saga::new(store, Suppliers::new(&args.suppliers)?, stop.clone());
    saga.resume().await?;
    service::serve(&args.serve, router(saga.clone(), stop.clone()), stop).await?;
    saga.stopped().await;
    Ok(())
}

#[derive(Clone)]
struct App {
    saga: Saga,
    stop: CancellationToken,
}

/// The HTTP service.
pub(crate) fn router(saga: Saga, stop: CancellationToken) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/feed", get(feed::serve))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(App { saga, stop })
}

async fn place(
    State(app): State<App>,
    trace: TraceHeaders,
    headers: HeaderMap,
    Input(order): Input<NewOrder>,
) -> Result<(StatusCode, Json<Order>), Refusal> {
    order.check().map_err(Refusal::invalid)?;
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > 100 {
        return Err(Refusal::invalid("idempotency-key: a header of 1 to 100 visible characters"));
    }
    let placed = app.saga.place(key.to_owned(), order, &trace).await?;
    Ok((if placed.is_new { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(placed.order)))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Order>, Refusal> {
    let order = app.saga.store().find(id.clone()).await?;
    order.map(Json).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("there is no order {id:?}")))
}

#[cfg(test)]
mod tests;
