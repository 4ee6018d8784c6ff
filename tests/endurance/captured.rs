//! The same for apps that know nothing of the mesh: pods in network namespaces whose traffic is captured (root), with a
//! server that nobody here wrote. 500 requests a second for a minute through each thing that may happen.

use std::{net::SocketAddr, time::Duration};

use heddle_tests::{
    captured::{capture, captured},
    eventually,
    load::PodLoad,
    mesh::{Mesh, Proxy, ProxySpec},
    netns::{Family, Host, Namespace},
    peer,
    process::{Process, optimised_proxy},
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ALONE;

/// Requests a second.
const RATE: u32 = 500;
/// Of load, at least.
const TIME: Duration = Duration::from_secs(60);
/// For a process to end.
const SOON: Duration = Duration::from_secs(20);

const RESOURCES: &str = "
apiVersion: heddle.dev/v1
kind: MeshConfig
metadata: { name: mesh }
spec: { cidrs: [10.88.0.0/24, 'fd88::/64', 10.99.0.0/16, 'fd99::/64'] }
---
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: echo, namespace: test }
spec:
  ports: [{ port: 80, targetPort: 8080 }]
  addresses: [10.99.0.1, 'fd99::1']
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: echo-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: ALLOW
  rules: [{ from: [{ identities: [test/client] }] }]
";

const NGINX: &str = "
daemon off; master_process off; pid @DIR@/nginx.pid; error_log stderr;
events {}
http {
  access_log off; client_body_temp_path @DIR@; proxy_temp_path @DIR@; fastcgi_temp_path @DIR@;
  uwsgi_temp_path @DIR@; scgi_temp_path @DIR@;
  server { listen 8080; listen [::]:8080; add_header x-client $http_x_forwarded_client_cert; return 200 ok; }
}
";

/// One pod of the service.
struct Server {
    nginx: Process,
    proxy: Proxy,
}

struct World {
    servers: Vec<Server>,
    client: Proxy,
    /// Where the service is called.
    url: &'static str,
    /// After the others: its folder has the logs, which they show when a test fails.
    mesh: Mesh,
    host: Host,
}

impl World {
    /// `None` where namespaces cannot be made.
    async fn start(family: Family, flags: &[&str], instances: u8) -> Option<Self> {
        let host = Host::new(1 + instances)?;
        peer::find("nginx")?;
        host.host.enter();
        let at = SocketAddr::new(host.host.address(family), 9701).to_string();
        let mut mesh = Mesh::start(&[&["--mesh", &at], flags].concat()).await;
        mesh.apply(RESOURCES).await;
        let mut servers = Vec::new();
        for (pod, number) in host.pods[1..].iter().zip(1..) {
            let spec = ProxySpec {
                workload: format!("echo-{number}"),
                account: "echo".to_owned(),
                service: Some("echo.test".to_owned()),
                ports: vec!["80:8080".to_owned()],
                ..proxy(pod, family)
            };
            servers.push(Server { nginx: nginx(pod, number, &mesh), proxy: mesh.proxy("test", spec).await });
        }
        let spec = ProxySpec { workload: "client-1".into(), account: "client".into(), ..proxy(&host.pods[0], family) };
        let client = mesh.proxy("test", spec).await;
        for pod in &host.pods {
            capture(pod, &[]);
        }
        let url = if family == Family::V4 { "http://10.99.0.1/" } else { "http://[fd99::1]/" };
        let world = Self { servers, client, url, mesh, host };
        // The first call finds the destination; what is measured is what follows.
        world.answers_with("x-client", "/sa/client").await;
        Some(world)
    }

    /// Waits until an app of the client's pod gets an answer with this in a header.
    async fn answers_with(&self, header: &str, part: &str) {
        eventually(&format!("an answer with {part} in {header}"), SOON, || {
            let curl = self.host.pods[0].command("curl").args(["-si", "--max-time", "5", self.url]).output();
            let answer = String::from_utf8_lossy(&curl.expect("curl runs").stdout).into_owned();
            let found = answer.lines().any(|line| line.starts_with(header) && line.contains(part));
            async move { if found { Ok(()) } else { Err(answer) } }
        })
        .await;
    }

    fn load(&self) -> PodLoad {
        PodLoad::start(&self.host.pods[0], self.url.to_owned(), RATE)
    }
}

/// As it is built for use: one that is not optimised takes more than its share of a small machine for such a load.
fn proxy(pod: &Namespace, family: Family) -> ProxySpec {
    ProxySpec { program: Some(optimised_proxy()), ..captured(pod, family) }
}

fn nginx(pod: &Namespace, number: u8, mesh: &Mesh) -> Process {
    let folder = mesh.folder.path().join(format!("nginx-{number}"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = folder.join("nginx.conf");
    std::fs::write(&config, NGINX.replace("@DIR@", &folder.display().to_string())).expect("a file");
    let mut command = pod.command("nginx");
    command.arg("-c").arg(&config);
    Process::start(&format!("nginx-{number}"), command, mesh.folder.path())
}

async fn assert_whole(what: &str, load: PodLoad) {
    let report = load.stop().await;
    let (ok, sent, time, slowest) = (report.ok, report.sent, report.time.as_secs(), report.slowest);
    println!("captured, {what}: {ok} of {sent} requests in {time} s answered 2xx, the slowest after {slowest:?}");
    report.assert_nothing_lost(u64::from(RATE) * time);
}

#[tokio::test]
async fn captured_while_certificates_rotate_every_two_seconds() {
    let _alone = ALONE.lock().await;
    // Renewed at two thirds of three seconds.
    let Some(world) = World::start(Family::V4, &["--svid-ttl", "3s"], 1).await else { return };
    let load = world.load();
    sleep(TIME).await;
    assert_whole("certificates rotating", load).await;
    for proxy in [&world.client, &world.servers[0].proxy] {
        let rotations = proxy.metric("heddle_certificate_renewals_total", &[]).await;
        assert!(rotations >= 20.0, "{rotations} renewals in {TIME:?}\n{}", proxy.metrics().await);
    }
}

#[tokio::test]
async fn captured_while_the_control_plane_is_killed_and_started_again() {
    let _alone = ALONE.lock().await;
    let Some(mut world) = World::start(Family::V6, &[], 2).await else { return };
    let load = world.load();
    let end = Instant::now() + TIME;
    for _ in 0..4 {
        sleep(TIME / 10).await;
        world.mesh.kill_control_plane();
        sleep(TIME / 10).await;
        world.mesh.start_control_plane().await;
    }
    sleep_until(end).await;
    assert_whole("control plane killed four times", load).await;
}

#[tokio::test]
async fn captured_while_routes_change_ten_times_a_second() {
    let _alone = ALONE.lock().await;
    let Some(mut world) = World::start(Family::V6, &[], 2).await else { return };
    let load = world.load();
    let end = Instant::now() + TIME;
    let mut changes = tokio::time::interval(Duration::from_millis(100));
    let mut number = 0_u32;
    while Instant::now() < end {
        changes.tick().await;
        number += 1;
        world.mesh.apply(&crate::route(number)).await;
        // Nor does it matter who looks on.
        assert!(!world.client.metrics().await.is_empty());
    }
    assert_whole("routes changing, metrics scraped", load).await;
    // A machine that is busy with other things than this may not do all.
    assert!(number >= 500, "only {number} changes");
    world.answers_with("x-change", &number.to_string()).await;
}

#[tokio::test]
async fn captured_while_a_service_of_three_instances_is_restarted_twenty_times() {
    let _alone = ALONE.lock().await;
    let Some(mut world) = World::start(Family::V4, &[], 3).await else { return };
    let load = world.load();
    let end = Instant::now() + TIME;
    for _ in 0..20 {
        for number in 1..=3 {
            restart(&mut world, number).await;
        }
    }
    sleep_until(end).await;
    assert_whole("20 rolling restarts", load).await;
}

/// A pod ends and another takes its place: the app is told to end once nobody calls it any more, as a sidecar's
/// `preStop` hook has it.
async fn restart(world: &mut World, number: u8) {
    const REFUSES: &str = "refusing: only the application's own calls go on";
    let World { servers, mesh, host, .. } = world;
    let Server { nginx: app, proxy } = &mut servers[usize::from(number) - 1];
    let before = proxy.process.output().matches(REFUSES).count();
    proxy.process.signal(Signal::TERM);
    eventually("the proxy to be out of use", SOON, || {
        let times = proxy.process.output().matches(REFUSES).count();
        async move { if times > before { Ok(()) } else { Err(format!("{times} times")) } }
    })
    .await;
    app.signal(Signal::QUIT);
    app.ended(SOON).await;
    let status = proxy.process.ended(SOON).await;
    assert!(status.success(), "{status}: {}", proxy.process.output());
    *app = nginx(&host.pods[usize::from(number)], number, mesh);
    proxy.restart(mesh.folder.path()).await;
}
