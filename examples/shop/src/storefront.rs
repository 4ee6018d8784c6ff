//! Storefront: the shop's public face. It checks what customers send, and hands it on to orders.

mod feed;

use std::time::Duration;

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    inventory::proto::{ListProductsRequest, inventory_client::InventoryClient},
    orders::NewOrder,
    propagate::TraceHeaders,
    service::{self, Input, Refusal, ServeArgs},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Settings of storefront.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
    /// URL of orders; called through `http_proxy`, where that is set.
    #[arg(long, env = "ORDERS_URL", default_value = "http://orders")]
    orders: String,
    /// URL of inventory.
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:9001")]
    inventory: String,
}

/// Runs until `stop`.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    service::serve(&args.serve, router(&args.orders, &args.inventory, stop.clone())?, stop).await
}

#[derive(Clone)]
struct App {
    orders: String,
    http: reqwest::Client,
    inventory: InventoryClient<Channel>,
    feed: feed::Upstream,
    stop: CancellationToken,
}

/// The HTTP service.
pub(crate) fn router(orders: &str, inventory: &str, stop: CancellationToken) -> anyhow::Result<Router> {
    let inventory = Endpoint::from_shared(inventory.to_owned())
        .with_context(|| format!("{inventory:?} is no URL of inventory"))?
        .timeout(Duration::from_secs(5))
        .connect_lazy();
    let app = App {
        orders: orders.trim_end_matches('/').to_owned(),
        http: reqwest::Client::builder().timeout(Duration::from_secs(15)).build().context("no HTTP client")?,
        inventory: InventoryClient::new(inventory),
        feed: feed::Upstream::new(orders, std::env::var("http_proxy").ok().as_deref())?,
        stop,
    };
    Ok(Router::new()
        .route("/", get(|| async { Html(include_str!("storefront/page.html")) }))
        .route("/products", get(products))
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/feed", get(feed::serve))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(app))
}

async fn products(State(app): State<App>, trace: TraceHeaders) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Product {
        sku: String,
        name: String,
        price_cents: u32,
        in_stock: bool,
    }
    let listed = app.inventory.clone().list_products(trace.call(ListProductsRequest {})).await;
    let listed = listed.map_err(|status| {
        Refusal::new(StatusCode::BAD_GATEWAY, format!("inventory answered {:?}: {}", status.code(), status.message()))
    })?;
    let products = listed.into_inner().products.into_iter().map(|product| Product {
        sku: product.sku,
        name: product.name,
        price_cents: product.price_cents,
        in_stock: product.stock > 0,
    });
    Ok(Json(products.collect::<Vec<_>>()).into_response())
}

async fn place(
    State(app): State<App>,
    trace: TraceHeaders,
    headers: HeaderMap,
    Input(order): Input<NewOrder>,
) -> Result<Response, Refusal> {
    order.check().map_err(Refusal::invalid)?;
    let mut request = app.http.post(format!("{}/orders", app.orders)).headers(trace.headers()).json(&order);
    // Customers who send no key are on their own when they send an order twice.
    let key = headers.get(IDEMPOTENCY_KEY).cloned();
    let key = key.map_or_else(|| header::HeaderValue::try_from(random_key()), Ok);
    request = request.header(IDEMPOTENCY_KEY, key.map_err(Refusal::invalid)?);
    pass_on(request).await
}

async fn show(State(app): State<App>, trace: TraceHeaders, Path(id): Path<String>) -> Result<Response, Refusal> {
    if id.is_empty() || id.len() > 40 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Refusal::invalid("the name of an order has 1 to 40 letters, digits and hyphens"));
    }
    pass_on(app.http.get(format!("{}/orders/{id}", app.orders)).headers(trace.headers())).await
}

/// Hands the answer of orders to the customer; what is no answer of orders becomes a 502 that says so.
async fn pass_on(request: reqwest::RequestBuilder) -> Result<Response, Refusal> {
    let gone = |error: reqwest::Error| Refusal::new(StatusCode::BAD_GATEWAY, format!("orders did not answer: {error}"));
    let response = request.send().await.map_err(gone)?;
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let body = response.bytes().await.map_err(gone)?;
    if status.is_server_error() || !is_json {
        let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, format!("orders answered {status}: {}", text.trim())));
    }
    Ok((status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

fn random_key() -> String {
    // Keys of one storefront need to differ from one another and from those of other instances, no more.
    use std::{
        hash::{BuildHasher as _, RandomState},
        sync::atomic::{AtomicU64, Ordering},
    };
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}{:016x}", RandomState::new().hash_one(count), RandomState::new().hash_one(count))
}

#[cfg(test)]
mod tests;
