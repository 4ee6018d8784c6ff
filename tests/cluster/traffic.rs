//! What is to be seen between pods, and who is refused.

use std::{fs, process::Command, time::Duration};

use heddle_tests::process::Process;
use rustix::process::Signal;

use crate::{
    shop::order,
    world::{World, wait},
};

/// Nothing of an order is to be read between pods; what goes there in plaintext is.
pub(crate) fn nobody_reads_along(world: &mut World) {
    let file = world.folder.path().join("pods.pcap");
    let mut command = Command::new("tcpdump");
    command.args(["-i", "pods0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&file).arg("tcp");
    let capture = Process::start("tcpdump", command, world.folder.path());
    wait("tcpdump", Duration::from_secs(10), || {
        if capture.output().contains("listening on") { Ok(()) } else { Err(capture.output()) }
    });
    let placed = order(world).expect("an order");
    let health = "curl -s -H 'x-marker: in-plain-sight' http://heddle-control-plane.heddle-system.svc:9702/live";
    world.sh("shop", "outsider", "tools", health).expect("the health listener is for everybody");
    let seen = wait("the packets", Duration::from_secs(10), || {
        let seen = fs::read(&file).map_err(|error| error.to_string())?;
        if has(&seen, "in-plain-sight") { Ok(seen) } else { Err(format!("{} bytes", seen.len())) }
    });
    capture.signal(Signal::INT);
    assert!(seen.len() > 10_000, "{} bytes", seen.len());
    let id = placed["id"].as_str().expect("a name");
    // Paths of the kubelet's probes have the containers' names in them.
    for plain in
        ["4242424242424242", "shuttle", "POST /orders", "GET /orders", id, "Ada", "idempotency-key", "traceparent"]
    {
        assert!(!has(&seen, plain), "{plain:?} is to be read between pods");
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
}

const INTERN: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: { name: intern }
---
apiVersion: v1
kind: Pod
metadata: { name: intern }
spec:
  serviceAccountName: intern
  containers: [{ name: tools, image: 'localhost/tools:1', imagePullPolicy: IfNotPresent, command: [sleep, '100000'] }]
";

/// Who has no proxy, and who has another service account, are refused and told why.
pub(crate) fn strangers_are_told_why(world: &mut World) {
    world.apply_meshed("shop", INTERN);
    world.kubectl("-n shop wait --for=condition=Ready pod/intern --timeout=60s");
    let call = |pod: &str, url: &str| world.sh("shop", pod, "tools", &format!("curl -si --max-time 10 {url} || true"));
    // The services have apps that would answer this to anybody.
    for service in ["orders", "payments-v1", "inventory"] {
        let said = call("outsider", &format!("http://{service}/healthz")).expect("curl");
        assert!(
            said.starts_with("HTTP/1.1 403") && said.contains("heddle-error: plaintext-refused"),
            "{service}: {said}"
        );
        assert!(said.contains("takes only callers with a sidecar"), "{service}: {said}");
    }
    let said = call("intern", "http://orders/healthz").expect("curl");
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("heddle-error:"), "{said}");
    assert!(said.contains("not-the-intern"), "the rule is named: {said}");
    // By its address alone, too.
    let ip = world.kubectl("-n shop get pods -l app=orders -o jsonpath={.items[0].status.podIP}");
    for pod in ["outsider", "intern"] {
        let said = call(pod, &format!("http://{ip}:8080/healthz")).expect("curl");
        assert!(said.starts_with("HTTP/1.1 403") && said.contains("heddle-error:"), "{pod}: {said}");
    }
}
