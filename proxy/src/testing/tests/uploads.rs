//! Requests whose bodies come slowly, or not; trailers.

use std::{cell::RefCell, net::SocketAddr, pin::Pin, rc::Rc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::spawn_local,
    time::{Duration, Instant, sleep, timeout},
};

use super::Pair;
use crate::{
    config::Limits,
    listener::Role,
    outcome::ErrorKind,
    snapshot::Protocol,
    testing::{
        Called, Served, TestMesh, allow_all,
        app::{self, AppBody, text},
        calling,
        client::{Answer, connect2, get2, send2},
        run, serving,
    },
};

type Pieces = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>>>>>;

/// A body that comes as it is sent here.
fn pieces() -> (UnboundedSender<Frame<Bytes>>, Pieces) {
    let (sender, receiver) = unbounded_channel();
    let pieces = stream::unfold(receiver, |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) });
    (sender, StreamBody::new(Box::pin(pieces)))
}

fn data(bytes: &'static [u8]) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes))
}

const LIMIT: Duration = Duration::from_millis(500);

/// Proxies of which one waits so long for bodies, and the other for ever.
fn pair(app: SocketAddr, at_caller: bool) -> Pair {
    let mesh = TestMesh::new();
    let short = Limits { body_timeout: LIMIT, idle_timeout: 2 * LIMIT, ..Limits::default() };
    let limits = |short_here: bool| if short_here { short } else { Limits::default() };
    let serving = serving("orders", vec![Served::new(80, Protocol::Http, app)], allow_all());
    let callee = mesh.proxy_with("orders", serving, &[Role::Inbound], limits(!at_caller));
    let called = Called::new("orders", Protocol::Http, &callee.addresses).policy(|policy| {
        policy.outlier.consecutive_failures = 1;
        policy.outlier.max_ejected_percent = 100;
    });
    let name = crate::config::DialName::new("orders.shop", 80);
    let caller = mesh.proxy_with("web", calling(vec![called]), &[Role::Upstream(name.into())], limits(at_caller));
    Pair { callee, caller }
}

/// An app that answers with the body that it was sent, once it has all of it, and notes whether it has.
async fn collecting() -> (SocketAddr, Rc<RefCell<Vec<bool>>>) {
    let whole: Rc<RefCell<Vec<bool>>> = Rc::default();
    let noted = whole.clone();
    let app = app::http(move |request: Request<Incoming>| {
        let noted = noted.clone();
        async move {
            let body = request.into_body().collect().await;
            noted.borrow_mut().push(body.is_ok());
            Response::new(text(body.map(|body| body.to_bytes()).unwrap_or_default()))
        }
    })
    .await;
    (app, whole)
}

#[test]
fn a_body_that_stalls_or_trickles_ends() {
    run(async {
        for at_caller in [true, false] {
            for trickles in [false, true] {
                let (app, whole) = collecting().await;
                let Pair { callee, caller } = pair(app, at_caller);
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                let head = b"POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5000\r\n\r\n";
                socket.write_all(head).await.unwrap();
                // What came at once does not count for what comes later.
                socket.write_all(&[b'x'; 2000]).await.unwrap();
                let began = Instant::now();
                let (mut read, mut write) = socket.into_split();
                let trickling = spawn_local(async move {
                    while trickles && write.write_all(b"x").await.is_ok() {
                        sleep(LIMIT / 10).await;
                    }
                    write
                });
                let mut answer = String::new();
                let _ = timeout(Duration::from_secs(20), read.read_to_string(&mut answer)).await.expect("an answer");
                assert!(answer.starts_with("HTTP/1.1 408 "), "{at_caller} {trickles}: {answer}");
                assert!(answer.contains("heddle-error: body-timeout\r\n"), "{answer}");
                assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
                trickling.abort();
                let error = if at_caller { &caller } else { &callee }.request().await.error.clone().unwrap();
                assert_eq!(error.kind, ErrorKind::BodyTimeout);
                crate::testing::until("the app hears of it", || *whole.borrow() == [false]).await;
                // It is nothing that the instance is to blame for.
                let after = send2(caller.address(), get2("/")).await;
                assert_eq!((after.status.as_u16(), after.error()), (200, ""), "{after:?}");
            }
        }
    });
}

#[test]
fn a_stream_that_stalls_within_what_it_promised_ends() {
    run(async {
        let request = || Request::post("http://orders.shop/");
        let cases: [(&str, http::request::Builder, &[u8]); 3] = [
            ("length", request().header("content-length", "10"), b"abc"),
            ("gRPC message", request().header("content-type", "application/grpc"), b"\0\0\0\0\x05ab"),
            ("no word before the answer", request(), b""),
        ];
        for (what, request, first) in cases {
            for at_caller in [true, false] {
                let (app, _) = collecting().await;
                let Pair { callee, caller } = pair(app, at_caller);
                let (sender, body) = pieces();
                sender.send(data(first)).unwrap();
                let request = Request::from_parts(request_parts(&request), body);
                let answer = timeout(Duration::from_secs(20), send2(caller.address(), request)).await.expect(what);
                assert_eq!(answer.error(), "body-timeout", "{what} {at_caller}: {answer:?}");
                let told = if what.starts_with("gRPC") { "4" } else { "" };
                assert_eq!(answer.headers.get("grpc-status").map_or("", |status| status.to_str().unwrap()), told);
                let error = if at_caller { &caller } else { &callee }.request().await.error.clone().unwrap();
                assert_eq!(error.kind, ErrorKind::BodyTimeout, "{what} {at_caller}");
                let after = send2(caller.address(), get2("/")).await;
                assert_eq!((after.status.as_u16(), after.error()), (200, ""), "{what}: {after:?}");
            }
        }
    });
}

fn request_parts(builder: &http::request::Builder) -> http::request::Parts {
    let mut request = Request::new(());
    *request.method_mut() = builder.method_ref().unwrap().clone();
    *request.uri_mut() = builder.uri_ref().unwrap().clone();
    *request.headers_mut() = builder.headers_ref().unwrap().clone();
    request.into_parts().0
}

/// An app that answers at once, and gives back what it is sent as it comes.
async fn echoing() -> SocketAddr {
    app::http(|request: Request<Incoming>| async move {
        let body: AppBody = request.into_body().map_err(std::io::Error::other).boxed_unsync();
        Response::new(body)
    })
    .await
}

#[test]
fn a_stream_that_is_silent_between_messages_goes_on() {
    run(async {
        let message: &[u8] = b"\0\0\0\0\x02ab";
        // A gRPC server may answer late, too.
        for (what, app, grpc) in [
            ("bidi", echoing().await, true),
            ("late", collecting().await.0, true),
            ("answered", echoing().await, false),
        ] {
            for at_caller in [true, false] {
                let Pair { caller, .. } = pair(app, at_caller);
                let (sender, body) = pieces();
                let mut request = Request::post("http://orders.shop/").body(body).unwrap();
                if grpc {
                    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                }
                let mut connection = connect2(caller.address()).await;
                let answering = connection.send_request(request);
                let sending = async move {
                    for _ in 0..2 {
                        sender.send(data(message)).unwrap();
                        sleep(5 * LIMIT / 2).await;
                    }
                };
                let (response, ()) = tokio::join!(answering, sending);
                let answer = Answer::read(response.unwrap()).await;
                assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 2 * message.len()), "{what} {at_caller}");
            }
        }
    });
}

#[test]
fn an_app_that_reads_late_is_no_fault_of_the_caller() {
    run(async {
        let app = app::http(|request: Request<Incoming>| async move {
            sleep(4 * LIMIT).await;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(text(body.len().to_string()))
        })
        .await;
        for at_caller in [true, false] {
            let Pair { caller, .. } = pair(app, at_caller);
            for version in [1, 2] {
                let body = http_body_util::Full::new(Bytes::from(vec![b'x'; 4 << 20]));
                let answer = if version == 1 {
                    let request = Request::post("/").header("host", "orders.shop").body(body).unwrap();
                    crate::testing::client::send1(caller.address(), request).await
                } else {
                    send2(caller.address(), Request::post("http://orders.shop/").body(body).unwrap()).await
                };
                assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "4194304"), "{at_caller} {version}");
            }
        }
    });
}

/// Trailers that a receiver may take for headers.
fn forged(names: &[&'static str]) -> HeaderMap {
    names.iter().map(|name| (name.parse().unwrap(), "x".parse().unwrap())).collect()
}

#[test]
fn trailers_say_nothing_that_headers_may_not() {
    run(async {
        let never = ["content-length", "content-type", "heddle-attempt", "heddle-error", "host", "trailer"];
        let of_requests = ["authorization", "cookie", "forwarded", "x-forwarded-client-cert", "x-forwarded-for", "via"];
        let of_responses = ["set-cookie", "www-authenticate"];
        let kept = ["grpc-status", "x-sum"];
        let (asked, answered) =
            (forged(&[&never[..], &of_requests, &kept].concat()), forged(&[&never[..], &of_responses, &kept].concat()));
        let seen: Rc<RefCell<HeaderMap>> = Rc::default();
        let app = app::http({
            let seen = seen.clone();
            move |request: Request<Incoming>| {
                let (seen, answered) = (seen.clone(), answered.clone());
                async move {
                    let body = request.into_body().collect().await.unwrap();
                    *seen.borrow_mut() = body.trailers().cloned().unwrap_or_default();
                    let frames = [Ok::<_, std::io::Error>(data(b"x")), Ok(Frame::trailers(answered))];
                    Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync())
                }
            }
        })
        .await;
        let Pair { caller, .. } = pair(app, true);
        let (sender, body) = pieces();
        sender.send(data(b"x")).unwrap();
        sender.send(Frame::trailers(asked)).unwrap();
        drop(sender);
        let request = Request::post("http://orders.shop/").body(body).unwrap();
        let response = connect2(caller.address()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let got = response.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let names = |headers: &HeaderMap| {
            let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(
            (names(&seen.borrow()), names(&got)),
            (kept.map(Into::into).to_vec(), kept.map(Into::into).to_vec())
        );
    });
}

#[test]
fn who_half_closes_gets_an_answer() {
    run(async {
        let app = app::http(|request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            // Longer than a client that is gone is waited for.
            sleep(Duration::from_millis(600)).await;
            Response::new(text(body))
        })
        .await;
        let Pair { caller, .. } = pair(app, false);
        for request in [
            "GET / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: orders.shop\r\n\r\n",
            "POST / HTTP/1.0\r\nhost: orders.shop\r\ncontent-length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut answer = String::new();
            timeout(Duration::from_secs(20), socket.read_to_string(&mut answer)).await.expect("an end").unwrap();
            assert!(answer.starts_with("HTTP/1.") && answer[8..].starts_with(" 200 OK\r\n"), "{request}: {answer:?}");
            assert_eq!(answer.ends_with("hello"), request.starts_with("POST"), "{answer:?}");
            assert!(answer.contains("\r\ndate: "), "{answer:?}");
        }
        // Half of a body is nobody's last word.
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        let request = "POST / HTTP/1.0\r\nhost: orders.shop\r\ncontent-length: 5\r\n\r\nhell";
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_millis(500), socket.read_to_string(&mut answer)).await.expect("an end").unwrap();
        assert!(!answer.contains(" 200 "), "{answer}");
    });
}
