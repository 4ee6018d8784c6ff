//! No request is lost: steady load through each thing that may happen to a mesh.
//!
//! Each test has a mesh of its own and they run one after another, so that the load is the only one.

mod captured;
mod scale;

use std::time::Duration;

use heddle_tests::{
    app::App,
    load::{Report, steady},
    mesh::{Mesh, Proxy, ProxySpec},
};
use tokio::sync::Mutex;

/// Requests a second.
const RATE: u32 = 200;
/// Of load.
const TIME: Duration = Duration::from_secs(20);
/// One at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const RESOURCES: &str = "
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: echo, namespace: test }
spec: { ports: [{ port: 80, protocol: http }] }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: echo-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: ALLOW
  rules: [{ from: [{ identities: [test/client] }] }]
";

struct World {
    servers: Vec<(App, Proxy)>,
    client: Proxy,
    /// Last: its folder has the logs, which the others show when a test fails.
    mesh: Mesh,
}

impl World {
    async fn start(flags: &[&str], instances: usize) -> Self {
        let mut mesh = Mesh::start(flags).await;
        mesh.apply(RESOURCES).await;
        let mut servers = Vec::new();
        for number in 1..=instances {
            let app = App::start_counting("echo").await;
            let proxy = mesh
                .proxy(
                    "test",
                    ProxySpec {
                        workload: format!("echo-{number}"),
                        account: "echo".to_owned(),
                        service: Some("echo.test".to_owned()),
                        ports: vec![format!("80:{}", app.address.port())],
                        ..ProxySpec::default()
                    },
                )
                .await;
            servers.push((app, proxy));
        }
        let client = ProxySpec { workload: "client-1".into(), account: "client".into(), ..ProxySpec::default() };
        let client = mesh.proxy("test", client).await;
        let world = Self { mesh, servers, client };
        // The first call finds the destination; what is measured is what follows.
        let first = world.client.client().get("http://echo.test/").send().await.expect("an answer");
        assert!(first.status().is_success(), "{first:?}");
        world
    }

    fn load(&self) -> tokio::task::JoinHandle<Report> {
        tokio::spawn(steady(self.client.client(), "http://echo.test/".to_owned(), RATE, TIME))
    }
}

async fn assert_whole(what: &str, load: tokio::task::JoinHandle<Report>) {
    let report = load.await.expect("no panic");
    println!("{what}: {} of {} requests answered 2xx", report.ok, report.sent);
    report.assert_nothing_lost(u64::from(RATE) * TIME.as_secs());
}

/// A route that differs from those of other numbers.
fn route(number: u32) -> String {
    format!(
        "
apiVersion: heddle.dev/v1
kind: HTTPRoute
metadata: {{ name: echo, namespace: test }}
spec:
  parentRefs: [{{ name: echo }}]
  rules:
    - name: rule-{number}
      filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {{ set: [{{ name: x-change, value: '{number}' }}] }}
      backendRefs: [{{ name: echo }}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn while_certificates_rotate_every_two_seconds() {
    let _alone = ALONE.lock().await;
    // Renewed at two thirds of three seconds.
    let world = World::start(&["--svid-ttl", "3s"], 1).await;
    let load = world.load();
    assert_whole("certificates rotating", load).await;
    let rotations = world.client.metric("heddle_certificate_renewals_total", &[]).await;
    assert!(rotations >= 6.0, "{rotations} renewals in {TIME:?}\n{}", world.client.metrics().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_control_plane_is_killed_and_started_again() {
    let _alone = ALONE.lock().await;
    let mut world = World::start(&[], 1).await;
    let load = world.load();
    for _ in 0..3 {
        tokio::time::sleep(TIME / 10).await;
        world.mesh.kill_control_plane();
        tokio::time::sleep(TIME / 10).await;
        world.mesh.start_control_plane().await;
    }
    assert_whole("control plane killed three times", load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_routes_change_ten_times_a_second() {
    let _alone = ALONE.lock().await;
    let mut world = World::start(&[], 2).await;
    let load = world.load();
    let mut changes = tokio::time::interval(Duration::from_millis(100));
    let mut number = 0_u32;
    while !load.is_finished() {
        changes.tick().await;
        number += 1;
        world.mesh.apply(&route(number)).await;
    }
    assert!(number >= 120, "only {number} changes");
    assert_whole("routes changing", load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_service_of_three_instances_is_restarted() {
    let _alone = ALONE.lock().await;
    let mut world = World::start(&[], 3).await;
    let load = world.load();
    let folder = world.mesh.folder.path().to_path_buf();
    for (_, proxy) in &mut world.servers {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let status = proxy.process.terminate(Duration::from_secs(20)).await;
        assert!(status.success(), "{status}: {}", proxy.process.output());
        proxy.restart(&folder).await;
    }
    assert_whole("rolling restart", load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_proxies_restart_without_the_control_plane() {
    let _alone = ALONE.lock().await;
    let mut world = World::start(&[], 3).await;
    world.mesh.kill_control_plane();
    let load = world.load();
    let folder = world.mesh.folder.path().to_path_buf();
    for (_, proxy) in &mut world.servers {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let status = proxy.process.terminate(Duration::from_secs(20)).await;
        assert!(status.success(), "{status}: {}", proxy.process.output());
        proxy.restart(&folder).await;
    }
    assert_whole("proxies restarting without the control plane", load).await;
}
