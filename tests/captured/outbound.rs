//! What the app beside the proxy dials.

use heddle_tests::netns::Family;

use crate::world::{World, capture};

async fn by_address_and_vip(family: Family) {
    let Some(world) = World::start(family).await else { return };

    let answer = world.curl(&[&world.url(8080)]);
    assert_eq!((answer.status, answer.header("x-port")), (200, Some("8080")), "{answer:?}");
    let client = answer.header("x-client").unwrap_or_default();
    assert!(client.contains("spiffe://heddle.local/ns/test/sa/client"), "over mTLS: {answer:?}");
    // The original destination selects the service, not what the app says.
    let answer = world.curl(&["-H", "Host: elsewhere.example", &world.url(8080)]);
    assert_eq!((answer.status, answer.header("x-host")), (200, Some("elsewhere.example")), "{answer:?}");
    // The app's port leads to the service's, by the declared mapping, though it is bound to loopback.
    let answer = world.curl(&[&world.url(8081)]);
    assert!(answer.status == 200 && answer.text.ends_with("private"), "{answer:?}");

    let vip = world.pick("10.99.0.1", "[fd99::1]");
    // Not before it is known to be ready; an instance that was dialled by its own address is not asked.
    heddle_tests::eventually("an answer", std::time::Duration::from_secs(10), || {
        let answer = world.curl(&[&format!("http://{vip}/")]);
        async move {
            let answered = (answer.status, answer.header("x-port")) == (200, Some("8080"));
            if answered { Ok(()) } else { Err(format!("{answer:?}")) }
        }
    })
    .await;
    // By name is by address: DNS has been asked by the app.
    let answer = world.curl(&["--connect-to", &format!("::{vip}:"), "http://echo.test/"]);
    assert_eq!((answer.status, answer.header("x-host")), (200, Some("echo.test")), "{answer:?}");
    assert!(answer.header("x-client").is_some_and(|client| client.contains("/sa/client")), "{answer:?}");
    let answer = world.curl(&[&format!("http://{vip}:8080/")]);
    assert_eq!(answer.header("heddle-error"), Some("unknown-destination"), "not a port of the service: {answer:?}");
}

#[tokio::test]
async fn a_service_is_called_by_address_and_vip_over_ipv4() {
    by_address_and_vip(Family::V4).await;
}

#[tokio::test]
async fn a_service_is_called_by_address_and_vip_over_ipv6() {
    by_address_and_vip(Family::V6).await;
}

async fn unknown(family: Family) {
    let Some(mut world) = World::start(family).await else { return };

    // Of the mesh, but nothing of it: never in plaintext.
    let answer = world.curl(&[&world.url(8083)]);
    assert_eq!((answer.status, answer.header("heddle-error")), (503, Some("unknown-destination")), "{answer:?}");
    let outside = format!("http://{}:8083/", world.pick("10.77.0.1", "[fd77::1]"));
    // The server's pod does not capture what comes for another address.
    capture(&world.pair.b, &["--remove"]);
    let answer = world.curl(&[&outside]);
    assert_eq!((answer.status, answer.header("x-port")), (200, Some("8083")), "{answer:?}");

    world.mesh.apply("{ apiVersion: heddle.dev/v1, kind: MeshConfig, metadata: { name: mesh }, spec: {} }").await;
    heddle_tests::eventually("egress to be denied", std::time::Duration::from_secs(5), || {
        let answer = world.curl(&[&outside]);
        async move {
            let denied = (answer.status, answer.header("heddle-error")) == (403, Some("egress-denied"));
            if denied { Ok(()) } else { Err(format!("{answer:?}")) }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_unknown_passes_or_is_refused_by_policy_over_ipv4() {
    unknown(Family::V4).await;
}

#[tokio::test]
async fn what_is_unknown_passes_or_is_refused_by_policy_over_ipv6() {
    unknown(Family::V6).await;
}

async fn loops(family: Family) {
    let Some(world) = World::start(family).await else { return };
    let own = format!("http://{}:15001/", world.pick("127.0.0.1", "[::1]"));
    let answer = world.curl(&[&own]);
    assert_eq!((answer.status, answer.header("heddle-error")), (508, Some("loop")), "{answer:?}");
    // As rules would that forget about loopback.
    capture(&world.pair.a, &["--remove"]);
    world.pair.a.nft(
        "table inet capture {
           chain output {
             type nat hook output priority -100
             tcp dport { 15001, 15006 } redirect to :15001
           }
         }",
    );
    let own = std::net::SocketAddr::new(world.pair.a.address(family), 15006);
    let answer = world.curl(&[&format!("http://{own}/")]);
    assert_eq!((answer.status, answer.header("heddle-error")), (508, Some("loop")), "{answer:?}");
    // curl cannot tell a reset from an end, but both are no answer: what is not HTTP is not told.
    let answer = world.curl(&[&format!("telnet://{own}"), "-T", "/dev/null"]);
    assert_ne!(answer.exit, Some(0), "{answer:?}");
}

#[tokio::test]
async fn a_listener_of_the_proxy_itself_is_a_loop_over_ipv4() {
    loops(Family::V4).await;
}

#[tokio::test]
async fn a_listener_of_the_proxy_itself_is_a_loop_over_ipv6() {
    loops(Family::V6).await;
}
