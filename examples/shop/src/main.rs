//! A small shop: four services with no mesh code in them, and the demo that runs them in a mesh.
//!
//! `storefront` (HTTP) sells; it calls `orders` (HTTP), which runs each order as a saga over
//! `inventory` (gRPC) and `payments` (HTTP). `demo` shows all of it in a mesh of its own.

mod books;
mod database;
mod demo;
mod inventory;
mod orders;
mod payments;
mod propagate;
mod service;
mod sick;
mod storefront;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "shop", about = "A small shop of services, and the demo that runs it in a mesh", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the shop's customers.
    Storefront(storefront::Args),
    /// Take orders and see them through.
    Orders(orders::Args),
    /// Charge cards.
    Payments(payments::Args),
    /// Keep the stock.
    Inventory(inventory::Args),
    /// Run all of it in a mesh on this machine, and prove what happened.
    Demo(demo::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // The one TLS implementation of the workspace; a service that calls plain URLs only never uses it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    service::init_logging();
    match run(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let stop = service::shutdown_token()?;
    match command {
        Command::Storefront(args) => storefront::run(args, stop).await,
        Command::Orders(args) => orders::run(args, stop).await,
        Command::Payments(args) => payments::run(args, stop).await,
        Command::Inventory(args) => inventory::run(args, stop).await,
        Command::Demo(args) => Box::pin(demo::run(args, stop)).await,
    }
}
