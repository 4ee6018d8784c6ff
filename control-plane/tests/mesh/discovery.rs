use std::time::Duration;

use heddle_api::{
    proto::{
        ads::{DeltaDiscoveryRequest, Node},
        discovery,
        type_url::{ENDPOINTS, INBOUND_POLICY, MESH_CONFIG, SERVICE, TRUST_BUNDLE},
    },
    resource::{Name, ObjectKind},
};
use prost::Message;
use tonic::Code;

use crate::world::{Ads, ORDERS, PAYMENTS, World, eventually, objects};

fn names(response: &heddle_api::proto::ads::DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[tokio::test]
async fn a_proxy_is_told_what_it_asks_about_and_what_changes() {
    let world = World::start().await;
    world.apply(&format!("{ORDERS}\n---\n{PAYMENTS}")).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(SERVICE, &["payments.shop:80"]).await;
    let response = ads.acknowledged().await;
    assert_eq!((response.type_url.as_str(), names(&response)), (SERVICE, vec!["shop/payments"]));
    let resource = &response.resources[0];
    assert_eq!(resource.aliases, ["payments.shop:80"]);
    let body = resource.resource.as_ref().unwrap();
    assert_eq!(body.type_url, SERVICE);
    let service = discovery::Service::decode(&*body.value).unwrap();
    assert_eq!(service.hosts, ["payments.shop", "payments.shop.mesh"]);

    for (kind, name) in
        [(TRUST_BUNDLE, "td"), (MESH_CONFIG, "mesh"), (INBOUND_POLICY, "shop/orders"), (ENDPOINTS, "shop/payments")]
    {
        ads.subscribe(kind, &[name]).await;
        let response = ads.acknowledged().await;
        assert_eq!((response.type_url.as_str(), names(&response)), (kind, vec![name]));
    }
    assert!(ads.is_quiet().await);
    world.apply("{kind: HTTPRoute, metadata: {name: r}, spec: {parentRefs: [{name: payments}], rules: [{backendRefs: [{name: orders}]}]}}").await;
    let response = ads.acknowledged().await;
    assert_eq!(names(&response), ["shop/payments"]);
    let service = discovery::Service::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap();
    assert_eq!(service.ports[0].http_rules[0].route, "HTTPRoute shop/r");
    world.delete(ObjectKind::HttpRoute, "r").await;
    ads.acknowledged().await;
    world.delete(ObjectKind::Service, "payments").await;
    let response = ads.acknowledged().await;
    assert_eq!(
        (response.type_url.as_str(), response.removed_resources),
        (SERVICE, vec!["payments.shop:80".to_owned(), "shop/payments".to_owned()])
    );
    let response = ads.acknowledged().await;
    assert_eq!((response.type_url.as_str(), response.removed_resources), (ENDPOINTS, vec!["shop/payments".to_owned()]));
    assert!(ads.is_quiet().await);
}

#[tokio::test]
async fn what_proxies_made_of_an_object_is_known() {
    let world = World::start().await;
    world.apply(&format!("{ORDERS}\n---\n{PAYMENTS}")).await;
    let svid = world.join("orders").await;
    let status = |kind, name: &str| world.app.hub().object_status(kind, &Name::new("shop", name), 7, 0);
    let counts = |name: &str| {
        let status = status(ObjectKind::Service, name);
        (status.applied, status.pending, status.rejected.len())
    };
    assert_eq!(counts("payments"), (0, 0, 0));
    let mut ads = world.discover(&svid, "orders-1").await;
    let mut other = world.discover(&svid, "orders-2").await;
    for ads in [&mut ads, &mut other] {
        ads.subscribe(SERVICE, &["payments.shop:80"]).await;
    }
    let response = ads.response().await;
    let held_back = other.response().await;
    assert_eq!(counts("payments"), (0, 2, 0));
    ads.answer(&response, None).await;
    eventually("the acknowledgement", || counts("payments") == (1, 1, 0)).await;
    other.answer(&held_back, Some("shop/payments: a bad day")).await;
    eventually("the rejection", || counts("payments") == (1, 0, 1)).await;
    let rejection = &status(ObjectKind::Service, "payments").rejected[0];
    assert_eq!((rejection.proxy.as_str(), rejection.reason.as_str()), ("shop/orders-2", "a bad day"));
    assert_eq!(status(ObjectKind::Service, "payments").observed_generation, 7);
    assert_eq!(counts("orders"), (0, 0, 0), "nobody asked about it");

    let proxies = world.app.hub().proxies();
    assert_eq!(
        proxies.iter().map(|report| report.proxy.node.as_str()).collect::<Vec<_>>(),
        ["shop/orders-1", "shop/orders-2"]
    );
    assert_eq!((proxies[0].applied, proxies[0].pending), (1, 0));
    assert_eq!(proxies[1].rejected, [("Service shop/payments".to_owned(), "a bad day".to_owned())]);

    world.apply("{kind: TrafficPolicy, metadata: {name: t}, spec: {targetRef: {kind: Service, name: payments}}}").await;
    let response = ads.response().await;
    let policy = status(ObjectKind::TrafficPolicy, "t");
    assert_eq!((policy.applied, policy.pending), (0, 2), "a new version: the rejection was of the old one");
    ads.answer(&response, None).await;
    drop(other);
    eventually("one left, who applied it", || {
        let policy = status(ObjectKind::TrafficPolicy, "t");
        (policy.applied, policy.pending) == (1, 0)
    })
    .await;
}

#[tokio::test]
async fn nothing_is_sent_again_after_the_stream_or_the_control_plane_broke() {
    let mut world = World::start().await;
    world.apply(&format!("{ORDERS}\n---\n{PAYMENTS}")).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(SERVICE, &["payments.shop:80", "shop/orders"]).await;
    let response = ads.acknowledged().await;
    let version = |name: &str| response.resources.iter().find(|found| found.name == name).unwrap().version.clone();
    let held = [
        ("shop/orders".to_owned(), version("shop/orders")),
        ("shop/payments".to_owned(), version("shop/payments")),
        ("payments.shop:80".to_owned(), version("shop/payments")),
    ];
    drop(ads);
    for restart in [false, true] {
        if restart {
            world = world.restart().await;
        }
        let mut ads = world.discover(&svid, "orders-1").await;
        ads.send(DeltaDiscoveryRequest {
            type_url: SERVICE.to_owned(),
            resource_names_subscribe: vec!["payments.shop:80".to_owned(), "shop/orders".to_owned()],
            initial_resource_versions: held.iter().cloned().collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        assert!(ads.is_quiet().await, "after a restart: {restart}");
        let services =
            || world.app.hub().object_status(ObjectKind::Service, &Name::new("shop", "payments"), 1, 0).applied;
        assert_eq!(services(), 1);
    }
}

#[tokio::test]
async fn a_stream_needs_an_identity_and_a_node_of_its_namespace() {
    let world = World::start().await;
    let anonymous = world.connect(None).await.unwrap();
    let refused = Ads::open(anonymous, "orders-1").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    let svid = world.join("orders").await;
    for id in ["", "shop", "other/orders-1", "shop/", "shop/a/b", &format!("shop/{}", "x".repeat(400))] {
        let mut ads = world.discover(&svid, "").await;
        let node = Some(Node { id: id.to_owned(), ..Node::default() });
        let request = DeltaDiscoveryRequest { node, type_url: SERVICE.to_owned(), ..DeltaDiscoveryRequest::default() };
        ads.send_with_node(request).await;
        assert_eq!(ads.end().await.code(), Code::PermissionDenied, "{id}");
    }
    let mut ads = world.discover(&svid, "").await;
    ads.send_with_node(DeltaDiscoveryRequest { type_url: SERVICE.to_owned(), ..DeltaDiscoveryRequest::default() })
        .await;
    assert_eq!(ads.end().await.code(), Code::InvalidArgument);
    assert_eq!(world.app.hub().connected(), 0);
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_stream_with_a_reason() {
    let world = World::start().await;
    let svid = world.join("orders").await;
    for (type_url, name) in [("", "x"), (SERVICE, "*")] {
        let mut ads = world.discover(&svid, "orders-1").await;
        ads.subscribe(type_url, &[name]).await;
        let status = ads.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{type_url} {name}: {status}");
    }
    let mut ads = world.discover(&svid, "orders-1").await;
    let huge = "x".repeat(3 << 20);
    ads.subscribe(SERVICE, &[&huge]).await;
    assert_eq!(ads.end().await.code(), Code::OutOfRange);
    eventually("all streams to be gone", || world.app.hub().connected() == 0).await;
}

#[tokio::test]
async fn a_newer_stream_of_a_proxy_replaces_the_older() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    let mut older = world.discover(&svid, "orders-1").await;
    older.subscribe(SERVICE, &["shop/orders"]).await;
    older.acknowledged().await;
    let mut newer = world.discover(&svid, "orders-1").await;
    newer.subscribe(SERVICE, &["shop/orders"]).await;
    newer.acknowledged().await;
    assert_eq!(older.end().await.code(), Code::Aborted);
    eventually("the older to be gone", || world.app.hub().connected() == 1).await;
    // Another identity of the namespace does not throw it out by taking its name.
    let other = world.join("batch").await;
    let mut impostor = world.discover(&other, "orders-1").await;
    impostor.subscribe(MESH_CONFIG, &["mesh"]).await;
    impostor.acknowledged().await;
    assert!(newer.is_quiet().await);
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_little_and_gets_the_latest() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(SERVICE, &["shop/orders"]).await;
    for port in 1..=100 {
        world.apply(&ORDERS.replace("80", &port.to_string())).await;
    }
    let mut responses = 0;
    loop {
        let response = ads.acknowledged().await;
        responses += 1;
        let service = discovery::Service::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap();
        if service.ports[0].port == 100 {
            break;
        }
    }
    assert!(responses <= 20, "{responses} responses for 100 changes that nobody read");
}

#[tokio::test]
async fn a_change_arrives_within_a_tenth_of_a_second() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(SERVICE, &["shop/orders"]).await;
    ads.acknowledged().await;
    let mut latencies = Vec::new();
    for port in 1..=20 {
        let started = tokio::time::Instant::now();
        world.apply(&ORDERS.replace("80", &port.to_string())).await;
        ads.acknowledged().await;
        latencies.push(started.elapsed());
    }
    latencies.sort();
    assert!(latencies[10] < Duration::from_millis(100), "half took longer: {latencies:?}");
}

#[tokio::test]
async fn a_shutdown_ends_streams_at_once_and_says_so() {
    let world = World::start().await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(MESH_CONFIG, &["mesh"]).await;
    ads.acknowledged().await;
    let started = tokio::time::Instant::now();
    let (status, ()) = tokio::join!(ads.end(), world.app.shutdown());
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn changes_of_a_burst_arrive_together_and_the_last_one_in_time() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    ads.subscribe(SERVICE, &["shop/orders"]).await;
    ads.acknowledged().await;
    let hub = world.app.hub().clone();
    let changes = tokio::spawn(async move {
        for port in 1..=300 {
            let object = objects(&ORDERS.replace("80", &port.to_string())).next().unwrap();
            hub.change(0, |mesh| mesh.put(object));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::Instant::now()
    });
    let (started, mut messages) = (tokio::time::Instant::now(), 0);
    loop {
        let response = ads.acknowledged().await;
        messages += 1;
        let service = discovery::Service::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap();
        if service.ports[0].port == 300 {
            break;
        }
    }
    // Four at once, then forty a second.
    let most = 4.0 + started.elapsed().as_secs_f64() * 40.0 + 2.0;
    assert!(f64::from(messages) <= most, "{messages} messages in {:?}", started.elapsed());
    let late = tokio::time::Instant::now().saturating_duration_since(changes.await.unwrap());
    assert!(late < Duration::from_millis(100), "{late:?}");
}

#[tokio::test]
async fn what_changes_all_the_time_does_not_hold_up_a_new_policy() {
    let world = World::start().await;
    world.apply(&format!("{ORDERS}\n---\n{PAYMENTS}")).await;
    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    for (kind, name) in [(SERVICE, "shop/payments"), (INBOUND_POLICY, "shop/orders")] {
        ads.subscribe(kind, &[name]).await;
        ads.acknowledged().await;
    }
    let hub = world.app.hub().clone();
    let restless = tokio::spawn(async move {
        for port in (1..=1000).cycle() {
            let object = objects(&PAYMENTS.replace("80", &port.to_string())).next().unwrap();
            hub.change(0, |mesh| mesh.put(object));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // The burst is on: what comes is gathered.
    for _ in 0..8 {
        ads.acknowledged().await;
    }
    world
        .apply("{kind: AuthorizationPolicy, metadata: {name: p}, spec: {targetRef: {kind: Service, name: orders}, action: DENY, rules: [{from: [{namespaces: [other]}]}]}}")
        .await;
    let mut others = 0;
    while ads.acknowledged().await.type_url != INBOUND_POLICY {
        others += 1;
        assert!(others < 20, "the policy does not come");
    }
    restless.abort();
}
