//! `heddle-control-plane`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use heddle_control_plane::{
    app::App,
    config::{Config, written::Flags},
};
use heddle_runtime::{signal, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let code = match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::say(&format!("heddle-control-plane: {error:#}"));
            ExitCode::FAILURE
        }
    };
    telemetry::flush();
    code
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let config = Config::new(flags.merge()?, home)?;
    telemetry::init_logging(&config.log, config.log_format).context("setting log")?;
    let app = App::start(config).await?;
    tokio::select! {
        signal = signal::shutdown() => tracing::info!(signal = %signal?, "stopping"),
        failure = app.failed() => return Err(failure.into()),
    }
    tokio::select! {
        () = app.shutdown() => Ok(()),
        _ = signal::shutdown() => anyhow::bail!("stopped at once by a second signal"),
    }
}
