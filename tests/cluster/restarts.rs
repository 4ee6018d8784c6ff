//! What is replaced, killed or away under load, and what is lost of it.

use std::{
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

use serde_json::Value;

use crate::world::{World, nft, wait};

/// Requests a second.
const RATE: u32 = 300;

/// A load from the customer's pod, until it is joined.
struct Load {
    running: JoinHandle<Result<String, String>>,
    seconds: u64,
}

impl Load {
    /// Of so many seconds.
    fn start(world: &World, seconds: u64) -> Self {
        let line = format!("steady http://storefront/products {RATE} {seconds}");
        let mut command =
            world.command(&["kubectl", "-n", "shop", "exec", "customer", "-c", "tools", "--", "sh", "-c", &line]);
        let running = spawn(move || {
            let output = command.output().map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
        Self { running, seconds }
    }

    /// Nothing was lost, and as much was sent as should have been.
    fn end(self, what: &str) -> Value {
        let said = self.running.join().expect("no panic").unwrap_or_else(|error| panic!("{what}: {error}"));
        let report: Value = serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"));
        println!("cluster: {what}: {} sent, lost {}", report["sent"], report["lost"]);
        let expected = u64::from(RATE) * self.seconds;
        assert!(report["sent"].as_u64().unwrap_or_default() * 10 >= expected * 9, "the load fell behind: {report}");
        report
    }

    fn end_without_loss(self, what: &str) {
        let report = self.end(what);
        assert_eq!(report["lost"], serde_json::json!({}), "{what}");
    }
}

/// Every deployment in turn, three times.
pub(crate) fn rollouts_lose_nothing(world: &mut World) {
    let deployments = ["storefront", "orders", "inventory", "payments-v1", "payments-v2"];
    for deployment in ["storefront", "inventory"] {
        world.kubectl(&format!("-n shop scale deploy/{deployment} --replicas=2"));
    }
    world.kubectl("-n shop wait --for=condition=Available deploy --all --timeout=60s");
    for round in 1..=3 {
        let load = Load::start(world, 60);
        for deployment in deployments {
            world.kubectl(&format!("-n shop rollout restart deploy/{deployment}"));
            world.kubectl(&format!("-n shop rollout status deploy/{deployment} --timeout=120s"));
        }
        load.end_without_loss(&format!("rollouts, round {round}"));
    }
}

/// Its pod deleted, then its network cut.
pub(crate) fn without_the_control_plane_nothing_is_lost(world: &mut World) {
    let load = Load::start(world, 30);
    world.kubectl("-n heddle-system delete pod -l app.kubernetes.io/name=heddle-control-plane");
    world.kubectl("-n heddle-system rollout status deploy/heddle-control-plane --timeout=120s");
    load.end_without_loss("the control plane's pod deleted");
    world.connect();

    let address = world.control_plane();
    // Dropped and not refused, as a broken network does. The kubelet's own probes come from the node.
    let rules = format!(
        "table ip cut {{ chain forward {{ type filter hook forward priority -10; ip saddr {address} drop; ip daddr {address} drop; }}; }}"
    );
    let bridged = rules.replace("table ip cut", "table bridge cut");
    nft(&rules);
    nft(&bridged);
    let load = Load::start(world, 75);
    sleep(Duration::from_secs(60));
    nft("delete table ip cut");
    nft("delete table bridge cut");
    load.end_without_loss("60 s without the control plane's network");
}

/// Only what its own pod had in flight may fail.
pub(crate) fn a_killed_proxy_comes_back(world: &mut World) {
    let pod = world.kubectl("-n shop get pods -l app=storefront -o jsonpath={.items[0].metadata.name}");
    let restarts = |world: &World| {
        let path = "{.status.initContainerStatuses[?(@.name==\"heddle-proxy\")].restartCount}";
        world.kubectl(&format!("-n shop get pod {pod} -o jsonpath={path}"))
    };
    assert_eq!(restarts(world), "0");
    let load = Load::start(world, 30);
    sleep(Duration::from_secs(5));
    world.kill("shop", &pod, "heddle-proxy");
    wait("the proxy's next start", Duration::from_secs(20), || {
        if restarts(world) == "1" { Ok(()) } else { Err(restarts(world)) }
    });
    let report = load.end("a proxy killed");
    let lost: u64 = report["lost"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    // What was in flight at 300/s is a handful.
    assert!(lost <= 30, "{report}");
}
