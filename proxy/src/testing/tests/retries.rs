//! Tries, endpoints, and connections that go stale.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, Instant},
};

use crate::{
    connect::tests::refuse,
    outcome::ErrorKind,
    snapshot::{OutlierDetection, Protocol},
    testing::{
        Called, Proxy, TestMesh,
        app::{self, text},
        client::{Answer, connect1, get, get2, send1, send2},
        run,
    },
};

/// An app that answers with these statuses, then with 200, and notes the bodies that it got.
async fn flaky(statuses: &[u16]) -> (SocketAddr, Rc<RefCell<Vec<String>>>) {
    let got: Rc<RefCell<Vec<String>>> = Rc::default();
    let (statuses, noted) = (statuses.to_vec(), got.clone());
    let app = app::http(move |request| {
        let (statuses, noted) = (statuses.clone(), noted.clone());
        async move {
            let attempt = request.headers()["heddle-attempt"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let status = statuses.get(noted.borrow().len()).copied().unwrap_or(200);
            noted.borrow_mut().push(format!("{attempt}:{}", String::from_utf8_lossy(&body)));
            Response::builder().status(status).body(text(format!("try {attempt}"))).unwrap()
        }
    })
    .await;
    (app, got)
}

fn call(mesh: &TestMesh, callees: &[&Proxy], retries: u32) -> Proxy {
    let addresses: Vec<_> = callees.iter().map(|callee| callee.address()).collect();
    let called = Called::new("orders", Protocol::Http, &addresses).retries(|retry| {
        retry.max_retries = retries;
        retry.statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
    });
    mesh.caller(vec![called])
}

fn put(body: &str) -> Request<Full<Bytes>> {
    Request::put("/x").header("host", "orders.shop").body(Full::new(body.to_owned().into())).unwrap()
}

#[test]
fn what_failed_is_tried_again_with_its_body() {
    run(async {
        let mesh = TestMesh::new();
        let (app, got) = flaky(&[503, 503]).await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let caller = call(&mesh, &[&callee], 2);
        let answer = send1(caller.address(), put("a body")).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "try 3"));
        assert_eq!(*got.borrow(), ["1:a body", "2:a body", "3:a body"]);
        let record = caller.request().await;
        let statuses: Vec<_> = record.attempts.iter().map(|attempt| attempt.status.unwrap().as_u16()).collect();
        assert_eq!(statuses, [503, 503, 200]);
        let spans: std::collections::HashSet<_> = record.attempts.iter().map(|attempt| attempt.span_id.0).collect();
        assert_eq!(spans.len(), 3, "a span for each try");
        let inside = callee.requests(3).await;
        assert!(inside.iter().zip(&record.attempts).all(|(one, attempt)| one.trace.parent() == Some(attempt.span_id)));
    });
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    run(async {
        let mesh = TestMesh::new();
        let (app, got) = flaky(&[503, 503]).await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let caller = call(&mesh, &[&callee], 2);
        let mut request = put("a body");
        *request.method_mut() = http::Method::POST;
        assert_eq!(send1(caller.address(), request).await.status, 503);
        assert_eq!(got.borrow().len(), 1);
        let record = caller.request().await;
        assert_eq!(record.retry_refused, Some(crate::cluster::retry::Refusal::Method));
        // Nor what is too large to be kept.
        got.borrow_mut().clear();
        assert_eq!(send1(caller.address(), put(&"x".repeat(100_000))).await.status, 503);
        assert_eq!(got.borrow().len(), 1);
        assert_eq!(caller.request().await.retry_refused, Some(crate::cluster::retry::Refusal::Body));
    });
}

#[test]
fn what_was_never_sent_goes_elsewhere_whatever_it_is() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let leaving = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        leaving.stages.advance(crate::lifecycle::Stage::Refusing);
        let nobody = app::nobody().await;
        let called = Called::new("orders", Protocol::Http, &[nobody, leaving.address(), callee.address()])
            .retries(|retry| retry.max_retries = 2);
        let caller = mesh.caller(vec![called]);
        for _ in 0..3 {
            let request = Request::post("/x").header("host", "orders.shop");
            let answer = send1(caller.address(), request.body(Full::new(Bytes::from_static(b"once"))).unwrap()).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.body.ends_with("\n\nonce"));
        }
        assert_eq!(callee.requests(3).await.len(), 3);
        let records = caller.requests(3).await;
        for record in records {
            let mut tried: Vec<_> = record.attempts.iter().map(|one| one.endpoint.as_ref().unwrap().address).collect();
            let tries = tried.len();
            tried.sort();
            tried.dedup();
            assert_eq!(tried.len(), tries, "none twice");
        }
    });
}

#[test]
fn what_a_kernel_has_against_one_address_leaves_the_others() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        // Of one the caller's host knows no way to it, or forbids it; another's host is out of descriptors.
        let (unreachable, forbidden, app) = (app::nobody().await, app::nobody().await, app::echo().await);
        refuse(unreachable, Errno::ADDRNOTAVAIL);
        refuse(forbidden, Errno::PERM);
        refuse(app, Errno::MFILE);
        let full = mesh.sidecar("orders", Protocol::Http, app);
        for address in [unreachable, forbidden, full.address()] {
            let called = Called::new("orders", Protocol::Http, &[address, callee.address()])
                .retries(|retry| retry.max_retries = 1);
            let caller = mesh.caller(vec![called]);
            for _ in 0..8 {
                let request = Request::post("/x").header("host", "orders.shop");
                let request = request.body(Full::new(Bytes::from_static(b"once"))).unwrap();
                let answer = send1(caller.address(), request).await;
                assert_eq!(answer.status, 200, "{address}: {answer:?}");
            }
            let records = caller.requests(8).await;
            let tried = records.iter().flat_map(|record| &record.attempts);
            assert!(tried.into_iter().any(|one| one.endpoint.as_ref().unwrap().address == address), "{address}");
        }
    });
}

#[test]
fn a_stream_that_the_app_refuses_is_opened_again() {
    run(async {
        // As gRPC servers do whose limit of streams is reached; their clients are to try again without a word.
        let app = app::tcp(|socket| async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let mut count = 0;
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                count += 1;
                if count % 2 == 1 {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            }
        })
        .await;
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http2, app);
        let called = Called::new("orders", Protocol::Http2, &callee.addresses).retries(|retry| retry.max_retries = 1);
        let caller = mesh.caller(vec![called]);
        for _ in 0..3 {
            let request = Request::post("http://orders.shop/x").body(Full::new(Bytes::from_static(b"once"))).unwrap();
            let answer = send2(caller.address(), request).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    });
}

#[test]
fn a_body_of_any_size_goes_elsewhere_while_none_of_it_was_read() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let called = Called::new("orders", Protocol::Http, &[app::nobody().await, callee.address()])
            .retries(|retry| retry.max_retries = 1);
        let caller = mesh.caller(vec![called]);
        for _ in 0..2 {
            let body = Full::new(Bytes::from(vec![b'x'; 1 << 20]));
            let request = Request::post("/x").header("host", "orders.shop").body(body).unwrap();
            let answer = send1(caller.address(), request).await;
            assert_eq!(answer.status, 200, "{answer:.200?}");
            assert_eq!(answer.body.split("\n\n").nth(1).unwrap().len(), 1 << 20);
        }
        let tries: usize = caller.requests(2).await.iter().map(|record| record.attempts.len()).sum();
        assert_eq!(tries, 3, "one of them met nobody at first");
    });
}

#[test]
fn sick_endpoints_are_left_out_and_an_open_circuit_answers_at_once() {
    run(async {
        let mesh = TestMesh::new();
        let hits = Rc::new(Cell::new(0));
        let count = hits.clone();
        let sick = app::http(move |_| {
            count.set(count.get() + 1);
            async { Response::builder().status(500).body(text("sick")).unwrap() }
        })
        .await;
        let sick = mesh.sidecar("orders", Protocol::Http, sick);
        let well = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let detection = OutlierDetection {
            consecutive_failures: 3,
            base_ejection: Duration::from_secs(60),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 50,
        };
        let called = Called::new("orders", Protocol::Http, &[sick.address(), well.address()])
            .policy(|policy| policy.outlier = detection);
        let caller = mesh.caller(vec![called]);
        let mut failed = 0;
        for _ in 0..20 {
            failed += u32::from(send1(caller.address(), get("/")).await.status != 200);
        }
        assert_eq!((failed, hits.get()), (3, 3));
    });
}

#[test]
fn a_caller_in_a_hurry_ejects_nobody() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::http(|request| async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            Response::new(text("well"))
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let other = mesh.sidecar("orders", Protocol::Http, app);
        let detection = OutlierDetection {
            consecutive_failures: 1,
            base_ejection: Duration::from_secs(60),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 50,
        };
        let called = Called::new("orders", Protocol::Http, &[callee.address(), other.address()])
            .policy(|policy| policy.outlier = detection);
        let caller = mesh.caller(vec![called]);
        for _ in 0..4 {
            let mut request = get2("/slow");
            request.headers_mut().insert("grpc-timeout", "20m".parse().unwrap());
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            assert_eq!(send2(caller.address(), request).await.error(), "deadline-exceeded");
        }
        let records = caller.requests(4).await;
        assert!(records.iter().all(|record| record.attempts.iter().all(|attempt| !attempt.ejected)));
        assert_eq!(send1(caller.address(), get("/")).await.status, 200);
    });
}

#[test]
fn time_runs_out() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::http(|request| async move {
            if request.uri().path() == "/slow" && request.headers()["heddle-attempt"] == "1" {
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            if request.uri().path() == "/slower" {
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            let deadline = request.headers().get("heddle-deadline").map_or("", |value| value.to_str().unwrap());
            Response::new(text(deadline.to_owned()))
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let called = || {
            Called::new("orders", Protocol::Http, &callee.addresses).policy(|policy| {
                policy.request_timeout = Some(Duration::from_secs(1));
                policy.per_try_timeout = Some(Duration::from_millis(200));
            })
        };
        let caller = mesh.caller(vec![called().retries(|retry| retry.max_retries = 1)]);
        let left: u64 = send1(caller.address(), get("/")).await.body.parse().unwrap();
        assert!((1..=1000).contains(&left), "{left}");
        let answer = send1(caller.address(), get("/slow")).await;
        assert_eq!(answer.status, 200, "the second try is in time: {answer:?}");
        let answer = send1(caller.address(), get("/slower")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (504, "per-try-timeout"));

        let called = called().policy(|policy| policy.per_try_timeout = None);
        let caller = mesh.caller(vec![called]);
        let began = Instant::now();
        let answer = send1(caller.address(), get("/slower")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (504, "request-timeout"));
        assert!(began.elapsed() < Duration::from_secs(5));
        let record = caller.request().await;
        assert_eq!(record.attempts[0].error.as_ref().unwrap().kind, ErrorKind::RequestTimeout);
        // What the caller says counts, if it is less.
        let mut request = get2("/slower");
        request.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answer = send2(caller.address(), request).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (200, "deadline-exceeded"));
        assert_eq!(answer.headers["grpc-status"], "4");
    });
}

#[test]
fn a_response_that_takes_too_long_breaks_off() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::tcp(|mut socket| async move {
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome").await;
            let _ = socket.read(&mut request).await;
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let called = Called::new("orders", Protocol::Http, &callee.addresses)
            .policy(|policy| policy.request_timeout = Some(Duration::from_millis(300)));
        let caller = mesh.caller(vec![called]);
        let response = connect1(caller.address()).await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err());
        let record = caller.request().await;
        assert_eq!(record.error.unwrap().kind, ErrorKind::RequestTimeout);
        assert_eq!(record.response_bytes, 4);
    });
}

#[test]
fn a_connection_that_the_app_closed_is_replaced_without_a_word() {
    run(async {
        let mesh = TestMesh::new();
        // Two requests on each connection, which is then closed without warning.
        let app = app::tcp(|mut socket| async move {
            let mut buffer = [0; 4096];
            for _ in 0..2 {
                if socket.read(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http1, app);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http1, &callee.addresses)]);
        let mut client = connect1(caller.address()).await;
        for n in 0..10 {
            client.ready().await.unwrap();
            let request = Request::post("/").header("host", "orders.shop").body(Full::new(Bytes::from_static(b"x")));
            let answer = Answer::read(client.send_request(request.unwrap()).await.unwrap()).await;
            assert_eq!(answer.status, 200, "{n}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn limits_shed_load_until_responses_are_complete() {
    run(async {
        let mesh = TestMesh::new();
        let app = app::tcp(|mut socket| async move {
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome").await;
            let _ = socket.read(&mut request).await;
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let called =
            Called::new("orders", Protocol::Http, &callee.addresses).policy(|policy| policy.limits.max_requests = 2);
        let caller = mesh.caller(vec![called]);
        let first = connect1(caller.address()).await.send_request(get("/")).await.unwrap();
        let _second = connect1(caller.address()).await.send_request(get("/")).await.unwrap();
        // Their headers are here, their bodies are not.
        let answer = send1(caller.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (503, "overloaded"));
        drop(first);
        crate::testing::until("the place to be free", || caller.outcomes.borrow().len() == 2).await;
        assert_eq!(connect1(caller.address()).await.send_request(get("/")).await.unwrap().status(), 200);
    });
}
