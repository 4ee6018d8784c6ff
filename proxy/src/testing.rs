//! A whole mesh in one thread: proxies with a common authority and fixed snapshots, apps, and clients.

// Fuzzing uses a part of it, and what fails here is a test.
#![cfg_attr(not(test), allow(dead_code))]
#![allow(clippy::unwrap_used)]

pub(crate) mod app;
pub(crate) mod client;
pub(crate) mod strict;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use heddle_certs::{Authority, SignOptions, SpiffeId, SystemClock, TrustDomain};
use tokio::{
    runtime::{Builder, LocalOptions},
    task::spawn_local,
    time::{Duration, Instant, sleep, timeout},
};

use crate::{
    authorize::{Authorizer, Rule},
    config::{DialName, Limits},
    discovery::Discovery,
    identity::Identity,
    lifecycle::{self, Stages},
    listener::{Listener, Role},
    outcome::{ConnectionOutcome, Outcome, RequestOutcome},
    snapshot::{
        Balancing, ClusterName, Destination, Endpoint, Endpoints, InboundPolicy, InboundPort, Mesh, OutlierDetection,
        Protocol, RetryPolicy, Service, ServiceName, ServicePort, Snapshot, TrafficPolicy,
    },
    telemetry::Signals,
    trace_context::Sampler,
    worker::{Common, Handle, Worker},
};

/// Spawns hyper's tasks on this worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Runs a test on a runtime like a worker's, with an end.
pub(crate) fn run(test: impl Future<Output = ()> + 'static) {
    run_within(Duration::from_secs(60), test);
}

/// Runs a test whose clock runs ahead.
pub(crate) fn run_within(limit: Duration, test: impl Future<Output = ()> + 'static) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        timeout(limit, test).await.expect("the test takes too long");
    });
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), name: name.into() }
}

/// The identity of a service's account.
pub(crate) fn spiffe_id(account: &str) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), "shop", account).unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::new("heddle.test").unwrap()
}

/// What proxies of one mesh have in common.
pub(crate) struct TestMesh {
    authority: Authority,
}

/// A proxy under test.
pub(crate) struct Proxy {
    pub(crate) worker: Rc<Worker>,
    /// Of each role, in order.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) outcomes: Rc<RefCell<Vec<Outcome>>>,
    pub(crate) stages: Stages,
}

/// A port that a proxy serves.
pub(crate) struct Served {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) app: SocketAddr,
    pub(crate) permissive: bool,
}

impl Served {
    pub(crate) fn new(port: u16, protocol: Protocol, app: SocketAddr) -> Self {
        Self { port, protocol, app, permissive: false }
    }
}

/// A service that a proxy calls.
pub(crate) struct Called {
    pub(crate) service: Service,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Called {
    /// Called `<name>.shop:80`, at peers of the account of the same name.
    pub(crate) fn new(name: &str, protocol: Protocol, peers: &[SocketAddr]) -> Self {
        let port = ServicePort { protocol, http_rules: Vec::new(), tcp_backends: Vec::new(), tcp_route: "".into() };
        let service = Service {
            name: service_name(name),
            hosts: vec![format!("{name}.shop")],
            addresses: Vec::new(),
            ports: BTreeMap::from([(80, port)]),
            policy: Arc::new(traffic_policy()),
            version: String::new(),
        };
        let endpoints = peers.iter().map(|address| meshed(*address, name)).collect();
        Self { service, endpoints }
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut TrafficPolicy)) -> Self {
        let mut policy = (*self.service.policy).clone();
        change(&mut policy);
        self.service.policy = Arc::new(policy);
        self
    }

    pub(crate) fn retries(self, change: impl FnOnce(&mut RetryPolicy)) -> Self {
        self.policy(|policy| {
            let mut retry = (*policy.retry).clone();
            change(&mut retry);
            policy.retry = Arc::new(retry);
        })
    }
}

/// An endpoint with a proxy, of this account.
pub(crate) fn meshed(address: SocketAddr, account: &str) -> Endpoint {
    Endpoint {
        address,
        identities: vec![spiffe_id(account)],
        meshed: true,
        ports: BTreeMap::from([(80, 0)]),
        zone: String::new(),
        weight: 1,
        ready: true,
        workload: format!("shop/{address}"),
        hostname: None,
    }
}

/// Nothing is tried again, nothing ejected, nothing limited.
pub(crate) fn traffic_policy() -> TrafficPolicy {
    TrafficPolicy {
        balancing: Balancing::RoundRobin,
        request_timeout: None,
        per_try_timeout: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(60),
        retry: Arc::new(RetryPolicy {
            max_retries: 0,
            statuses: Vec::new(),
            grpc_statuses: Vec::new(),
            on_connect_failure: true,
            on_reset: true,
            on_refused_stream: true,
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            replay_bytes: 64 << 10,
            budget_percent: 20,
            budget_min_per_second: 10,
            methods: Vec::new(),
        }),
        limits: crate::snapshot::Limits { max_connections: 1000, max_requests: 1000, max_pending: 1000 },
        outlier: OutlierDetection {
            consecutive_failures: 0,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 50,
        },
        source: "test".into(),
    }
}

/// What an outbound proxy believes.
pub(crate) fn calling(called: Vec<Called>) -> Snapshot {
    let mut snapshot = Snapshot {
        mesh: Some(Arc::new(Mesh {
            trust_domain: trust_domain(),
            suffixes: vec!["mesh.local".into()],
            cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            egress_allow: true,
            namespaces: BTreeSet::new(),
            sampling_ratio: 0.0,
            access_log: false,
        })),
        ..Snapshot::default()
    };
    for Called { service, endpoints } in called {
        let name = service.name.clone();
        for port in service.ports.keys() {
            snapshot.destinations.insert(
                format!("{}.shop:{port}", name.name),
                Destination::Service { service: name.clone(), port: *port, instance: None },
            );
        }
        let endpoints = Endpoints {
            service: name.clone(),
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            version: String::new(),
        };
        snapshot.services.insert(name.clone(), Arc::new(service));
        snapshot.endpoints.insert(name, Arc::new(endpoints));
    }
    snapshot
}

/// What an inbound proxy believes.
pub(crate) fn serving(name: &str, served: Vec<Served>, authorizer: Authorizer) -> Snapshot {
    let ports = served.into_iter().map(|served| {
        let port = InboundPort { protocol: served.protocol, app: Some(served.app), permissive: served.permissive };
        (served.port, port)
    });
    let policy = InboundPolicy {
        service: service_name(name),
        ports: ports.collect(),
        authorizer,
        probe_exemptions: vec![(80, "/healthz".into())],
        version: String::new(),
    };
    Snapshot { inbound: BTreeMap::from([(service_name(name), Arc::new(policy))]), ..calling(Vec::new()) }
}

pub(crate) fn allow_all() -> Authorizer {
    Authorizer::new(Vec::new(), true)
}

pub(crate) fn only(rules: Vec<Rule>) -> Authorizer {
    Authorizer::new(rules, false)
}

impl TestMesh {
    pub(crate) fn new() -> Self {
        Self { authority: Authority::create(trust_domain(), SystemTime::now()).unwrap() }
    }

    /// A new certificate of an account.
    pub(crate) fn renew(&self, identity: &Identity, account: &str) {
        self.issue(identity, account, Duration::from_secs(3600));
    }

    /// The identity of an account, which expires so soon.
    pub(crate) fn identity_for(&self, account: &str, lifetime: Duration) -> Identity {
        let identity = Identity::new(SystemClock::shared());
        self.issue(&identity, account, lifetime);
        identity
    }

    /// A certificate of an account, which expires so soon.
    pub(crate) fn issue(&self, identity: &Identity, account: &str, lifetime: Duration) {
        let options = SignOptions::new(lifetime, SystemTime::now());
        let svid = self.authority.issue(&spiffe_id(account), &options).unwrap();
        identity.set_svid(svid, Some(self.authority.bundle().clone())).unwrap();
    }

    pub(crate) fn identity(&self, account: &str) -> Identity {
        let identity = Identity::new(SystemClock::shared());
        self.renew(&identity, account);
        identity
    }

    /// A proxy that listens for each role, on a port of its own.
    pub(crate) fn proxy(&self, account: &str, snapshot: Snapshot, roles: &[Role]) -> Proxy {
        self.proxy_with(account, snapshot, roles, Limits::default())
    }

    pub(crate) fn proxy_with(&self, account: &str, snapshot: Snapshot, roles: &[Role], limits: Limits) -> Proxy {
        let common = Common {
            discovery: Discovery::fixed(snapshot, "shop"),
            identity: self.identity(account),
            sampler: Sampler::new(1.0, true, true),
            signals: Signals::default(),
            // Another for each start.
            life: lifecycle::channel().1,
            limits,
            instance: format!("{account}-1.shop").into(),
            own_listeners: Arc::default(),
            learned: crate::learned::Learned::default(),
            totals: crate::cluster::totals::Totals::default(),
        };
        self.again(common, roles)
    }

    /// A proxy that has this in common with another.
    pub(crate) fn again(&self, mut common: Common, roles: &[Role]) -> Proxy {
        let sockets: Vec<_> = roles
            .iter()
            .map(|_| {
                let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
            .collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let (stages, life) = lifecycle::channel();
        common.life = life;
        common.own_listeners = addresses.clone().into();
        let outcomes: Rc<RefCell<Vec<Outcome>>> = Rc::default();
        let sink = outcomes.clone();
        let worker = Rc::new(Worker::new(common, Rc::new(move |outcome| sink.borrow_mut().push(outcome))));
        worker.start();
        for (role, socket) in roles.iter().zip(sockets) {
            let listener = Listener::new(role.clone(), socket, &worker.common).unwrap();
            spawn_local(listener.run(worker.clone(), Handle::alone()));
        }
        Proxy { worker, addresses, outcomes, stages }
    }

    /// A proxy before an app that is called `<name>.shop:80`.
    pub(crate) fn sidecar(&self, name: &str, protocol: Protocol, app: SocketAddr) -> Proxy {
        self.proxy(name, serving(name, vec![Served::new(80, protocol, app)], allow_all()), &[Role::Inbound])
    }

    /// A proxy of the account `web` with an upstream port that leads to the first service, then an HTTP proxy port.
    pub(crate) fn caller(&self, called: Vec<Called>) -> Proxy {
        let name = DialName::new(&format!("{}.shop", called[0].service.name.name), 80);
        self.proxy("web", calling(called), &[Role::Upstream(name.into()), Role::HttpProxy])
    }
}

impl Proxy {
    /// Its first listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub(crate) fn believe(&self, snapshot: Snapshot) {
        self.worker.common.discovery.replace(snapshot);
    }

    /// The control plane says that this is no service.
    pub(crate) fn no_service(&self, name: &str) {
        let mut snapshot = (*self.worker.common.discovery.snapshot()).clone();
        snapshot.destinations.insert(name.to_owned(), Destination::Unknown);
        self.believe(snapshot);
    }

    /// The outcomes of requests once there are so many.
    pub(crate) async fn requests(&self, count: usize) -> Vec<Box<RequestOutcome>> {
        let number = || self.outcomes.borrow().iter().filter(|outcome| matches!(outcome, Outcome::Request(_))).count();
        until(&format!("{count} requests on record"), || number() >= count).await;
        let mut requests = Vec::new();
        self.outcomes.borrow_mut().retain_mut(|outcome| match outcome {
            Outcome::Request(_) => {
                let empty = Outcome::Connection(Box::new(ConnectionOutcome::new(
                    crate::outcome::Direction::Inbound,
                    (Ipv4Addr::LOCALHOST, 0).into(),
                    SystemTime::UNIX_EPOCH,
                )));
                if let Outcome::Request(request) = std::mem::replace(outcome, empty) {
                    requests.push(request);
                }
                false
            }
            Outcome::Connection(_) => true,
        });
        assert_eq!(requests.len(), count);
        requests
    }

    /// The only request on record.
    pub(crate) async fn request(&self) -> Box<RequestOutcome> {
        self.requests(1).await.remove(0)
    }

    /// The only connection on record.
    pub(crate) async fn connection(&self) -> ConnectionOutcome {
        let all = || -> Vec<ConnectionOutcome> {
            let outcomes = self.outcomes.borrow();
            let connections = outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Connection(connection) => Some((**connection).clone()),
                Outcome::Request(_) => None,
            });
            connections.collect()
        };
        until("a connection on record", || !all().is_empty()).await;
        let mut all = all();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

/// The cluster of a test service.
pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName { service: service_name(name), port: 80 }
}
