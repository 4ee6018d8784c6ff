//! What is refused, in more shapes than one. (Each reason: `reasons.rs`.)

use bytes::Bytes;
use http::{Method, Request};
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
    snapshot::{Endpoint, Protocol},
    testing::{
        Called, TestMesh, app, calling,
        client::{Answer, connect2, get, send1, send2},
        meshed, run,
    },
};

fn calling_one(change: impl FnOnce(&mut Called)) -> Vec<Called> {
    let mut called = Called::new("orders", Protocol::Detect, &[]);
    change(&mut called);
    vec![called]
}

#[test]
fn an_instance_that_is_not_ready_is_none() {
    run(async {
        let mesh = TestMesh::new();
        let caller = mesh.caller(calling_one(|called| {
            called.endpoints.push(Endpoint { ready: false, ..meshed("127.0.0.1:1".parse().unwrap(), "orders") });
        }));
        let answer = send1(caller.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (503, "no-endpoints"));
    });
}

#[test]
fn headers_that_are_too_large_are_told_so_in_http_2_too() {
    run(async {
        let caller = TestMesh::new().caller(calling_one(|_| {}));
        let request = |kilobytes: usize| {
            let request = Request::get("http://orders.shop/").header("x", "y".repeat(kilobytes << 10));
            request.body(Empty::<Bytes>::new()).unwrap()
        };
        for kilobytes in [65, 78] {
            let answer = send2(caller.address(), request(kilobytes)).await;
            assert_eq!((answer.status.as_u16(), answer.error()), (431, "headers-too-large"), "{kilobytes}");
        }
        // Far more are not even taken: the connection ends before twice the limit was read.
        let answered = connect2(caller.address()).await.send_request(request(160)).await;
        assert!(answered.is_err(), "{answered:?}");
    });
}

#[test]
fn a_certificate_that_the_server_does_not_accept_is_told_only_later() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Detect, &callee.addresses)]);
        let other = TestMesh::new();
        let stranger = other.identity("web");
        let credentials = stranger.current().unwrap();
        let bundle = mesh.identity("web").current().unwrap().bundle.clone();
        caller.worker.common.identity.set_svid(credentials.svid.clone(), Some(bundle)).unwrap();
        assert_eq!(send1(caller.address(), get("/")).await.error(), "tls-failed");
    });
}

#[test]
fn a_proxy_without_a_certificate_lets_nobody_in() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
        // There is no way to take one away but to begin without.
        let mut common = callee.worker.common.clone();
        common.identity = Identity::new(heddle_certs::SystemClock::shared());
        let callee = mesh.again(common, &[Role::Inbound]);
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
        for (head, status, reason) in [
            ("GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400, "bad-request"),
            ("GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad-request"),
            ("GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n", 400, "bad-request"),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 403, "upgrade-refused"),
            ("GET / HTTP/1.1\r\nhost: a\r\nx: ", 408, "header-timeout"),
        ] {
            let answer = raw(head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
            assert!(answer.contains(&format!("heddle-error: {reason}\r\n")), "{head:?}: {answer}");
        }
        // What is no request at all, first on its connection or later.
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
            for before in ["", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"] {
                let answer = raw(format!("{before}{head}").as_bytes()).await;
                let answer = answer.rsplit_once("HTTP/1.1 ").unwrap().1;
                assert!(answer.starts_with(&format!("{status} ")), "{head:.40?}: {answer}");
                let reason = kind.row().reason;
                assert!(answer.contains(&format!("\r\nheddle-error: {reason}\r\n")), "{head:.40?}: {answer}");
                assert!(answer.contains("\r\nproxy-status: heddle-proxy; error=http_request_error; "), "{answer}");
                assert_eq!(caller.connection().await.error.unwrap().kind, kind, "{head:.40?}");
                caller.outcomes.borrow_mut().clear();
            }
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

#[test]
fn over_http_2_host_alone_says_it_too() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http2, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http2, &callee.addresses)]);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        // As translators from HTTP/1.1 send it; h2's client would not. SETTINGS, then HEADERS of stream 1 with
        // GET, http, :path (name 4) and host (name 38) as literals (RFC 7541, appendix A).
        let fields = b"\x82\x86\x04\x05/only\x0f\x17\x0borders.shop";
        let headers = [&[0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1], &fields[..]].concat();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        socket.write_all(&[&preface[..], &headers].concat()).await.unwrap();
        let mut answer = Vec::new();
        let told = b"2 GET http://orders.shop/only\n";
        while !answer.windows(told.len()).any(|window| window == told) {
            assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(caller.request().await.status.unwrap(), 200);
    });
}

#[test]
fn a_response_in_another_coding_is_none() {
    run(async {
        let mesh = TestMesh::new();
        let zips = app::tcp(|mut socket| async move {
            let _ = socket.read(&mut [0; 1024]).await;
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
            let _ = socket.write_all(head).await;
            let _ = socket.read(&mut [0; 1024]).await;
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, zips);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        assert_eq!(send1(caller.address(), get("/")).await.error(), "upstream-protocol");
    });
}
