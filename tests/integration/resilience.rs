//! Retries, ejection, limits and timeouts, seen from a caller.

use std::time::Duration;

use heddle_tests::{app::App, eventually, mesh::ProxySpec};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{ECHO, World, calling, serving};

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_instance_is_retried_around_and_ejected() {
    // In turn, because by latency and load the sick one would hardly be asked again.
    let policy = format!(
        "{ECHO}
---
apiVersion: heddle.dev/v1
kind: TrafficPolicy
metadata: {{ name: echo, namespace: test }}
spec: {{ targetRef: {{ kind: Service, name: echo }}, balancing: roundRobin }}
"
    );
    let mut world = World::with(&[], &policy).await;
    let sick = App::start("sick").await;
    sick.set_status(StatusCode::SERVICE_UNAVAILABLE);
    let _second = world.mesh.proxy("test", serving("echo-2", "echo", &[format!("80:{}", sick.address.port())])).await;
    let client = world.client.client();
    eventually("a request to reach the sick instance", Duration::from_secs(10), || async {
        let _ = client.get("http://echo.test/").send().await;
        if sick.count() > 0 { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
    for _ in 0..100 {
        let response = client.get("http://echo.test/").send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert!(world.client.metric("heddle_retries_total", &[]).await >= 1.0, "{}", world.client.metrics().await);
    assert!(world.client.metric("heddle_ejections_total", &[]).await >= 1.0, "{}", world.client.metrics().await);
    // Five in a row eject it; afterwards only probes reach it.
    assert!(sick.count() <= 10, "the sick instance still gets {} requests", sick.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_was_sent_is_not_sent_again() {
    let world = World::start().await;
    world.app.set_status(StatusCode::SERVICE_UNAVAILABLE);
    let response = world.client.client().post("http://echo.test/pay").body("1").send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.app.count(), 1);
    let response = world.client.client().get("http://echo.test/").send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.app.count(), 1 + 3, "a GET is tried three times, on the only instance there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_cannot_be_reached_is_named() {
    let world = World::start().await;
    world.server.process.signal(rustix::process::Signal::KILL);
    let client = world.client.client();
    let inbound = world.server.addresses.inbound.to_string();
    let response = eventually("the connection to be refused", Duration::from_secs(10), || async {
        let response = client.get("http://echo.test/").send().await.map_err(|error| error.to_string())?;
        match response.headers().get("heddle-error") {
            Some(reason) if reason == "connect-failed" => Ok(response),
            reason => Err(format!("{} {reason:?}", response.status())),
        }
    })
    .await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let status = response.headers()["proxy-status"].to_str().expect("text");
    assert!(status.contains("error=") && status.contains(&inbound), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_and_limits_of_a_traffic_policy() {
    let policy = format!(
        "{ECHO}
---
apiVersion: heddle.dev/v1
kind: TrafficPolicy
metadata: {{ name: echo, namespace: test }}
spec:
  targetRef: {{ kind: Service, name: echo }}
  timeouts: {{ request: 300ms }}
  limits: {{ maxRequests: 2, maxPending: 1 }}
"
    );
    let world = World::with(&[], &policy).await;
    let client = world.client.client();
    assert_eq!(client.get("http://echo.test/").send().await.expect("an answer").status(), StatusCode::OK);
    world.app.set_delay(Duration::from_secs(2));
    let response = client.get("http://echo.test/").send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.headers()["heddle-error"], "request-timeout");

    let calls = (0..20).map(|_| client.get("http://echo.test/").send());
    let answers = futures_util::future::join_all(calls).await;
    let overloaded = answers
        .iter()
        .filter_map(|answer| answer.as_ref().ok())
        .filter(|answer| answer.headers().get("heddle-error").is_some_and(|reason| reason == "overloaded"))
        .count();
    assert!(overloaded >= 15, "{overloaded} of 20 were refused at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_descriptors_a_proxy_blames_itself_and_no_endpoint() {
    let mut world = World::start().await;
    let few = r#"ulimit -Sn 60 && ulimit -Hn 160 && exec "$@""#;
    let wrapper = ["sh", "-c", few, "sh"].map(str::to_owned).to_vec();
    let caller = ProxySpec { wrapper, workload: "client-2".to_owned(), ..calling("client") };
    let caller = world.mesh.proxy("test", caller).await;
    let pid = caller.process.id();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("a running process");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line of it");
    assert_eq!(files.split_whitespace().skip(3).collect::<Vec<_>>(), ["160", "160", "files"], "raised");

    let port = caller.addresses.http_proxy.expect("an HTTP proxy port");
    let mut first = TcpStream::connect(port).await.expect("a connection");
    let mut others = Vec::new();
    for _ in 0..200 {
        others.push(TcpStream::connect(port).await.expect("a connection"));
    }
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count();
    eventually("the proxy to have no descriptor left", Duration::from_secs(10), || async {
        if open() >= 160 { Ok(()) } else { Err(format!("{} open", open())) }
    })
    .await;
    // As often as would eject an endpoint.
    for _ in 0..10 {
        let answer = ask(&mut first).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("heddle-error: overloaded"), "{answer}");
    }
    drop(others);
    eventually("descriptors", Duration::from_secs(10), || async {
        if open() < 100 { Ok(()) } else { Err(format!("{} open", open())) }
    })
    .await;
    let answer = ask(&mut first).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(caller.metric("heddle_ejections_total", &[]).await, 0.0);
}

/// A request on a connection to an HTTP proxy port, and the head of its answer.
async fn ask(connection: &mut TcpStream) -> String {
    connection.write_all(b"HEAD http://echo.test/ HTTP/1.1\r\nhost: echo.test\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = connection.read_buf(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer in time");
        assert_ne!(read.expect("an answer"), 0, "closed after {answer:?}");
    }
    String::from_utf8_lossy(&answer).to_lowercase().replacen("http/1.1", "HTTP/1.1", 1)
}
