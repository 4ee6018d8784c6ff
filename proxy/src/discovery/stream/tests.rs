use std::{net::SocketAddr, pin::Pin, sync::Arc};

use heddle_api::proto::{
    Any,
    ads::{
        Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    discovery as proto, type_url,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout_at};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, transport::Endpoint};

use super::*;
use crate::{
    config::{DialName, ServedService},
    discovery::{Discovery, Own, Resolved, compile},
    outcome::ErrorKind,
};

/// Longest wait for anything that should happen.
const SOON: Duration = Duration::from_secs(10);

type Answer = Result<DeltaDiscoveryResponse, tonic::Status>;

/// One stream of a proxy, as the control plane has it.
struct Session {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Answer>,
}

/// A control plane that does what the test says.
struct Fake {
    sessions: mpsc::Receiver<Session>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

struct Service(mpsc::Sender<Session>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, tonic::Status> {
        let (responses, sent) = mpsc::channel(64);
        let session = Session { requests: request.into_inner(), responses };
        self.0.send(session).await.map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }
}

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(8);
        let service = AggregatedDiscoveryServiceServer::new(Service(sender));
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { sessions, address, server }
    }

    async fn session(&mut self) -> Session {
        timeout(SOON, self.sessions.recv()).await.expect("a stream in time").unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Session {
    /// The next request of a type that subscribes, unsubscribes or answers.
    async fn request(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        let until = Instant::now() + SOON;
        loop {
            let request =
                timeout_at(until, self.requests.message()).await.expect("a request in time").unwrap().unwrap();
            if request.type_url == type_url {
                return request;
            }
        }
    }

    async fn send(&self, type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let response = DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources,
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        };
        self.responses.send(Ok(response)).await.unwrap();
    }
}

fn resource(type_url: &str, name: &str, version: &str, aliases: &[&str], message: &impl Message) -> Resource {
    Resource {
        version: version.to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() }),
        name: name.to_owned(),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
    }
}

fn payments(version: &str, hosts: &[&str]) -> Resource {
    let message = proto::Service {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        ports: vec![proto::ServicePort { port: 80, ..proto::ServicePort::default() }],
        ..proto::Service::default()
    };
    resource(type_url::SERVICE, "shop/payments", version, &["payments.shop:80"], &message)
}

fn payments_endpoints(address: &str) -> Resource {
    let endpoint = proto::Endpoint { address: address.to_owned(), ready: true, ..proto::Endpoint::default() };
    let message = proto::Endpoints { service: "shop/payments".to_owned(), endpoints: vec![endpoint] };
    resource(type_url::ENDPOINTS, "shop/payments", "1", &[], &message)
}

fn mesh(egress_allow: bool) -> Resource {
    let message = proto::MeshConfig {
        trust_domain: "heddle.local".to_owned(),
        suffixes: vec!["mesh.local".to_owned()],
        cidrs: vec!["10.0.0.0/8".to_owned()],
        egress_allow,
        telemetry: None,
        namespaces: vec!["web".to_owned()],
    };
    resource(type_url::MESH_CONFIG, "mesh", "1", &[], &message)
}

/// Connects without TLS.
struct Plain(SocketAddr);

impl Connect for Plain {
    async fn connect(&mut self) -> Result<Channel, String> {
        Endpoint::from_shared(format!("http://{}", self.0)).unwrap().connect().await.map_err(|error| causes(&error))
    }
}

struct Proxy {
    discovery: Discovery,
    status: watch::Receiver<Status>,
    news: watch::Receiver<u64>,
}

impl Proxy {
    fn start(address: SocketAddr, wait: Duration) -> Self {
        let (discovery, feed) = Discovery::new("shop", wait);
        let own = Own {
            node: "shop/orders-1".to_owned(),
            service_account: "orders".to_owned(),
            zone: "a".to_owned(),
            trust_domain: "heddle.local".parse().unwrap(),
            served: vec![ServedService { name: compile::service_name("shop/orders").unwrap(), ports: Vec::new() }],
            listeners: Vec::new(),
            idle: Duration::from_secs(600),
            max_destinations: 100,
        };
        let table = Table::new(own, Box::new(|_, _| Ok(())), true, Instant::now());
        let (status, watched) = watch::channel(Status::default());
        let (news, heard) = watch::channel(0);
        let client = Client { table, feed, connect: Plain(address), status, news };
        tokio::spawn(client.run());
        Self { discovery, status: watched, news: heard }
    }

    async fn resolve(&self, name: &str) -> Result<String, ErrorKind> {
        match self.discovery.resolve(&name.parse::<DialName>().unwrap()).await {
            Ok(Resolved::Service { service, port, .. }) => Ok(format!("{}:{port} {}", service.name, service.version)),
            Ok(Resolved::Outside) => Ok("outside".to_owned()),
            Err(error) => Err(error.kind),
        }
    }

    /// Asks in the background.
    fn ask(&self, name: &'static str) -> JoinHandle<Result<String, ErrorKind>> {
        let asker = Self { discovery: self.discovery.clone(), status: self.status.clone(), news: self.news.clone() };
        tokio::spawn(async move { asker.resolve(name).await })
    }
}

/// A proxy that has resolved `payments`, with the stream that it did so on.
async fn with_payments(fake: &mut Fake) -> (Proxy, Session) {
    let proxy = Proxy::start(fake.address, SOON);
    let mut session = fake.session().await;
    assert_eq!(session.request(type_url::INBOUND_POLICY).await.resource_names_subscribe, ["shop/orders"]);
    let asking = proxy.ask("payments");
    assert_eq!(session.request(type_url::SERVICE).await.resource_names_subscribe, ["payments.shop:80"]);
    session.send(type_url::SERVICE, "n1", vec![payments("v1", &[])], &[]).await;
    let answer = session.request(type_url::SERVICE).await;
    assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("n1", None));
    assert_eq!(session.request(type_url::ENDPOINTS).await.resource_names_subscribe, ["shop/payments"]);
    assert!(!asking.is_finished(), "no endpoints yet");
    session.send(type_url::ENDPOINTS, "n2", vec![payments_endpoints("127.0.0.1:1")], &[]).await;
    assert_eq!(timeout(SOON, asking).await.unwrap().unwrap().as_deref(), Ok("shop/payments:80 v1"));
    (proxy, session)
}

#[tokio::test]
async fn a_name_is_asked_for_when_it_is_first_dialled() {
    let mut fake = Fake::start().await;
    let (proxy, mut session) = with_payments(&mut fake).await;
    // Known now: nothing is asked.
    assert_eq!(proxy.resolve("payments.shop:80").await.as_deref(), Ok("shop/payments:80 v1"));
    let cluster = crate::snapshot::ClusterName { service: compile::service_name("shop/payments").unwrap(), port: 80 };
    let (_, endpoints) = proxy.discovery.cluster(&cluster).await.unwrap();
    assert_eq!(endpoints.endpoints[0].address.to_string(), "127.0.0.1:1");
    // A change is in effect when it is acknowledged.
    session.request(type_url::ENDPOINTS).await;
    session.send(type_url::SERVICE, "n3", vec![payments("v2", &[])], &[]).await;
    assert_eq!(session.request(type_url::SERVICE).await.response_nonce, "n3");
    assert_eq!(proxy.resolve("payments").await.as_deref(), Ok("shop/payments:80 v2"));
}

#[tokio::test]
async fn what_is_no_service_is_refused_or_let_out() {
    let mut fake = Fake::start().await;
    let proxy = Proxy::start(fake.address, Duration::from_millis(200));
    let mut session = fake.session().await;
    assert_eq!(proxy.resolve("nobody").await, Err(ErrorKind::DiscoveryTimeout), "nothing was said");
    let names = [
        "nobody.shop:80",
        "nobody.web:80",
        "x.mesh.local:80",
        "mesh.local:80",
        "10.1.2.3:80",
        "example.com:443",
        "example.web:443",
        "x.y.web:443",
        "nobody.shop:443",
        "192.0.2.1:80",
    ];
    for name in names {
        let _ = proxy.resolve(name).await;
    }
    session.send(type_url::SERVICE, "n1", vec![], &names).await;
    while session.request(type_url::SERVICE).await.response_nonce != "n1" {}
    assert_eq!(proxy.resolve("example.com:443").await, Err(ErrorKind::NotReady), "no mesh config yet");
    for (egress_allow, outside) in [(true, Ok("outside".to_owned())), (false, Err(ErrorKind::EgressDenied))] {
        session.send(type_url::MESH_CONFIG, "m", vec![mesh(egress_allow)], &[]).await;
        while session.request(type_url::MESH_CONFIG).await.response_nonce != "m" {}
        for name in ["nobody", "nobody.shop", "nobody.web", "nobody.WEB.", "x.mesh.local", "mesh.local", "10.1.2.3"] {
            assert_eq!(proxy.resolve(name).await, Err(ErrorKind::UnknownDestination), "{name}");
        }
        assert_eq!(proxy.resolve("nobody.shop:443").await, Err(ErrorKind::UnknownDestination), "the own namespace");
        for name in ["example.com:443", "example.web:443", "x.y.web:443", "192.0.2.1:80"] {
            assert_eq!(proxy.resolve(name).await, outside, "{name}");
        }
    }

    let refused = proxy.discovery.resolve(&"nobody.web:80".parse().unwrap()).await.unwrap_err().detail;
    assert!(refused.contains("taken for a service of namespace web"), "{refused}");
    assert!(refused.contains("`hosts: [nobody.web]`"), "{refused}");
    // A namespace that comes ends nothing that is open, and counts for as long as it is there.
    let still = |name: &str| proxy.discovery.still(&name.parse().unwrap(), true).map_err(|error| error.kind);
    session.send(type_url::MESH_CONFIG, "m2", vec![mesh(true)], &[]).await;
    while session.request(type_url::MESH_CONFIG).await.response_nonce != "m2" {}
    assert_eq!(proxy.resolve("nobody.web:80").await, Err(ErrorKind::UnknownDestination));
    assert_eq!(still("nobody.web:80"), Ok(()));
    assert_eq!(still("x.mesh.local:80"), Err(ErrorKind::UnknownDestination));
    let none = proto::MeshConfig {
        trust_domain: "heddle.local".to_owned(),
        egress_allow: true,
        ..proto::MeshConfig::default()
    };
    let none = resource(type_url::MESH_CONFIG, "mesh", "2", &[], &none);
    session.send(type_url::MESH_CONFIG, "m3", vec![none], &[]).await;
    while session.request(type_url::MESH_CONFIG).await.response_nonce != "m3" {}
    assert_eq!(proxy.resolve("nobody.web:80").await, Ok("outside".to_owned()));
}

#[tokio::test]
async fn a_name_that_is_merely_asked_for_changes_nothing_for_others() {
    let mut fake = Fake::start().await;
    let (proxy, mut session) = with_payments(&mut fake).await;
    session.request(type_url::ENDPOINTS).await;
    let changed = proxy.discovery.changed();
    let asking = ["a.example:80", "b.example:80"].map(|name| proxy.ask(name));
    // For longer than a tick.
    sleep(Duration::from_millis(2500)).await;
    assert!(!changed.has_changed().unwrap());
    asking.into_iter().for_each(|asking| asking.abort());
}

#[tokio::test]
async fn a_port_that_a_service_has_not_is_told_apart_from_a_service_that_is_not() {
    let mut fake = Fake::start().await;
    let (proxy, mut session) = with_payments(&mut fake).await;
    session.send(type_url::MESH_CONFIG, "m", vec![mesh(true)], &[]).await;
    let names = ["payments.shop:81", "payments.shop.mesh.local:81", "nobody.shop:81"];
    for name in names {
        let _ = timeout(Duration::from_millis(50), proxy.resolve(name)).await;
    }
    session.send(type_url::SERVICE, "n3", vec![], &names).await;
    while session.request(type_url::SERVICE).await.response_nonce != "n3" {}
    for name in ["payments:81", "payments.shop:81", "payments.shop.mesh.local:81"] {
        assert_eq!(proxy.resolve(name).await, Err(ErrorKind::UnknownPort), "{name}");
    }
    assert_eq!(proxy.resolve("nobody.shop:81").await, Err(ErrorKind::UnknownDestination));
}

#[tokio::test]
async fn a_lost_stream_loses_nothing_and_is_resumed() {
    let mut fake = Fake::start().await;
    let (mut proxy, session) = with_payments(&mut fake).await;
    drop(session);
    let mut session = fake.session().await;
    assert_eq!(proxy.resolve("payments").await.as_deref(), Ok("shop/payments:80 v1"));
    let first = timeout(SOON, session.requests.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.node.unwrap().id, "shop/orders-1");
    let services = session.request(type_url::SERVICE).await;
    assert_eq!(services.resource_names_subscribe, ["payments.shop:80"]);
    assert_eq!(services.initial_resource_versions["shop/payments"], "v1");
    assert_eq!(services.initial_resource_versions["payments.shop:80"], "v1");
    assert_eq!(services.response_nonce, "", "nonces die with their stream");
    assert_eq!(session.request(type_url::ENDPOINTS).await.initial_resource_versions["shop/payments"], "1");
    timeout(SOON, proxy.status.wait_for(|status| status.streams == 2)).await.unwrap().unwrap();
    // What was dialled while there was no stream is asked for on the next one.
    drop(session);
    let asking = proxy.ask("inventory");
    let mut session = fake.session().await;
    let services = session.request(type_url::SERVICE).await;
    let asked =
        if services.resource_names_subscribe.len() == 2 { services } else { session.request(type_url::SERVICE).await };
    assert!(asked.resource_names_subscribe.contains(&"inventory.shop:80".to_owned()));
    asking.abort();
}

#[tokio::test]
async fn new_credentials_make_a_new_stream_without_delay() {
    let mut fake = Fake::start().await;
    let (proxy, _session) = with_payments(&mut fake).await;
    proxy.discovery.reconnect().await;
    let mut session = fake.session().await;
    assert_eq!(session.request(type_url::SERVICE).await.initial_resource_versions["shop/payments"], "v1");
}

#[tokio::test]
async fn what_cannot_be_used_is_named_and_the_last_good_one_stays() {
    let mut fake = Fake::start().await;
    let (proxy, mut session) = with_payments(&mut fake).await;
    let mut bad = payments("v2", &[]);
    bad.resource = Some(Any { type_url: type_url::SERVICE.to_owned(), value: vec![0xff; 9].into() });
    session.send(type_url::SERVICE, "n3", vec![bad], &[]).await;
    let answer = session.request(type_url::SERVICE).await;
    assert_eq!(answer.response_nonce, "n3");
    let detail = answer.error_detail.unwrap();
    assert!(detail.message.starts_with("shop/payments: cannot be read"), "{}", detail.message);
    assert_eq!(proxy.resolve("payments").await.as_deref(), Ok("shop/payments:80 v1"));
    assert_eq!(proxy.status.borrow().rejected, 1);
    let dump = proxy.discovery.dump().await;
    assert_eq!(dump["subscriptions"]["service"]["payments.shop:80"]["state"], "held");
    assert_eq!(dump["services"][0]["version"], "v1");
    // Far too large: no stream can carry it, and the one that tried is made anew.
    let host = "h".repeat(MAX_MESSAGE + 1);
    session.send(type_url::SERVICE, "n4", vec![payments("v3", &[&host])], &[]).await;
    let mut session = fake.session().await;
    assert_eq!(session.request(type_url::SERVICE).await.initial_resource_versions["shop/payments"], "v1");
    assert_eq!(proxy.resolve("payments").await.as_deref(), Ok("shop/payments:80 v1"));
}

#[tokio::test]
async fn the_last_good_resources_are_handed_over_to_be_kept() {
    let mut fake = Fake::start().await;
    let (mut proxy, _session) = with_payments(&mut fake).await;
    let holds = |saved: Option<Vec<u8>>| saved.unwrap().windows(11).any(|window| window == b"127.0.0.1:1");
    while !holds(proxy.discovery.saved().await) {
        timeout(SOON, proxy.news.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn without_a_control_plane_a_new_name_is_refused_in_time_with_the_reason() {
    // A port that nobody listens on: bound, and closed again.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::start(address, Duration::from_millis(300));
    let started = Instant::now();
    let error = proxy.discovery.resolve(&Arc::new("payments".parse::<DialName>().unwrap())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DiscoveryTimeout);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(error.detail.contains("payments.shop:80"), "{error}");
}
