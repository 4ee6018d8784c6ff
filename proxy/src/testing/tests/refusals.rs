//! Each reason that a proxy gives.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Duration,
};

use crate::{
    config::Limits,
    identity::Identity,
    listener::Role,
    outcome::ErrorKind,
    snapshot::{Backend, Endpoint, HttpMatch, HttpRule, PathMatch, Protocol, Snapshot},
    testing::{
        Called, Proxy, TestMesh, app, calling,
        client::{Answer, get, get2, send1, send2},
        cluster, meshed, run,
    },
};

async fn asked(proxy: &Proxy, kind: ErrorKind) {
    let row = kind.row();
    let answer = send1(proxy.address(), get("/")).await;
    assert_eq!((answer.status, answer.error()), (row.status, row.reason), "{answer:?}");
    let status = answer.headers["proxy-status"].to_str().unwrap();
    assert!(status.starts_with(&format!("heddle-proxy; error={}; details=\"", row.proxy_status)), "{status}");
    let record = proxy.request().await;
    assert_eq!(record.error.unwrap().kind, kind);
    assert_eq!(record.status, Some(row.status));
    // To gRPC, in gRPC's way.
    let mut request = get2("/");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let answer = send2(proxy.address(), request).await;
    assert_eq!((answer.status.as_u16(), answer.error()), (200, row.reason));
    assert_eq!(answer.headers["grpc-status"], row.grpc_status.to_string());
    proxy.request().await;
}

fn calling_one(change: impl FnOnce(&mut Called)) -> Vec<Called> {
    let mut called = Called::new("orders", Protocol::Detect, &[]);
    change(&mut called);
    vec![called]
}

#[test]
fn destinations_that_lead_nowhere() {
    run(async {
        let mesh = TestMesh::new();
        asked(&mesh.caller(calling_one(|_| {})), ErrorKind::NoEndpoints).await;
        let not_ready = |called: &mut Called| {
            called.endpoints.push(Endpoint { ready: false, ..meshed("127.0.0.1:1".parse().unwrap(), "orders") });
        };
        asked(&mesh.caller(calling_one(not_ready)), ErrorKind::NoEndpoints).await;
        let nobody = app::nobody().await;
        asked(
            &mesh.caller(calling_one(|called| called.endpoints.push(meshed(nobody, "orders")))),
            ErrorKind::ConnectFailed,
        )
        .await;
        let caller = mesh.caller(calling_one(|_| {}));
        let mut snapshot: Snapshot = (*caller.worker.common.discovery.snapshot()).clone();
        let service = snapshot.services.values_mut().next().unwrap();
        Arc::make_mut(service).ports.clear();
        caller.believe(snapshot);
        asked(&caller, ErrorKind::UnknownPort).await;
        caller.no_service("orders.shop:80");
        asked(&caller, ErrorKind::UnknownDestination).await;
        caller.believe(Snapshot::default());
        asked(&caller, ErrorKind::DiscoveryTimeout).await;
        caller.no_service("orders.shop:80");
        asked(&caller, ErrorKind::NotReady).await;

        let mut outside = calling(Vec::new());
        let mesh_wide = Arc::make_mut(outside.mesh.as_mut().unwrap());
        mesh_wide.egress_allow = false;
        let role = Role::Upstream("elsewhere.example:80".parse::<crate::config::DialName>().unwrap().into());
        let caller = mesh.proxy("web", outside, &[role]);
        caller.no_service("elsewhere.example:80");
        asked(&caller, ErrorKind::EgressDenied).await;
    });
}

#[test]
fn routes_that_lead_nowhere() {
    run(async {
        let mesh = TestMesh::new();
        let rule = |path: &str, backends| {
            Arc::new(HttpRule {
                route: "HTTPRoute shop/orders".into(),
                rule: "0".into(),
                hostnames: Vec::new(),
                matches: HttpMatch { path: Some(PathMatch::Exact(path.into())), ..HttpMatch::default() },
                filters: Vec::new(),
                backends,
                request_timeout: None,
                per_try_timeout: None,
                retry: None,
            })
        };
        let invalid = Backend {
            cluster: cluster("orders"),
            weight: 1,
            filters: Vec::new(),
            invalid: Some("Service shop/gone does not exist".into()),
        };
        let routed = |rules| calling_one(|called| called.service.ports.get_mut(&80).unwrap().http_rules = rules);
        asked(&mesh.caller(routed(vec![rule("/other", vec![])])), ErrorKind::NoRoute).await;
        asked(&mesh.caller(routed(vec![rule("/", vec![invalid])])), ErrorKind::NoBackend).await;
    });
}

#[test]
fn peers_that_fail() {
    run(async {
        let mesh = TestMesh::new();
        let to = |address| {
            Called::new("orders", Protocol::Detect, &[address])
                .policy(|policy| policy.connect_timeout = Duration::from_millis(300))
        };
        let no_tls = app::tcp(|mut socket| async move {
            let _ = socket.write_all(b"220 hello\r\n").await;
            let _ = socket.read(&mut [0; 1024]).await;
        })
        .await;
        asked(&mesh.caller(vec![to(no_tls)]), ErrorKind::TlsFailed).await;
        let silent = app::tcp(|socket| async move {
            let _socket = socket;
            std::future::pending::<()>().await;
        })
        .await;
        asked(&mesh.caller(vec![to(silent)]), ErrorKind::ConnectTimeout).await;

        let gone = mesh.sidecar("orders", Protocol::Detect, app::nobody().await);
        let caller = mesh.caller(vec![to(gone.address())]);
        let answer = send1(caller.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (502, "app-unavailable"));
        assert!(gone.request().await.error.unwrap().never_sent);

        let hangs_up = app::tcp(|mut socket| async move { drop(socket.read(&mut [0; 1024]).await) }).await;
        let callee = mesh.sidecar("orders", Protocol::Detect, hangs_up);
        let caller = mesh.caller(vec![to(callee.address())]);
        assert_eq!(send1(caller.address(), get("/")).await.error(), "upstream-reset");
        let babbles = app::tcp(|mut socket| async move {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"this is no HTTP\r\n\r\n").await;
            let _ = socket.read(&mut [0; 1024]).await;
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Detect, babbles);
        let caller = mesh.caller(vec![to(callee.address())]);
        assert_eq!(send1(caller.address(), get("/")).await.error(), "upstream-protocol");

        // A caller whose certificate the server does not accept hears of it only later.
        let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
        let caller = mesh.caller(vec![to(callee.address())]);
        let other = TestMesh::new();
        let stranger = other.identity("web");
        let credentials = stranger.current().unwrap();
        let bundle = mesh.identity("web").current().unwrap().bundle.clone();
        caller.worker.common.identity.set_svid(credentials.svid.clone(), Some(bundle)).unwrap();
        assert_eq!(send1(caller.address(), get("/")).await.error(), "tls-failed");
    });
}

#[test]
fn a_proxy_without_a_certificate_calls_nobody_and_lets_nobody_in() {
    run(async {
        let mesh = TestMesh::new();
        let mut callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
        let mut caller = mesh.caller(vec![Called::new("orders", Protocol::Detect, &callee.addresses)]);
        // There is no way to take one away but to begin without.
        let without = |proxy: &mut Proxy| {
            let mut common = proxy.worker.common.clone();
            common.identity = Identity::new(heddle_certs::SystemClock::shared());
            common
        };
        let (callee, caller) = (without(&mut callee), without(&mut caller));
        let callee = mesh.again(callee, &[Role::Inbound]);
        let caller =
            mesh.again(caller, &[Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into())]);
        asked(&caller, ErrorKind::NoCertificate).await;
        let mut socket = TcpStream::connect(callee.address()).await.unwrap();
        socket.write_all(&[0x16, 3, 1, 0, 5]).await.unwrap();
        assert_eq!(socket.read(&mut [0; 10]).await.unwrap_or(0), 0);
        assert_eq!(callee.connection().await.error.unwrap().kind, ErrorKind::NoCertificate);
    });
}

#[test]
fn requests_that_are_none() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let limits = Limits {
            header_timeout: Duration::from_millis(300),
            max_header_bytes: 16 << 10,
            max_headers: 20,
            ..Limits::default()
        };
        let called = vec![Called::new("orders", Protocol::Http1, &callee.addresses)];
        let role = Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into());
        let caller = mesh.proxy_with("web", calling(called), &[role], limits);
        let raw = async |bytes: &[u8]| {
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            let mut answer = String::new();
            let _ = socket.read_to_string(&mut answer).await;
            answer
        };
        // Ours, with a reason.
        for (head, status, reason) in [
            ("GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400, "bad-request"),
            ("GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad-request"),
            ("GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad-request"),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 403, "upgrade-refused"),
            ("GET / HTTP/1.1\r\nhost: a\r\nx: ", 408, "header-timeout"),
        ] {
            let answer = raw(head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
            assert!(answer.contains(&format!("heddle-error: {reason}\r\n")), "{head:?}: {answer}");
        }
        // hyper's, without one; the record has it.
        caller.outcomes.borrow_mut().clear();
        for (head, status, kind) in [
            ("GET / HTTP/1.1\r\nhost : a\r\n\r\n".to_owned(), 400, ErrorKind::BadRequest),
            ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(), 400, ErrorKind::BadRequest),
            (
                format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(20 << 10)),
                431,
                ErrorKind::HeadersTooLarge,
            ),
            (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(30)), 431, ErrorKind::HeadersTooLarge),
        ] {
            let answer = raw(head.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:.40?}: {answer}");
            assert_eq!(caller.connection().await.error.unwrap().kind, kind, "{head:.40?}");
            caller.outcomes.borrow_mut().clear();
        }
        // An idle connection is no slow request.
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = [0; 15];
            socket.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), socket.read(&mut [0; 4096])).await {
                assert_ne!(n.unwrap(), 0, "it must stay open");
            }
        }
    });
}

#[test]
fn too_many_connections() {
    run(async {
        let mesh = TestMesh::new();
        let limits = Limits { max_connections: 2, ..Limits::default() };
        let role = Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into());
        let caller = mesh.proxy_with("web", calling(calling_one(|_| {})), &[role], limits);
        let _first = TcpStream::connect(caller.address()).await.unwrap();
        let second = TcpStream::connect(caller.address()).await.unwrap();
        crate::testing::until("two connections", || caller.stages.connections() == 2).await;
        let mut third = TcpStream::connect(caller.address()).await.unwrap();
        assert!(third.read_u8().await.is_err());
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::TooManyConnections);
        drop(second);
        crate::testing::until("one to go", || caller.stages.connections() == 1).await;
        assert_eq!(send1(caller.address(), get("/")).await.error(), "no-endpoints");
    });
}

#[test]
fn authorities_over_http_2_must_agree() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let request = |host: &str| {
            Request::builder()
                .method(Method::GET)
                .uri("http://orders.shop/")
                .header("host", host)
                .body(Empty::<Bytes>::new())
        };
        assert_eq!(send2(caller.address(), request("orders.shop").unwrap()).await.status, 200);
        let answer: Answer = send2(caller.address(), request("admin.shop").unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (400, "bad-request"));
    });
}
