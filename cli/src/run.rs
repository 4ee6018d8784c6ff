//! `heddle run`: a command with a sidecar beside it.
//!
//! 1. [`plan`] finds out what the sidecar serves and gets a join token for it;
//! 2. [`sidecar`] starts `heddle-proxy` and waits until it is ready;
//! 3. the command starts, with the variables that lead its calls through the sidecar;
//! 4. signals are passed on, a sidecar that dies is started again;
//! 5. after the command has ended, the sidecar drains, and the command's exit code is returned.

mod plan;
mod restart;
mod sidecar;
mod signals;

use std::{ffi::OsString, io, net::SocketAddr, ops::ControlFlow, path::PathBuf, process::ExitStatus};

use clap::Args;
use heddle_api::resource::Duration;
use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use self::{
    plan::{PortMapping, UpstreamMapping},
    restart::Restarts,
    sidecar::{Addresses, Sidecar},
    signals::Signals,
};
use crate::{
    args::Namespace,
    commands::Session,
    error::{Error, exit},
    output,
};

/// How `heddle` finds the API and what lets it in.
const API_ENVIRONMENT: [&str; 5] = ["HEDDLE_TOKEN", "HEDDLE_CONFIG", "HEDDLE_CONTEXT", "HEDDLE_ADDRESS", "HEDDLE_CA"];

/// `heddle run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Service that the command serves.
    #[arg(long, value_name = "NAME[.NS]", required_unless_present_any = ["account", "join"])]
    service: Option<String>,
    /// Service account to run as; default: the service's. Without --service the command only calls others.
    #[arg(long, value_name = "ACCOUNT[.NS]")]
    account: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Port on which the command listens, after the service's port that leads there; default: as
    /// the service says. May be repeated.
    #[arg(long = "port", value_name = "[SERVICE_PORT:]APP_PORT", requires = "service")]
    ports: Vec<PortMapping>,
    /// Local port that leads to a service, for what knows no HTTP proxy (gRPC, databases). May be repeated.
    #[arg(long = "upstream", value_name = "NAME[:PORT]=LOCAL_PORT")]
    upstreams: Vec<UpstreamMapping>,
    /// Local port of the HTTP proxy; default: a free one.
    #[arg(long, value_name = "PORT")]
    http_proxy: Option<u16>,
    /// Join file from `heddle token create`; default: one is asked for.
    #[arg(long, value_name = "FILE")]
    join: Option<PathBuf>,
    /// Label of this workload. May be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Availability zone of this workload.
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Name of this workload, unique in its namespace; default: made up.
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Where the sidecar takes calls from its peers.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    inbound: SocketAddr,
    /// Address under which peers reach it, where that is another.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<String>,
    /// Keep the sidecar's key, certificate and last configuration here; default: nowhere.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Any other setting of the sidecar, e.g. `drain.deadline=10s`. May be repeated.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    settings: Vec<String>,
    /// Where the sidecar's log goes; `-` is standard error. Default: nowhere, or with no command to standard error.
    #[arg(long, value_name = "FILE")]
    proxy_log: Option<PathBuf>,
    /// Leave HEDDLE_TOKEN and the other variables that lead to the control plane's API in the command's
    /// environment, for one that calls `heddle` itself.
    #[arg(long)]
    keep_heddle_env: bool,
    /// How long to wait for the sidecar.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    ready_timeout: Duration,
    /// The command; without one, only the sidecar runs.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Why the sidecar or the command did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// No binary.
    #[error("heddle-proxy is neither beside heddle nor in PATH")]
    NoProxy,
    /// The binary does not start.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The sidecar ended before it was ready.
    #[error("the sidecar ended ({status}) before it was ready{}", tail(.log))]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// The sidecar was not ready in time.
    #[error("the sidecar is not ready after {after}: {missing}{}", tail(.log))]
    NotReady {
        /// How long it had.
        after: Duration,
        /// What it waits for.
        missing: String,
        /// The last lines of its log.
        log: String,
    },
    /// The command does not start.
    #[error("cannot start {}", program.display())]
    Command {
        /// What was typed.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The service has no such port, or several.
    #[error("{0}")]
    Port(String),
    /// Something that `run` needs before it can start the command.
    #[error("{0}")]
    Before(Box<Error>),
    /// Signals or temporary files cannot be had.
    #[error("cannot prepare the run")]
    Prepare(#[source] io::Error),
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its log ends:\n{log}") }
}

impl RunError {
    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NO_COMMAND,
            Self::Command { .. } => exit::NOT_EXECUTABLE,
            _ => exit::SIDECAR,
        }
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoProxy => Some("put it there, or set HEDDLE_PROXY to its path".to_owned()),
            Self::Ended { .. } | Self::NotReady { .. } => {
                Some("`--proxy-log FILE` keeps its whole log, HEDDLE_LOG=debug makes it talk more".to_owned())
            }
            Self::Port(_) => Some("say which with --port SERVICE_PORT:APP_PORT".to_owned()),
            _ => None,
        }
    }
}

/// Runs a command with a sidecar beside it.
pub(crate) async fn run(session: impl Fn() -> Result<Session, Error>, args: RunArgs) -> Result<u8, Error> {
    let mut signals = Signals::new().map_err(RunError::Prepare)?;
    let mut sidecar = match start(session, &args, &mut signals).await {
        Ok(Started::Ready(sidecar)) => sidecar,
        Ok(Started::Interrupted(signal)) => return Ok(signalled(signal.as_raw())),
        // A code of the command's own could be mistaken for one of ours.
        Err(error @ Error::Run(_)) => return Err(error),
        Err(error) if !args.command.is_empty() => return Err(RunError::Before(Box::new(error)).into()),
        Err(error) => return Err(error),
    };
    let outcome = if args.command.is_empty() {
        alone(&args, &mut sidecar, &mut signals).await
    } else {
        let outcome = beside(&args, &mut sidecar, &mut signals).await;
        sidecar.command_gone().await;
        outcome
    };
    sidecar.stop(&mut signals).await;
    outcome
}

enum Started {
    Ready(Box<Sidecar>),
    Interrupted(Signal),
}

async fn start(
    session: impl Fn() -> Result<Session, Error>,
    args: &RunArgs,
    signals: &mut Signals,
) -> Result<Started, Error> {
    let prepare = async {
        let plan = plan::plan(session, args).await?;
        Sidecar::start(plan, args)
    };
    let mut sidecar = tokio::select! {
        prepared = prepare => prepared?,
        signal = signals.next() => return Ok(Started::Interrupted(signal)),
    };
    let ready = tokio::select! {
        ready = sidecar.ready(args.ready_timeout) => ready.map(|()| None),
        signal = signals.next() => Ok(Some(signal)),
    };
    match ready {
        Ok(None) => Ok(Started::Ready(Box::new(sidecar))),
        Ok(Some(signal)) => {
            sidecar.stop(signals).await;
            Ok(Started::Interrupted(signal))
        }
        Err(error) => {
            sidecar.stop(signals).await;
            Err(error.into())
        }
    }
}

/// The sidecar alone, until it ends or a signal comes.
async fn alone(args: &RunArgs, sidecar: &mut Sidecar, signals: &mut Signals) -> Result<u8, Error> {
    let addresses = sidecar.addresses();
    let app = match &args.service {
        Some(service) => format!("; {service} gets calls here once an app that you start yourself listens"),
        None => String::new(),
    };
    output::complain(&format!(
        "heddle: no command was given, so only the sidecar runs{app} (`heddle run ... -- CMD` starts one beside it)\n"
    ));
    output::complain(&format!(
        "heddle: the sidecar is ready; calls go through http_proxy={}\n",
        addresses.http_proxy_url()
    ));
    for (name, address) in &addresses.upstreams {
        output::complain(&format!("heddle: {name} is at {address}\n"));
    }
    tokio::select! {
        status = sidecar.ended() => Ok(code(status)),
        _ = signals.next() => Ok(exit::OK),
    }
}

/// The command and its sidecar, until the command ends.
async fn beside(args: &RunArgs, sidecar: &mut Sidecar, signals: &mut Signals) -> Result<u8, Error> {
    let mut child = spawn(args, sidecar.addresses())?;
    let mut stopping = false;
    let mut restarts = Restarts::new(Instant::now());
    let mut again = None;
    loop {
        tokio::select! {
            status = child.wait() => return ended(status),
            signal = signals.next() => {
                let first = signals::ends(signal) && !std::mem::replace(&mut stopping, true);
                if first && args.service.is_some() && !signals::from_terminal(signal) {
                    match withdraw(sidecar, signals, &mut child).await {
                        ControlFlow::Break(status) => return ended(status),
                        ControlFlow::Continue(Some(other)) if other != signal => signals::pass_on(other, &child),
                        ControlFlow::Continue(_) => {}
                    }
                }
                signals::pass_on(signal, &child);
            }
            status = sidecar.ended(), if !stopping && again.is_none() => {
                let pause = restarts.ended(Instant::now());
                output::complain(&format!("heddle: the sidecar ended ({status}); starting it again in {pause:?}\n"));
                again = Some(Instant::now() + pause);
            }
            () = until(again), if !stopping && again.is_some() => {
                again = None;
                if let Err(error) = sidecar.restart() {
                    output::complain(&format!("heddle: {error}\n"));
                }
            }
        }
    }
}

/// Sleeps until then.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Peers must have stopped calling before the command stops serving. Who cannot wait for that sends
/// another signal to end; it is returned. Breaks if the command ends meanwhile.
async fn withdraw(
    sidecar: &Sidecar,
    signals: &mut Signals,
    child: &mut Child,
) -> ControlFlow<io::Result<ExitStatus>, Option<Signal>> {
    let withdrawn = sidecar.withdraw();
    tokio::pin!(withdrawn);
    loop {
        tokio::select! {
            status = child.wait() => return ControlFlow::Break(status),
            () = &mut withdrawn => return ControlFlow::Continue(None),
            signal = signals.next() => {
                if signals::ends(signal) {
                    return ControlFlow::Continue(Some(signal));
                }
                signals::pass_on(signal, child);
            }
        }
    }
}

fn ended(status: io::Result<ExitStatus>) -> Result<u8, Error> {
    Ok(code(status.map_err(RunError::Prepare)?))
}

fn spawn(args: &RunArgs, addresses: &Addresses) -> Result<Child, RunError> {
    let program = PathBuf::from(&args.command[0]);
    let mut command = Command::new(&program);
    command.args(&args.command[1..]);
    if !args.keep_heddle_env {
        // Who may change the mesh is none of the command's business, nor of its crash dumps.
        for name in API_ENVIRONMENT {
            command.env_remove(name);
        }
    }
    for (name, value) in plan::environment(addresses, |name| std::env::var(name).ok()) {
        command.env(name, value);
    }
    command.spawn().map_err(|source| RunError::Command { program, source })
}

/// An exit code, or 128+n for signal n, as shells have it.
fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => signalled(signal),
        (None, None) => exit::REFUSED,
    }
}

fn signalled(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
