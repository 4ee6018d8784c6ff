//! Shutting down.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Duration, sleep},
};

use crate::{
    lifecycle::Stage,
    snapshot::Protocol,
    testing::{
        Called, TestMesh,
        app::{self, text},
        client::{Answer, connect1, connect2, get, get2, send1, send2},
        run, until,
    },
};

#[test]
fn leaving_serves_on_and_lets_no_connection_live_on() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let mut client = connect1::<Empty<Bytes>>(caller.address()).await;
        let mut client2 = connect2::<Empty<Bytes>>(caller.address()).await;
        for stage in [Stage::Serving, Stage::Leaving] {
            callee.stages.advance(stage);
            for _ in 0..3 {
                client.ready().await.unwrap();
                assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
                assert_eq!(client2.send_request(get2("/")).await.unwrap().status(), 200);
            }
        }
        let records = caller.requests(12).await;
        let connections = records.iter().filter(|record| record.attempts[0].connect.is_some()).count();
        // One each at first; while leaving, one for each request over HTTP/1.1 (the first used what there was) and
        // whatever HTTP/2 needs once it has heard.
        assert!((5..=8).contains(&connections), "{connections}");
        // In plaintext (a probe) one sees it.
        let response = connect1(callee.address()).await.send_request(get("/healthz")).await.unwrap();
        assert_eq!(response.headers()["connection"], "close");
    });
}

#[test]
fn refusing_says_so_and_idle_connections_end() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        assert_eq!(send1(caller.address(), get("/")).await.status, 200);
        assert_eq!(send2(caller.address(), get2("/")).await.status, 200);
        assert_eq!(callee.stages.connections(), 2);
        callee.stages.advance(Stage::Refusing);
        let answer = send1(caller.address(), get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (503, "draining"));
        until("idle connections to end", || callee.stages.connections() == 0).await;
    });
}

#[test]
fn closing_finishes_what_has_begun() {
    run(async {
        let mesh = TestMesh::new();
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        let app = app::http(move |_| {
            count.update(|asked| asked + 1);
            async {
                sleep(Duration::from_millis(300)).await;
                Response::new(text("done"))
            }
        })
        .await;
        let callee = mesh.sidecar("orders", Protocol::Http, app);
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Http, &callee.addresses)]);
        let address = caller.address();
        let first = spawn_local(async move {
            let response = connect1(address).await.send_request(get("/")).await.unwrap();
            assert_eq!(response.headers()["connection"], "close");
            Answer::read(response).await
        });
        let second = spawn_local(async move { send2(address, get2("/")).await });
        until("both to be with the app", || asked.get() == 2).await;
        for proxy in [&callee, &caller] {
            proxy.stages.advance(Stage::Closing);
        }
        assert_eq!(first.await.unwrap().body, "done");
        assert_eq!(second.await.unwrap().body, "done");
        until("all to be closed", || caller.stages.connections() + callee.stages.connections() == 0).await;
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    });
}
