//! What others dial of the app behind the proxy.

use heddle_tests::netns::Family;

use crate::world::World;

async fn without_sidecar(family: Family) {
    let Some(mut world) = World::start(family).await else { return };

    let answer = world.curl_without_sidecar(&[&world.url(8080)]);
    assert_eq!((answer.status, answer.header("heddle-error")), (403, Some("plaintext-refused")), "{answer:?}");
    // Where the port lets them in, as nobody in particular.
    let answer = world.curl_without_sidecar(&["-H", "x-forwarded-client-cert: me", &world.url(8082)]);
    assert_eq!((answer.status, answer.header("x-port")), (200, Some("8082")), "{answer:?}");
    assert_eq!(answer.header("x-client"), None, "{answer:?}");
    // It is the port dialled that counts, not the one that Host names.
    let answer = world.curl_without_sidecar(&["-H", "Host: echo.test:82", &world.url(8080)]);
    assert_eq!(answer.header("heddle-error"), Some("plaintext-refused"), "{answer:?}");
    // What is bound to loopback alone is not there for others, permissive or not.
    let answer = world.curl_without_sidecar(&[&world.url(8081)]);
    assert_eq!((answer.status, answer.header("heddle-error")), (502, Some("app-unavailable")), "{answer:?}");
    // And what nobody declared is no service.
    let answer = world.curl_without_sidecar(&[&world.url(8083)]);
    assert_eq!((answer.status, answer.header("heddle-error")), (421, Some("not-served")), "{answer:?}");

    let policy = "{ apiVersion: heddle.dev/v1, kind: AuthorizationPolicy, \
         metadata: { name: echo-callers, namespace: test }, \
         spec: { targetRef: { kind: Service, name: echo }, action: ALLOW, rules: [] } }";
    let (status, body) = world.mesh.try_apply(policy).await;
    assert!(status.is_success(), "{body}");
    heddle_tests::eventually("nobody to be let in", std::time::Duration::from_secs(5), || {
        let answer = world.curl_without_sidecar(&[&world.url(8082)]);
        async move {
            let denied = (answer.status, answer.header("heddle-error")) == (403, Some("denied"));
            if denied { Ok(()) } else { Err(format!("{answer:?}")) }
        }
    })
    .await;
}

#[tokio::test]
async fn callers_without_a_sidecar_get_what_policy_gives_them_over_ipv4() {
    without_sidecar(Family::V4).await;
}

#[tokio::test]
async fn callers_without_a_sidecar_get_what_policy_gives_them_over_ipv6() {
    without_sidecar(Family::V6).await;
}

#[tokio::test]
async fn a_peer_that_dials_the_apps_own_address_is_a_peer() {
    for family in [Family::V4, Family::V6] {
        // Registered is a port that is redirected.
        let Some(world) = World::with(family, None, &["--advertise", ":8080"]).await else { return };
        let answer = world.curl(&[&world.url(8080)]);
        let client = answer.header("x-client").unwrap_or_default();
        assert!(answer.status == 200 && client.contains("/sa/client"), "{answer:?}");
        let dump = world.dump(&world.server, 'b');
        assert_eq!(dump["detection"]["inbound"][0]["speaks"], "mtls between proxies", "{:#}", dump["detection"]);
    }
}

#[tokio::test]
async fn one_listener_for_both_families_will_do() {
    for family in [Family::V4, Family::V6] {
        let Some(world) = World::with(family, None, &["--inbound", "[::]:15006"]).await else { return };
        let answer = world.curl(&[&world.url(8080)]);
        let client = answer.header("x-client").unwrap_or_default();
        assert!(answer.status == 200 && client.contains("/sa/client"), "{answer:?}");
        let answer = world.curl_without_sidecar(&[&world.url(8080)]);
        assert_eq!(answer.header("heddle-error"), Some("plaintext-refused"), "redirected too: {answer:?}");
        let answer = world.curl_without_sidecar(&[&world.url(8082)]);
        assert_eq!((answer.status, answer.header("x-port")), (200, Some("8082")), "{answer:?}");
    }
}
