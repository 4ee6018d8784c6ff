//! `shop demo`: the shop in a mesh of its own, from the first certificate to the last proof.
//!
//! [`run`] is the table of contents. Nothing here talks to a service past its sidecar, other than to
//! see whether it is up; everything claimed at the end is taken from what the components report
//! themselves: metrics and config dumps of the sidecars, the control plane's API, the spans that reach
//! the collector, and the shop's databases.

mod build;
mod collector;
mod customers;
mod evidence;
mod mesh;
mod metrics;
mod process;
mod report;
mod script;
mod strangers;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use self::{build::Programs, collector::Collector, mesh::Mesh, report::Progress};

/// Settings of the demo.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Where heddle-control-plane, heddle-proxy and heddle are; default: they are built.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Send the traces to this OTLP/gRPC endpoint, such as http://127.0.0.1:4317 of a Jaeger, instead of
    /// to the demo's own collector.
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
}

/// Runs the demo; an error if anything that it claims does not hold.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    println!("A shop in a mesh: storefront -> orders -> payments (v1, v2) and inventory, each beside a sidecar.");
    let programs = tokio::select! {
        programs = programs(&args) => programs?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let progress = Progress::new();
    let folder = tempfile::Builder::new().prefix("heddle-shop-").tempdir().context("no temporary folder")?;
    let end_of_collector = CancellationToken::new();
    let _ends = end_of_collector.clone().drop_guard();
    let (collector, otlp) = match &args.otlp {
        Some(url) => (None, url.clone()),
        None => {
            let (collector, address) = Collector::start(end_of_collector).await?;
            (Some(collector), format!("http://{address}"))
        }
    };

    progress.act("The control plane");
    let mut mesh = tokio::select! {
        mesh = Mesh::start(programs, folder.path(), otlp) => mesh?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    progress.step(format!("is up: API https://{}, mesh {}", mesh.api.api, mesh.api.mesh));

    let played = tokio::select! {
        played = script::play(&mut mesh, collector.as_ref(), progress) => played,
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    if played.is_err() && !stop.is_cancelled() {
        // Told before the folder with the logs is gone.
        progress.act("The demo failed; what the processes complained of last:");
        progress.detail(evidence::last_words(&mesh.logs()));
    } else if args.keep {
        script::show_around(&mesh, &args, progress);
        stop.cancelled().await;
    }
    progress.act("The end");
    let ended = mesh.end().await;
    let removed = folder.close().context("cannot remove the temporary folder");
    played?;
    ended?;
    removed?;
    progress.step("every process has ended, nothing is left behind");
    Ok(())
}

async fn programs(args: &Args) -> anyhow::Result<Programs> {
    match &args.bin_dir {
        Some(folder) => Programs::find(folder),
        None => Programs::build().await,
    }
}
