use heddle_certs::SpiffeId;

use super::*;
use crate::{
    compile::tests::bundle,
    mesh::{
        Registered,
        tests::{mesh, objects},
    },
};

const ORDERS: &str = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}";

fn hub() -> Hub {
    let hub = Hub::new(mesh(ORDERS), bundle(), Metrics::new().unwrap());
    hub.change(1, |_| Affected::default());
    hub
}

fn proxy(account: &str, node: &str) -> Proxy {
    Proxy {
        node: node.to_owned(),
        identity: identity(account),
        address: "10.0.0.1:4000".parse().unwrap(),
        version: String::new(),
        since: SystemTime::now(),
        certificate_expiry: SystemTime::now(),
    }
}

fn identity(account: &str) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/{account}").parse().unwrap()
}

/// Takes everything in, as a proxy does.
async fn acknowledge(handle: &Handle) {
    while let Some(response) = handle.next().await {
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        handle.handle(answer).await.unwrap();
    }
}

async fn subscribe(handle: &Handle, kind: ResourceKind, name: &str) {
    let request = DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    handle.handle(request).await.unwrap();
}

#[tokio::test]
async fn nobody_has_applied_what_nobody_was_told_of() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    subscribe(&handle, ResourceKind::Service, "shop/orders").await;
    acknowledge(&handle).await;
    let counts = |generation, revision| {
        let status = hub.object_status(ObjectKind::Service, &Name::new("shop", "orders"), generation, revision);
        (status.observed_generation, status.applied, status.pending)
    };
    assert_eq!(counts(4, 1), (4, 1, 0));
    // The registry is at revision 2, and the mesh not yet.
    assert_eq!(counts(5, 2), (4, 0, 1), "it holds what was there before");
    hub.change(2, |mesh| mesh.put(objects(&ORDERS.replace("80", "81")).remove(0)));
    assert_eq!(counts(5, 2), (5, 0, 1));
    acknowledge(&handle).await;
    assert_eq!(counts(5, 2), (5, 1, 0));
}

#[test]
fn a_stream_has_no_name_that_another_identity_has_registered() {
    let hub = hub();
    let registered = Registered {
        name: Name::new("shop", "orders-1"),
        identity: identity("orders"),
        address: "10.0.0.1:15006".parse().unwrap(),
        services: vec![(Name::new("shop", "orders"), Vec::new())],
        app_ports: BTreeMap::new(),
        zone: String::new(),
        ready: true,
    };
    hub.change(2, |mesh| mesh.register(Arc::new(registered)));
    let refused = hub.open(proxy("web", "shop/orders-1")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    hub.open(proxy("orders", "shop/orders-1")).unwrap();
    hub.open(proxy("web", "shop/web-1")).unwrap();
}

#[tokio::test]
async fn a_message_of_many_names_is_taken_in_whole() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    let names = |from: usize, to: usize| (from..to).map(|index| format!("shop/s{index}")).collect::<Vec<_>>();
    let request = |subscribe, unsubscribe| DeltaDiscoveryRequest {
        type_url: ResourceKind::Service.type_url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..DeltaDiscoveryRequest::default()
    };
    handle.handle(request(names(0, 1000), Vec::new())).await.unwrap();
    let subscribed = || hub.lock().streams[&handle.id].session.names();
    assert_eq!(subscribed(), 1000);
    // What is in both stays: leaving goes first.
    handle.handle(request(names(900, 1300), names(0, 1000))).await.unwrap();
    assert_eq!(subscribed(), 400);
    assert_eq!(hub.lock().by_identity[&identity("web")].names, 400);
    drop(handle);
    assert!(hub.lock().by_identity.is_empty());
}

#[tokio::test]
async fn the_streams_of_an_identity_share_their_names() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    hub.lock().by_identity.get_mut(&identity("web")).unwrap().names = MAX_NAMES_PER_IDENTITY - 1;
    subscribe(&handle, ResourceKind::Service, "shop/orders").await;
    subscribe(&handle, ResourceKind::Service, "shop/one-too-many").await;
    assert_eq!(hub.lock().streams[&handle.id].session.names(), 1);
    let other = hub.open(proxy("orders", "shop/orders-1")).unwrap();
    subscribe(&other, ResourceKind::Service, "shop/orders").await;
    assert_eq!(hub.lock().streams[&other.id].session.names(), 1, "another's share");
}

#[tokio::test]
async fn who_waits_for_endpoints_is_woken_by_their_answers() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    let leaving = hub.open(proxy("web", "shop/web-2")).unwrap();
    for stream in [&handle, &leaving] {
        subscribe(stream, ResourceKind::Endpoints, "shop/orders").await;
    }
    // Both are told; neither has answered.
    let response = handle.next().await.unwrap();
    leaving.next().await.unwrap();
    let settled = tokio::spawn({
        let hub = hub.clone();
        async move {
            let services = [Name::new("shop", "orders")];
            hub.endpoints_settled(&services, Instant::now() + std::time::Duration::from_secs(60)).await
        }
    });
    while hub.lock().settling.is_empty() {
        tokio::task::yield_now().await;
    }
    let answer = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    handle.handle(answer).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!settled.is_finished(), "one has not answered");
    drop(leaving);
    assert!(settled.await.unwrap());
    assert!(hub.lock().settling.is_empty());
}

#[tokio::test]
async fn who_waits_for_endpoints_is_kept_waiting_by_nobody_else() {
    let hub = hub();
    let mut handles = Vec::new();
    for index in 0..3 {
        let handle = hub.open(proxy("web", &format!("shop/web-{index}"))).unwrap();
        subscribe(&handle, ResourceKind::Endpoints, "shop/orders").await;
        acknowledge(&handle).await;
        handles.push(handle);
    }
    let services = [Name::new("shop", "orders")];
    let soon = || Instant::now() + std::time::Duration::from_millis(50);
    assert!(hub.endpoints_settled(&services, soon()).await, "all have answered");
    let register = |hub: &Hub, port: u16| {
        let workload = crate::mesh::tests::registered("o", "orders", &format!("10.0.0.1:{port}"), &["shop/orders"]);
        hub.change(0, |mesh| mesh.register(workload));
    };
    register(&hub, 1);
    assert!(!hub.endpoints_settled(&services, soon()).await, "nobody has answered");
    let settled = tokio::spawn({
        let (hub, services) = (hub.clone(), services.clone());
        async move { hub.endpoints_settled(&services, Instant::now() + std::time::Duration::from_secs(60)).await }
    });
    while hub.lock().settling.is_empty() {
        tokio::task::yield_now().await;
    }
    for handle in &handles {
        acknowledge(handle).await;
        // Who came later, or is told of something newer, is not waited for again.
        register(&hub, 2);
    }
    assert!(settled.await.unwrap());
}

#[tokio::test]
async fn a_type_of_a_later_release_costs_nobody_the_stream() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    let later = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/heddle.discovery.v9.RateLimit".to_owned(),
        resource_names_subscribe: vec!["shop/orders".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    handle.handle(later).await.unwrap();
    assert_eq!(hub.0.metrics.refused_subscriptions.get(), 1);
    subscribe(&handle, ResourceKind::Service, "shop/orders").await;
    assert_eq!(handle.next().await.unwrap().resources.len(), 1);
}

#[tokio::test]
async fn all_rejections_are_counted_and_some_listed() {
    let hub = hub();
    let mut handles = Vec::new();
    for index in 0..30 {
        let handle = hub.open(proxy("web", &format!("shop/web-{index}"))).unwrap();
        subscribe(&handle, ResourceKind::Service, "shop/orders").await;
        let response = handle.next().await.unwrap();
        let refusal = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: Some(heddle_api::proto::ads::Status {
                code: 3,
                message: "no".to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        };
        handle.handle(refusal).await.unwrap();
        handles.push(handle);
    }
    let status = hub.object_status(ObjectKind::Service, &Name::new("shop", "orders"), 1, 1);
    assert_eq!((status.rejected_count, status.rejected.len()), (30, 20));
    assert!(status.conditions.is_empty(), "{:?}", status.conditions);

    // What else is in the service was rejected with it.
    let (name, policy) = (Name::new("shop", "orders"), "{kind: TrafficPolicy, metadata: {name: orders}, spec: {}}");
    hub.change(2, |mesh| {
        mesh.put(objects(policy).remove(0));
        Affected::default()
    });
    let status = hub.object_status(ObjectKind::TrafficPolicy, &name, 1, 1);
    assert_eq!(status.rejected_count, 30);
    let told: Vec<_> = status.conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(told, ["RejectedAsPart"]);
    assert!(status.conditions[0].message.starts_with("rejected as part of Service shop/orders: "));
}
