//! What the control plane says, as a [`Snapshot`]: destinations are subscribed to when the
//! application first dials them, and dropped when nobody has for a while.
//!
//! [`Discovery`] is the handle of the request path. Behind it one task (`stream`) speaks with the
//! control plane; what it believes and asks for is a state machine without IO (`table`).

mod compile;
mod stream;
mod table;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use self::table::LastUsed;
pub(crate) use self::{
    stream::{Client, Connect, Status},
    table::{AcceptBundle, InUse, Origin, Own, Table},
};
use crate::{
    config::DialName,
    outcome::{Error, ErrorKind},
    snapshot::{ClusterName, Destination, Endpoints, Service, ServiceName, Snapshot},
};

/// Destinations that may wait to be noted by the task.
const QUEUE: usize = 1024;
/// What goes to this port of a host, the app encrypts itself.
const HTTPS: u16 = 443;

/// Handle to what is known of the mesh; cheap to clone, shared by all threads.
#[derive(Clone)]
pub struct Discovery {
    shared: Arc<Shared>,
}

struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Usage marks of destinations. Replaced only when destinations come or go.
    usage: ArcSwap<HashMap<String, Arc<LastUsed>>>,
    /// Of the snapshot.
    version: AtomicU64,
    changed: watch::Sender<u64>,
    commands: mpsc::Sender<Command>,
    /// Why no answer comes, if the control plane cannot be reached.
    trouble: RwLock<Option<Arc<str>>>,
    started: Instant,
    namespace: String,
    wait: Duration,
}

/// What the task is asked to do.
enum Command {
    /// Subscribe to a destination.
    Dial(String),
    /// Say what is believed.
    Dump(oneshot::Sender<serde_json::Value>),
    /// Hand over what is to be kept.
    Saved(oneshot::Sender<Vec<u8>>),
    /// Give up the connection and make a new one.
    Reconnect,
}

/// What a dialled name leads to.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// This port of a service of the mesh.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port dialled, which the service may not have.
        port: u16,
        /// The one instance that was dialled, if it was.
        instance: Option<SocketAddr>,
    },
    /// Nothing of the mesh, and policy lets it be dialled as it is.
    Outside,
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

impl Discovery {
    /// A handle, and the end for the task that fills it. `namespace` completes bare names; `wait` is
    /// how long a connection waits for the first word about its destination.
    pub(crate) fn new(namespace: &str, wait: Duration) -> (Self, Feed) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::default(),
            usage: ArcSwap::default(),
            version: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            commands,
            trouble: RwLock::new(Some("not connected yet".into())),
            started: Instant::now(),
            namespace: namespace.to_owned(),
            wait,
        });
        (Self { shared: Arc::clone(&shared) }, Feed { shared, commands: receiver })
    }

    /// A handle that holds this snapshot for good, for tests of the request path.
    pub fn fixed(snapshot: Snapshot, namespace: &str) -> Self {
        let (discovery, feed) = Self::new(namespace, Duration::from_millis(50));
        let usage = snapshot.destinations.keys().map(|name| (name.clone(), Arc::default())).collect();
        feed.shared.usage.store(Arc::new(usage));
        feed.shared.snapshot.store(Arc::new(snapshot));
        discovery
    }

    /// Another snapshot from now on.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn replace(&self, snapshot: Snapshot) {
        self.shared.snapshot.store(Arc::new(snapshot));
        self.shared.tell_changed();
    }

    /// Whether a connection keeps this destination, for tests.
    #[cfg(test)]
    pub(crate) fn is_kept(&self, full: &str) -> bool {
        self.shared.usage.load().get(full).is_some_and(|used| used.is_in_use())
    }

    /// What this proxy believes now. Lock-free.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Grows with each new snapshot. What was read of a snapshot after asking for this holds as long as this stays
    /// the same.
    pub(crate) fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    /// Tells of each new snapshot; open streams check their policy again then.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// What a name leads to: at once if it is known, else after asking the control plane, for at
    /// most the time that is set (2 s). A name without a dot is completed with the proxy's namespace.
    /// Marks the destination as used.
    ///
    /// # Errors
    /// `UnknownDestination` (of the mesh, but no service), `UnknownPort` (a service without it), `EgressDenied`
    /// (outside the mesh), `DiscoveryTimeout` (no answer in time), `NotReady` (nothing is known of the mesh yet).
    pub async fn resolve(&self, name: &DialName) -> Result<Resolved, Error> {
        let full = self.complete(name);
        let snapshot = self.shared.snapshot.load();
        if let Some(known) = self.known(&snapshot, name, &full) {
            self.mark(&full);
            return known;
        }
        drop(snapshot);
        Box::pin(self.ask(name, full)).await
    }

    /// The rare way: nobody has dialled it before.
    async fn ask(&self, name: &DialName, full: String) -> Result<Resolved, Error> {
        let until = Instant::now() + self.shared.wait;
        // Before the question: the answer is not to be missed.
        let mut changed = self.changed();
        if self.shared.commands.send(Command::Dial(full.clone())).await.is_err() {
            return Err(Error::new(
                ErrorKind::DiscoveryTimeout,
                format!("{full} is not known, and discovery has ended"),
            ));
        }
        loop {
            changed.borrow_and_update();
            if let Some(known) = self.known(&self.shared.snapshot.load(), name, &full) {
                return known;
            }
            if !matches!(timeout_at(until, changed.changed()).await, Ok(Ok(()))) {
                return Err(Error::new(ErrorKind::DiscoveryTimeout, self.no_answer(&full)));
            }
        }
    }

    fn no_answer(&self, full: &str) -> String {
        let trouble = self.shared.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
        let waited = self.shared.wait.as_millis();
        match trouble {
            Some(trouble) => format!("the control plane said nothing of {full} within {waited} ms: {trouble}"),
            None => format!("the control plane said nothing usable of {full} within {waited} ms"),
        }
    }

    /// What the snapshot says of a name, if anything.
    fn known(&self, snapshot: &Snapshot, name: &DialName, full: &str) -> Option<Result<Resolved, Error>> {
        Some(match snapshot.destinations.get(full)? {
            Destination::Service { service, port, instance } => {
                let service = Arc::clone(snapshot.services.get(service)?);
                Ok(Resolved::Service { service, port: *port, instance: *instance })
            }
            Destination::Rejected(reason) => Err(rejected(full, reason)),
            Destination::Unknown => self.outside(snapshot, name, full, Asks::New),
            Destination::Gone => Err(gone(full)),
        })
    }

    /// Whether a name that is no service may be dialled as it is, or a connection to it go on.
    fn outside(&self, snapshot: &Snapshot, name: &DialName, full: &str, asks: Asks) -> Result<Resolved, Error> {
        let Some(mesh) = &snapshot.mesh else {
            return Err(Error::new(ErrorKind::NotReady, format!("whether {full} is of the mesh is not known yet")));
        };
        let service = service_of(full, &mesh.suffixes);
        let known = service.as_ref().and_then(|service| snapshot.services.get(service));
        if let Some(known) = known.filter(|known| !known.ports.contains_key(&name.port)) {
            let ports = known.ports.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let detail = format!("{} has no port {}; it has {ports}", known.name, name.port);
            return Err(Error::new(ErrorKind::UnknownPort, detail));
        }
        let (of_mesh, taken_for) = match (name.host.parse::<IpAddr>(), name.host.split_once('.')) {
            (Ok(ip), _) => (snapshot.is_mesh_address(ip), None),
            // It was completed here, so it is one of the mesh.
            (Err(_), None) => (true, None),
            (Err(_), Some((_, rest))) => {
                let is_meant = rest == self.shared.namespace || mesh.is_below_suffix(&name.host);
                // `x.<namespace>` is far more likely a misspelt neighbour than a host of the internet, and would go there
                // in plaintext; but namespaces are called like domains too (`dev`, `app`). At the port of HTTPS the app
                // itself encrypts; and what is open was meant for a host outside, whoever makes a namespace later.
                let is_guess = name.port != HTTPS && asks == Asks::New;
                let taken_for = Some(rest).filter(|rest| is_guess && !is_meant && mesh.namespaces.contains(*rest));
                (is_meant || taken_for.is_some(), taken_for)
            }
        };
        if of_mesh {
            let detail = match (service, taken_for) {
                (Some(ServiceName { name: service, .. }), Some(namespace)) => format!(
                    "{} is taken for a service of namespace {namespace}, and none is called {service} and has port {}; \
                     if it is a host outside the mesh, a Service with `hosts: [{}]` lets it be dialled",
                    name.host, name.port, name.host
                ),
                // That one of its services has other ports, it is told only with the service.
                (Some(ServiceName { namespace, name: service }), None) => format!(
                    "no service of the mesh is called {service}.{namespace} and has port {}; `heddle get service \
                     {service} -n {namespace}` shows the ports that it has",
                    name.port
                ),
                (None, _) => format!("no service of the mesh is called {full}"),
            };
            Err(Error::new(ErrorKind::UnknownDestination, detail))
        } else if mesh.egress_allow {
            Ok(Resolved::Outside)
        } else {
            Err(Error::new(ErrorKind::EgressDenied, format!("{full} is outside the mesh, and the mesh denies egress")))
        }
    }

    /// A backend's service and its instances; those of every route in the snapshot are there.
    ///
    /// # Errors
    /// `NoBackend` (no such service).
    pub async fn cluster(&self, name: &ClusterName) -> Result<(Arc<Service>, Arc<Endpoints>), Error> {
        let snapshot = self.shared.snapshot.load();
        match (snapshot.services.get(&name.service), snapshot.endpoints.get(&name.service)) {
            (Some(service), Some(endpoints)) => Ok((Arc::clone(service), Arc::clone(endpoints))),
            _ => Err(Error::new(ErrorKind::NoBackend, format!("there is no service {}", name.service))),
        }
    }

    /// Keeps a destination that is known from being forgotten, for connections that live long without resolving
    /// it again.
    pub(crate) fn keep(&self, name: &DialName) -> Option<InUse> {
        let used = self.shared.usage.load().get(self.complete(name).as_str()).cloned()?;
        Some(InUse::new(used, self.shared.started))
    }

    /// As [`Discovery::keep`].
    pub(crate) fn keep_marked(&self, Mark(used): &Mark) -> InUse {
        InUse::new(used.clone(), self.shared.started)
    }

    /// Whether a connection that was made for a name may go on: not where the name is no service's any more, nor,
    /// of one to `outside` the mesh, where policy no longer lets it be dialled.
    ///
    /// # Errors
    /// `UnknownDestination`, `EgressDenied`, as from [`Discovery::resolve`].
    pub(crate) fn still(&self, name: &DialName, outside: bool) -> Result<(), Error> {
        let full = self.complete(name);
        let snapshot = self.shared.snapshot.load();
        match snapshot.destinations.get(&full) {
            Some(Destination::Service { .. }) if outside => {
                let detail = format!("{full} is a service of the mesh now, and this connection leads past its proxy");
                Err(Error::new(ErrorKind::EgressDenied, detail))
            }
            // A new one would be refused as well; what goes past its proxy is not to be.
            Some(Destination::Rejected(reason)) if outside => Err(rejected(&full, reason)),
            // Of an instance that has left, one hears this.
            Some(Destination::Service { .. } | Destination::Rejected(_)) => Ok(()),
            // It may have been forgotten meanwhile.
            None if !outside => Ok(()),
            None | Some(Destination::Unknown) if outside => self.outside(&snapshot, name, &full, Asks::Open).map(drop),
            None | Some(Destination::Unknown | Destination::Gone) => Err(gone(&full)),
        }
    }

    /// Everything believed, with versions and subscriptions, for the admin listener.
    pub async fn dump(&self) -> serde_json::Value {
        let (reply, answer) = oneshot::channel();
        // Either fails only when the task has ended, at the end of the process.
        let _ = self.shared.commands.send(Command::Dump(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// The last good resources, as [`Table::restore`] takes them.
    pub(crate) async fn saved(&self) -> Option<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(Command::Saved(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Has the stream to the control plane made anew: the credentials have changed.
    pub(crate) async fn reconnect(&self) {
        let _ = self.shared.commands.send(Command::Reconnect).await;
    }

    /// What marks a destination as used without looking it up by its name; holds as what the snapshot says does.
    pub(crate) fn marker(&self, name: &DialName) -> Option<Mark> {
        self.shared.usage.load().get(&self.complete(name)).cloned().map(Mark)
    }

    /// Marks a destination as used.
    pub(crate) fn used(&self, Mark(used): &Mark, now: Instant) {
        used.mark((now - self.shared.started).as_secs());
    }

    fn mark(&self, full: &str) {
        if let Some(used) = self.shared.usage.load().get(full) {
            used.mark(self.shared.started.elapsed().as_secs());
        }
    }

    /// The name to subscribe to.
    pub(crate) fn complete(&self, name: &DialName) -> String {
        if name.host.contains(['.', ':']) {
            name.to_string()
        } else {
            format!("{}.{}:{}", name.host, self.shared.namespace, name.port)
        }
    }
}

/// Who asks about a name outside the mesh.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Somebody who dials it.
    New,
    /// A connection to it that is open.
    Open,
}

fn rejected(full: &str, reason: &str) -> Error {
    let detail = format!("what the control plane says of {full} cannot be used: {reason}");
    Error::new(ErrorKind::UnknownDestination, detail)
}

fn gone(full: &str) -> Error {
    Error::new(ErrorKind::UnknownDestination, format!("no service of the mesh is called {full} any more"))
}

/// Says when a destination was used.
#[derive(Debug)]
pub(crate) struct Mark(Arc<LastUsed>);

impl Shared {
    fn tell_changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.send_modify(|version| *version += 1);
    }
}

/// The service that a full name means by its form alone: `service.namespace`, or the same with a suffix of the mesh.
fn service_of(full: &str, suffixes: &[String]) -> Option<ServiceName> {
    let (host, _) = full.rsplit_once(':')?;
    let below = |suffix: &String| host.strip_suffix(suffix.as_str())?.strip_suffix('.');
    let (name, namespace) = suffixes.iter().find_map(below).unwrap_or(host).split_once('.')?;
    let is_one = !name.is_empty() && !namespace.is_empty() && !namespace.contains(['.', ':']);
    is_one.then(|| ServiceName { namespace: namespace.into(), name: name.into() })
}

/// The task's end of a [`Discovery`].
pub(crate) struct Feed {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
}

impl Feed {
    /// Puts what the table believes into effect.
    fn publish(&self, table: &mut Table, now: Instant) {
        self.shared.snapshot.store(Arc::new(table.snapshot(now)));
        self.publish_usage(table);
        self.shared.tell_changed();
    }

    fn publish_usage(&self, table: &Table) {
        self.shared.usage.store(Arc::new(table.usage()));
    }

    fn trouble(&self, reason: Option<&str>) {
        *self.shared.trouble.write().unwrap_or_else(PoisonError::into_inner) = reason.map(Into::into);
    }
}
