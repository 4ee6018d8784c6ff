//! Several workers, on threads of their own.

use std::{collections::HashSet, sync::Arc};

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Common, start};
use crate::{
    config::{DialName, Limits},
    discovery::Discovery,
    lifecycle::{self, Stage},
    listener::Role,
    snapshot::Protocol,
    telemetry::{Resource, Telemetry, TracingConfig},
    testing::{Called, TestMesh, app, calling, client::get, run, until},
    trace_context::Sampler,
};

#[test]
fn connections_go_to_the_worker_that_has_the_fewest_and_stay_there() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http1, app::echo().await);
        let telemetry = Telemetry::new(Resource::default(), &TracingConfig::default()).unwrap();
        let (stages, life) = lifecycle::channel();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let common = Common {
            discovery: Discovery::fixed(
                calling(vec![Called::new("orders", Protocol::Http1, &callee.addresses)]),
                "shop",
            ),
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
        let role = Role::Upstream(Arc::new("orders.shop:80".parse::<DialName>().unwrap()));
        start(3, &common, &telemetry, vec![(role, socket)]).unwrap();

        // Pools are per worker: with six connections on three workers there are three to the callee.
        let mut clients = Vec::new();
        for n in 1..=6 {
            let socket = TcpStream::connect(address).await.unwrap();
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
            tokio::task::spawn_local(connection);
            clients.push(sender);
            until("it is accepted", || stages.connections() == n).await;
        }
        for round in 0..5 {
            for client in &mut clients {
                client.ready().await.unwrap();
                let response = client.send_request(get("/")).await.unwrap();
                assert_eq!(response.status(), 200, "round {round}");
                response.into_body().collect().await.unwrap();
            }
        }
        assert_eq!(callee.stages.connections(), 3);
        let callers: HashSet<_> = callee.requests(30).await.iter().map(|request| request.peer_address).collect();
        assert_eq!(callers.len(), 3);
        let (_, text) = telemetry.render(None);
        let count = text.lines().find(|line| line.starts_with("http_client_request_duration_seconds_count"));
        assert!(count.is_some_and(|line| line.ends_with(" 30")), "{text}");

        drop(clients);
        stages.advance(Stage::Closing);
        until("all to be closed", || stages.connections() == 0).await;
    });
}
