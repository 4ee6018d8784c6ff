//! The control plane as a whole: settings -> store -> registry -> discovery -> listeners.

mod access;
mod calls;
mod tasks;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use heddle_certs::{Clock, SystemClock};
use heddle_runtime::{
    drain,
    health::{Health, Probe},
    http_server,
    private_dir::{PrivateDir, PrivateDirError},
};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use self::access::admin_token;
use self::{
    access::{bootstrap, reachable},
    tasks::{needed, report_writes},
};
use crate::{
    api::{self, ApiState, JoinInfo},
    authority::{AuthorityFileError, Signer},
    certificate::{Certificate, CertificateError},
    config::Config,
    discovery::{Discovery, Hub},
    follow::{self, Findings},
    identity::{IdentityService, TokenReviewer},
    kubernetes::{self, AccessError, Cluster},
    listener::{self, BindError, Deadlines, Http, Listener, Room},
    mesh::Mesh,
    metrics::Metrics,
    registration::Registrations,
    registry::{Registry, RegistryError},
    rotation::Rotation,
    store::{OpenError, RedbOptions, RedbStore},
    tokens::{ApiTokens, BootstrapError, JoinTokens, Revocations, TokenError},
    webhook,
};

const STORE: &str = "store.redb";
const ADDRESSES: &str = "addresses.json";
/// API clients show tokens, not certificates.
const API_ROOM: Room = Room { connections: 2_000, unverified: 2_000, staying: 2_000, per_source: 256 };
/// A fifth is for proxies that have a certificate. A node whose proxies all join at once is one source.
const MESH_ROOM: Room = Room { connections: 50_000, unverified: 40_000, staying: 30_000, per_source: 1_024 };
/// A proxy without certificate asks for one, and goes.
const MESH_DEADLINES: Deadlines = Deadlines { first_request: Duration::from_secs(10), idle: Duration::from_secs(30) };
/// How long everything that began before a shutdown may take.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Where a control plane listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// REST API.
    pub api: SocketAddr,
    /// Proxies.
    pub mesh: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Pods that are to get a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SocketAddr>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error("setting dataDir")]
    Data(#[from] PrivateDirError),
    /// The authority.
    #[error("the authority cannot be used")]
    Authority(#[from] AuthorityFileError),
    /// The own certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The store.
    #[error("the store in the data folder cannot be opened")]
    Store(#[from] OpenError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Metrics.
    #[error("metrics cannot be set up")]
    Metrics(#[from] prometheus::Error),
    /// Revocations.
    #[error("what was revoked cannot be read")]
    Revocations(#[from] TokenError),
    /// An admin token.
    #[error("the admin token cannot be made")]
    Bootstrap(#[from] BootstrapError),
    /// The Kubernetes cluster.
    #[error(transparent)]
    Kubernetes(#[from] AccessError),
    /// Nothing to make a token for.
    #[error("setting dataDir: {} holds no control plane's data; name its folder with --data-dir", .0.display())]
    NoData(PathBuf),
}

/// Why a control plane cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Views are stale from here on.
    #[error("the store can no longer be followed; start again to go on")]
    Store,
    /// A panic, which is in the log.
    #[error("a task without which proxies learn of no change has ended; start again to go on")]
    Task,
}

/// A running control plane.
#[derive(Debug)]
pub struct App {
    addresses: Addresses,
    registry: Arc<Registry>,
    hub: Hub,
    revocations: Revocations,
    roots: Arc<Rotation>,
    health: Health,
    kubernetes: Option<Cluster>,
    /// A task without which nothing goes on has ended by itself.
    broken: CancellationToken,
    /// Services stop at the first signal; what answers about them, at the second.
    stop: drain::Signal,
    stop_health: drain::Signal,
    /// Locked for as long as the process serves from it.
    _data: Arc<PrivateDir>,
}

impl App {
    /// File descriptors that it may come to use.
    pub const DESCRIPTORS: u64 = (API_ROOM.connections + MESH_ROOM.connections + 100) as u64;

    /// Starts all of it. It is ready when this returns.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_at(config, SystemClock::shared()).await
    }

    /// As [`App::start`], by another clock.
    pub async fn start_at(config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let metrics = Metrics::new()?;
        let kubernetes = match &config.kubernetes {
            Some(access) => Some(kubernetes::connect(access).await?),
            None => None,
        };
        let data = Arc::new(PrivateDir::open(&config.data_dir)?);
        // Whoever waits for it must not find where an earlier run listened.
        data.remove(ADDRESSES)?;
        let signer = Signer::open(
            &config.trust_domain,
            &data,
            config.authority_dir.as_deref(),
            Arc::clone(&clock),
            metrics.clone(),
        )?;
        let signer = Arc::new(signer);
        let store = RedbStore::open(&config.data_dir.join(STORE), &RedbOptions::default())?;
        let writes = store.write_health();
        let registry = Registry::open(Arc::new(store)).await?;
        let sockets = Sockets::bind(&config).await?;
        let mut addresses = sockets.addresses(&config);
        let (stop, watch) = drain::channel();

        let domain = kubernetes.as_ref().map(|_| config.cluster_domain.as_str());
        let mesh = Mesh::new(config.trust_domain.clone()).in_cluster(domain);
        let hub = Hub::new(mesh, signer.bundle(), metrics.clone());
        let registrations =
            Registrations::new(Arc::clone(&registry), hub.clone(), config.lease, Arc::clone(&clock), metrics.clone());
        let (view, changes) = registry.subscribe();
        hub.replace(view.revision(), follow::mesh_of(&view, &config.trust_domain, &registrations));
        let broken = CancellationToken::new();
        let follower =
            follow::follow(changes, hub.clone(), registrations.clone(), config.trust_domain.clone(), watch.clone());
        needed(&watch, &broken, follower);
        needed(&watch, &broken, registrations.clone().expire(watch.clone()));

        if let Some(cluster) = &kubernetes {
            registry.in_cluster(&config.cluster_domain);
            let (known, is_known) = oneshot::channel();
            let (registry, hub, metrics) = (Arc::clone(&registry), hub.clone(), metrics.clone());
            needed(&watch, &broken, cluster.clone().follow(registry, hub, metrics, known, watch.clone()));
            kubernetes::wait(is_known).await;
        }

        let certificate = Certificate::issue(
            Arc::clone(&signer),
            &config.trust_domain,
            config.names.clone(),
            config.svid_ttl,
            Arc::clone(&clock),
            metrics.clone(),
        )?;
        let certificate = Arc::new(certificate);
        addresses.webhook =
            webhook::start(&config, &signer, &certificate, kubernetes.as_ref(), &metrics, &watch).await?;
        let roots = Arc::new(Rotation::new(
            Arc::clone(&signer),
            Arc::clone(&certificate),
            hub.clone(),
            Arc::clone(&registry),
            config.svid_ttl,
            config.lease,
            Arc::clone(&clock),
        ));
        let told = hub.clone();
        let maintain = Arc::clone(&certificate).maintain(watch.clone(), move |roots| told.set_bundle(roots));
        needed(&watch, &broken, maintain);

        let store = Arc::clone(registry.store());
        let join_tokens = JoinTokens::new(Arc::clone(&store));
        let revocations = Revocations::open(Arc::clone(&store)).await?;
        let identity = IdentityService::service(
            Arc::clone(&signer),
            join_tokens.clone(),
            kubernetes.as_ref().map(|cluster| TokenReviewer::new(cluster.client().clone())),
            revocations.clone(),
            config.svid_ttl,
            Arc::clone(&clock),
            metrics.clone(),
        );
        let mesh_router = Routes::new(identity)
            .add_service(registrations.service())
            .add_service(Discovery::service(
                hub.clone(),
                Arc::clone(&signer),
                revocations.clone(),
                Arc::clone(&clock),
                watch.clone(),
            ))
            .prepare()
            .into_axum_router()
            .layer(axum::middleware::from_fn_with_state(
                (Arc::clone(&signer), revocations.clone(), clock),
                calls::limit,
            ));
        let api_tokens = ApiTokens::new(store);
        bootstrap(&api_tokens, &config, &addresses, &signer).await?;
        let api_router = api::router(ApiState {
            registry: Arc::clone(&registry),
            api_tokens,
            join_tokens,
            revocations: revocations.clone(),
            status: Arc::new(Findings {
                hub: hub.clone(),
                registry: Arc::clone(&registry),
                registrations: registrations.clone(),
            }),
            roots: roots.clone(),
            join: Arc::new(Join { address: join_address(&config, &addresses), signer }),
            trust_domain: config.trust_domain.clone(),
            drain: watch.clone(),
        });

        let health = Health::new(&[("started", Probe::Ready), ("store-writes", Probe::Ready), ("store", Probe::Live)]);
        health.set("store-writes", true);
        needed(&watch, &broken, report_writes(writes, health.clone(), metrics.clone(), watch.clone()));
        let (stop_health, watch_health) = drain::channel();
        sockets.serve(api_router, mesh_router, &certificate, &health, &metrics, &watch, &watch_health);
        let text = serde_json::to_vec(&addresses).expect("addresses are JSON");
        data.write(ADDRESSES, &text)?;
        health.set("started", true);
        let Addresses { api, mesh, health: health_address, .. } = &addresses;
        let data_dir = absolute(&config);
        tracing::info!(%api, %mesh, health = %health_address, trust_domain = %config.trust_domain, data = %data_dir.display(), "ready");
        Ok(Self {
            addresses,
            registry,
            hub,
            revocations,
            roots,
            health,
            kubernetes,
            broken,
            stop,
            stop_health,
            _data: data,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The registry.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Whose certificates count no more.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// What replaces the root.
    pub fn roots(&self) -> &Arc<Rotation> {
        &self.roots
    }

    /// The discovery service's hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The Kubernetes cluster, if the mesh lives in one.
    pub fn kubernetes(&self) -> Option<&Cluster> {
        self.kubernetes.as_ref()
    }

    /// Returns when the control plane cannot go on, and says why.
    pub async fn failed(&self) -> Failure {
        let failure = tokio::select! {
            () = self.registry.lost() => Failure::Store,
            () = self.broken.cancelled() => Failure::Task,
        };
        self.health.set("store", false);
        failure
    }

    /// Ends all of it: listeners close, streams are told to come back later, requests finish.
    pub async fn shutdown(self) {
        self.health.set("started", false);
        let left = self.stop.drain_within(DRAIN_DEADLINE).await;
        if left > 0 {
            tracing::warn!(left, "tasks did not end in time");
        }
        self.stop_health.drain_within(listener::CLOSE_TIMEOUT).await;
        tracing::info!("stopped");
    }
}

/// The bound sockets.
struct Sockets {
    api: TcpListener,
    mesh: TcpListener,
    health: TcpListener,
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, BindError> {
        Ok(Self {
            api: listener::bind("api", config.api).await?,
            mesh: listener::bind("mesh", config.mesh).await?,
            health: listener::bind("health", config.health).await?,
        })
    }

    fn addresses(&self, config: &Config) -> Addresses {
        let local = |socket: &TcpListener, asked: SocketAddr| socket.local_addr().unwrap_or(asked);
        Addresses {
            api: local(&self.api, config.api),
            mesh: local(&self.mesh, config.mesh),
            health: local(&self.health, config.health),
            webhook: None,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what three listeners need, once")]
    fn serve(
        self,
        api: Router,
        mesh: Router,
        certificate: &Arc<Certificate>,
        health: &Health,
        metrics: &Metrics,
        drain: &drain::Watch,
        drain_health: &drain::Watch,
    ) {
        let (for_api, for_mesh) = (Arc::clone(certificate), Arc::clone(certificate));
        let api_listener = Listener {
            name: "api",
            socket: self.api,
            tls: move || for_api.api(),
            http: Http::One,
            room: API_ROOM,
            deadlines: None,
            metrics: metrics.clone(),
        };
        let mesh_listener = Listener {
            name: "mesh",
            socket: self.mesh,
            tls: move || for_mesh.mesh(),
            http: Http::Two,
            room: MESH_ROOM,
            deadlines: Some(MESH_DEADLINES),
            metrics: metrics.clone(),
        };
        drain.spawn(api_listener.serve(api, drain.clone()));
        drain.spawn(mesh_listener.serve(mesh, drain.clone()));
        let (health, metrics) = (health.clone(), metrics.clone());
        let answer = move |request: Request<Incoming>| std::future::ready(answer(&request, &health, &metrics));
        drain_health.spawn(http_server::serve(self.health, answer, drain_health.clone()));
    }
}

fn answer(request: &Request<Incoming>, health: &Health, metrics: &Metrics) -> http_server::Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http_server::reply(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/live" => health.live(),
        "/ready" => health.ready(),
        "/startup" => health.startup(),
        "/metrics" => http_server::reply(StatusCode::OK, metrics.encode()),
        _ => http_server::reply(StatusCode::NOT_FOUND, "there are /live, /ready, /startup and /metrics\n"),
    }
}

/// The data folder, whatever folder the process was started in.
fn absolute(config: &Config) -> PathBuf {
    std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone())
}

fn join_address(config: &Config, addresses: &Addresses) -> String {
    match &config.advertise_mesh {
        Some(address) => address.clone(),
        None => {
            if addresses.mesh.ip().is_unspecified() {
                tracing::warn!(
                    "join files name 127.0.0.1, which only proxies on this machine reach; set --advertise-mesh"
                );
            }
            reachable(addresses.mesh).to_string()
        }
    }
}

#[derive(Debug)]
struct Join {
    address: String,
    signer: Arc<Signer>,
}

impl JoinInfo for Join {
    fn mesh_address(&self) -> String {
        self.address.clone()
    }

    fn trust_anchors(&self) -> String {
        self.signer.bundle().to_pem()
    }
}
