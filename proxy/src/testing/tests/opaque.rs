//! Opaque bytes through a pair.

use std::{cell::Cell, io::ErrorKind::ConnectionReset, net::SocketAddr, rc::Rc, sync::Arc};

use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, Instant, sleep},
};

use super::{Pair, pair};
use crate::{
    authorize::{Operation, Rule},
    config::{DialName, Limits},
    connect::tests::refuse,
    lifecycle::Stage,
    listener::Role,
    outcome::{ClosedBy, ErrorKind},
    snapshot::{Backend, Destination, HttpMatch, HttpRule, Protocol, Snapshot},
    stream::Stream,
    testing::{
        Called, Proxy, Served, TestMesh, allow_all, app, calling,
        client::{get, send1},
        cluster, only, run, serving, spiffe_id, until,
    },
};

/// Sends back what it gets; says `end` when the other side has ended.
async fn echo() -> SocketAddr {
    app::tcp(|mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b"end").await;
        let _ = write.shutdown().await;
    })
    .await
}

/// Speaks first.
async fn greeter() -> SocketAddr {
    app::tcp(|mut socket| async move {
        socket.write_all(b"220 welcome\r\n").await.unwrap();
        let mut word = [0; 4];
        if socket.read_exact(&mut word).await.is_ok() {
            word.reverse();
            let _ = socket.write_all(&word).await;
        }
    })
    .await
}

#[test]
fn a_connection_goes_elsewhere_when_one_address_cannot_be_had() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Tcp, echo().await);
        // Of one the caller's host knows no way to it; another's host is out of descriptors.
        let (unreachable, app) = (app::nobody().await, echo().await);
        refuse(unreachable, Errno::ADDRNOTAVAIL);
        refuse(app, Errno::MFILE);
        let full = mesh.sidecar("orders", Protocol::Tcp, app);
        for address in [unreachable, full.address()] {
            let called = Called::new("orders", Protocol::Tcp, &[address, callee.address()])
                .retries(|retry| retry.max_retries = 1);
            let caller = mesh.caller(vec![called]);
            for _ in 0..8 {
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                socket.write_all(b"\x00bytes").await.unwrap();
                socket.shutdown().await.unwrap();
                let mut answer = Vec::new();
                socket.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"\x00bytesend", "{address}");
            }
        }
    });
}

#[test]
fn each_direction_ends_by_itself() {
    for protocol in [Protocol::Tcp, Protocol::Detect] {
        run(async move {
            let Pair { callee, caller } = pair(protocol, echo().await);
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(b"\x00some bytes").await.unwrap();
            socket.shutdown().await.unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"\x00some bytesend");
            let out = caller.connection().await;
            assert_eq!((out.received_bytes, out.sent_bytes), (11, 14));
            assert_eq!(out.closed_by, Some(ClosedBy::Downstream));
            assert_eq!(out.peer, Some(spiffe_id("orders")));
            assert!(out.tls && out.error.is_none(), "{out:?}");
            let inside = callee.connection().await;
            assert_eq!(inside.peer, Some(spiffe_id("web")));
            assert_eq!((inside.received_bytes, inside.sent_bytes), (11, 14));
            assert!(inside.authorization.unwrap().allowed);
        });
    }
}

#[test]
fn a_server_may_speak_first() {
    for protocol in [Protocol::Tcp, Protocol::Detect] {
        run(async move {
            let Pair { caller, .. } = pair(protocol, greeter().await);
            let began = Instant::now();
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            let mut greeting = [0; 13];
            socket.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220 welcome\r\n");
            assert!(began.elapsed().as_secs() < 5);
            // What the client says now is not looked at.
            socket.write_all(b"GET ").await.unwrap();
            let mut answer = [0; 4];
            socket.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b" TEG");
        });
    }
}

#[test]
fn a_silent_client_may_turn_out_to_speak_http() {
    run(async {
        let Pair { caller, .. } = pair(Protocol::Detect, app::echo().await);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        sleep(Duration::from_millis(150)).await;
        socket.write_all(b"GET /late HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("1.1 GET /late\n"), "{answer}");
        // It was HTTP: a request is on record, no opaque connection.
        assert_eq!(caller.request().await.status.unwrap(), 200);
        assert_eq!(send1(caller.address(), get("/at-once")).await.status, 200);
    });
}

#[test]
fn a_word_that_waits_for_its_answer_arrives() {
    run(async {
        // It could be a method, and its line has no end.
        let app = app::tcp(|mut socket| async move {
            let mut word = [0; 4];
            socket.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"ruok");
            socket.write_all(b"imok").await.unwrap();
        })
        .await;
        let Pair { caller, .. } = pair(Protocol::Detect, app);
        for _ in 0..2 {
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(b"ruok").await.unwrap();
            let mut answer = [0; 4];
            socket.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"imok");
        }
    });
}

#[test]
fn who_waits_for_a_greeting_that_cannot_come_is_not_left_waiting() {
    run(async {
        let mesh = TestMesh::new();
        // At once, where HTTP would fare no better.
        let called = || Called::new("orders", Protocol::Detect, &[]);
        let caller = mesh.caller(vec![called()]);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::NoEndpoints);

        // After a moment, where it may turn out to be HTTP, and that has routes of its own.
        let backend =
            Backend { cluster: cluster("elsewhere"), weight: 1, filters: Vec::new(), invalid: Some("none".into()) };
        let rule = HttpRule {
            route: "HTTPRoute shop/orders".into(),
            rule: "0".into(),
            hostnames: Vec::new(),
            matches: HttpMatch::default(),
            filters: Vec::new(),
            backends: vec![backend],
            request_timeout: None,
            per_try_timeout: None,
            retry: None,
        };
        let mut routed = called();
        routed.service.ports.get_mut(&80).unwrap().http_rules.push(rule.into());
        let limits = Limits { header_timeout: Duration::from_millis(300), ..Limits::default() };
        let role = Role::Upstream("orders.shop:80".parse::<DialName>().unwrap().into());
        let caller = mesh.proxy_with("web", calling(vec![routed]), &[role], limits);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        sleep(Duration::from_millis(150)).await;
        socket.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("heddle-error: no-backend\r\n"), "{answer}");
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::NoEndpoints);
    });
}

#[test]
fn where_nobody_speaks_the_connection_ends_like_one_that_falls_silent() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, echo().await);
        let called = || Called::new("orders", Protocol::Detect, &callee.addresses);
        let idle = called().policy(|policy| policy.idle_timeout = Duration::from_millis(200));
        let caller = mesh.caller(vec![idle]);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        let record = caller.connection().await;
        assert_eq!(record.error.unwrap().kind, ErrorKind::RequestTimeout);

        // Nor does it hold up the end of the proxy.
        let caller = mesh.caller(vec![called()]);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        until("the app to be dialled", || callee.stages.connections() == 1).await;
        caller.stages.advance(Stage::Closing);
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
        until("the connection is let go", || caller.stages.connections() == 0).await;
    });
}

#[test]
fn tunnels_carry_opaque_bytes_too() {
    run(async {
        let Pair { caller, .. } = pair(Protocol::Detect, greeter().await);
        let mut socket = TcpStream::connect(caller.addresses[1]).await.unwrap();
        socket.write_all(b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\n\r\n").await.unwrap();
        let mut head = [0; 32];
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK\r\n\r\n220 welcome\r\n");
        drop(socket);
        assert_eq!(&*caller.connection().await.target.unwrap(), "orders.shop:80");
        until("the connection is let go", || caller.stages.connections() == 0).await;
    });
}

#[test]
fn resets_pass_in_both_directions() {
    run(async {
        let app = app::tcp(|mut socket| async move {
            if socket.read_u8().await.is_ok_and(|first| first == b'r') {
                Stream::from(socket).reset();
            } else {
                let error = socket.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), ConnectionReset);
            }
        })
        .await;
        let Pair { caller, callee } = pair(Protocol::Tcp, app);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(b"r").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        let out = caller.connection().await;
        assert_eq!(out.error.unwrap().kind, ErrorKind::UpstreamReset);
        assert_eq!(out.closed_by, Some(ClosedBy::Upstream));
        caller.outcomes.borrow_mut().clear();
        callee.connection().await;
        callee.outcomes.borrow_mut().clear();

        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(b"x").await.unwrap();
        sleep(Duration::from_millis(100)).await;
        Stream::from(socket).reset();
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::ClientGone);
        assert_eq!(callee.connection().await.error.unwrap().kind, ErrorKind::ClientGone);
    });
}

#[test]
fn what_is_not_allowed_is_refused_before_any_byte() {
    run(async {
        let touched = Rc::new(Cell::new(false));
        let seen = touched.clone();
        let app = app::tcp(move |_| {
            seen.set(true);
            async {}
        })
        .await;
        let with_path = Operation { paths: vec!["/x".parse().unwrap()], ..Operation::default() };
        let rule =
            Rule { policy: "p".into(), name: "1".into(), deny: false, sources: vec![], operations: vec![with_path] };
        for (protocol, authorizer, expected) in [
            (Protocol::Tcp, only(vec![]), ErrorKind::Denied),
            (Protocol::Http, allow_all(), ErrorKind::OpaqueRefused),
            (Protocol::Grpc, allow_all(), ErrorKind::OpaqueRefused),
            (Protocol::Detect, only(vec![rule]), ErrorKind::OpaqueRefused),
        ] {
            let mesh = TestMesh::new();
            let snapshot = serving("orders", vec![Served::new(80, protocol, app)], authorizer);
            let callee = mesh.proxy("orders", snapshot, &[Role::Inbound]);
            let caller = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &callee.addresses)]);
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(b"bytes").await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
            for proxy in [&caller, &callee] {
                assert_eq!(proxy.connection().await.error.unwrap().kind, expected);
            }
        }
        assert!(!touched.get());
    });
}

#[test]
fn an_open_connection_ends_when_policy_no_longer_allows_it() {
    run(async {
        let app = echo().await;
        let Pair { callee, caller } = pair(Protocol::Tcp, app);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(b"x").await.unwrap();
        socket.read_u8().await.unwrap();
        callee.believe(serving("orders", vec![Served::new(80, Protocol::Tcp, app)], allow_all()));
        socket.write_all(b"x").await.unwrap();
        socket.read_u8().await.unwrap();
        callee.believe(serving("orders", vec![Served::new(80, Protocol::Tcp, app)], only(vec![])));
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        let inside = callee.connection().await;
        assert_eq!(inside.error.unwrap().kind, ErrorKind::Denied);
        assert_eq!(inside.closed_by, Some(ClosedBy::Proxy));
    });
}

/// An opaque connection that works.
async fn connected(caller: &Proxy) -> TcpStream {
    let mut socket = TcpStream::connect(caller.address()).await.unwrap();
    socket.write_all(b"x").await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'x');
    socket
}

#[test]
fn an_open_connection_ends_when_its_destination_is_gone_or_somebody_else() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Tcp, echo().await);
        let called = || Called::new("orders", Protocol::Tcp, &callee.addresses);
        let caller = mesh.caller(vec![called()]);
        let mut socket = connected(&caller).await;
        assert!(caller.worker.common.discovery.is_kept("orders.shop:80"));
        // Neither another instance, nor that this one has left, ends what it has begun; nor what cannot be told now.
        for peers in [vec![callee.address(), app::nobody().await], vec![]] {
            caller.believe(calling(vec![Called::new("orders", Protocol::Tcp, &peers)]));
        }
        let mut left = calling(vec![called()]);
        left.destinations.insert("orders.shop:80".into(), Destination::Rejected("no instance is there".into()));
        caller.believe(left);
        sleep(Duration::from_millis(200)).await;
        socket.write_all(b"y").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'y');

        let mut gone = calling(vec![called()]);
        gone.destinations.insert("orders.shop:80".into(), Destination::Gone);
        caller.believe(gone);
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        let record = caller.connection().await;
        assert_eq!(record.error.unwrap().kind, ErrorKind::UnknownDestination);
        assert_eq!(record.closed_by, Some(ClosedBy::Proxy));
        until("it is let go", || !caller.worker.common.discovery.is_kept("orders.shop:80")).await;

        caller.outcomes.borrow_mut().clear();
        caller.believe(calling(vec![called()]));
        let mut socket = connected(&caller).await;
        let mut other = called();
        other.endpoints[0].identities = vec![spiffe_id("payments")];
        caller.believe(calling(vec![other]));
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::PeerIdentity);
    });
}

type Change<'a> = (&'a dyn Fn(&mut Snapshot), ErrorKind);

#[test]
fn an_open_connection_to_the_outside_ends_when_policy_no_longer_allows_it() {
    run(async {
        let mesh = TestMesh::new();
        let app = echo().await;
        let outside = format!("127.0.0.1:{}", app.port());
        let become_service = |snapshot: &mut Snapshot| {
            let to = Destination::Service { service: crate::testing::service_name("orders"), port: 80, instance: None };
            snapshot.destinations.insert(format!("127.0.0.1:{}", app.port()), to);
        };
        let changes: [Change<'_>; 3] = [
            (&|snapshot| Arc::make_mut(snapshot.mesh.as_mut().unwrap()).egress_allow = false, ErrorKind::EgressDenied),
            (
                &|snapshot| {
                    let mesh = Arc::make_mut(snapshot.mesh.as_mut().unwrap());
                    mesh.cidrs.push("127.0.0.0/8".parse().unwrap());
                },
                ErrorKind::UnknownDestination,
            ),
            (&become_service, ErrorKind::EgressDenied),
        ];
        for (change, expected) in changes {
            let caller = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &[])]);
            caller.no_service(&outside);
            let mut socket = TcpStream::connect(caller.addresses[1]).await.unwrap();
            socket
                .write_all(format!("CONNECT {outside} HTTP/1.1\r\nhost: {outside}\r\n\r\n\0").as_bytes())
                .await
                .unwrap();
            let mut head = [0; 20];
            socket.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK\r\n\r\n\0");
            let mut snapshot = (*caller.worker.common.discovery.snapshot()).clone();
            change(&mut snapshot);
            caller.believe(snapshot);
            assert_eq!(socket.read_u8().await.unwrap_err().kind(), ConnectionReset);
            assert_eq!(caller.connection().await.error.unwrap().kind, expected);
        }
    });
}

#[test]
fn another_endpoint_is_tried_while_nothing_was_sent() {
    run(async {
        let mesh = TestMesh::new();
        let down = mesh.sidecar("orders", Protocol::Tcp, app::nobody().await);
        let up = mesh.sidecar("orders", Protocol::Tcp, echo().await);
        let called = Called::new("orders", Protocol::Tcp, &[app::nobody().await, down.address(), up.address()]);
        let caller = mesh.caller(vec![called.retries(|retry| retry.max_retries = 2)]);
        for _ in 0..3 {
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(b"x").await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), b'x');
        }
    });
}
