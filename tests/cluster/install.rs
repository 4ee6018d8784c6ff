//! Installing, from what the CLI prints.

use std::{
    process::Command,
    time::{Duration, SystemTime},
};

use heddle_tests::process::binary;

use crate::world::{World, wait};

/// A volume of the node's own, as the cluster has no provisioner.
const VOLUME: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: { name: heddle }
spec:
  capacity: { storage: 1Gi }
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: { path: @PATH@ }
  nodeAffinity: { required: { nodeSelectorTerms: [{ matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [node1] }] }] } }
";

/// What is chosen besides the defaults.
const SETTINGS: [&str; 2] = ["--set", "tracingEndpoint=http://jaeger.observability.svc:4317"];

/// What `heddle install` prints.
fn manifests(more: &[&str]) -> String {
    let output = Command::new(binary("heddle")).arg("install").args(SETTINGS).args(more).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Applies it, and waits for the control plane.
pub(crate) fn install(world: &mut World, more: &[&str]) {
    world.apply("", &manifests(more));
    world.kubectl("-n heddle-system rollout status deploy/heddle-control-plane --timeout=120s");
    world.connect();
}

pub(crate) fn installs(world: &mut World) {
    let path = world.state().join("heddle-volume");
    std::fs::create_dir_all(&path).expect("a folder");
    world.apply("", &VOLUME.replace("@PATH@", &path.display().to_string()));
    let begin = SystemTime::now();
    let check = |world: &World| world.heddle(&["install", "--check"], "");
    let before = check(world).unwrap_or_else(|error| panic!("{error}"));
    assert!(before.contains("Kubernetes 1.36") && !before.contains("lacking"), "{before}");
    install(world, &[]);
    println!("cluster: the control plane is up after {:.1} s", begin.elapsed().unwrap_or_default().as_secs_f32());
    let status = world.heddle(&["status"], "").expect("an answer");
    assert!(!status.contains("error"), "{status}");
    // `restricted` is enforced; what it would only warn of must not be there either.
    let again = world.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &manifests(&[])).expect("it is accepted");
    assert!(!again.contains("Warning"), "{again}");
}

pub(crate) fn again_changes_nothing(world: &mut World) {
    let pod = |world: &World| world.kubectl("-n heddle-system get pods -o jsonpath={.items[*].metadata.uid}");
    let webhook = |world: &World| {
        world.try_kubectl("get mutatingwebhookconfigurations -o jsonpath={.items[*].webhooks}").expect("an answer")
    };
    let (pods, webhooks) = (pod(world), webhook(world));
    let said = world.apply("", &manifests(&[]));
    for line in said.lines() {
        assert!(line.ends_with(" unchanged") || line.ends_with(" configured"), "{said}");
    }
    assert_eq!(pod(world), pods, "no pod was replaced");
    assert_eq!(webhook(world), webhooks, "what the control plane wrote into it is there still");
    // As a newer version would: another pod with the same store.
    let context = std::fs::read_to_string(world.folder.path().join("context.yaml")).expect("a file");
    install(world, &["--set", "log=debug"]);
    assert_ne!(pod(world), pods);
    let now = std::fs::read_to_string(world.folder.path().join("context.yaml")).expect("a file");
    assert!(context == now, "the same authority and token as before");
    wait("the webhook's certificate", Duration::from_secs(20), || {
        if webhook(world) == webhooks { Ok(()) } else { Err(webhook(world)) }
    });
}

/// Nothing is left, and pods start without it.
pub(crate) fn uninstalls(world: &mut World) {
    world.forward = None;
    let removals = world.heddle(&["uninstall"], "").expect("manifests");
    let removed = world.kubectl_with(&["delete", "--ignore-not-found", "--timeout=90s", "-f", "-"], &removals);
    removed.unwrap_or_else(|error| panic!("{error}"));
    let kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,namespaces";
    let left = world.kubectl(&format!("get {kinds} -l app.kubernetes.io/part-of=heddle -o name"));
    assert_eq!(left, "");
    world.kubectl("create namespace after");
    world.kubectl("label namespace after heddle.dev/inject=enabled");
    world.apply("after", "{ apiVersion: v1, kind: Pod, metadata: { name: plain }, spec: { containers: [{ name: tools, image: 'localhost/tools:1', imagePullPolicy: IfNotPresent, command: [sleep, '1000'] }] } }");
    world.kubectl("-n after wait --for=condition=Ready pod/plain --timeout=60s");
    world.kubectl("delete namespace after --wait=false");
}
