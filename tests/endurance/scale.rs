//! A large mesh: what it costs the control plane, what it must not cost a proxy, and how soon a change
//! arrives.

use std::time::Duration;

use heddle_tests::{
    app::App,
    mesh::{Mesh, Proxy, ProxySpec},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::ALONE;

const SERVICES: usize = 10_000;
const ENDPOINTS_EACH: usize = 5;
const MIB: u64 = 1 << 20;

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({ "name": name, "namespace": "big" });
    json!({ "apply": { "apiVersion": "heddle.dev/v1", "kind": kind, "metadata": metadata, "spec": spec } })
}

/// Declares services and five endpoints of each, many in one transaction.
async fn declare(mesh: &mut Mesh, services: std::ops::Range<usize>) {
    let all: Vec<usize> = services.collect();
    for chunk in all.chunks(250) {
        let mut operations = Vec::new();
        for number in chunk {
            let service = format!("service-{number}");
            operations.push(object("Service", &service, json!({ "ports": [{ "port": 80, "protocol": "http" }] })));
            for instance in 0..ENDPOINTS_EACH {
                let (high, low) = (number / 250, number % 250);
                let spec = json!({
                    "address": format!("10.{instance}.{high}.{low}"),
                    "inboundPort": 15006,
                    "serviceAccount": service,
                    "services": [{ "name": service }],
                });
                operations.push(object("Workload", &format!("{service}-{instance}"), spec));
            }
        }
        let (status, body) = mesh.transaction(json!({ "operations": operations })).await;
        assert!(status.is_success(), "{status}: {body:.500}");
    }
}

async fn start() -> (Mesh, Vec<(App, Proxy)>, Proxy) {
    let mut mesh = Mesh::start(&[]).await;
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        mesh.apply(&crate::RESOURCES.replace("echo", name)).await;
        let app = App::start(name).await;
        let spec = ProxySpec {
            workload: format!("{name}-1"),
            account: name.to_owned(),
            service: Some(format!("{name}.test")),
            ports: vec![format!("80:{}", app.address.port())],
            ..ProxySpec::default()
        };
        servers.push((app, mesh.proxy("test", spec).await));
    }
    let client = ProxySpec { workload: "client-1".into(), account: "client".into(), ..ProxySpec::default() };
    let client = mesh.proxy("test", client).await;
    (mesh, servers, client)
}

async fn call_all(client: &Proxy) {
    let http = client.client();
    for _ in 0..200 {
        for name in ["one", "two", "three"] {
            let answer = http.get(format!("http://{name}.test/")).send().await.expect("an answer");
            assert!(answer.status().is_success(), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_mesh_costs_a_proxy_nothing_and_a_change_arrives_at_once() {
    let _alone = ALONE.lock().await;
    let (_small, _servers, small_client) = start().await;
    call_all(&small_client).await;

    let (mut large, _servers, large_client) = start().await;
    declare(&mut large, 0..SERVICES).await;
    call_all(&large_client).await;

    let control_plane = large.control_plane.as_ref().expect("it runs").pss();
    // Without the program's own pages: how many of these are in is chance, the same for both.
    let (small, big) = (small_client.process.allocated(), large_client.process.allocated());
    println!(
        "control plane with {SERVICES} services and {} endpoints: {} MiB; a proxy that uses three: {} KiB, in a mesh of three: {} KiB",
        SERVICES * ENDPOINTS_EACH,
        control_plane / MIB,
        big / 1024,
        small / 1024,
    );
    assert!(control_plane < 300 * MIB, "the control plane holds {} MiB", control_plane / MIB);
    assert!(big <= small + MIB, "a proxy holds {big} bytes in a large mesh, {small} in a small one");

    // A change, until it decides about requests.
    let http = large_client.client();
    let mut slowest = Duration::ZERO;
    for number in 0..20 {
        let value = format!("change-{number}");
        large
            .apply(&format!(
                "
apiVersion: heddle.dev/v1
kind: HTTPRoute
metadata: {{ name: one, namespace: test }}
spec:
  parentRefs: [{{ name: one }}]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {{ set: [{{ name: x-change, value: {value} }}] }}
      backendRefs: [{{ name: one }}]
"
            ))
            .await;
        let acknowledged = Instant::now();
        loop {
            let answer = http.get("http://one.test/").send().await.expect("an answer");
            if answer.headers().get("x-change").is_some_and(|seen| *seen == *value) {
                break;
            }
            assert!(acknowledged.elapsed() < Duration::from_secs(5), "change {number} does not arrive");
        }
        slowest = slowest.max(acknowledged.elapsed());
    }
    println!("slowest of 20 changes until it was in force: {slowest:?}");
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
}
