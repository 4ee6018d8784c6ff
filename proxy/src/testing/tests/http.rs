//! Requests through a pair.

use http::{Request, StatusCode};
use http_body_util::Full;

use crate::{
    outcome::Direction,
    snapshot::Protocol,
    testing::{
        Called, TestMesh, app,
        client::{connect1, get, get2, send1, send2},
        cluster, run, service_name, spiffe_id,
    },
};

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
            let answer = crate::testing::client::Answer::read(client.send_request(request).await.unwrap()).await;
            assert!(answer.body.ends_with(&"x".repeat(n * 10_000)));
        }
        let requests = caller.requests(5).await;
        let connections = requests.iter().filter(|request| request.attempts[0].connect.is_some()).count();
        assert_eq!(connections, 1, "pooled");
        assert_eq!(requests[4].request_bytes, 40_000);
    });
}
