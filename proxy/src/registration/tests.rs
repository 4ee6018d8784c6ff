use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use heddle_api::proto::registration::{
    DeregisterResponse, RegisterResponse,
    registration_server::{Registration as Service, RegistrationServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Endpoint};

use super::*;
use crate::{
    authorize::Authorizer,
    snapshot::{InboundPolicy, InboundPort, Protocol, ServiceName},
};

const SOON: Duration = Duration::from_secs(10);

/// Remembers what it was told.
#[derive(Clone, Default)]
struct Fake {
    registered: Arc<Mutex<Vec<RegisterRequest>>>,
    deregistered: Arc<Mutex<Vec<DeregisterRequest>>>,
    refuse: Arc<Mutex<bool>>,
}

#[tonic::async_trait]
impl Service for Fake {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        if *self.refuse.lock().unwrap() {
            return Err(Status::permission_denied("not yours"));
        }
        self.registered.lock().unwrap().push(request.into_inner());
        Ok(Response::new(RegisterResponse { lease_seconds: 3 }))
    }

    async fn deregister(&self, request: Request<DeregisterRequest>) -> Result<Response<DeregisterResponse>, Status> {
        self.deregistered.lock().unwrap().push(request.into_inner());
        Ok(Response::new(DeregisterResponse { acknowledged: true }))
    }
}

impl Fake {
    async fn channel(&self) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    async fn until(&self, what: impl Fn(&[RegisterRequest]) -> bool) {
        let waiting = async {
            while !what(&self.registered.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, waiting).await.expect("registered in time");
    }
}

fn snapshot(app: SocketAddr) -> Snapshot {
    let name = ServiceName { namespace: "shop".into(), name: "orders".into() };
    let port = |app| InboundPort { protocol: Protocol::Detect, app, permissive: false };
    let policy = InboundPolicy {
        service: name.clone(),
        ports: BTreeMap::from([(80, port(Some(app))), (90, port(None))]),
        authorizer: Authorizer::new(Vec::new(), false),
        probe_exemptions: Vec::new(),
        version: "1".to_owned(),
    };
    Snapshot { inbound: BTreeMap::from([(name, policy.into())]), ..Snapshot::default() }
}

struct Running {
    channel: watch::Sender<Option<Channel>>,
    leave: mpsc::Sender<Leave>,
    task: JoinHandle<()>,
}

fn start(app: SocketAddr) -> Running {
    let (channel, watched) = watch::channel(None);
    let (leave, leaving) = mpsc::channel(1);
    let workload = Workload {
        name: "orders-1".to_owned(),
        advertise: Advertise::default(),
        inbound: ([0, 0, 0, 0], 15006).into(),
        labels: BTreeMap::from([("version".to_owned(), "v1".to_owned())]),
        zone: "a".to_owned(),
    };
    let discovery = Discovery::fixed(snapshot(app), "shop");
    let registration = Registration { workload, discovery, channel: watched, leave: leaving };
    Running { channel, leave, task: tokio::spawn(registration.run()) }
}

#[tokio::test]
async fn a_workload_is_registered_kept_so_and_taken_back() {
    let fake = Fake::default();
    // Bound later: the application is slow to start.
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = reserved.local_addr().unwrap();
    drop(reserved);
    let running = start(app);
    running.channel.send_replace(Some(fake.channel().await));
    fake.until(|told| !told.is_empty()).await;
    let first = fake.registered.lock().unwrap()[0].clone();
    assert_eq!((first.workload.as_str(), first.address.as_str(), first.ready), ("orders-1", ":15006", false));
    assert_eq!(first.instances[0].service, "shop/orders");
    assert_eq!(first.instances[0].ports, [80], "what the application does not serve is not registered");
    let application = TcpListener::bind(app).await.unwrap();
    fake.until(|told| told.last().is_some_and(|last| last.ready)).await;
    let before = fake.registered.lock().unwrap().len();
    fake.until(|told| told.len() > before).await;
    // Another control plane may know nothing.
    let other = Fake::default();
    running.channel.send_replace(Some(other.channel().await));
    other.until(|told| told.last().is_some_and(|last| last.ready)).await;
    let (reply, told) = oneshot::channel();
    running.leave.send(Leave { wait: Duration::from_secs(5), reply }).await.unwrap();
    assert!(timeout(SOON, told).await.unwrap().unwrap());
    assert_eq!(other.deregistered.lock().unwrap()[0].wait_milliseconds, 5000);
    timeout(SOON, running.task).await.unwrap().unwrap();
    let after = other.registered.lock().unwrap().len();
    drop(application);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(other.registered.lock().unwrap().len(), after, "it does not come back");
}

#[tokio::test]
async fn a_refusal_is_tried_again_later() {
    let fake = Fake::default();
    *fake.refuse.lock().unwrap() = true;
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(application.local_addr().unwrap());
    running.channel.send_replace(Some(fake.channel().await));
    tokio::time::sleep(Duration::from_millis(100)).await;
    *fake.refuse.lock().unwrap() = false;
    fake.until(|told| !told.is_empty()).await;
}

#[test]
fn the_address_is_what_the_settings_know_of_it() {
    let address = |inbound: &str, ip: Option<&str>, port| {
        let workload = Workload {
            name: String::new(),
            advertise: Advertise { ip: ip.map(|ip| ip.parse().unwrap()), port },
            inbound: inbound.parse().unwrap(),
            labels: BTreeMap::new(),
            zone: String::new(),
        };
        workload.address()
    };
    assert_eq!(address("0.0.0.0:15006", None, None), ":15006");
    assert_eq!(address("127.0.0.1:15006", None, None), "127.0.0.1:15006");
    assert_eq!(address("0.0.0.0:15006", Some("10.0.0.1"), None), "10.0.0.1:15006");
    assert_eq!(address("0.0.0.0:15006", None, Some(99)), ":99");
    assert_eq!(address("[::]:1", Some("fd00::1"), Some(2)), "[fd00::1]:2");
}
