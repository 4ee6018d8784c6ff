//! Which tokens give an identity. The proxies here are processes of the test in the cluster's network, so that each
//! gets exactly the token that is meant.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_tests::process::{Process, binary};
use serde_json::json;

use crate::{
    install::install,
    world::{World, nft, wait},
};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: holder }
spec:
  serviceAccountName: holder
  containers: [{ name: holder, image: 'localhost/tools:1', imagePullPolicy: IfNotPresent, command: [sleep, '100000'] }]
";

/// A proxy with this token.
fn proxy(world: &World, name: &str, token: &str) -> Process {
    Process::start(&format!("proxy-{name}"), proxy_command(world, name, token), world.folder.path())
}

fn proxy_command(world: &World, name: &str, token: &str) -> Command {
    let folder = world.folder.path().join(format!("proxy-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder");
    let file = folder.join("token");
    fs::write(&file, token).expect("a file");
    let address = world.kubectl("-n heddle-system get service heddle-control-plane -o jsonpath={.spec.clusterIP}");
    let mut command = Command::new(binary("heddle-proxy"));
    command.args(["--control-plane", &format!("{address}:9701"), "--service-account-token"]).arg(&file);
    command.args(["--trust-roots", &roots(world), "--workload", name, "--state-dir"]).arg(folder.join("state"));
    for (flag, value) in [("--inbound", "127.0.0.1:0"), ("--captured", "off"), ("--http-proxy", "off")] {
        command.args([flag, value]);
    }
    command.args(["--admin", "off", "--health", "127.0.0.1:0", "--log", "info"]);
    command
}

/// The mesh's roots, as the admin's context has them.
fn roots(world: &World) -> String {
    let text = fs::read_to_string(world.folder.path().join("context.yaml")).expect("a file");
    let context: serde_json::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    context["contexts"][0]["caPem"].as_str().expect("roots").to_owned()
}

fn says(proxy: &Process, words: &str) {
    wait(words, Duration::from_secs(20), || {
        let output = proxy.output();
        if output.contains(words) { Ok(()) } else { Err(output) }
    });
}

fn holder(world: &World) {
    let _ = world.try_kubectl("create namespace tokens");
    let _ = world.try_kubectl("-n tokens create serviceaccount holder");
    world.apply("tokens", POD);
    world.kubectl("-n tokens wait --for=condition=Ready pod/holder --timeout=60s");
}

/// A token as the kubelet asks for it.
fn token(world: &World, more: &str) -> String {
    let line = format!("-n tokens create token holder {more}");
    world.kubectl(&line).trim().to_owned()
}

const BOUND: &str = "--bound-object-kind Pod --bound-object-name holder";

pub(crate) fn a_pods_token_is_its_identity(world: &mut World) {
    holder(world);
    let token = token(world, &format!("--audience heddle.dev {BOUND}"));
    let proxy = proxy(world, "good", &token);
    says(&proxy, "a new certificate is in use");
    says(&proxy, "spiffe://heddle.local/ns/tokens/sa/holder");
    let log = world.kubectl("-n heddle-system logs deploy/heddle-control-plane");
    let uid = world.kubectl("-n tokens get pod holder -o jsonpath={.metadata.uid}");
    assert!(log.contains(&format!("uid={uid}")) || log.contains(&uid), "the log says which pod it was: {log}");
}

pub(crate) fn any_other_token_gets_nothing(world: &mut World) {
    holder(world);
    let refused = |name: &str, token: &str, why: &str| {
        let proxy = proxy(world, name, token);
        says(&proxy, "the service account's token is refused");
        says(&proxy, why);
        assert!(!proxy.output().contains("a new certificate is in use"), "{}", proxy.output());
    };
    refused("audience", &token(world, &format!("--audience other.example {BOUND}")), "audience");
    refused("api-server", &token(world, BOUND), "audience");
    refused("unbound", &token(world, "--audience heddle.dev"), "bound to no pod");
    // Signed with the cluster's own key; one that is valid shows that it is only its age that matters.
    let uid = |line: &str| world.kubectl(&format!("-n tokens get {line} holder -o jsonpath={{.metadata.uid}}"));
    let (pod, account) = (uid("pod"), uid("serviceaccount"));
    refused("expired", &signed(world, -3600, &pod, &account), "expired");
    let valid = proxy(world, "self-signed", &signed(world, 3600, &pod, &account));
    says(&valid, "a new certificate is in use");
    refused("forged", &format!("{}x", &signed(world, 3600, &pod, &account)), "token");
    // That of a pod which is no more.
    let late = token(world, &format!("--audience heddle.dev {BOUND}"));
    world.kubectl("-n tokens delete pod holder --grace-period=0 --force");
    refused("deleted", &late, "token");
}

/// A token of the pod that ends in so many seconds.
fn signed(world: &World, seconds: i64, pod: &str, account: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now").as_secs();
    let end = i64::try_from(now).expect("now") + seconds;
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": ["heddle.dev"], "sub": "system:serviceaccount:tokens:holder",
        "iat": end - 7200, "nbf": end - 7200, "exp": end, "jti": "7f3b7a8e-0000-4000-8000-000000000000",
        "kubernetes.io": {
            "namespace": "tokens",
            "serviceaccount": { "name": "holder", "uid": account },
            "pod": { "name": "holder", "uid": pod },
        },
    });
    let script = r#"
        encode() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
        head=$(printf '{"alg":"RS256","typ":"JWT"}' | encode).$(printf '%s' "$CLAIMS" | encode)
        printf '%s.%s' "$head" "$(printf '%s' "$head" | openssl dgst -sha256 -sign "$KEY" | encode)"
    "#;
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("CLAIMS", claims.to_string()).env("KEY", world.state().join("sa.key"));
    let output = command.output().expect("openssl runs");
    String::from_utf8(output.stdout).expect("text")
}

/// Certificates here live so shortly that they are renewed while the API server is away.
pub(crate) fn without_the_api_server_renewals_go_on(world: &mut World) {
    holder(world);
    install(world, &["--set", "svidTtl=20s"]);
    let good = token(world, &format!("--audience heddle.dev {BOUND}"));
    let renewed = |proxy: &Process| proxy.output().matches("a new certificate is in use").count();
    let early = proxy(world, "early", &good);
    says(&early, "a new certificate is in use");
    let late = proxy_command(world, "late", &good);
    let address = world.control_plane();
    // To it alone: others of the cluster do not live without the API server.
    nft(&format!(
        "table ip away {{ chain input {{ type filter hook input priority -10; ip saddr {address} tcp dport 6443 drop; }}; }}"
    ));
    let outcome =
        catch_unwind(AssertUnwindSafe(|| {
            let before = renewed(&early);
            let late = Process::start("proxy-late", late, world.folder.path());
            says(&late, "cannot be reviewed now");
            assert_eq!(renewed(&late), 0, "{}", late.output());
            wait("a renewal", Duration::from_secs(25), || {
                if renewed(&early) > before { Ok(()) } else { Err(early.output()) }
            });
            late
        }));
    nft("delete table ip away");
    let late = outcome.unwrap_or_else(|panic| resume_unwind(panic));
    says(&late, "a new certificate is in use");
    install(world, &[]);
}
