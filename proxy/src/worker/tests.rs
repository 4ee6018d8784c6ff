//! Several workers, on threads of their own.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use tokio::time::Duration;

use super::{Common, start};
use crate::{
    config::{DialName, Limits},
    discovery::Discovery,
    lifecycle::{self, Stage},
    listener::Role,
    snapshot::{Destination, Protocol, Snapshot},
    telemetry::{Resource, Telemetry, TracingConfig},
    testing::{
        Called, TestMesh, app, calling,
        client::{connect1, connect2, get, get2},
        run, until,
    },
    trace_context::Sampler,
};

/// A listener of workers that a test starts.
struct Workers {
    stages: lifecycle::Stages,
    telemetry: Telemetry,
    discovery: Discovery,
    address: SocketAddr,
}

fn workers(count: usize, mesh: &TestMesh, snapshot: Snapshot, role: Role) -> Workers {
    let telemetry = Telemetry::new(Resource::default(), &TracingConfig::default()).unwrap();
    let (stages, life) = lifecycle::channel();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    let discovery = Discovery::fixed(snapshot, "shop");
    let common = Common {
        discovery: discovery.clone(),
        identity: mesh.identity("web"),
        sampler: Sampler::default(),
        signals: telemetry.signals(),
        life,
        limits: Limits::default(),
        instance: "web-1.shop".into(),
        own_listeners: Arc::new([address]),
        learned: crate::learned::Learned::default(),
        totals: crate::cluster::totals::Totals::default(),
    };
    start(count, &common, &telemetry, vec![(role, socket)]).unwrap();
    Workers { stages, telemetry, discovery, address }
}

/// A client's connection, of either version.
enum Client {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn status(&mut self) -> u16 {
        let response = match self {
            Self::One(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(get("/")).await
            }
            Self::Two(sender) => sender.send_request(get2("/")).await,
        };
        let response = response.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    }
}

fn spread(protocol: Protocol) {
    run(async move {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", protocol, app::echo().await);
        let snapshot = calling(vec![Called::new("orders", protocol, &callee.addresses)]);
        let role = Role::Upstream(Arc::new("orders.shop:80".parse::<DialName>().unwrap()));
        let Workers { stages, telemetry, address, .. } = workers(3, &mesh, snapshot, role);

        // Pools are per worker: with six connections on three workers there are three to the callee.
        let mut clients = Vec::new();
        for n in 1..=6 {
            clients.push(match protocol {
                Protocol::Http2 => Client::Two(connect2(address).await),
                _ => Client::One(connect1(address).await),
            });
            until("it is accepted", || stages.connections() == n).await;
        }
        for round in 0..5 {
            for client in &mut clients {
                assert_eq!(client.status().await, 200, "round {round}");
            }
        }
        assert_eq!(callee.stages.connections(), 3);
        let requests = callee.requests(30).await;
        let callers: Vec<_> = requests.iter().map(|request| request.peer_address).collect();
        for caller in callers.iter().collect::<HashSet<_>>() {
            assert_eq!(callers.iter().filter(|one| *one == caller).count(), 10, "two connections on each: {callers:?}");
        }
        let (_, text) = telemetry.render(None);
        let count = text.lines().find(|line| line.starts_with("http_client_request_duration_seconds_count"));
        assert!(count.is_some_and(|line| line.ends_with(" 30")), "{text}");

        drop(clients);
        stages.advance(Stage::Closing);
        until("all to be closed", || stages.connections() == 0).await;
    });
}

#[test]
fn connections_go_to_the_worker_that_has_the_fewest_and_stay_there() {
    spread(Protocol::Http1);
}

#[test]
fn long_lived_connections_of_http_2_are_spread_too() {
    spread(Protocol::Http2);
}

/// Answers each of so many requests on one connection.
fn answer(listener: &std::net::TcpListener, requests: usize) {
    let (mut socket, _) = listener.accept().unwrap();
    for _ in 0..requests {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    }
}

#[test]
fn a_request_waits_neither_for_a_scrape_nor_for_a_change_nor_for_whoever_makes_them() {
    const REQUESTS: usize = 200;
    run(async {
        // An app and a client on threads of their own, so that this one, which has nothing but control to do, may stop.
        let app = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let name = app.local_addr().unwrap().to_string();
        let answering = thread::spawn(move || answer(&app, REQUESTS));
        let mesh = TestMesh::new();
        let mut snapshot = calling(Vec::new());
        snapshot.destinations.insert(name.clone(), Destination::Unknown);
        let Workers { telemetry, discovery, address, .. } = workers(1, &mesh, snapshot.clone(), Role::HttpProxy);
        let asking = thread::spawn(move || {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            for n in 0..REQUESTS {
                write!(socket, "GET http://{name}/{n} HTTP/1.1\r\nhost: {name}\r\n\r\n").unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                assert!(head.starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&head));
            }
        });
        // Not a moment for anything else that this runtime has to do.
        let mut rounds = 0;
        while !asking.is_finished() {
            discovery.replace(snapshot.clone());
            assert!(!telemetry.render(None).1.is_empty());
            rounds += 1;
        }
        asking.join().unwrap();
        answering.join().unwrap();
        assert!(rounds > 0);
    });
}
