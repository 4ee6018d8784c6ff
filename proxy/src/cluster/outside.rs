//! Destinations outside the mesh, where policy lets them be called: one cluster for each name, its
//! endpoints what DNS says.
//!
//! A name is looked up once, however many ask for it at a time. What is known of it is used at once and
//! looked up again beside that; while DNS does not answer, what it said before is better than nothing, for a while.

mod lookup;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use tokio::{
    task::spawn_local,
    time::{Duration, Instant},
};

use self::lookup::{Failed, Lookups};
use super::{Cluster, Clusters, totals::Totals};
use crate::{
    config::{self, DialName},
    discovery::Discovery,
    identity::Identity,
    listener,
    outcome::{Error, ErrorKind},
    snapshot::{
        Balancing, ClusterName, Endpoint, Endpoints, Limits, Mesh, OutlierDetection, Protocol, RetryPolicy, Service,
        ServiceName, ServicePort, Snapshot, TrafficPolicy,
    },
};

/// How long an answer of DNS is believed. Its own lifetime is not told by the system's resolver.
const BELIEVED: Duration = Duration::from_secs(15);
/// How long it is used while it is looked up again.
const STALE: Duration = Duration::from_secs(600);
/// How long it is used while lookups fail: its address may have come to be somebody else's.
const LAST_RESORT: Duration = Duration::from_secs(3600);
/// How long no other answer is asked for after a failure: at first, doubled with each, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// At most, where nothing is known that could be used meanwhile: the app alone would be asking as often as it likes.
const LONGEST_PAUSE_WITHOUT: Duration = Duration::from_secs(2);
/// A name that nobody called in this time, and that has no connection, is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// Names known at once; beyond that, the one called least recently is forgotten.
const MAX_NAMES: usize = 1024;

/// The names outside the mesh that this worker has sent to.
pub(super) struct Outside {
    names: RefCell<HashMap<DialName, Rc<Known>>>,
    asker: Rc<Asker>,
}

/// What is known of a name.
struct Known {
    name: DialName,
    state: RefCell<State>,
    used: Cell<Instant>,
}

struct State {
    /// Made with the first good answer.
    cluster: Option<Rc<Cluster>>,
    /// Why there is none.
    error: Option<Error>,
    /// When it was last answered.
    answered: Instant,
    /// From when on to ask again.
    next: Instant,
    /// Lookups in a row that came to nothing.
    failures: u32,
    /// What its addresses were judged by.
    mesh: Option<Arc<Mesh>>,
    asking: Option<Asking>,
}

type Asking = Shared<LocalBoxFuture<'static, ()>>;

/// What it takes to look up a name and to make a cluster of the answer.
struct Asker {
    lookups: Lookups,
    discovery: Discovery,
    identity: Identity,
    limits: config::Limits,
    totals: Totals,
    /// Not to be called as somebody else's.
    own_listeners: Arc<[SocketAddr]>,
}

impl Clusters {
    /// The cluster of a destination outside the mesh. Errors: `UnknownDestination` if DNS leads into the mesh, where
    /// nothing is ever sent in plaintext; `Loop` if it leads to this proxy; `ConnectFailed` if it leads nowhere.
    pub(crate) async fn outside(&self, name: &DialName) -> Result<Rc<Cluster>, Error> {
        self.outside.find(name).await
    }
}

impl Outside {
    pub(super) fn new(
        discovery: &Discovery,
        identity: &Identity,
        limits: config::Limits,
        totals: &Totals,
        own_listeners: Arc<[SocketAddr]>,
    ) -> Self {
        let (discovery, identity, totals) = (discovery.clone(), identity.clone(), totals.clone());
        let asker = Asker { lookups: Lookups::default(), discovery, identity, limits, totals, own_listeners };
        Self { names: RefCell::default(), asker: Rc::new(asker) }
    }

    async fn find(&self, name: &DialName) -> Result<Rc<Cluster>, Error> {
        let now = Instant::now();
        let known = self.known(name, now);
        known.used.set(now);
        let snapshot = self.asker.discovery.snapshot();
        known.judge_again(&self.asker, &snapshot, now);
        if known.state.borrow().next <= now {
            let asking = self.asker.ask(&known);
            if !known.may_wait(now) {
                asking.await;
            }
        }
        known.give_up_what_is_too_old(now);
        let state = known.state.borrow();
        match (&state.cluster, &state.error) {
            (Some(cluster), _) => Ok(cluster.clone()),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(Error::new(ErrorKind::Internal, format!("{name} was looked up without an answer"))),
        }
    }

    fn known(&self, name: &DialName, now: Instant) -> Rc<Known> {
        if let Some(known) = self.names.borrow().get(name) {
            return known.clone();
        }
        let mut names = self.names.borrow_mut();
        if names.len() >= MAX_NAMES {
            let oldest = names.values().min_by_key(|known| known.used.get()).map(|known| known.name.clone());
            oldest.and_then(|oldest| names.remove(&oldest));
        }
        let known = Rc::new(Known::new(name, now));
        names.insert(name.clone(), known.clone());
        known
    }

    /// Drops connections and names that are not used.
    pub(super) fn sweep(&self, now: Instant) {
        self.names.borrow_mut().retain(|_, known| {
            let state = known.state.borrow();
            let in_use = state.cluster.as_ref().is_some_and(|cluster| cluster.sweep());
            in_use || state.asking.is_some() || now.saturating_duration_since(known.used.get()) < FORGET
        });
    }
}

impl Known {
    fn new(name: &DialName, now: Instant) -> Self {
        let state =
            State { cluster: None, error: None, answered: now, next: now, failures: 0, mesh: None, asking: None };
        Self { name: name.clone(), state: RefCell::new(state), used: Cell::new(now) }
    }

    /// After an hour without an answer nothing is known of a name any more.
    fn give_up_what_is_too_old(&self, now: Instant) {
        let state = &mut *self.state.borrow_mut();
        let is_too_old = now.saturating_duration_since(state.answered) >= LAST_RESORT;
        if is_too_old && state.cluster.take().is_some() {
            // The pauses so far were of one that could do without an answer.
            (state.failures, state.next) = (1, state.next.min(now + LONGEST_PAUSE_WITHOUT));
        }
    }

    /// Whether what is known will do until there is another answer.
    fn may_wait(&self, now: Instant) -> bool {
        let state = self.state.borrow();
        let limit = if state.failures > 0 { LAST_RESORT } else { STALE };
        state.cluster.is_some() && now.saturating_duration_since(state.answered) < limit
    }

    /// What is of the mesh may have changed since the addresses were judged.
    fn judge_again(&self, asker: &Asker, snapshot: &Snapshot, now: Instant) {
        let state = &mut *self.state.borrow_mut();
        let same = match (&state.mesh, &snapshot.mesh) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if same {
            return;
        }
        state.mesh.clone_from(&snapshot.mesh);
        match &state.cluster {
            Some(cluster) => {
                let addresses =
                    cluster.endpoints().endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>();
                if let Err(error) = asker.judge(&self.name, &addresses, snapshot) {
                    state.cluster = None;
                    state.error = Some(error);
                    state.next = now + FIRST_PAUSE;
                }
            }
            // What it was refused for may not hold any more.
            None => state.next = now,
        }
    }

    fn take(&self, asker: &Asker, answer: Result<Vec<SocketAddr>, Failed>) {
        let now = Instant::now();
        let snapshot = asker.discovery.snapshot();
        let state = &mut *self.state.borrow_mut();
        state.asking = None;
        state.mesh.clone_from(&snapshot.mesh);
        let (found, was_asked) = (answer.is_ok(), !matches!(answer, Err(Failed::Unasked(_))));
        match answer
            .map_err(Failed::into_error)
            .and_then(|addresses| asker.judge(&self.name, &addresses, &snapshot).map(|()| addresses))
        {
            Ok(addresses) => {
                (state.failures, state.error) = (0, None);
                (state.answered, state.next) = (now, now + BELIEVED);
                match &state.cluster {
                    Some(cluster) => {
                        let before = cluster.endpoints();
                        if !before.endpoints.iter().map(|endpoint| endpoint.address).eq(addresses.iter().copied()) {
                            cluster.follow(cluster.service(), Arc::new(endpoints(&self.name, &addresses)), now);
                        }
                    }
                    None => state.cluster = Some(Rc::new(asker.cluster(&self.name, &addresses))),
                }
            }
            Err(error) => {
                // An answer that may not be used puts an end to what was before; no answer does not.
                if found {
                    state.cluster = None;
                }
                if was_asked {
                    let pause = FIRST_PAUSE * 2_u32.saturating_pow(state.failures.min(16));
                    let longest = if state.cluster.is_some() { LONGEST_PAUSE } else { LONGEST_PAUSE_WITHOUT };
                    state.next = now + pause.min(longest);
                    state.failures += 1;
                }
                state.error = Some(error);
            }
        }
    }
}

impl Asker {
    /// The lookup of a name that is under way, or a new one; it goes on whether or not anybody waits for it.
    fn ask(self: &Rc<Self>, known: &Rc<Known>) -> Asking {
        if let Some(asking) = &known.state.borrow().asking {
            return asking.clone();
        }
        let (asker, asked) = (self.clone(), known.clone());
        let asking = async move {
            let answer = asker.lookups.look_up(&asked.name).await;
            asked.take(&asker, answer);
        };
        let asking = asking.boxed_local().shared();
        known.state.borrow_mut().asking = Some(asking.clone());
        spawn_local(asking.clone());
        asking
    }

    /// Whether a name may be called at these addresses.
    fn judge(&self, name: &DialName, addresses: &[SocketAddr], snapshot: &Snapshot) -> Result<(), Error> {
        for address in addresses {
            if listener::is_own(&self.own_listeners, *address, None) {
                return Err(Error::new(ErrorKind::Loop, format!("{name} is a listener of this proxy")));
            }
            if snapshot.is_mesh_address(address.ip()) {
                let detail = format!("{name} is {}, an address of the mesh that no service has", address.ip());
                return Err(Error::new(ErrorKind::UnknownDestination, detail));
            }
        }
        Ok(())
    }

    fn cluster(&self, name: &DialName, addresses: &[SocketAddr]) -> Cluster {
        let cluster = ClusterName { service: outside_name(name), port: name.port };
        let service = Arc::new(outside_service(&cluster));
        let endpoints = Arc::new(endpoints(name, addresses));
        Cluster::new(&cluster, service, endpoints, &self.identity, self.limits, &self.totals)
    }
}

fn endpoints(name: &DialName, addresses: &[SocketAddr]) -> Endpoints {
    let endpoints = addresses.iter().map(|address| {
        Arc::new(Endpoint {
            address: *address,
            identities: Vec::new(),
            meshed: false,
            ports: BTreeMap::from([(name.port, address.port())]),
            zone: String::new(),
            weight: 1,
            ready: true,
            workload: String::new(),
            hostname: None,
        })
    });
    Endpoints { service: outside_name(name), endpoints: endpoints.collect(), version: String::new() }
}

/// No service has an empty namespace.
fn outside_name(name: &DialName) -> ServiceName {
    ServiceName { namespace: "".into(), name: name.host.as_str().into() }
}
/// What is known of somebody who is not known: no retries but of connections, nobody is ejected.
fn outside_service(name: &ClusterName) -> Service {
    let policy = TrafficPolicy {
        balancing: Balancing::PeakEwma,
        request_timeout: None,
        per_try_timeout: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(60),
        retry: Arc::new(RetryPolicy {
            max_retries: 1,
            statuses: Vec::new(),
            grpc_statuses: Vec::new(),
            on_connect_failure: true,
            on_reset: false,
            on_refused_stream: true,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            replay_bytes: 64 << 10,
            budget_percent: 20,
            budget_min_per_second: 10,
            methods: Vec::new(),
        }),
        limits: Limits { max_connections: 1024, max_requests: 1024, max_pending: 1024 },
        outlier: OutlierDetection {
            consecutive_failures: 0,
            base_ejection: Duration::from_secs(1),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 0,
        },
        source: "outside the mesh".into(),
    };
    let port = ServicePort {
        protocol: Protocol::Detect,
        http_rules: Vec::new(),
        tcp_backends: Vec::new(),
        tcp_route: "".into(),
    };
    Service {
        name: name.service.clone(),
        hosts: Vec::new(),
        addresses: Vec::new(),
        ports: BTreeMap::from([(name.port, port)]),
        policy: Arc::new(policy),
        version: String::new(),
    }
}
