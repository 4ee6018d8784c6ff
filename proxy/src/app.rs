//! One proxy, put together: listeners bound, what an earlier process left read back, the control side
//! on a thread of its own, workers that carry traffic.

mod addresses;
mod control;
mod drain;
mod link;
mod observe;
mod workload;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    thread,
};

use heddle_certs::SystemClock;
use heddle_runtime::{
    descriptors, process,
    telemetry::{self as log, Format, LogHandle, init_logging},
};
use tokio::sync::watch;

pub use self::addresses::Addresses;
use self::{
    addresses::Listeners,
    control::{Control, Shared},
};
use crate::{
    cluster::totals::Totals,
    config::{Config, file},
    control_plane::causes,
    discovery::Discovery,
    identity::{Identity, Stored},
    learned::Learned,
    lifecycle::{self, Lifecycle, ShutDown},
    state::{StateDir, StateError},
    telemetry::Telemetry,
    worker,
};

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("{setting}: cannot listen on {address}")]
    Bind {
        /// The setting that names the address.
        setting: String,
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The state directory must not be used.
    #[error("stateDir")]
    State(#[from] StateError),
    /// No thread or runtime could be made.
    #[error("the system gives no thread or runtime")]
    Thread(#[from] io::Error),
    /// What an earlier process left makes no credentials.
    #[error("the certificate kept in the state directory cannot be used")]
    Credentials(#[from] heddle_certs::tls::TlsError),
    /// Telemetry cannot be set up.
    #[error("telemetry: {0:#}")]
    Telemetry(anyhow::Error),
}

/// A proxy at work. Dropping it does not end it.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// What it believes.
    pub discovery: Discovery,
    /// Who it is.
    pub identity: Identity,
    /// What it observes.
    pub telemetry: Telemetry,
    drain: watch::Sender<ShutDown>,
    finished: watch::Receiver<bool>,
}

/// The proxy's whole life: settings, logging, start, signals, drain.
pub fn run(flags: &file::Flags) -> ExitCode {
    keep_small();
    let code = live(flags);
    log::flush();
    code
}

fn live(flags: &file::Flags) -> ExitCode {
    let complain = |text: String| {
        log::say(&format!("heddle-proxy: {text}"));
        ExitCode::from(2)
    };
    let config = match file::load(flags) {
        Ok(config) => config,
        Err(error) => return complain(error.to_string()),
    };
    let format = if config.log.json { Format::Json } else { Format::Text };
    let log = match init_logging(&config.log.filter, format) {
        Ok(log) => log,
        Err(error) => return complain(format!("log.filter: {}", causes(&error))),
    };
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let signals = match signals {
        Ok(runtime) => runtime,
        Err(error) => return complain(error.to_string()),
    };
    // From here on a signal drains, even one that comes while the proxy starts.
    let first = signals.spawn(heddle_runtime::signal::shutdown());
    signals.block_on(tokio::task::yield_now());
    if let Some(parent) = flags.parent {
        follow(parent);
    }
    // A few for the process itself.
    let listeners = 1 + config.outbound.captured.len() + usize::from(config.outbound.http_proxy.is_some());
    let listeners = listeners + config.outbound.upstreams.len();
    let needed = (2 * config.limits.max_connections * listeners + 100) as u64;
    let running = match start(config, Some(log)) {
        Ok(running) => running,
        Err(error) => return complain(causes(&error)),
    };
    descriptors::raise(needed, "each connection that a listener takes needs another one onwards");
    signals.block_on(until_the_end(running, first))
}

/// A sidecar stands beside every pod: what it does not use, it must not hold. Of huge pages (2 MiB) each thread's
/// first few allocations would take some.
fn keep_small() {
    // Where the system knows no such pages there is nothing to switch off.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Ends with the process that started this one, whatever ended that.
fn follow(parent: i32) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)) {
        tracing::warn!(%error, "cannot follow the parent process");
    }
    // It may have ended before the line above.
    let is_there = rustix::process::getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent);
    if !is_there {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    }
}

async fn until_the_end(
    running: Running,
    first: tokio::task::JoinHandle<io::Result<heddle_runtime::signal::Shutdown>>,
) -> ExitCode {
    tokio::select! {
        signal = first => match signal {
            Ok(Ok(signal)) => tracing::info!(%signal, "draining; a second signal ends the process at once"),
            failed => tracing::error!(?failed, "signals cannot be received; draining"),
        },
        () = running.finished() => return ExitCode::SUCCESS,
    }
    running.drain();
    tokio::select! {
        () = running.finished() => ExitCode::SUCCESS,
        _ = heddle_runtime::signal::shutdown() => {
            tracing::warn!("a second signal: ending at once");
            ExitCode::FAILURE
        }
    }
}

/// Starts a proxy in this process. `log` is what the admin listener may change.
///
/// # Errors
/// Nothing is left running.
pub fn start(config: Config, log: Option<LogHandle>) -> Result<Running, StartError> {
    // Others in this process may have installed it, or another one, which only reqwest would meet.
    let _ = rustls::crypto::CryptoProvider::install_default((*heddle_certs::tls::provider()).clone());
    let clock = SystemClock::shared();
    let state = config.state_dir.as_deref().map(StateDir::open).transpose()?.map(Arc::new);
    let listeners = Listeners::bind(&config)?;
    let addresses = listeners.addresses()?;
    let identity = Identity::new(Arc::clone(&clock));
    if let Some(state) = &state {
        identity.restore(Stored::load(state, &config.join.identity))?;
    }
    let workload = workload::name(&config, state.as_deref());
    let namespace = config.join.identity.as_workload().map(|(namespace, _)| namespace.to_owned()).unwrap_or_default();
    let (discovery, feed) = Discovery::new(&namespace, config.discovery.wait);
    let (stages, life) = lifecycle::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("heddle-blocking").build()?;
    let telemetry = {
        // Exporters live on the control side's runtime.
        let _entered = runtime.enter();
        Telemetry::new(workload::resource(&config, &namespace, &workload), &workload::tracing(&config))
            .map_err(StartError::Telemetry)?
    };
    let of_process = process::register(telemetry.registry()).and(log::register(telemetry.registry()));
    of_process.map_err(|error| StartError::Telemetry(error.into()))?;
    let drain = watch::Sender::new(ShutDown::No);
    let (finished, has_finished) = watch::channel(false);
    let Listeners { traffic, admin, health } = listeners;
    let shared = Shared {
        config,
        workload,
        namespace,
        clock,
        state,
        identity: identity.clone(),
        discovery: discovery.clone(),
        telemetry: telemetry.clone(),
        learned: Learned::default(),
        addresses: addresses.clone(),
        log,
        drain: drain.clone(),
    };
    let shared = Arc::new(shared);
    start_workers(&shared, traffic, &life)?;
    let control = Control { shared: Arc::clone(&shared), feed, stages, life, admin, health };
    thread::Builder::new().name("heddle-control".to_owned()).spawn(move || {
        runtime.block_on(control.run());
        finished.send_replace(true);
        // Whatever still hangs in a blocking call is not waited for.
        runtime.shutdown_background();
    })?;
    addresses::write(&addresses, shared.state.as_deref());
    tracing::info!(%addresses, workload = shared.workload, "the proxy is up");
    Ok(Running { addresses, discovery, identity, telemetry, drain, finished: has_finished })
}

fn start_workers(
    shared: &Shared,
    traffic: Vec<(addresses::Role, TcpListener)>,
    life: &Lifecycle,
) -> Result<(), StartError> {
    let traffic: Vec<_> = traffic.into_iter().map(|(role, listener)| (role.into(), listener)).collect();
    let common = worker::Common {
        discovery: shared.discovery.clone(),
        identity: shared.identity.clone(),
        sampler: shared.telemetry.sampler().clone(),
        signals: shared.telemetry.signals(),
        life: life.clone(),
        limits: shared.config.limits,
        instance: format!("{}.{}", shared.workload, shared.namespace).into(),
        own_listeners: shared.addresses.all().into(),
        learned: shared.learned.clone(),
        totals: Totals::default(),
    };
    Ok(worker::start(shared.config.workers.get(), &common, &shared.telemetry, traffic)?)
}

impl Running {
    /// Begins to shut down, as SIGTERM does.
    pub fn drain(&self) {
        self.drain.send_modify(|asked| *asked = ShutDown::All.max(*asked));
    }

    /// Waits until it has shut down.
    pub async fn finished(&self) {
        let mut finished = self.finished.clone();
        // The other end is gone when its thread has ended otherwise.
        let _ = finished.wait_for(|finished| *finished).await;
    }
}
