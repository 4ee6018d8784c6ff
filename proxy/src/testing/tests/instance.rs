//! Calls of one instance, by its own address.

use std::{net::SocketAddr, sync::Arc};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    config::DialName,
    listener::Role,
    snapshot::{Backend, Destination, HttpMatch, HttpRule, Protocol, Snapshot},
    testing::{
        Called, Proxy, TestMesh,
        app::{self, text},
        calling,
        client::{get, send1},
        cluster, run, service_name,
    },
};

/// Two instances of `orders`, and a caller that dials the second by its address.
struct World {
    instances: [Proxy; 2],
    caller: Proxy,
}

fn believing(called: Called, instance: SocketAddr) -> Snapshot {
    let mut snapshot = calling(vec![called]);
    let to = Destination::Service { service: service_name("orders"), port: 80, instance: Some(instance) };
    snapshot.destinations.insert("10.0.0.2:8080".to_owned(), to);
    snapshot
}

async fn world(protocol: Protocol, change: impl FnOnce(&mut Called)) -> World {
    let mesh = TestMesh::new();
    let app = |name: &'static str| async move {
        match protocol {
            Protocol::Tcp => {
                app::tcp(move |mut stream| async move {
                    let _ = stream.write_all(name.as_bytes()).await;
                })
                .await
            }
            _ => app::http(move |_| async move { http::Response::new(text(name)) }).await,
        }
    };
    let instances = [app("first").await, app("second").await].map(|app| mesh.sidecar("orders", protocol, app));
    let mut called = Called::new("orders", protocol, &instances.each_ref().map(Proxy::address));
    change(&mut called);
    let name: DialName = "10.0.0.2:8080".parse().unwrap();
    let roles = [Role::Upstream(name.into())];
    let caller = mesh.proxy("web", believing(called, instances[1].address()), &roles);
    World { instances, caller }
}

#[test]
fn a_request_goes_to_the_instance_whatever_routes_and_readiness_say() {
    run(async {
        let elsewhere = HttpRule {
            route: "HTTPRoute shop/orders".into(),
            rule: "0".into(),
            hostnames: Vec::new(),
            matches: HttpMatch::default(),
            filters: Vec::new(),
            backends: vec![Backend { cluster: cluster("others"), weight: 1, filters: Vec::new(), invalid: None }],
            request_timeout: None,
            per_try_timeout: None,
            retry: None,
        };
        let world = world(Protocol::Http1, |called| {
            called.service.ports.get_mut(&80).unwrap().http_rules.push(Arc::new(elsewhere));
            called.endpoints[1].ready = false;
        })
        .await;
        for _ in 0..4 {
            let answer = send1(world.caller.address(), get("/")).await;
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "second"), "{answer:?}");
        }
        let requests = world.caller.requests(4).await;
        let endpoint = requests[0].attempts[0].endpoint.as_ref().unwrap().address;
        assert_eq!((endpoint, &requests[0].cluster), (world.instances[1].address(), &Some(cluster("orders"))));
        assert!(requests[0].peer.is_some() && requests[0].rule.is_none());
        assert!(world.instances[0].outcomes.borrow().is_empty());
    });
}

#[test]
fn opaque_bytes_go_to_the_instance() {
    run(async {
        let world = world(Protocol::Tcp, |_| {}).await;
        for _ in 0..4 {
            let mut client = TcpStream::connect(world.caller.address()).await.unwrap();
            let mut said = String::new();
            client.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "second");
        }
    });
}

#[test]
fn another_instance_does_not_stand_in_for_one_that_is_gone() {
    run(async {
        let world = world(Protocol::Http1, |_| {}).await;
        let gone = app::nobody().await;
        let only = world.instances[0].address();
        // Known, but nobody is there.
        let called = Called::new("orders", Protocol::Http1, &[only, gone]).retries(|retry| retry.max_retries = 1);
        world.caller.believe(believing(called, gone));
        let answer = send1(world.caller.address(), get("/")).await;
        assert_eq!((answer.status, answer.error()), (StatusCode::BAD_GATEWAY, "connect-failed"), "{answer:?}");
        let request = world.caller.request().await;
        let tried: Vec<_> = request.attempts.iter().map(|attempt| attempt.endpoint.as_ref().unwrap().address).collect();
        assert_eq!(tried, [gone, gone], "tried again, there");
        // Not known any more.
        world.caller.believe(believing(Called::new("orders", Protocol::Http1, &[only]), gone));
        let answer = send1(world.caller.address(), get("/")).await;
        assert_eq!((answer.status, answer.error()), (StatusCode::SERVICE_UNAVAILABLE, "no-endpoints"), "{answer:?}");
    });
}
