//! The control side: everything that is not traffic, on one thread, so that neither a scrape nor a
//! storm of configuration delays a request.

use std::{
    net::TcpListener,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::FutureExt;
use heddle_certs::{Clock, TrustBundle};
use heddle_runtime::{
    drain,
    health::Health,
    http_server::{self, Reply, reply},
    telemetry::LogHandle,
};
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    addresses::Addresses,
    drain::Draining,
    link::Link,
    observe::{self, TASKS},
};
use crate::{
    admin::{self, Admin},
    config::Config,
    control_plane::{ControlPlane, causes},
    discovery::{AcceptBundle, Client, Discovery, Feed, Origin, Own, Status, Table},
    identity::{Identity, Issuer, Renewal, Report},
    learned::Learned,
    lifecycle::{Lifecycle, ShutDown, Stages},
    probes::Asking,
    registration::{self, Registration},
    state::StateDir,
    telemetry::Telemetry,
};

/// The last good resources, in the state directory.
const RESOURCES: &str = "resources.bin";
/// They are written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_millis(200);
/// After new credentials, the longest pause before the connection to the control plane follows, so
/// that proxies renewed together do not connect together.
const RECONNECT_JITTER: Duration = Duration::from_secs(10);

/// What all parts of a proxy share.
pub(super) struct Shared {
    pub config: Config,
    pub workload: String,
    pub namespace: String,
    pub clock: Arc<dyn Clock>,
    pub state: Option<Arc<StateDir>>,
    pub identity: Identity,
    pub discovery: Discovery,
    pub telemetry: Telemetry,
    pub learned: Learned,
    pub addresses: Addresses,
    pub log: Option<LogHandle>,
    pub drain: watch::Sender<ShutDown>,
}

pub(super) struct Control {
    pub shared: Arc<Shared>,
    pub feed: Feed,
    pub stages: Stages,
    pub life: Lifecycle,
    pub admin: Option<TcpListener>,
    pub health: TcpListener,
}

impl Control {
    /// Runs until the proxy has drained.
    pub(super) async fn run(self) {
        let Self { shared, feed, stages, life, admin, health: health_listener } = self;
        let health = observe::health();
        let (status, _) = watch::channel(Status::default());
        let (report, _) = watch::channel(Report::default());
        let (channel, _) = watch::channel(None);
        let (leave, leaving) = mpsc::channel(1);
        // The last to end: probes and scrapes are wanted most while traffic drains.
        let (last, servers) = drain::channel();

        let control_plane =
            ControlPlane { address: shared.config.join.control_plane.clone(), clock: Arc::clone(&shared.clock) };
        spawn("renewal", &health, renewal(&shared, &control_plane, report.clone()).run());
        let epoch = Arc::new(AtomicU64::new(0));
        let link = Link {
            control_plane,
            identity: shared.identity.clone(),
            anchors: shared.config.join.trust_anchors.clone(),
            channel: channel.clone(),
            epoch: Arc::clone(&epoch),
        };
        let (news, heard) = watch::channel(0);
        if let Some(state) = shared.state.clone() {
            spawn("saving", &health, keep(state, shared.discovery.clone(), heard));
        }
        let client = Client { table: table(&shared), feed, connect: link, status: status.clone(), news };
        spawn("discovery", &health, client.run());
        spawn("reconnect", &health, follow_credentials(Arc::clone(&shared), epoch));
        let registration = Registration {
            workload: registration::Workload {
                name: shared.workload.clone(),
                advertise: shared.config.inbound.advertise,
                inbound: shared.addresses.inbound,
                labels: shared.config.labels.clone(),
                zone: shared.config.zone.clone(),
            },
            discovery: shared.discovery.clone(),
            channel: channel.subscribe(),
            leave: leaving,
        };
        spawn("registration", &health, registration.run());
        let observed = {
            let (shared, health, life) = (Arc::clone(&shared), health.clone(), life.clone());
            let (report, status) = (report.subscribe(), status.subscribe());
            async move { observe::run(&shared, health, life, report, status).await }
        };
        spawn("observation", &health, observed);
        if let Some(listener) = admin {
            let admin = Arc::new(Admin {
                node: format!("{}/{}", shared.namespace, shared.workload),
                config: shared.config.clone(),
                discovery: shared.discovery.clone(),
                status: status.subscribe(),
                identity: shared.identity.clone(),
                report: report.subscribe(),
                addresses: serde_json::to_value(&shared.addresses).unwrap_or_default(),
                learned: shared.learned.clone(),
                log: shared.log.clone(),
                drain: shared.drain.clone(),
                life: life.clone(),
            });
            serve("admin", listener, &health, &servers, move |request| admin::answer(Arc::clone(&admin), request));
        }
        let answer = {
            let (health, telemetry) = (health.clone(), shared.telemetry.clone());
            let asking = Asking::new(shared.config.probes.clone(), shared.config.inbound.advertise.ip);
            move |request: Request<Incoming>| {
                let asked = asking.asked(&request).ok_or_else(|| probe(&health, &telemetry, &request));
                async move {
                    match asked {
                        Ok(asked) => asked.answer().await,
                        Err(reply) => reply,
                    }
                }
            }
        };
        serve("health", health_listener, &health, &servers, answer);

        let mut asked = shared.drain.subscribe();
        // The other end lives in `shared`.
        let _ = asked.wait_for(|asked| *asked > ShutDown::No).await;
        let (_, apps) = registration::served(&shared.discovery.snapshot());
        Draining { settings: shared.config.drain, asked, stages, leave, apps }.run().await;
        shared.telemetry.flush().await;
        last.drain_within(http_server::CLOSE_TIMEOUT).await;
    }
}

/// Spawns a task that is meant to run as long as the process. A panic ends the task, not the process:
/// traffic goes on, and `/live` says that a restart is due.
fn spawn(name: &'static str, health: &Health, task: impl Future<Output = ()> + Send + 'static) {
    let health = health.clone();
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!(task = name, "a task of the control side has panicked; traffic goes on without it");
            health.set(TASKS, false);
        }
    });
}

fn serve<H, F>(name: &'static str, listener: TcpListener, health: &Health, drain: &drain::Watch, answer: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => spawn(name, health, http_server::serve(listener, answer, drain.clone())),
        Err(error) => {
            tracing::error!(%error, listener = name, "cannot serve");
            health.set(TASKS, false);
        }
    }
}

/// `/live` `/ready` `/startup` `/metrics`.
fn probe(health: &Health, telemetry: &Telemetry, request: &Request<Incoming>) -> Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "GET /live /ready /startup /metrics\n");
    }
    match request.uri().path() {
        "/live" => health.live(),
        "/ready" => health.ready(),
        "/startup" => health.startup(),
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let (content_type, text) = telemetry.render(accept);
            let mut answer = reply(StatusCode::OK, text);
            answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
            answer
        }
        _ => reply(StatusCode::NOT_FOUND, "GET /live /ready /startup /metrics\n"),
    }
}

fn renewal(shared: &Shared, control_plane: &ControlPlane, report: watch::Sender<Report>) -> Renewal<Issuer> {
    let join = shared.config.join.clone();
    let (proof, anchors) = (join.proof.clone(), join.trust_anchors.clone());
    Renewal {
        issuer: Issuer { control_plane: control_plane.clone(), identity: shared.identity.clone(), join, asked: None },
        identity: shared.identity.clone(),
        proof,
        anchors,
        state: shared.state.clone(),
        clock: Arc::clone(&shared.clock),
        report,
    }
}

/// The table, with what an earlier process left.
fn table(shared: &Shared) -> Table {
    let config = &shared.config;
    let service_account = config.join.identity.as_workload().map(|(_, account)| account.to_owned());
    let own = Own {
        node: format!("{}/{}", shared.namespace, shared.workload),
        service_account: service_account.unwrap_or_default(),
        zone: config.zone.clone(),
        trust_domain: config.join.identity.trust_domain().clone(),
        served: config.services.clone(),
        listeners: shared.addresses.all(),
        idle: config.discovery.idle,
        max_destinations: config.discovery.max_destinations,
    };
    let now = Instant::now();
    let mut table = Table::new(own, accept_bundle(shared), shared.state.is_some(), now);
    for upstream in &config.outbound.upstreams {
        // Pinned ones always find room.
        let _ = table.dial(&shared.discovery.complete(&upstream.name), true, now);
    }
    if let Some(state) = &shared.state {
        let restored = match state.read(RESOURCES) {
            Ok(Some(bytes)) => table.restore(&bytes, now),
            Ok(None) => Ok(()),
            Err(error) => Err(causes(&error)),
        };
        if let Err(reason) = restored {
            tracing::warn!(file = RESOURCES, reason, "what the state directory holds cannot be used");
        }
    }
    table
}

/// Roots that the control plane names take effect at once, and are kept; those kept by an earlier process are
/// what there is until then.
fn accept_bundle(shared: &Shared) -> AcceptBundle {
    let (identity, state) = (shared.identity.clone(), shared.state.clone());
    Box::new(move |bundle: &TrustBundle, origin| {
        if origin == Origin::StateDirectory {
            return identity.restore_bundle(bundle.clone()).map_err(|error| causes(&error));
        }
        identity.set_bundle(bundle.clone()).map_err(|error| causes(&error))?;
        if let Some(state) = state.clone() {
            let identity = identity.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = identity.keep_bundle(&state) {
                    tracing::warn!(error = causes(&error), "the trust bundle is not kept");
                }
            });
        }
        Ok(())
    })
}

/// Writes the last good resources whenever there are others.
async fn keep(state: Arc<StateDir>, discovery: Discovery, mut news: watch::Receiver<u64>) {
    while news.changed().await.is_ok() {
        let Some(bytes) = discovery.saved().await else { return };
        let state = Arc::clone(&state);
        match tokio::task::spawn_blocking(move || state.write(RESOURCES, &bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = causes(&error), "the last good configuration is not kept"),
            Err(error) => tracing::warn!(%error, "the last good configuration is not kept"),
        }
        sleep(SAVE_INTERVAL).await;
    }
}

/// Has the connection to the control plane follow the credentials.
async fn follow_credentials(shared: Arc<Shared>, used: Arc<AtomicU64>) {
    let mut changed = shared.identity.changed();
    while changed.changed().await.is_ok() {
        let Some(credentials) = shared.identity.current() else { continue };
        let svid = &credentials.svid;
        let lifetime = svid.not_after().duration_since(svid.not_before()).unwrap_or_default();
        sleep((lifetime / 10).min(RECONNECT_JITTER).mul_f64(rand::random())).await;
        changed.borrow_and_update();
        let current = shared.identity.current().map(|credentials| credentials.epoch);
        // A connection that is being made has the new ones already.
        if current.is_some_and(|epoch| epoch != used.load(std::sync::atomic::Ordering::Relaxed)) {
            shared.discovery.reconnect().await;
        }
    }
}
