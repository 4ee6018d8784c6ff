use serde::Deserialize as _;
use serde_json::json;

use super::*;

fn injector() -> Injector {
    Injector {
        image: "registry.example/heddle-proxy:1".to_owned(),
        capture_image: None,
        image_pull_policy: None,
        control_plane: "heddle-control-plane.heddle-system.svc:9701".to_owned(),
        trust_domain: "heddle.local".to_owned(),
        trust_roots: "-----BEGIN CERTIFICATE-----\nAAA+/=\n-----END CERTIFICATE-----\n".to_owned(),
        tracing_endpoint: None,
        hook_key: "k3y".to_owned(),
    }
}

fn work(way: Way, text: &str) -> Done {
    let injector = injector();
    match way {
        Way::In => Work { way, what: &|object| injector.inject(object, Some(Inject::Enabled)) }.text("f.yaml", text),
        Way::Out => Work { way, what: &injection::uninject }.text("f.yaml", text),
    }
}

/// As another parser reads it.
fn values(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

fn made(mut object: Value, pods: Vec<Pod>) -> Value {
    for pod in pods {
        let Outcome::Changed(changes) = pod.outcome else { continue };
        changes.iter().for_each(|change| change.apply(&mut object).unwrap());
        if let Some(annotations) = pod.at.key("metadata").key("annotations").find(&object) {
            assert!(annotations.get("heddle.dev/status").is_some());
        }
    }
    object
}

/// Without what only files have.
fn plain(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove(ORIGINAL);
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

#[track_caller]
fn goes_and_comes_back(text: &str) -> String {
    let injected = work(Way::In, text);
    assert_eq!(injected.faults, [], "{text}");
    assert_ne!(injected.text, text);
    let wanted = values(text).into_iter().map(|object| {
        let pods = injector().inject(&object, Some(Inject::Enabled)).unwrap();
        made(object, pods)
    });
    let got: Vec<_> = values(&injected.text).into_iter().map(plain).collect();
    assert_eq!(got, wanted.collect::<Vec<_>>(), "{}", injected.text);
    let again = work(Way::In, &injected.text);
    assert_eq!(again.text, injected.text);
    let back = work(Way::Out, &injected.text);
    assert_eq!(back.faults, [], "{}", injected.text);
    assert_eq!(back.text, text, "\n--- injected:\n{}", injected.text);
    injected.text
}

const SHOP: &str = r#"# The shop.
apiVersion: v1
kind: Service
metadata: {name: orders}   # stays
spec:
    ports: [ { port: 80 } ]
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
  annotations: {}
spec:
  replicas: 2   # two
  template:
    metadata:
      # whose pods these are
      labels:
        app: 'orders'
    # what is in them
    spec:
      # the app
      containers:
      - name: "orders"
        image: orders:1
        env:
        - {name: TEXT, value: "a # b"}
        livenessProbe:
          # slow
          httpGet:
            path: /healthz # deep
            port: 8080   # http
          periodSeconds: 5
        readinessProbe: { tcpSocket: { port: 9000 } }
        command:
        - sh
        - -c
        - |
          echo hello

          echo end

      # last
---
"#;

#[test]
fn nothing_else_of_a_file_changes() {
    let injected = goes_and_comes_back(SHOP);
    // Each line that is not replaced is still there, in its order.
    let mut rest = injected.lines();
    for line in SHOP.lines() {
        if line.contains("httpGet") || line.contains("/healthz") || line.contains("8080") || line.contains("tcpSocket")
        {
            continue;
        }
        assert!(rest.any(|other| other == line), "{line:?} of\n{injected}");
    }
    assert!(injected.contains("    spec:\n      initContainers:\n        - name: heddle-capture\n"), "{injected}");
    assert!(injected.contains("value: |\n                -----BEGIN CERTIFICATE-----\n"), "{injected}");
}

#[test]
fn every_layout_comes_back_as_it_was() {
    let pod = |metadata: &str, spec: &str| format!("apiVersion: v1\nkind: Pod\n{metadata}spec:\n{spec}");
    let containers = "  containers:\n  - name: app\n";
    let with_name = "metadata:\n  name: a\n";
    let mut texts = vec![
        pod("", containers),
        pod("metadata:\n", containers),
        pod("metadata: ~ # none\n", containers),
        pod("metadata: {}\n", containers),
        pod("metadata:\n  annotations:\n  name: a\n", containers),
        pod("metadata:\n  name: a\n  annotations: null # c\n", containers),
        pod("metadata:\n  annotations: { }\n", containers),
        pod("metadata:\n  annotations: {a: b}\n  name: a\n", containers),
        pod("metadata:\n  annotations:\n    # first\n    a: b\n  name: a\n", containers),
        pod(with_name, "  initContainers: []\n  volumes:   # none\n  containers: [{name: app}]\n"),
        pod(
            with_name,
            "  initContainers: # before\n  # the first\n  -   name: i\n      image: i:1\n  containers: [{name: app}]\n  volumes:\n    -\n      name: v\n",
        ),
        pod(
            with_name,
            "    containers:\n        - name: app\n    volumes:\n        - name: v\n          emptyDir: {}\n# end\n",
        ),
        // No line break at the end, none at all, other line breaks.
        pod(with_name, "  containers: [{name: app}]"),
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: app}]}}".to_owned(),
        pod(with_name, containers).replace('\n', "\r\n"),
        format!("---\n{}...\n", pod(with_name, containers)),
        format!("%YAML 1.2\n--- # one\n{}", pod(with_name, containers)),
        format!(
            "--- {{apiVersion: v1, kind: Pod, spec: {{containers: []}}}}\n---\n# nothing\n---\n{}",
            pod("", containers)
        ),
    ];
    let probes = [
        "    livenessProbe:\n      grpc: {port: 9000}\n      periodSeconds: 3\n",
        "    livenessProbe:\n      periodSeconds: 3\n      tcpSocket:\n        port: 80 # c\n        host:\n",
        "    livenessProbe: {\"httpGet\": {\"port\": 80}, timeoutSeconds: 2}\n",
        "    lifecycle:\n      preStop:\n        httpGet:\n            port:    80\n            path: '/x'\n",
    ];
    texts.extend(probes.iter().map(|probe| pod(with_name, &format!("{containers}{probe}    image: x\n"))));
    for text in &texts {
        goes_and_comes_back(text);
    }
}

#[test]
fn json_stays_json_in_its_layout() {
    let object = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "a" },
        "spec": { "jobTemplate": { "spec": { "template": { "metadata": { "annotations": {} }, "spec": {
            "initContainers": [{ "name": "i" }],
            "containers": [{ "name": "app", "livenessProbe": { "httpGet": { "path": "/", "port": 80 } } }],
        } } } } },
    });
    let pretty = serde_json::to_string_pretty(&object).unwrap();
    for text in [object.to_string(), pretty.clone(), pretty.replace("  ", "\t"), format!("{pretty}\n")] {
        let injected = goes_and_comes_back(&text.replace('\t', "    "));
        serde_json::from_str::<Value>(&injected).unwrap();
    }
    let injected = goes_and_comes_back(&pretty);
    let inner = "            \"initContainers\": [\n              {\n                \"args\": [\n";
    assert!(injected.contains(inner), "{injected}");
    // One after the other, without anything between.
    let two = format!("{object}\n{object}");
    let injected = work(Way::In, &two);
    assert_eq!(injected.told.len(), 2, "{:?}", injected.faults);
    assert_eq!(work(Way::Out, &injected.text).text, two);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [object, object] }).to_string();
    assert_eq!(goes_and_comes_back(&list).matches("\"heddle-capture\"").count(), 2);
}

#[test]
fn what_is_left_alone_comes_out_as_it_was_and_is_told() {
    let text = "# a\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n}\nspec: {hostNetwork: yes}\n---\n1: x\n---\n- [a, ? b]\n";
    let done = work(Way::In, text);
    assert_eq!(done.text, text);
    assert_eq!(done.told, ["Pod n/a: left as it is, has hostNetwork: the node's connections must not be redirected"]);
    let none = work(Way::Out, SHOP);
    assert_eq!(none.text, SHOP);
    assert_eq!(none.told, ["Deployment orders: left as it is, has no proxy"]);
    for empty in ["", "\n", "# nothing\n", "---\n---\n"] {
        assert_eq!(work(Way::In, empty).text, empty);
    }
}

#[test]
fn faults_are_told_with_their_place_and_nothing_is_printed() {
    let said = |text: &str| work(Way::In, text).faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n";
    let taken = said(&format!("a: b\n---\n{pod}  containers: [{{name: heddle-proxy}}]\n"));
    assert_eq!(
        taken,
        "f.yaml, document 2: Pod a: container heddle-proxy is there already, and was not injected by Heddle: give it another name"
    );
    assert!(said("a: [").starts_with("f.yaml: it is no YAML or JSON: "), "{}", said("a: ["));
    let twice = said(&format!("{pod}  containers: []\n  containers: []\n"));
    assert_eq!(twice, "f.yaml: the key containers is there twice");
    let alias = said(&format!(
        "{pod}  containers:\n  - name: a\n    livenessProbe: &p\n      tcpSocket: {{port: 1}}\n  - name: b\n    livenessProbe: *p\n"
    ));
    assert!(alias.contains("/spec/containers/0/livenessProbe/tcpSocket cannot be changed as"), "{alias}");
    let alias = said(&format!("x: &s {{name: a}}\n{pod}  containers: []\n").replace("{name: a}\nspec", "*s\nspec"));
    assert!(alias.contains("/metadata is an alias of"), "{alias}");
    let merged = said(&format!("x: &s\n  volumes: [{{name: v}}]\n{pod}  <<: *s\n  containers: []\n"));
    assert!(merged.contains("/spec/volumes is an alias of, or merged from"), "{merged}");
}

#[test]
fn a_strict_namespace_of_the_file_is_told_of() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {pod-security.kubernetes.io/enforce: restricted}}\n";
    let text = format!(
        "{text}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: n}}\nspec: {{containers: []}}\n"
    );
    let done = work(Way::In, &text);
    assert_eq!(done.injected, [Some("n".to_owned())]);
    assert!(done.strict[0].1.contains("enforce: restricted, which refuses injected pods"), "{:?}", done.strict);
}

#[test]
fn a_file_that_was_edited_since_loses_its_proxy_all_the_same() {
    let injected = goes_and_comes_back(SHOP);
    // Its annotations and comments gone, its keys in another order: as other tools write it.
    let rewritten: Vec<_> =
        values(&injected).iter().map(|value| serde_yaml_ng::to_string(&plain(value.clone())).unwrap()).collect();
    let back = work(Way::Out, &rewritten.join("---\n"));
    assert_eq!(back.faults, []);
    assert_eq!(values(&back.text), values(SHOP));
    // Indented anew, the kept text may no longer fit: what it means does.
    let rewritten: Vec<_> = values(&injected).iter().map(|value| serde_yaml_ng::to_string(value).unwrap()).collect();
    let back = work(Way::Out, &rewritten.join("---\n"));
    assert_eq!(values(&back.text), values(SHOP), "{:?}", back.faults);
}
