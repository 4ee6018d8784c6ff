//! Inventory: a gRPC service that holds stock for orders.

mod store;

use std::path::PathBuf;

use axum::{Router, routing::get};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

pub(crate) use store::{SCHEMA, StockRow, Store};

use crate::{
    database::Database,
    service::{self, ServeArgs},
};

/// Generated from `proto/shop/inventory/v1/inventory.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]
pub(crate) mod proto {
    tonic::include_proto!("shop.inventory.v1");
}

use proto::{
    ConfirmReply, ConfirmRequest, ListProductsReply, ListProductsRequest, ReleaseReply, ReleaseRequest, ReserveReply,
    ReserveRequest,
    inventory_server::{Inventory, InventoryServer},
};

/// Settings of inventory.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
    /// The database, made with the shop's goods if it does not exist.
    #[arg(long, env = "SHOP_DB", default_value = "inventory.db")]
    db: PathBuf,
}

/// Runs until `stop`.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let store = Store::new(Database::open(&args.db, SCHEMA).await?);
    service::serve(&args.serve, router(store), stop).await
}

/// The gRPC service, and a health check over HTTP.
pub(crate) fn router(store: Store) -> Router {
    Routes::new(InventoryServer::new(Service { store })).into_axum_router().route("/healthz", get(|| async { "ok\n" }))
}

struct Service {
    store: Store,
}

#[tonic::async_trait]
impl Inventory for Service {
    async fn list_products(&self, _: Request<ListProductsRequest>) -> Result<Response<ListProductsReply>, Status> {
        Ok(Response::new(ListProductsReply { products: self.store.products().await? }))
    }

    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveReply>, Status> {
        let ReserveRequest { reservation, lines } = request.into_inner();
        let total_cents = self.store.reserve(reservation, lines).await?;
        Ok(Response::new(ReserveReply { total_cents }))
    }

    async fn confirm(&self, request: Request<ConfirmRequest>) -> Result<Response<ConfirmReply>, Status> {
        self.store.confirm(request.into_inner().reservation).await?;
        Ok(Response::new(ConfirmReply {}))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseReply>, Status> {
        self.store.release(request.into_inner().reservation).await?;
        Ok(Response::new(ReleaseReply {}))
    }
}

#[cfg(test)]
mod tests;
