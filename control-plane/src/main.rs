//! `heddle-control-plane`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_certs::SystemClock;
use heddle_control_plane::{
    app::{self, App},
    config::{Config, written::Flags},
};
use heddle_runtime::{descriptors, signal, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// Its text is that of the flags.
#[derive(Parser)]
#[command(name = "heddle-control-plane", version, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Make another admin token while the control plane does not run, for whoever has lost the first one, which stays
    /// valid until it is deleted, and write a context with it to the context file.
    AdminToken(Flags),
    /// Show the context that the first start wrote for the admin, with its token: in a cluster, where nobody else sees
    /// that file, `kubectl exec` of this command hands it over.
    Context(Flags),
}

#[tokio::main]
async fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.command {
        Some(Other::AdminToken(flags)) => admin_token(flags).await,
        Some(Other::Context(flags)) => show_context(flags),
        None => run(line.flags).await,
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::say(&format!("heddle-control-plane: {error:#}"));
            ExitCode::FAILURE
        }
    };
    telemetry::flush();
    code
}

fn config(flags: Flags) -> anyhow::Result<Config> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    Ok(Config::new(flags.merge()?, home)?)
}

async fn admin_token(flags: Flags) -> anyhow::Result<()> {
    let written = app::admin_token(&config(flags)?, SystemClock::shared()).await?;
    println!("made another admin token; it is in context {} of {}", written.name, written.path.display());
    println!(
        "those of before are valid still; `heddle api-token list` shows them, `heddle api-token delete` ends a lost one"
    );
    if let Some((old, new)) = written.renamed {
        println!("context {old}, of the same address, is kept, and is called {new} now");
    }
    if let Some(current) = written.current {
        println!("the current context is still {current}; `heddle context use {}` changes that", written.name);
    }
    Ok(())
}

fn show_context(flags: Flags) -> anyhow::Result<()> {
    let file = config(flags)?.context_file.context("there is no home folder; name the file with --context-file")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("the context file {}", file.display()))?;
    print!("{text}");
    Ok(())
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let config = config(flags)?;
    telemetry::init_logging(&config.log, config.log_format).context("setting log")?;
    descriptors::raise(App::DESCRIPTORS, "as many connections may come in, of proxies and for the API");
    // It may wait for a Kubernetes API server.
    let app = tokio::select! {
        app = App::start(config) => app?,
        signal = signal::shutdown() => {
            tracing::info!(signal = %signal?, "stopped while it started");
            return Ok(());
        }
    };
    tokio::select! {
        signal = signal::shutdown() => tracing::info!(signal = %signal?, "stopping"),
        failure = app.failed() => return Err(failure.into()),
    }
    tokio::select! {
        () = app.shutdown() => Ok(()),
        _ = signal::shutdown() => anyhow::bail!("stopped at once by a second signal"),
    }
}
