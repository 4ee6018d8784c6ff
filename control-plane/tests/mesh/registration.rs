use std::time::Duration;

use heddle_api::proto::{
    discovery::Endpoints,
    registration::{DeregisterRequest, Instance, RegisterRequest},
    type_url::ENDPOINTS,
};
use prost::Message;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::world::{Ads, ORDERS, SOON, World};

fn request(workload: &str, ready: bool) -> RegisterRequest {
    RegisterRequest {
        workload: workload.to_owned(),
        instances: vec![Instance { service: "shop/orders".to_owned(), ports: vec![80], ..Instance::default() }],
        address: ":15006".to_owned(),
        ready,
        ..RegisterRequest::default()
    }
}

/// The next endpoints told: workload and readiness.
async fn endpoints(ads: &mut Ads) -> Vec<(String, bool)> {
    let response = ads.acknowledged().await;
    assert_eq!(response.type_url, ENDPOINTS);
    let endpoints = Endpoints::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap();
    endpoints.endpoints.into_iter().map(|endpoint| (endpoint.workload, endpoint.ready)).collect()
}

#[tokio::test]
async fn callers_learn_who_serves() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let caller = world.join("storefront").await;
    let mut ads = world.discover(&caller, "storefront-1").await;
    ads.subscribe(ENDPOINTS, &["shop/orders"]).await;
    assert_eq!(endpoints(&mut ads).await, []);

    let svid = world.join("orders").await;
    let mut registration = world.registration(&svid).await;
    let answer = registration.register(request("orders-1", false)).await.unwrap().into_inner();
    assert_eq!(answer.lease_seconds, 30);
    assert_eq!(endpoints(&mut ads).await, [("shop/orders-1".to_owned(), false)]);
    registration.register(request("orders-1", true)).await.unwrap();
    assert_eq!(endpoints(&mut ads).await, [("shop/orders-1".to_owned(), true)]);
    registration.register(request("orders-1", true)).await.unwrap();
    assert!(ads.is_quiet().await);

    let mut stranger = world.registration(&caller).await;
    assert_eq!(stranger.register(request("orders-2", true)).await.unwrap_err().code(), Code::PermissionDenied);
    let gone = registration.deregister(DeregisterRequest { workload: "orders-1".to_owned(), wait_milliseconds: 5000 });
    let (gone, told) = tokio::join!(gone, endpoints(&mut ads));
    assert!(gone.unwrap().into_inner().acknowledged);
    assert_eq!(told, []);
}

#[tokio::test]
async fn a_deregistration_waits_for_those_who_have_not_acknowledged() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let caller = world.join("storefront").await;
    let svid = world.join("orders").await;
    let mut registration = world.registration(&svid).await;
    registration.register(request("orders-1", true)).await.unwrap();
    registration.register(RegisterRequest { address: ":15007".to_owned(), ..request("orders-2", true) }).await.unwrap();
    let mut ads = world.discover(&caller, "storefront-1").await;
    ads.subscribe(ENDPOINTS, &["shop/orders"]).await;
    assert_eq!(endpoints(&mut ads).await.len(), 2);

    let wait =
        |workload: &str, wait_milliseconds| DeregisterRequest { workload: workload.to_owned(), wait_milliseconds };
    let started = Instant::now();
    let answer = registration.deregister(wait("orders-1", 300)).await.unwrap().into_inner();
    assert!(!answer.acknowledged && started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());

    let unanswered = ads.response().await;
    let mut waiting = registration.clone();
    let mut pending = std::pin::pin!(waiting.deregister(wait("orders-2", 20_000)));
    assert!(timeout(Duration::from_millis(200), &mut pending).await.is_err());
    ads.answer(&unanswered, None).await;
    assert_eq!(endpoints(&mut ads).await, []);
    assert!(timeout(SOON, pending).await.unwrap().unwrap().into_inner().acknowledged);
    // Who leaves need not be waited for either.
    registration.register(request("orders-3", true)).await.unwrap();
    ads.response().await;
    let mut waiting = registration.clone();
    let mut pending = std::pin::pin!(waiting.deregister(wait("orders-3", 20_000)));
    assert!(timeout(Duration::from_millis(200), &mut pending).await.is_err());
    drop(ads);
    assert!(timeout(SOON, pending).await.unwrap().unwrap().into_inner().acknowledged);
}

#[tokio::test]
async fn a_restart_removes_nobody() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    world.registration(&svid).await.register(request("orders-1", true)).await.unwrap();
    let world = world.restart().await;
    let caller = world.join("storefront").await;
    let mut ads = world.discover(&caller, "storefront-1").await;
    ads.subscribe(ENDPOINTS, &["shop/orders"]).await;
    assert_eq!(endpoints(&mut ads).await, [("shop/orders-1".to_owned(), true)]);
}

#[tokio::test]
async fn a_registration_needs_a_certificate() {
    let world = World::start().await;
    let channel = world.connect(None).await.unwrap();
    let mut client = heddle_api::proto::registration::registration_client::RegistrationClient::new(channel);
    assert_eq!(client.register(request("orders-1", true)).await.unwrap_err().code(), Code::Unauthenticated);
    let request = DeregisterRequest { workload: "orders-1".to_owned(), wait_milliseconds: 0 };
    assert_eq!(client.deregister(request).await.unwrap_err().code(), Code::Unauthenticated);
}
