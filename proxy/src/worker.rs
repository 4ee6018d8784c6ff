//! Threads that carry traffic.
//!
//! Each has a runtime of its own and shares nothing that is written on the way of a request but the sums that
//! policy limits ([`crate::cluster::totals`]): pools, balancers, breakers and counters are its own. A connection is given to the worker with the fewest,
//! before its first byte is read, and stays there.

#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use futures_util::FutureExt;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpStream,
    runtime::{Builder, LocalOptions},
    sync::mpsc,
    task::spawn_local,
    time::{Duration, interval, sleep},
};

use crate::{
    cluster::{Clusters, totals::Totals},
    config::Limits,
    connect::{Pool, Target},
    discovery::Discovery,
    exchange::Sink,
    identity::Identity,
    inbound,
    learned::{self, Learned},
    lifecycle::Lifecycle,
    listener::{Arrival, Listener, Role},
    outbound,
    telemetry::{Signals, Telemetry},
    trace_context::Sampler,
};

/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Least time between two looks at what is open, as what is believed changes.
const RECHECK: Duration = Duration::from_millis(50);
/// Accepted connections on their way to another worker.
const HANDED_OVER: usize = 256;

/// What all workers know.
#[derive(Clone, Debug)]
pub struct Common {
    /// What is believed of the mesh.
    pub discovery: Discovery,
    /// Who this proxy is.
    pub identity: Identity,
    /// Which traces are exported.
    pub sampler: Sampler,
    /// What is counted where no outcome tells.
    pub signals: Signals,
    /// When to end.
    pub life: Lifecycle,
    /// What a peer or the app may use up.
    pub limits: Limits,
    /// This proxy's name in `Via`.
    pub instance: Arc<str>,
    /// Where this proxy listens.
    pub own_listeners: Arc<[SocketAddr]>,
    /// What destinations were found to speak.
    pub learned: Learned,
    /// What all workers have in use of each cluster.
    pub totals: Totals,
}

/// One worker, as its connections see it.
pub(crate) struct Worker {
    pub(crate) common: Common,
    pub(crate) sink: Sink,
    pub(crate) clusters: Clusters,
    pub(crate) rng: RefCell<SmallRng>,
    /// What destinations were found to speak.
    pub(crate) learned: Arc<learned::Shard>,
    /// For when policy changes.
    pub(crate) inbound: inbound::Connections,
    /// For when policy changes, or what is behind a name.
    pub(crate) tunnels: outbound::Tunnels,
    /// What connections of the app were made for.
    pub(crate) names: outbound::Names,
    /// Connections to the app, by its address; it has few.
    apps: RefCell<Vec<(SocketAddr, Rc<Pool>)>>,
}

/// The way to a worker.
#[derive(Clone)]
pub(crate) struct Handle {
    /// `None`: the one that accepts.
    sender: Option<mpsc::Sender<(std::net::TcpStream, Arrival)>>,
    load: Arc<AtomicUsize>,
}

/// Counts a connection where it is served.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// Starts as many workers. They end with the process, or when nothing refers to the listeners and their
/// connections have ended.
///
/// # Errors
/// The system gives no thread or runtime.
pub fn start(
    workers: usize,
    common: &Common,
    telemetry: &Telemetry,
    listeners: Vec<(Role, std::net::TcpListener)>,
) -> io::Result<()> {
    let mut handles = vec![Handle { sender: None, load: Arc::default() }];
    for number in 1..workers {
        let (sender, arrivals) = mpsc::channel(HANDED_OVER);
        handles.push(Handle { sender: Some(sender), load: Arc::default() });
        spawn(number, common.clone(), telemetry.clone(), move |worker| serve_handed_over(worker, arrivals))?;
    }
    spawn(0, common.clone(), telemetry.clone(), move |worker| accept_all(worker, listeners, handles))
}

/// Runs a worker's main task on a thread of its own.
fn spawn<F>(
    number: usize,
    common: Common,
    telemetry: Telemetry,
    main: impl FnOnce(Rc<Worker>) -> F + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = ()> + 'static,
{
    let runtime = Builder::new_current_thread();
    thread::Builder::new().name(format!("heddle-worker-{number}")).spawn(move || {
        let mut runtime = runtime;
        match runtime.enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(async move {
                let recorder = telemetry.recorder();
                let sink: Sink = Rc::new(move |outcome| recorder.record(outcome));
                let worker = Rc::new(Worker::new(common, sink));
                worker.start();
                main(worker).await;
            }),
            Err(error) => tracing::error!(%error, number, "the system gives no runtime to a worker"),
        }
    })?;
    Ok(())
}

async fn accept_all(worker: Rc<Worker>, listeners: Vec<(Role, std::net::TcpListener)>, handles: Vec<Handle>) {
    let handles: Rc<[Handle]> = handles.into();
    for (role, listener) in listeners {
        match Listener::new(role, listener, &worker.common) {
            Ok(listener) => _ = spawn_local(listener.run(worker.clone(), handles.clone())),
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    std::future::pending::<()>().await;
}

async fn serve_handed_over(worker: Rc<Worker>, mut arrivals: mpsc::Receiver<(std::net::TcpStream, Arrival)>) {
    while let Some((socket, arrival)) = arrivals.recv().await {
        match TcpStream::from_std(socket) {
            Ok(socket) => worker.serve(socket, arrival),
            Err(error) => tracing::warn!(%error, "an accepted connection cannot be used"),
        }
    }
    std::future::pending::<()>().await;
}

async fn sweep(worker: Rc<Worker>) {
    let mut ticks = interval(SWEEP);
    loop {
        ticks.tick().await;
        worker.clusters.sweep();
        worker.names.sweep(&worker.common.discovery);
        worker.inbound.tell_ended("inbound");
        worker.tunnels.tell_ended("outbound");
        let mut apps = worker.apps.borrow_mut();
        apps.retain(|(_, pool)| {
            pool.sweep(inbound::APP_IDLE);
            pool.len() > 0 || Rc::strong_count(pool) > 1
        });
    }
}

/// What is under way and no longer allowed ends.
async fn follow_policy(worker: Rc<Worker>) {
    let discovery = &worker.common.discovery;
    let mut changed = discovery.changed();
    let mut believed = discovery.snapshot();
    while changed.changed().await.is_ok() {
        let before = std::mem::replace(&mut believed, discovery.snapshot());
        inbound::recheck(&worker.inbound, &before, &believed).await;
        outbound::recheck(&worker.tunnels, discovery).await;
        // However many changes come, connections are not looked at without end.
        sleep(RECHECK).await;
    }
}

impl Worker {
    pub(crate) fn new(common: Common, sink: Sink) -> Self {
        Self {
            sink,
            clusters: Clusters::new(
                &common.discovery,
                &common.identity,
                common.limits,
                &common.totals,
                common.own_listeners.clone(),
            ),
            rng: RefCell::new(SmallRng::from_os_rng()),
            learned: common.learned.shard(),
            inbound: inbound::Connections::default(),
            tunnels: outbound::Tunnels::default(),
            names: outbound::Names::default(),
            apps: RefCell::default(),
            common,
        }
    }

    /// Begins what goes on beside connections.
    pub(crate) fn start(self: &Rc<Self>) {
        spawn_local(sweep(self.clone()));
        spawn_local(follow_policy(self.clone()));
        spawn_local(inbound::follow_roots(self.clone()));
    }

    /// Serves an accepted connection on this thread.
    pub(crate) fn serve(self: &Rc<Self>, socket: TcpStream, arrival: Arrival) {
        let worker = self.clone();
        let arrival = Rc::new(arrival);
        spawn_local(async move {
            let serving = async {
                match &arrival.role {
                    Role::Inbound => inbound::serve_connection(worker, socket, arrival.clone()).await,
                    Role::HttpProxy | Role::Upstream(_) | Role::Captured => {
                        outbound::serve_connection(worker, socket, arrival.clone()).await;
                    }
                }
            };
            // A bug costs one connection.
            if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
                tracing::error!(peer = %arrival.peer, role = ?arrival.role, "a connection's task has panicked");
            }
        });
    }

    /// The connections to the app at this address.
    pub(crate) fn app(&self, address: SocketAddr) -> Rc<Pool> {
        let mut apps = self.apps.borrow_mut();
        if let Some((_, pool)) = apps.iter().find(|(known, _)| *known == address) {
            return pool.clone();
        }
        let pool = Pool::new(Target::plain(address), &self.common.identity);
        apps.push((address, pool.clone()));
        pool
    }
}

impl Handle {
    /// The only worker.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn alone() -> Rc<[Self]> {
        Rc::new([Self { sender: None, load: Arc::default() }])
    }

    /// Hands a connection to the worker that has the fewest.
    pub(crate) fn dispatch(all: &[Self], worker: &Rc<Worker>, socket: TcpStream, mut arrival: Arrival) {
        let least = all.iter().min_by_key(|handle| handle.load.load(Ordering::Relaxed));
        let Some(handle) = least else { return };
        arrival.load = Some(Load::new(&handle.load));
        let Some(sender) = &handle.sender else {
            worker.serve(socket, arrival);
            return;
        };
        // What does not fit into a full queue is served here.
        match sender.try_reserve() {
            Ok(place) => match socket.into_std() {
                Ok(socket) => place.send((socket, arrival)),
                Err(error) => tracing::warn!(%error, "an accepted connection cannot be handed over"),
            },
            Err(_) => {
                arrival.load = all.iter().find(|handle| handle.sender.is_none()).map(|own| Load::new(&own.load));
                worker.serve(socket, arrival);
            }
        }
    }
}

impl Load {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(of.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
