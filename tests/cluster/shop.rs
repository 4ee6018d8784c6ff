//! The shop, from manifests in which there is no word of a mesh.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::world::{World, wait, workspace};

/// A customer with a proxy, and one without.
const CUSTOMERS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: { name: customer }
---
apiVersion: v1
kind: Pod
metadata: { name: customer }
spec:
  serviceAccountName: customer
  containers: [{ name: tools, image: 'localhost/tools:1', imagePullPolicy: IfNotPresent, command: [sleep, '100000'] }]
---
apiVersion: v1
kind: Pod
metadata: { name: outsider, labels: { heddle.dev/inject: disabled } }
spec:
  serviceAccountName: customer
  containers: [{ name: tools, image: 'localhost/tools:1', imagePullPolicy: IfNotPresent, command: [sleep, '100000'] }]
";

/// Who may call what, besides what the shop says itself.
const POLICY: &str = "
apiVersion: heddle.dev/v1
kind: MeshConfig
metadata: { name: mesh }
spec:
  defaultAuthorization: deny
  egress: deny
  cidrs: [10.244.0.0/16, 10.96.0.0/16]
  telemetry: { samplingRatio: 1.0, accessLog: true }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: meshed-customers, namespace: shop }
spec:
  targetRef: { kind: Service, name: storefront }
  action: ALLOW
  rules: [{ name: customer, from: [{ identities: [shop/customer] }] }]
";

const ORDER: &str = r#"{"customer":"Ada","items":[{"sku":"shuttle","quantity":1}],"card":"4242424242424242"}"#;

pub(crate) fn sells(world: &mut World) {
    let begin = SystemTime::now();
    world.kubectl("create namespace shop");
    world.kubectl("label namespace shop heddle.dev/inject=enabled");
    let folder = workspace().join("examples/shop");
    world.apply_meshed("shop", &fs::read_to_string(folder.join("kubernetes.yaml")).expect("a file"));
    world.apply_meshed("shop", CUSTOMERS);
    world.heddle(&["apply", "-f", "-"], POLICY).unwrap_or_else(|error| panic!("{error}"));
    let mesh = folder.join("mesh");
    for file in ["20-routes.yaml", "30-traffic.yaml", "40-authorization.yaml"] {
        let file = mesh.join(file);
        let text = fs::read_to_string(&file).expect("a file");
        wait("the shop's services in the mesh", Duration::from_secs(30), || world.heddle(&["apply", "-f", "-"], &text));
    }
    world.kubectl("-n shop wait --for=condition=Available deploy --all --timeout=120s");
    world.kubectl("-n shop wait --for=condition=Ready pod --all --timeout=60s");
    for pod in world.json("-n shop get pods")["items"].as_array().expect("pods") {
        let names = pod["spec"]["initContainers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
        let injected = names.filter(|name| *name == "heddle-proxy").count();
        let expected = usize::from(pod["metadata"]["name"] != "outsider");
        assert_eq!(injected, expected, "{}", pod["metadata"]["name"]);
    }
    let order = wait("an order", Duration::from_secs(30), || order(world));
    println!("cluster: the first order after {:.1} s", begin.elapsed().unwrap_or_default().as_secs_f32());
    assert_eq!(order["state"], "confirmed", "{order}");
}

/// Places an order as a customer with a proxy, and follows it to its end.
pub(crate) fn order(world: &World) -> Result<Value, String> {
    let post = "curl -sS --max-time 10 -H 'content-type: application/json' -X POST http://storefront/orders -d";
    let placed = world.sh("shop", "customer", "tools", &format!("{post} '{ORDER}'"))?;
    let placed: Value = serde_json::from_str(&placed).map_err(|error| format!("{error}: {placed}"))?;
    let id = placed["id"].as_str().ok_or_else(|| placed.to_string())?.to_owned();
    wait("the order's end", Duration::from_secs(20), || {
        let look = format!("curl -sS --max-time 10 http://storefront/orders/{id}");
        let shown = world.sh("shop", "customer", "tools", &look)?;
        let shown: Value = serde_json::from_str(&shown).map_err(|error| format!("{error}: {shown}"))?;
        let ended = ["confirmed", "cancelled"].iter().any(|end| shown["state"] == *end);
        if ended { Ok(Ok(shown)) } else { Err(shown.to_string()) }
    })
}
