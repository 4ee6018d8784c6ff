//! Requests through a pair.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::spawn_local,
    time::{Duration, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Pair, pair};
use crate::{
    outcome::{Direction, ErrorKind},
    snapshot::Protocol,
    testing::{
        Called, TestMesh,
        app::{self, text},
        client::{Answer, connect1, connect2, get, get2, send1, send2},
        cluster, run, service_name, spiffe_id,
    },
};

type Chunks = StreamBody<ReceiverStream<Result<Frame<Bytes>, std::io::Error>>>;

/// A body to be sent piece by piece.
fn chunks() -> (mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>, Chunks) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)))
}

/// An app behind its proxy, and a caller's.
#[test]
fn a_request_passes_and_is_on_record_once_on_each_side() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let answer = send1(caller.address(), get("/a?b=c")).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert!(answer.body.starts_with("1.1 GET /a?b=c\n"), "{}", answer.body);
        assert_eq!(answer.got("host"), Some("orders.shop"));
        assert_eq!(answer.headers["x-app"], "echo");
        let xfcc = answer.got("x-forwarded-client-cert").unwrap();
        assert!(xfcc.ends_with("URI=spiffe://heddle.test/ns/shop/sa/web"), "{xfcc}");
        assert!(answer.got("traceparent").is_some());
        assert!(answer.got("x-request-id").is_some());
        assert_eq!(answer.got("heddle-attempt"), Some("1"));

        let out = caller.request().await;
        assert_eq!(out.direction, Direction::Outbound);
        assert_eq!(out.status, Some(StatusCode::OK));
        assert_eq!(out.service, Some(service_name("orders")));
        assert_eq!(out.cluster, Some(cluster("orders")));
        assert_eq!(out.peer, Some(spiffe_id("orders")));
        assert_eq!(out.attempts.len(), 1);
        assert!(out.attempts[0].connect.is_some());
        assert!(out.error.is_none());
        assert_eq!(out.response_bytes, answer.body.len() as u64);
        let inside = callee.request().await;
        assert_eq!(inside.direction, Direction::Inbound);
        assert_eq!(inside.peer, Some(spiffe_id("web")));
        assert_eq!(inside.port, 80);
        assert!(inside.authorization.unwrap().allowed);
        // One trace: the server's span is a child of the try's.
        assert_eq!(inside.trace.trace_id(), out.trace.trace_id());
        assert_eq!(inside.trace.parent(), Some(out.attempts[0].span_id));
    });
}

#[test]
fn http_2_stays_http_2() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let answer = send2(caller.address(), get2("/a")).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert!(answer.body.starts_with("2 GET http://orders.shop/a\n"), "{}", answer.body);
        assert_eq!(caller.request().await.version, http::Version::HTTP_2);
    });
}

#[test]
fn a_connection_carries_one_request_after_another() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http1, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http1, &callee.addresses)]);
        let mut client = connect1(caller.address()).await;
        for n in 0..5 {
            client.ready().await.unwrap();
            let body = Full::new("x".repeat(n * 10_000).into());
            let request = Request::post("/a").header("host", "orders.shop").body(body).unwrap();
            let answer = Answer::read(client.send_request(request).await.unwrap()).await;
            assert!(answer.body.ends_with(&"x".repeat(n * 10_000)));
        }
        let requests = caller.requests(5).await;
        let connections = requests.iter().filter(|request| request.attempts[0].connect.is_some()).count();
        assert_eq!(connections, 1, "pooled");
        assert_eq!(requests[4].request_bytes, 40_000);
    });
}

#[test]
fn the_proxy_port_forwards_absolute_uris_and_tunnels() {
    run(async {
        let Pair { caller, .. } = pair(Protocol::Http, app::echo().await);
        let port = caller.addresses[1];
        let request = Request::get("http://orders.shop/a").header("host", "other").body(Empty::<Bytes>::new()).unwrap();
        let answer = send1(port, request).await;
        assert!(answer.body.starts_with("1.1 GET /a\n"), "{answer:?}");
        assert_eq!(answer.got("host"), Some("orders.shop"), "the URI's authority wins");
        let answer = send1(port, get("/a")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (400, "not-proxy-request"));
        let request = Request::get("https://orders.shop/a").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(send1(port, request).await.error(), "not-proxy-request");

        let mut socket = TcpStream::connect(port).await.unwrap();
        socket.write_all(b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\n\r\n").await.unwrap();
        let mut head = [0; 19];
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK\r\n\r\n");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        spawn_local(connection);
        let answer = Answer::read(sender.send_request(get("/tunnelled")).await.unwrap()).await;
        assert!(answer.body.starts_with("1.1 GET /tunnelled\n"), "{answer:?}");
        sender.ready().await.unwrap();
        // Proxying is for the outermost layer: here it is an origin that is asked.
        let request = Request::get("http://elsewhere/x").body(Empty::<Bytes>::new()).unwrap();
        let answer = Answer::read(sender.send_request(request).await.unwrap()).await;
        assert!(answer.body.starts_with("1.1 GET /x\n"), "{answer:?}");
        sender.ready().await.unwrap();
        let request = Request::connect("orders.shop:80").body(Empty::new()).unwrap();
        let answer = Answer::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(answer.error(), "upgrade-refused");
    });
}

#[test]
fn forged_and_hop_by_hop_headers_do_not_pass() {
    run(async {
        let Pair { caller, .. } = pair(
            Protocol::Http,
            app::http(|request| async move {
                let mut told = String::from("1.1\n");
                for (name, value) in request.headers() {
                    told += &format!("{name}: {}\n", value.to_str().unwrap());
                }
                let response = Response::builder()
                    .header("heddle-error", "draining")
                    .header("heddle-x", "y")
                    .header("keep-alive", "timeout=5")
                    .header("connection", "x-hop")
                    .header("x-hop", "1");
                response.body(text(told)).unwrap()
            })
            .await,
        );
        let mut request = get("/");
        for (name, value) in [
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "300"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers, gzip"),
            ("x-forwarded-client-cert", "URI=spiffe://heddle.test/ns/shop/sa/admin"),
            ("heddle-attempt", "7"),
            ("heddle-client-id", "admin"),
            ("x-kept", "yes"),
        ] {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let answer = send1(caller.address(), request).await;
        // Of each connection anew, as `te` is (RFC 9110, section 10.1.4).
        assert_eq!(answer.got("connection"), Some("te"));
        for gone in ["x-mine", "keep-alive", "proxy-connection", "heddle-client-id"] {
            assert_eq!(answer.got(gone), None, "{gone}: {answer:?}");
        }
        assert_eq!(answer.got("te"), Some("trailers"));
        assert_eq!(answer.got("x-kept"), Some("yes"));
        assert_eq!(answer.got("heddle-attempt"), Some("1"));
        assert!(!answer.got("x-forwarded-client-cert").unwrap().contains("admin"));
        for gone in ["heddle-error", "heddle-x", "keep-alive", "x-hop"] {
            assert!(!answer.headers.contains_key(gone), "{gone}");
        }
    });
}

#[test]
fn grpc_streams_both_ways_with_trailers() {
    run(async {
        // Answers each message at once, and ends with a status once the caller has ended.
        let app = app::http(|request| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let (sender, body) = chunks();
            spawn_local(async move {
                let mut messages = request.into_body().into_data_stream();
                while let Some(Ok(message)) = messages.next().await {
                    sender.send(Ok(Frame::data(message))).await.unwrap();
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("5"));
                sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
            });
            Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap()
        })
        .await;
        let Pair { caller, callee } = pair(Protocol::Grpc, app);
        let (sender, body) = chunks();
        let request = Request::post("http://orders.shop/shop.Orders/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = connect2(caller.address()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut answers = response.into_body();
        for n in 0..3_u8 {
            sender.send(Ok(Frame::data(vec![n; 5].into()))).await.unwrap();
            let frame = answers.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), vec![n; 5]);
        }
        drop(sender);
        let trailers = answers.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "5");
        assert!(answers.frame().await.is_none());
        for proxy in [caller, callee] {
            let record = proxy.request().await;
            assert!(record.grpc);
            assert_eq!(record.grpc_status, Some(5));
            assert_eq!((record.request_bytes, record.response_bytes), (15, 15));
            assert!(record.error.is_none(), "{:?}", record.error);
        }
    });
}

#[test]
fn a_cancelled_call_is_cancelled_at_the_app() {
    run(async {
        let cancelled = Rc::new(Cell::new(false));
        let seen = cancelled.clone();
        let app = app::http(move |request| {
            let seen = seen.clone();
            async move {
                let (sender, body) = chunks();
                spawn_local(async move {
                    let _request = request;
                    sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
                    sender.closed().await;
                    seen.set(true);
                });
                Response::new(body.boxed_unsync())
            }
        })
        .await;
        let Pair { caller, callee } = pair(Protocol::Http2, app);
        let mut client = connect2(caller.address()).await;
        let mut body = client.send_request(get2("/")).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        drop(body);
        crate::testing::until("the app to hear", || cancelled.get()).await;
        for proxy in [caller, callee] {
            assert_eq!(proxy.request().await.error.unwrap().kind, ErrorKind::ClientGone);
        }
    });
}

#[test]
fn a_reset_of_the_app_reaches_the_caller_with_its_reason() {
    run(async {
        let (fail, failed) = tokio::sync::watch::channel(false);
        let app = app::http(move |_| {
            let mut failed = failed.clone();
            async move {
                let (sender, body) = chunks();
                spawn_local(async move {
                    sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
                    failed.wait_for(|failed| *failed).await.unwrap();
                    let _ = sender.send(Err(std::io::Error::other(Calm(h2::Reason::ENHANCE_YOUR_CALM.into())))).await;
                });
                Response::new(body.boxed_unsync())
            }
        })
        .await;
        let Pair { caller, .. } = pair(Protocol::Http2, app);
        let mut body = connect2(caller.address()).await.send_request(get2("/")).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        fail.send_replace(true);
        let error = body.frame().await.unwrap().unwrap_err();
        let reason = std::error::Error::source(&error).unwrap().downcast_ref::<h2::Error>().unwrap().reason();
        assert_eq!(reason, Some(h2::Reason::ENHANCE_YOUR_CALM), "{error:?}");
        assert_eq!(caller.request().await.error.unwrap().kind, ErrorKind::UpstreamReset);
    });
}

/// An error with a reason of HTTP/2 beneath it.
#[derive(Debug)]
struct Calm(h2::Error);

impl std::fmt::Display for Calm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("calm")
    }
}

impl std::error::Error for Calm {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// An app that gives back each four bytes in reverse, after an upgrade.
async fn reverses() -> SocketAddr {
    app::http(|mut request| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        assert_eq!(request.headers()["connection"], "upgrade");
        let upgraded = hyper::upgrade::on(&mut request);
        spawn_local(async move {
            let mut socket = TokioIo::new(upgraded.await.unwrap());
            let mut word = [0; 4];
            while socket.read_exact(&mut word).await.is_ok() {
                word.reverse();
                socket.write_all(&word).await.unwrap();
            }
        });
        let response = Response::builder().status(101).header("connection", "upgrade");
        response.header("upgrade", "websocket").header("sec-websocket-accept", "x").body(text("")).unwrap()
    })
    .await
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    run(async {
        let app = reverses().await;
        let Pair { caller, callee } = pair(Protocol::Http, app);
        let mut request = get("/feed");
        request.headers_mut().insert("connection", HeaderValue::from_static("keep-alive, Upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        let mut response = connect1(caller.address()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(response.headers()["sec-websocket-accept"], "x");
        let mut socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        for _ in 0..3 {
            socket.write_all(b"abcd").await.unwrap();
            let mut word = [0; 4];
            socket.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"dcba");
        }
        assert!(caller.outcomes.borrow().is_empty(), "it is not over");
        assert_eq!(caller.stages.connections(), 1);
        drop(socket);
        for proxy in [&caller, &callee] {
            let record = proxy.request().await;
            assert_eq!(record.status, Some(StatusCode::SWITCHING_PROTOCOLS));
            assert_eq!(record.response_bytes, 12);
        }
        crate::testing::until("the connection is let go", || caller.stages.connections() == 0).await;
    });
}

#[test]
fn an_upgraded_connection_ends_when_what_it_was_made_for_is_no_longer_allowed() {
    run(async {
        let mesh = TestMesh::new();
        let app = reverses().await;
        let outside = format!("127.0.0.1:{}", app.port());
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &[])]);
        caller.no_service(&outside);
        let mut request = get(&format!("http://{outside}/feed"));
        request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        let mut response = connect1(caller.addresses[1]).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let mut word = [0; 4];
        // What does not concern it leaves it alone.
        let mut snapshot = (*caller.worker.common.discovery.snapshot()).clone();
        caller.believe(snapshot.clone());
        socket.write_all(b"abcd").await.unwrap();
        socket.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"dcba");

        Arc::make_mut(snapshot.mesh.as_mut().unwrap()).egress_allow = false;
        caller.believe(snapshot);
        socket.read_exact(&mut word).await.unwrap_err();
        let record = caller.request().await;
        assert_eq!(record.error.unwrap().kind, ErrorKind::EgressDenied);
    });
}

#[test]
fn other_versions_of_http_are_no_upgrade() {
    run(async {
        let Pair { caller, .. } = pair(Protocol::Http, app::echo().await);
        for protocol in ["h2c", "HTTP/2.0", "TLS/1.0", "websocket, h2c"] {
            let mut request = get("/");
            request.headers_mut().insert("connection", HeaderValue::from_static("upgrade, http2-settings"));
            request.headers_mut().insert("upgrade", HeaderValue::from_str(protocol).unwrap());
            request.headers_mut().insert("http2-settings", HeaderValue::from_static("AAMAAABkAAQAAP__"));
            let answer = send1(caller.address(), request).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!((answer.got("upgrade"), answer.got("http2-settings")), (None, None), "{protocol}");
        }
    });
}

#[test]
fn an_expected_continue_goes_end_to_end() {
    run(async {
        let read = Rc::new(Cell::new(false));
        let seen = read.clone();
        let app = app::http(move |request| {
            let seen = seen.clone();
            async move {
                if request.uri().path() == "/refuse" {
                    return Response::builder().status(413).body(text("too large")).unwrap();
                }
                seen.set(true);
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(text(body))
            }
        })
        .await;
        let Pair { caller, .. } = pair(Protocol::Http, app);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        let head = "POST /take HTTP/1.1\r\nhost: orders.shop\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 25];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        assert!(read.get(), "it is the app that said so");
        socket.write_all(b"hello").await.unwrap();
        let mut answer = vec![0; 1024];
        let n = socket.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");

        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(head.replace("take", "refuse").as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "no 100 before it: {answer}");
    });
}

#[test]
fn responses_without_a_body_leave_the_connection_usable() {
    run(async {
        let app = app::http(|request| async move {
            let status: u16 = request.uri().path()[1..].parse().unwrap();
            let mut response = Response::builder().status(status);
            if request.method() == "HEAD" {
                response = response.header("content-length", "1000");
            }
            response.body(text("")).unwrap()
        })
        .await;
        let Pair { caller, callee } = pair(Protocol::Http, app);
        let mut client = connect1(caller.address()).await;
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("GET", 200)] {
            client.ready().await.unwrap();
            let mut request = get(&format!("/{status}"));
            *request.method_mut() = method.parse().unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
            if method == "HEAD" {
                assert_eq!(response.headers()["content-length"], "1000");
            }
        }
        for proxy in [caller, callee] {
            let requests = proxy.requests(5).await;
            assert!(requests.iter().all(|request| request.error.is_none()), "{requests:?}");
            assert_eq!(requests.iter().filter(|request| request.attempts[0].connect.is_some()).count(), 1);
        }
    });
}

#[test]
fn a_reader_that_waits_holds_up_the_writer_and_nothing_is_lost() {
    run(async {
        let (release, gate) = tokio::sync::watch::channel(false);
        let app = app::http(move |request| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.unwrap();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(text(body.len().to_string()))
            }
        })
        .await;
        for http2 in [false, true] {
            let Pair { caller, .. } = pair(Protocol::Http, app);
            let (sender, body) = chunks();
            let sent = Rc::new(Cell::new(0_usize));
            let count = sent.clone();
            release.send_replace(false);
            spawn_local(async move {
                for _ in 0..512 {
                    sender.send(Ok(Frame::data(vec![7; 64 << 10].into()))).await.unwrap();
                    count.set(count.get() + (64 << 10));
                }
            });
            let uri = if http2 { "http://orders.shop/" } else { "/" };
            let mut request = Request::post(uri);
            if !http2 {
                request = request.header("host", "orders.shop");
            }
            let request = request.body(body).unwrap();
            let answer = spawn_local(async move {
                if http2 { send2(caller.address(), request).await } else { send1(caller.address(), request).await }
            });
            let mut before = usize::MAX;
            while sent.get() != before {
                before = sent.get();
                sleep(Duration::from_millis(300)).await;
            }
            assert!(before < 24 << 20, "{before} bytes are somewhere");
            release.send_replace(true);
            assert_eq!(answer.await.unwrap().body, (32 << 20).to_string());
        }
    });
}

#[test]
fn a_slow_stream_does_not_hold_up_the_others() {
    run(async {
        let app = app::http(|request| async move {
            let size = if request.uri().path() == "/large" { 8 << 20 } else { 1000 };
            Response::new(text(vec![7; size]))
        })
        .await;
        let Pair { caller, .. } = pair(Protocol::Http2, app);
        let mut client = connect2(caller.address()).await;
        // Their bodies are not read.
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(client.send_request(get2("/large")).await.unwrap());
        }
        for _ in 0..20 {
            let mut other = connect2(caller.address()).await;
            let answer = Answer::read(other.send_request(get2("/small")).await.unwrap()).await;
            assert_eq!(answer.body.len(), 1000);
        }
        drop(waiting);
    });
}

#[test]
fn what_came_back_is_a_loop() {
    run(async {
        let Pair { caller, .. } = pair(Protocol::Http, app::echo().await);
        let answer = send1(caller.address(), get("/")).await;
        let via = answer.got("via").unwrap().to_owned();
        let mut request = get("/");
        request.headers_mut().insert("via", HeaderValue::from_str(&via).unwrap());
        let answer = send1(caller.address(), request).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (508, "loop"));
        // One's own listener, where a name leads out of the mesh.
        caller.no_service(&caller.address().to_string());
        let port = caller.address().port();
        for own in [format!("http://127.0.0.1:{port}/"), format!("http://[::ffff:127.0.0.1]:{port}/")] {
            let request = Request::get(&own).body(Empty::<Bytes>::new()).unwrap();
            let answer = send1(caller.addresses[1], request).await;
            assert_eq!((answer.status.as_u16(), answer.error()), (508, "loop"), "{own}");
        }
    });
}

#[test]
fn destinations_outside_the_mesh_are_called_as_they_are() {
    run(async {
        let outside = app::echo().await;
        let Pair { caller, .. } = pair(Protocol::Http, app::echo().await);
        caller.no_service(&outside.to_string());
        caller.no_service("10.42.1.1:80");
        let request = Request::get(format!("http://{outside}/x")).body(Empty::<Bytes>::new()).unwrap();
        let answer = send1(caller.addresses[1], request).await;
        assert!(answer.body.starts_with("1.1 GET /x\n"), "{answer:?}");
        assert_eq!(answer.got("heddle-attempt"), None, "not for strangers");
        assert_eq!(caller.request().await.cluster, None, "no name that an app made up is a label");
        // Never in plaintext into the mesh, however the address is written.
        for inside in ["10.42.1.1", "[::ffff:10.42.1.1]", "[::ffff:a2a:101]"] {
            let request = Request::get(format!("http://{inside}/x")).body(Empty::<Bytes>::new()).unwrap();
            let answer = send1(caller.addresses[1], request).await;
            assert_eq!((answer.status.as_u16(), answer.error()), (503, "unknown-destination"), "{inside}");
        }
        let mesh = caller.worker.common.discovery.snapshot();
        assert!(mesh.is_mesh_address("::ffff:10.42.1.1".parse().unwrap()), "as DNS may say it");
        assert!(!mesh.is_mesh_address("::ffff:10.43.1.1".parse().unwrap()));
    });
}

#[test]
fn new_credentials_are_used_by_new_connections_and_no_request_is_lost() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let mut client = connect1(caller.address()).await;
        let mut client2 = connect2(caller.address()).await;
        for round in 0..10 {
            client.ready().await.unwrap();
            let answer = Answer::read(client.send_request(get("/")).await.unwrap()).await;
            assert_eq!(answer.status, StatusCode::OK);
            let answer = Answer::read(client2.send_request(get2("/")).await.unwrap()).await;
            assert_eq!(answer.status, StatusCode::OK);
            let (whose, account) = if round % 2 == 0 { (&caller, "web") } else { (&callee, "orders") };
            mesh.renew(&whose.worker.common.identity, account);
        }
        let requests = caller.requests(20).await;
        let connections = requests.iter().filter(|request| request.attempts[0].connect.is_some()).count();
        assert_eq!(connections, 12, "two at first, and two after each of the caller's five renewals");
    });
}
