//! A mesh of 10 000 services with 50 000 endpoints. By hand:
//! `cargo test --release -p heddle-control-plane --test mesh -- --ignored --nocapture scale`

use std::time::Duration;

use heddle_api::proto::type_url::{ENDPOINTS, SERVICE};
use tokio::time::Instant;

use crate::world::{World, config};

const SERVICES: usize = 10_000;
const WORKLOADS_EACH: usize = 5;
const IN_ONE_TRANSACTION: usize = 200;
const MOST_MIB: usize = 300;

#[ignore = "loads for a minute; the figures are of a release build"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_services_with_fifty_thousand_endpoints() {
    let world = World::start().await;
    println!("empty: {} MiB", resident("VmRSS"));
    let started = Instant::now();
    for first in (0..SERVICES).step_by(IN_ONE_TRANSACTION) {
        world.apply(&objects(first..first + IN_ONE_TRANSACTION)).await;
    }
    println!("loaded in {:?}: {} MiB, at most {} MiB", started.elapsed(), resident("VmRSS"), resident("VmHWM"));

    let svid = world.join("orders").await;
    let mut ads = world.discover(&svid, "orders-1").await;
    for index in [7, 77, 777] {
        ads.subscribe(SERVICE, &[&format!("service-{index}.shop:80")]).await;
        assert_eq!(ads.acknowledged().await.resources.len(), 1);
        ads.subscribe(ENDPOINTS, &[&format!("shop/service-{index}")]).await;
        assert_eq!(ads.acknowledged().await.resources.len(), 1);
    }
    let (mut applied, mut latencies) = (Vec::new(), Vec::new());
    for change in 0..100 {
        let changed = Instant::now();
        let host = format!("hosts: [h{change}.example], serviceAccounts");
        world.apply(&service(77).replace("serviceAccounts", &host)).await;
        applied.push(changed.elapsed());
        ads.acknowledged().await;
        latencies.push(changed.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    applied.sort();
    latencies.sort();
    println!(
        "from the change to its acknowledgement by the API: half within {:?}, all within {:?}",
        applied[50], applied[99]
    );
    println!("from the change to the proxy: half within {:?}, all within {:?}", latencies[50], latencies[99]);
    let loaded = resident("VmRSS");
    println!("with a proxy: {loaded} MiB, at most {} MiB", resident("VmHWM"));
    assert!(loaded < MOST_MIB);
    assert!(latencies[99] < Duration::from_millis(100));

    let started = Instant::now();
    let world = world.restart().await;
    println!("started again in {:?}: {} MiB", started.elapsed(), resident("VmRSS"));
    if let Ok(folder) = std::env::var("HEDDLE_SCALE_DATA") {
        let from = config(world.folder.path(), Default::default()).data_dir;
        world.app.shutdown().await;
        let copied = std::process::Command::new("cp").arg("-r").arg(from).arg(folder).status().unwrap();
        assert!(copied.success());
    }
}

fn service(index: usize) -> String {
    format!(
        "{{kind: Service, metadata: {{name: service-{index}, labels: {{app: service-{index}, team: shop}}}}, \
         spec: {{ports: [{{port: 80, protocol: http, targetPort: 8080}}], serviceAccounts: [service-{index}]}}}}"
    )
}

fn objects(range: std::ops::Range<usize>) -> String {
    let mut text = String::new();
    for index in range {
        text.push_str(&format!("{}\n---\n", service(index)));
        for number in 0..WORKLOADS_EACH {
            let address = format!("10.{}.{}.{}", 1 + number, index / 250, 1 + index % 250);
            text.push_str(&format!(
                "{{kind: Workload, metadata: {{name: service-{index}-{number}, labels: {{app: service-{index}}}}}, \
                 spec: {{address: {address}, inboundPort: 15006, serviceAccount: service-{index}, \
                 services: [{{name: service-{index}}}]}}}}\n---\n"
            ));
        }
    }
    text.trim_end_matches("---\n").to_owned()
}

/// Memory of this process in MiB.
fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}
