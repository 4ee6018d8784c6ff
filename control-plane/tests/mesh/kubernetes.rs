//! A control plane that follows a real API server.

use std::{sync::Arc, time::Duration};

use heddle_api::resource::{Name, ObjectKind};
use heddle_certs::SystemClock;
use heddle_control_plane::{app::App, config::written::Written, mesh::derived::Instance};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    api_server::ApiServer,
    world::{World, config},
};

/// Longest wait for a change to arrive.
const SOON: Duration = Duration::from_secs(60);

async fn follow(server: &ApiServer) -> World {
    let written = Written { kubeconfig: Some(server.kubeconfig()), ..Written::default() };
    World::start_with(written, SystemClock::shared()).await
}

/// Workload, address, account (`-`: no proxy) and readiness of each instance.
fn shown(app: &App, service: &str) -> Vec<String> {
    let show = |one: &Instance| {
        let account = one.account.as_deref().unwrap_or("-");
        let ports = one.ports.iter().map(|(port, target)| format!("{port}:{target}")).collect::<Vec<_>>().join(",");
        format!("{} {} {account} {ports} {}", one.workload.name, one.ip, if one.ready { "ready" } else { "not" })
    };
    let name = Name::new("shop", service);
    app.hub().read(|mesh| {
        mesh.derived(&name).map(|derived| derived.instances.iter().map(show).collect()).unwrap_or_default()
    })
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn shows(app: &App, service: &str, expected: &[&str]) {
    let end = Instant::now() + SOON;
    loop {
        let now = shown(app, service);
        if now == expected {
            return;
        }
        assert!(Instant::now() < end, "{service} is {now:?}, not {expected:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_part_of_the_mesh_also_while_its_api_server_is_away() {
    let Some(mut server) = ApiServer::start().await else { return };
    // Some of it before the control plane, and some after.
    server.service("web", json!({})).await;
    server.pod("web", "web-a", "10.244.0.1", true).await;
    let world = follow(&server).await;
    let app = &world.app;
    shows(app, "web", &["web-a 10.244.0.1 web 80:8080 ready"]).await;
    server.pod("web", "web-b", "10.244.0.2", false).await;
    let both = ["web-a 10.244.0.1 web 80:8080 ready", "web-b 10.244.0.2 - 80:8080 ready"];
    shows(app, "web", &both).await;
    server.service("db", json!({ "clusterIP": "None" })).await;
    server.pod("db", "db-0", "10.244.0.3", true).await;
    shows(app, "db", &["db-0 10.244.0.3 db 80:8080 ready"]).await;
    let dual = json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"] });
    server.service("dual", dual).await;
    let dual = Name::new("shop", "dual");
    until("the Service of both families", || app.hub().read(|mesh| mesh.service(&dual).is_some())).await;
    let addresses = app.hub().read(|mesh| mesh.service(&dual).unwrap().spec.addresses.clone());
    assert!(addresses[0].starts_with("10.96.") && addresses[1].starts_with("fd00:96:"), "{addresses:?}");
    let resolves =
        |host: &str, port| app.hub().read(|mesh| mesh.resolve(host, port, "shop")).map(|name| name.to_string());
    assert_eq!(resolves("db-0.db.shop.svc.cluster.local", 80).as_deref(), Some("shop/db"));
    assert_eq!(resolves("10.244.0.2", 8080).as_deref(), Some("shop/web"));
    let zones = app.hub().read(|mesh| mesh.derived(&Name::new("shop", "web")).unwrap().instances[0].zone.clone());
    assert_eq!(&*zones, "zone-a");
    // Objects of the control plane's API refer to it.
    world.apply("{kind: TrafficPolicy, metadata: {name: web}, spec: {targetRef: {kind: Service, name: web}}}").await;
    server.status("web-a", "10.244.0.1", false).await;
    let not = ["web-a 10.244.0.1 web 80:8080 not", "web-b 10.244.0.2 - 80:8080 ready"];
    shows(app, "web", &not).await;

    // An outage changes nothing; what happened meanwhile is learnt after it. The API server that comes back has none of
    // the versions that were told: everything is listed anew.
    server.stop();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(shown(app, "web"), not);
    world.apply("{kind: Service, metadata: {name: other}, spec: {ports: [{port: 80}]}}").await;
    assert_eq!(shown(app, "web"), not);
    server.start_again().await;
    server.delete_pod("web-b").await;
    server.status("web-a", "10.244.0.1", true).await;
    shows(app, "web", &["web-a 10.244.0.1 web 80:8080 ready"]).await;

    // Who starts while it is away waits for it, and does not tell anybody that there is nothing.
    server.stop();
    let folder = tempfile::tempdir().unwrap();
    let written = Written { kubeconfig: Some(server.kubeconfig()), ..Written::default() };
    let starting = tokio::spawn(App::start(config(folder.path(), written)));
    sleep(Duration::from_secs(3)).await;
    assert!(!starting.is_finished());
    server.start_again().await;
    let other = tokio::time::timeout(SOON, starting).await.unwrap().unwrap().unwrap();
    shows(&other, "web", &["web-a 10.244.0.1 web 80:8080 ready"]).await;
    other.shutdown().await;
    let World { app, .. } = world;
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pods_that_come_and_go_ten_times_leave_nothing() {
    let Some(server) = ApiServer::start().await else { return };
    let server = Arc::new(server);
    let world = follow(&server).await;
    server.service("web", json!({})).await;
    let counted = || {
        world.app.hub().read(|mesh| {
            let pods =
                (0..10).flat_map(|round| (0..20).map(move |index| Name::new("shop", &format!("web-{round}-{index}"))));
            pods.filter(|name| mesh.pod(name).is_some()).count()
        })
    };
    for round in 0..10 {
        let each = |work: fn(Arc<ApiServer>, String, String) -> futures_util::future::BoxFuture<'static, ()>| {
            let all = (0..20).map(|index| {
                work(Arc::clone(&server), format!("web-{round}-{index}"), format!("10.244.{}.{}", round % 3, index + 1))
            });
            futures_util::future::join_all(all)
        };
        each(|server, name, ip| Box::pin(async move { server.pod("web", &name, &ip, true).await })).await;
        until("all are ready", || {
            let now = shown(&world.app, "web");
            now.len() == 20 && now.iter().all(|one| one.ends_with(" ready"))
        })
        .await;
        each(|server, name, _| Box::pin(async move { server.delete_pod(&name).await })).await;
        until("all are gone", || shown(&world.app, "web").is_empty() && counted() == 0).await;
    }
    let view = world.app.registry().view();
    assert_eq!(view.kubernetes_objects(ObjectKind::Workload, None, None).count(), 0);
    assert_eq!(view.registrations(None, None).count(), 0);
    let World { app, .. } = world;
    app.shutdown().await;
}
