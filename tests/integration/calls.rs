//! Calls that arrive, and calls that are refused with their reason.

use std::time::Duration;

use heddle_tests::{app::App, eventually, ports::free_port, process::Process};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, calling, serving};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_arrives_with_the_callers_identity_and_a_trace() {
    let world = World::start().await;
    let response = world
        .client
        .client()
        .post("http://echo.test/order?id=7")
        .header("x-forwarded-client-cert", "URI=spiffe://forged/ns/a/sa/b")
        .header("x-forwarded-for", "1.2.3.4")
        .header("traceparent", TRACEPARENT)
        .body("hello")
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-app"], "echo");
    assert_eq!(response.text().await.expect("a body"), "hello");

    let seen = world.app.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let request = &seen[0];
    assert_eq!(request.uri.path_and_query().expect("a path").as_str(), "/order?id=7");
    assert_eq!(request.headers["host"], "echo.test");
    let xfcc = request.headers["x-forwarded-client-cert"].to_str().expect("text");
    assert!(xfcc.contains("URI=spiffe://heddle.local/ns/test/sa/client"), "{xfcc}");
    assert!(!xfcc.contains("forged"), "{xfcc}");
    // These proxies have no collector: they add no spans of their own to a trace.
    assert_eq!(request.headers["traceparent"], TRACEPARENT);
    assert!(request.headers.contains_key("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_allowed_learns_the_reason_and_the_app_sees_nothing() {
    let mut world = World::start().await;
    let stranger = world.mesh.proxy("test", calling("stranger")).await;
    let response = stranger.client().get("http://echo.test/").send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(response.headers()["heddle-error"], "denied");
    assert!(response.headers()["proxy-status"].to_str().expect("text").contains("heddle-proxy"));
    assert_eq!(world.app.count(), 0);
    assert!(world.server.metric("heddle_denials_total", &[]).await >= 1.0, "{}", world.server.metrics().await);

    // A change of policy reaches the proxy without a restart.
    world
        .mesh
        .apply(
            "
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: strangers-too, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: ALLOW
  rules: [{ from: [{ namespaces: [test] }], to: [{ methods: [GET], paths: [/public/*] }] }]
",
        )
        .await;
    eventually("the new rule", Duration::from_secs(5), || async {
        match stranger.client().get("http://echo.test/public/x").send().await {
            Ok(response) if response.status() == StatusCode::OK => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for (method, path) in [("POST", "/public/x"), ("GET", "/private"), ("GET", "/public/../private")] {
        let method = method.parse().expect("a method");
        let url = format!("http://echo.test{path}");
        let response = stranger.client().request(method, url).send().await.expect("an answer");
        assert!(matches!(response.status().as_u16(), 400 | 403), "{path}: {}", response.status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_and_strangers_with_other_certificates_reach_no_app_byte() {
    let world = World::start().await;
    let mut plain = tokio::net::TcpStream::connect(world.server.addresses.inbound).await.expect("a connection");
    plain.write_all(b"GET / HTTP/1.1\r\nhost: echo.test\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await.expect("it closes");
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("x-app"), "{answer}");
    assert!(answer.is_empty() || answer.contains("plaintext"), "{answer}");
    assert_eq!(world.app.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_and_the_outside_are_refused() {
    let world = World::start().await;
    let client = world.client.client();
    for (url, status, reason) in [
        ("http://nobody.test/", 503, "unknown-destination"),
        ("http://nobody.test.mesh/", 503, "unknown-destination"),
        ("http://example.com/", 403, "egress-denied"),
    ] {
        let response = client.get(url).send().await.expect("an answer");
        let told = response.headers().get("heddle-error").cloned();
        assert_eq!(response.status().as_u16(), status, "{url} {told:?}");
        assert_eq!(told.expect("a reason"), reason, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_through_an_upstream_port() {
    let Some(redis) = heddle_tests::peer::find("redis-server") else { return };
    let Some(cli) = heddle_tests::peer::find("redis-cli") else { return };
    let mut world = World::start().await;
    let port = free_port();
    let mut command = std::process::Command::new(redis);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let _redis = Process::start("redis", command, world.mesh.folder.path());
    world
        .mesh
        .apply(
            "
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: redis, namespace: test }
spec: { ports: [{ port: 6379, protocol: tcp }] }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: redis-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: redis }
  action: ALLOW
  rules: [{ from: [{ identities: [test/client] }] }]
",
        )
        .await;
    let _server = world.mesh.proxy("test", serving("redis-1", "redis", &[format!("6379:{port}")])).await;
    let upstream = "redis.test:6379=0".to_owned();
    let mut spec = calling("client");
    "client-2".clone_into(&mut spec.workload);
    spec.upstreams = vec![upstream.clone()];
    let client = world.mesh.proxy("test", spec).await;
    let address = client.addresses.upstreams.values().next().expect("an upstream port");
    let redis_cli = |arguments: &[&str]| {
        let output = std::process::Command::new(&cli)
            .args(["-h", "127.0.0.1", "-p", &address.port().to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(redis_cli(&["SET", "thread", "heddle"]), "OK");
    assert_eq!(redis_cli(&["GET", "thread"]), "heddle");

    // Who is not allowed gets no byte of the server.
    let mut spec = calling("stranger");
    spec.upstreams = vec![upstream];
    let stranger = world.mesh.proxy("test", spec).await;
    let address = stranger.addresses.upstreams.values().next().expect("an upstream port");
    let mut answer = Vec::new();
    // It may be reset before the connect is seen to succeed.
    if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
        let _ = stream.write_all(b"PING\r\n").await;
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("it ends");
    }
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_grpc_stay_what_they_are() {
    let Some(nghttp) = heddle_tests::peer::find("nghttp") else { return };
    let mut world = World::start().await;
    let mut spec = calling("client");
    "client-2".clone_into(&mut spec.workload);
    spec.upstreams = vec!["echo.test:80=0".to_owned()];
    let client = world.mesh.proxy("test", spec).await;
    let address = client.addresses.upstreams.values().next().expect("an upstream port");
    let output = std::process::Command::new(nghttp)
        .args(["-v", "-d", "/etc/hostname", &format!("http://127.0.0.1:{}/over-h2", address.port())])
        .output()
        .expect("nghttp runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(":status: 200"), "{text}");
    let seen = world.app.seen();
    assert_eq!(seen.last().map(|request| request.uri.path().to_owned()).as_deref(), Some("/over-h2"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_matches_and_redirects_of_a_route() {
    let mut world = World::start().await;
    let second = App::start("echo-v2").await;
    world
        .mesh
        .apply(
            "
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: echo-v2, namespace: test }
spec: { ports: [{ port: 80, protocol: http }], serviceAccounts: [echo] }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: echo-v2-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: echo-v2 }
  action: ALLOW
  rules: [{ from: [{ identities: [test/client] }] }]
---
apiVersion: heddle.dev/v1
kind: HTTPRoute
metadata: { name: echo, namespace: test }
spec:
  parentRefs: [{ name: echo }]
  rules:
    - name: new-path
      matches: [{ path: { value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }, statusCode: 301 }
    - name: beta
      matches: [{ headers: [{ name: x-beta, value: 'yes' }] }]
      backendRefs: [{ name: echo-v2 }]
    - name: split
      backendRefs: [{ name: echo, weight: 3 }, { name: echo-v2, weight: 1 }]
",
        )
        .await;
    let _server = world
        .mesh
        .proxy("test", {
            let mut spec = serving("echo-v2-1", "echo-v2", &[format!("80:{}", second.address.port())]);
            "echo".clone_into(&mut spec.account);
            spec
        })
        .await;
    let client = world.client.client();
    eventually("the header match", Duration::from_secs(5), || async {
        match client.get("http://echo.test/").header("x-beta", "yes").send().await {
            Ok(response) if response.headers().get("x-app").is_some_and(|app| app == "echo-v2") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let redirect = client.get("http://echo.test/old/page").send().await.expect("an answer");
    assert_eq!(redirect.status(), StatusCode::MOVED_PERMANENTLY);
    let location = redirect.headers()["location"].to_str().expect("text").to_owned();
    assert!(location.ends_with("/new/page"), "{location}");
    let (before_1, before_2) = (world.app.count(), second.count());
    for _ in 0..200 {
        assert_eq!(client.get("http://echo.test/").send().await.expect("an answer").status(), StatusCode::OK);
    }
    let (one, two) = (world.app.count() - before_1, second.count() - before_2);
    assert_eq!(one + two, 200);
    // 1 in 4 of 200, five standard deviations wide.
    assert!((20..=80).contains(&two), "{one} to {two}");

    // What is denied for the service is denied wherever its routes lead.
    world
        .mesh
        .apply(
            "
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: no-admin, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: DENY
  rules: [{ name: admin, to: [{ paths: [/admin/*] }] }]
",
        )
        .await;
    for beta in ["no", "yes"] {
        let get = |path: &str| client.get(format!("http://echo.test{path}")).header("x-beta", beta).send();
        eventually("the denial", Duration::from_secs(5), || async {
            match get("/admin/x").await {
                Ok(response) if response.status() == StatusCode::FORBIDDEN => Ok(()),
                other => Err(format!("x-beta {beta}: {other:?}")),
            }
        })
        .await;
        assert_eq!(get("/public").await.expect("an answer").status(), StatusCode::OK);
    }
    let seen = second.count();
    assert_eq!(
        client.get("http://echo-v2.test/admin/x").send().await.expect("an answer").status(),
        StatusCode::FORBIDDEN
    );
    assert_eq!(second.count(), seen, "nothing of it arrived");
}
