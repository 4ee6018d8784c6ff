//! Who gets in.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
    task::spawn_local,
    time::{Duration, Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    authorize::{Authorizer, IdentityPattern, Operation, Rule, Source},
    config::Limits,
    listener::Role,
    outcome::ErrorKind,
    snapshot::Protocol,
    testing::{
        Called, Proxy, Served, TestMesh, allow_all, app,
        client::{Answer, connect1, connect2, get, get2, send1, send2},
        meshed, only, run, serving, spiffe_id, until,
    },
};

fn rule(deny: bool, source: Source, paths: &[&str]) -> Rule {
    let operations = match paths {
        [] => Vec::new(),
        paths => {
            let paths = paths.iter().map(|path| path.parse().unwrap()).collect();
            vec![Operation { paths, ..Operation::default() }]
        }
    };
    let policy = "AuthorizationPolicy shop/orders";
    Rule { policy: policy.into(), name: "r".into(), deny, sources: vec![source], operations }
}

fn web() -> Source {
    Source { identities: vec![spiffe_id("web").to_string().parse::<IdentityPattern>().unwrap()], ..Source::default() }
}

fn sidecar(mesh: &TestMesh, served: Served, authorizer: Authorizer) -> Proxy {
    mesh.proxy("orders", serving("orders", vec![served], authorizer), &[Role::Inbound])
}

#[test]
fn requests_are_judged_by_the_path_as_it_is_forwarded() {
    run(async {
        let mesh = TestMesh::new();
        let rules = vec![rule(false, web(), &["/open/*"]), rule(true, web(), &["/open/secret"])];
        let callee = sidecar(&mesh, Served::new(80, Protocol::Http, app::echo().await), only(rules));
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let mut client = connect1(caller.address()).await;
        let mut count = 0;
        for (path, status, error) in [
            ("/open/x", 200, ""),
            ("/open/%78", 200, ""),
            ("/open/secret", 403, "denied"),
            ("/open/%73ecret", 403, "denied"),
            ("/closed", 403, "denied"),
            ("/open/../closed", 400, "bad-request"),
            ("/open//secret", 400, "bad-request"),
            ("/open%2fsecret", 400, "bad-request"),
            ("/open/secret;x", 400, "bad-request"),
            ("/open/x", 200, ""),
        ] {
            client.ready().await.unwrap();
            let answer = Answer::read(client.send_request(get(path)).await.unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.error()), (status, error), "{path}: {answer:?}");
            count += usize::from(status != 400);
        }
        let denied: Vec<_> = callee.requests(count).await.into_iter().filter(|one| one.error.is_some()).collect();
        let said = denied[0].authorization.as_ref().unwrap();
        assert_eq!(said.policy.as_deref(), Some("AuthorizationPolicy shop/orders"));
        assert!(denied[0].error.as_ref().unwrap().detail.contains("rule r denies spiffe://heddle.test/ns/shop/sa/web"));
        // The other end knows whose word it is, and does not take it for its own.
        assert!(caller.requests(10).await.iter().filter(|one| one.status == Some(StatusCode::FORBIDDEN)).count() == 3);
    });
}

#[test]
fn each_caller_is_who_it_proves_to_be() {
    run(async {
        let mesh = TestMesh::new();
        let callee =
            sidecar(&mesh, Served::new(80, Protocol::Http, app::echo().await), only(vec![rule(false, web(), &[])]));
        let called = || vec![Called::new("orders", Protocol::Http, &callee.addresses)];
        let web = mesh.caller(called());
        assert_eq!(send1(web.address(), get("/")).await.status, 200);
        let role = Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into());
        let other = mesh.proxy("other", crate::testing::calling(called()), &[role]);
        assert_eq!(send1(other.address(), get("/")).await.error(), "denied");
        assert_eq!(send2(other.address(), get2("/")).await.error(), "denied");
    });
}

#[test]
fn a_wrong_server_gets_no_byte_of_a_request() {
    run(async {
        let mesh = TestMesh::new();
        let callee = sidecar(&mesh, Served::new(80, Protocol::Detect, app::echo().await), allow_all());
        for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Tcp] {
            let mut called = Called::new("orders", protocol, &[]);
            called.endpoints.push(meshed(callee.address(), "somebody-else"));
            let caller = mesh.caller(vec![called]);
            match protocol {
                Protocol::Http1 => assert_eq!(send1(caller.address(), get("/")).await.error(), "peer-identity"),
                Protocol::Http2 => assert_eq!(send2(caller.address(), get2("/")).await.error(), "peer-identity"),
                _ => {
                    let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                    assert!(socket.read_u8().await.is_err());
                    assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::PeerIdentity);
                }
            }
        }
        // Nor does one of another mesh.
        let other = TestMesh::new();
        let caller = other.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        assert_eq!(send1(caller.address(), get("/")).await.error(), "peer-identity");
        assert!(
            callee.outcomes.borrow().iter().all(|outcome| matches!(outcome, crate::outcome::Outcome::Connection(_)))
        );
    });
}

#[test]
fn plaintext_enters_where_policy_says_so() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::echo().await;
        let strict = sidecar(&mesh, Served::new(80, Protocol::Http, app), allow_all());
        let answer = send1(strict.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (403, "plaintext-refused"));
        // A probe needs nothing.
        assert_eq!(send1(strict.address(), get("/healthz")).await.status, 200);
        assert_eq!(send1(strict.address(), get("/healthz/x")).await.error(), "plaintext-refused");
        let post = Request::post("/healthz").header("host", "x").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(send1(strict.address(), post).await.error(), "plaintext-refused");

        let unauthenticated = Source { unauthenticated: true, ..Source::default() };
        let served = Served { permissive: true, ..Served::new(80, Protocol::Http, app) };
        let permissive = sidecar(&mesh, served, only(vec![rule(false, unauthenticated, &["/open"])]));
        let mut request = get("/open");
        for name in ["x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-host", "heddle-attempt"] {
            request.headers_mut().insert(name, "forged".parse().unwrap());
        }
        let answer = send1(permissive.address(), request).await;
        assert_eq!(answer.status, 200);
        for gone in ["x-forwarded-client-cert", "x-forwarded-host", "heddle-attempt"] {
            assert_eq!(answer.got(gone), None);
        }
        assert_eq!(answer.got("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(send1(permissive.address(), get("/closed")).await.error(), "denied");
        assert_eq!(send2(permissive.address(), get2("/open")).await.status, 200);

        let opaque = sidecar(&mesh, Served::new(80, Protocol::Tcp, app), allow_all());
        let mut socket = TcpStream::connect(opaque.address()).await.unwrap();
        socket.write_all(b"\x00bytes").await.unwrap();
        assert!(socket.read_u8().await.is_err());
        assert_eq!(opaque.connection().await.error.unwrap().kind, ErrorKind::PlaintextRefused);
    });
}

#[test]
fn a_stream_ends_when_policy_no_longer_allows_it() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::http(|_| async {
            let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
            spawn_local(async move {
                sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
                sender.closed().await;
            });
            Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync())
        })
        .await;
        let served = || vec![Served::new(80, Protocol::Http2, app)];
        let allowed = || only(vec![rule(false, web(), &["/a", "/b"])]);
        let callee = mesh.proxy("orders", serving("orders", served(), allowed()), &[Role::Inbound]);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http2, &callee.addresses)]);
        let mut client = connect2::<Empty<Bytes>>(caller.address()).await;
        let mut first = client.send_request(get2("/a")).await.unwrap().into_body();
        let mut second = client.send_request(get2("/b")).await.unwrap().into_body();
        first.frame().await.unwrap().unwrap();
        second.frame().await.unwrap().unwrap();
        // A change of anything else is none of theirs.
        let mut other = (*callee.worker.common.discovery.snapshot()).clone();
        other.endpoints.clear();
        callee.believe(other);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(callee.worker.inbound.looks.get(), 0);
        callee.believe(serving("orders", served(), only(vec![rule(false, web(), &["/b"])])));
        assert!(first.frame().await.unwrap().is_err());
        let record = callee.request().await;
        assert_eq!(record.error.unwrap().kind, ErrorKind::Denied);
        assert_eq!(record.uri.path(), "/a");
        callee.believe(serving("orders", served(), only(vec![])));
        assert!(second.frame().await.unwrap().is_err());
    });
}

/// Sends one piece, and then nothing until nobody listens.
async fn one_piece() -> std::net::SocketAddr {
    app::http(|_| async {
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        spawn_local(async move {
            sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
            sender.closed().await;
        });
        Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync())
    })
    .await
}

/// Has more to say than anybody takes.
async fn endless() -> std::net::SocketAddr {
    app::http(|_| async {
        let piece = || Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 16 << 10])));
        Response::new(StreamBody::new(futures_util::stream::repeat_with(piece)).boxed_unsync())
    })
    .await
}

#[test]
fn limits_are_those_of_all_workers_of_a_proxy() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, one_piece().await);
        let called = Called::new("orders", Protocol::Detect, &callee.addresses)
            .policy(|policy| policy.limits.max_requests = 1)
            .retries(|retry| retry.max_retries = 0);
        let one = mesh.caller(vec![called]);
        let role = Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into());
        let other = mesh.again(one.worker.common.clone(), &[role]);
        let under_way = connect1(one.address()).await.send_request(get("/1")).await.unwrap();
        assert_eq!(send1(other.address(), get("/2")).await.error(), "overloaded");
        drop(under_way);
        one.request().await;
        assert_eq!(connect1(other.address()).await.send_request(get("/3")).await.unwrap().status(), 200);
    });
}

#[test]
fn a_response_that_nobody_takes_ends_when_policy_no_longer_allows_it() {
    run(async {
        let mesh = TestMesh::new();
        let app = endless().await;
        let served = || vec![Served::new(80, Protocol::Detect, app)];
        let callee = mesh.proxy("orders", serving("orders", served(), allow_all()), &[Role::Inbound]);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Detect, &callee.addresses)]);
        let _first = connect1(caller.address()).await.send_request(get("/1")).await.unwrap();
        let _second = connect2(caller.address()).await.send_request(get2("/2")).await.unwrap();
        // Until all buffers between are full.
        sleep(Duration::from_millis(500)).await;
        callee.believe(serving("orders", served(), only(vec![])));
        for record in callee.requests(2).await {
            assert_eq!(record.error.unwrap().kind, ErrorKind::Denied, "{}", record.uri);
        }
    });
}

#[test]
fn a_response_that_nobody_takes_ends_in_time() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, endless().await);
        // By the request's own time, and without one by that of a connection on which nothing happens.
        for timeout in [Some(Duration::from_secs(1)), None] {
            let called = Called::new("orders", Protocol::Detect, &callee.addresses)
                .policy(|policy| policy.request_timeout = timeout);
            let limits = Limits { idle_timeout: Duration::from_secs(3), ..Limits::default() };
            let role = Role::Upstream("orders.shop:80".parse::<crate::config::DialName>().unwrap().into());
            let caller = mesh.proxy_with("web", crate::testing::calling(vec![called]), &[role], limits);
            let began = Instant::now();
            let _first = connect1(caller.address()).await.send_request(get("/1")).await.unwrap();
            let _second = connect2(caller.address()).await.send_request(get2("/2")).await.unwrap();
            for record in caller.requests(2).await {
                assert_eq!(record.error.unwrap().kind, ErrorKind::RequestTimeout, "{}", record.uri);
            }
            assert_eq!(began.elapsed().as_secs() >= 3, timeout.is_none());
        }
    });
}

#[test]
fn whom_a_root_let_in_does_not_stay_without_it() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Detect, one_piece().await);
        let greeter = app::tcp(|mut socket| async move {
            let _ = socket.write_all(b"one").await;
            let _ = socket.read(&mut [0]).await;
        })
        .await;
        let opaque = mesh.sidecar("orders", Protocol::Tcp, greeter);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Detect, &callee.addresses)]);
        let opaque_caller = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &opaque.addresses)]);
        let mut client = connect2::<Empty<Bytes>>(caller.address()).await;
        let mut stream2 = client.send_request(get2("/2")).await.unwrap().into_body();
        let mut stream1 = connect1(caller.address()).await.send_request(get("/1")).await.unwrap().into_body();
        let mut socket = TcpStream::connect(opaque_caller.address()).await.unwrap();
        socket.read_exact(&mut [0; 3]).await.unwrap();
        stream1.frame().await.unwrap().unwrap();
        stream2.frame().await.unwrap().unwrap();

        let now = std::time::SystemTime::now();
        let both = mesh.authority.prepare_root(now).unwrap();
        let alone = both.activate().unwrap().retire_old_roots().unwrap();
        let trust = |bundle: &heddle_certs::TrustBundle| {
            for proxy in [&callee, &opaque] {
                proxy.worker.common.identity.set_bundle(bundle.clone()).unwrap();
            }
        };
        // Another root ends nothing.
        trust(both.bundle());
        sleep(Duration::from_millis(100)).await;
        assert!(futures_util::poll!(stream1.frame()).is_pending());
        assert!(futures_util::poll!(stream2.frame()).is_pending());
        trust(alone.bundle());
        assert!(stream1.frame().await.unwrap().is_err());
        assert!(stream2.frame().await.unwrap().is_err());
        assert!(socket.read_u8().await.is_err());
        for record in callee.requests(2).await {
            assert_eq!(record.error.unwrap().kind, ErrorKind::Denied);
        }
        let record = opaque.connection().await.error.unwrap();
        assert_eq!(record.kind, ErrorKind::Denied);
        assert!(record.detail.contains("no longer trusted"), "{}", record.detail);
        // Nor does anything begin on what is still open.
        assert_eq!(send2(caller.address(), get2("/3")).await.error(), "certificate-expired");
        // Who is vouched for by the other is let in.
        let options = heddle_certs::SignOptions::new(Duration::from_secs(3600), now);
        let svid = alone.issue(&spiffe_id("web"), &options).unwrap();
        caller.worker.common.identity.set_svid(svid, Some(both.bundle().clone())).unwrap();
        assert_eq!(connect1(caller.address()).await.send_request(get("/4")).await.unwrap().status(), 200);
    });
}

#[test]
fn a_deny_rule_holds_for_every_name_of_the_same_app() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::echo().await;
        let served = || vec![Served { permissive: true, ..Served::new(80, Protocol::Detect, app) }];
        // Nobody is allowed there, but that is no rule for other names.
        let closed = serving("audit", served(), only(vec![]));
        let strict = serving("orders", served(), Authorizer::new(vec![rule(true, web(), &["/admin"])], true));
        let lax = serving("orders-v1", served(), allow_all());
        let mut snapshot = lax.clone();
        snapshot.inbound.extend(strict.inbound);
        snapshot.inbound.extend(closed.inbound);
        let callee = mesh.proxy("orders", snapshot, &[Role::Inbound]);
        let called = |protocol| {
            let mut called = Called::new("orders-v1", protocol, &[]);
            called.endpoints.push(meshed(callee.address(), "orders"));
            mesh.caller(vec![called])
        };
        let caller = called(Protocol::Http);
        assert_eq!(send1(caller.address(), get("/open")).await.status, 200);
        assert_eq!(send1(caller.address(), get("/admin")).await.error(), "denied");
        // Opaque bytes might be what the rule is about.
        let caller = called(Protocol::Tcp);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(b"\x00").await.unwrap();
        assert!(socket.read_u8().await.is_err());
        assert_eq!(caller.connection().await.error.unwrap().kind, ErrorKind::Denied);

        // Nor is plaintext let in by the laxer of two names.
        let strict = serving("orders", vec![Served::new(80, Protocol::Http, app)], allow_all());
        let mut snapshot = lax;
        snapshot.inbound.extend(strict.inbound);
        let callee = mesh.proxy("orders", snapshot, &[Role::Inbound]);
        let mut request = get("/");
        request.headers_mut().insert("host", "orders-v1.shop:80".parse().unwrap());
        assert_eq!(send1(callee.address(), request).await.error(), "plaintext-refused");
    });
}

#[test]
fn only_what_the_workload_serves_can_be_asked_for() {
    run(async {
        let mesh = TestMesh::new();
        let callee = sidecar(&mesh, Served::new(8080, Protocol::Http, app::echo().await), allow_all());
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let answer = send1(caller.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (421, "not-served"));
        let opaque = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &callee.addresses)]);
        let mut socket = TcpStream::connect(opaque.address()).await.unwrap();
        assert!(socket.read_u8().await.is_err());
        assert_eq!(opaque.connection().await.error.unwrap().kind, ErrorKind::NotServed);
    });
}

#[test]
fn a_request_is_judged_again_at_the_port_that_it_was_let_in_at() {
    run(async {
        let (begun, release) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let app = || {
            let (begun, release) = (begun.clone(), release.clone());
            app::http(move |_| {
                let (begun, release) = (begun.clone(), release.clone());
                async move {
                    begun.update(|begun| begun + 1);
                    release.notified().await;
                    Response::new(app::text("done"))
                }
            })
        };
        let apps = [(80, app().await), (81, app().await)];
        let serving = |strict: Option<u16>| {
            let served = apps.map(|(port, app)| Served {
                permissive: strict != Some(port),
                ..Served::new(port, Protocol::Http, app)
            });
            serving("orders", served.into(), allow_all())
        };
        for (at, strict, expected) in [(1, 80, " 200 OK"), (2, 81, " 403 Forbidden")] {
            let callee = TestMesh::new().proxy("orders", serving(None), &[Role::Inbound]);
            let mut socket = TcpStream::connect(callee.address()).await.unwrap();
            // What the target says counts, whatever Host does.
            let request = "GET http://orders.shop:81/ HTTP/1.1\r\nhost: orders.shop:80\r\nconnection: close\r\n\r\n";
            socket.write_all(request.as_bytes()).await.unwrap();
            until("the app has it", || begun.get() == at).await;
            callee.believe(serving(Some(strict)));
            // By now it has been judged again.
            let mut other = get("/");
            other.headers_mut().insert("host", format!("orders.shop:{strict}").parse().unwrap());
            assert_eq!(send1(callee.address(), other).await.error(), "plaintext-refused");
            release.notify_waiters();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.lines().next().unwrap().ends_with(expected), "{strict}: {answer}");
        }
    });
}
