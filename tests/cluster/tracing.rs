//! A real Jaeger in the cluster, and what it knows of an order.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use heddle_tests::peer;
use serde_json::Value;

use crate::{
    shop::order,
    world::{World, wait},
};

const JAEGER: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: observability }
---
apiVersion: v1
kind: Service
metadata: { name: jaeger, namespace: observability }
spec:
  selector: { app: jaeger }
  ports: [{ name: otlp, port: 4317 }, { name: query, port: 16686 }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: jaeger, namespace: observability }
spec:
  selector: { matchLabels: { app: jaeger } }
  template:
    metadata: { labels: { app: jaeger } }
    spec:
      containers:
        - name: jaeger
          image: localhost/jaeger:1
          imagePullPolicy: IfNotPresent
          args: ['--set=receivers.otlp.protocols.grpc.endpoint=0.0.0.0:4317', '--set=extensions.jaeger_query.http.endpoint=0.0.0.0:16686']
          readinessProbe: { tcpSocket: { port: 4317 }, periodSeconds: 1 }
";

/// Starts it; proxies find it when they are made.
pub(crate) fn jaeger_starts(world: &mut World) {
    let Some(program) = peer::kept("jaeger-1.76.0") else { return };
    let folder = world.folder.path().join("jaeger");
    fs::create_dir(&folder).expect("a folder");
    fs::copy(program, folder.join("jaeger")).expect("a file");
    let containerfile = world.folder.path().join("Containerfile.jaeger");
    fs::write(&containerfile, "FROM scratch\nCOPY . /\nUSER 65534\nENTRYPOINT [\"/jaeger\"]\n").expect("a file");
    world.libraries(&folder, "jaeger");
    world.image("localhost/jaeger:1", &containerfile, &folder);
    world.apply("", JAEGER);
    world.kubectl("-n observability rollout status deploy/jaeger --timeout=60s");
}

/// The order's way through all services is one trace.
pub(crate) fn jaeger_shows_the_order(world: &mut World) {
    if world.try_kubectl("get namespace observability").is_err() {
        return;
    }
    let placed = order(world).expect("an order");
    let address = world.kubectl("-n observability get service jaeger -o jsonpath={.spec.clusterIP}");
    let expected = ["storefront", "orders", "inventory"].map(str::to_owned);
    let services = wait("the order's trace", Duration::from_secs(30), || {
        let url = format!("http://{address}:16686/api/traces?service=storefront&limit=50&lookback=1h");
        let output = Command::new("curl").args(["-s", "--max-time", "5", &url]).output().map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        for trace in answer["data"].as_array().into_iter().flatten() {
            let processes = trace["processes"].as_object().into_iter().flatten();
            let services: BTreeSet<String> =
                processes.filter_map(|(_, process)| process["serviceName"].as_str().map(str::to_owned)).collect();
            let places = trace["spans"].to_string().contains("POST /orders");
            if places && expected.iter().all(|service| services.contains(service)) {
                return Ok(services);
            }
            all.push(services);
        }
        Err(format!("{all:?}"))
    });
    assert!(services.iter().any(|service| service.starts_with("payments")), "{placed}: {services:?}");
}
