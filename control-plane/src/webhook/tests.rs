use heddle_kubernetes::names;
use serde_json::{Value, json};

use super::{
    authority,
    review::{Answer, Review},
};

fn injector() -> heddle_kubernetes::inject::Injector {
    heddle_kubernetes::inject::Injector {
        image: "heddle-proxy:1".to_owned(),
        capture_image: None,
        image_pull_policy: None,
        control_plane: names::CONTROL_PLANE_ADDRESS.to_owned(),
        trust_domain: "td".to_owned(),
        trust_roots: "roots".to_owned(),
        tracing_endpoint: None,
        hook_key: "k".to_owned(),
    }
}

fn review(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": "shop",
            "operation": "CREATE",
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "a-" },
                "spec": { "containers": [{ "name": "app" }] },
            },
        },
    });
    change(&mut review);
    review.to_string().into_bytes()
}

#[test]
fn what_no_api_server_sends_is_refused_by_field() {
    for (says, body) in [
        ("this is no JSON", b"{".to_vec()),
        ("this is no JSON", Vec::new()),
        ("this is no JSON", [b'['].repeat(200_000)),
        ("apiVersion is not right", b"[]".to_vec()),
        ("apiVersion is not right", review(|review| review["apiVersion"] = "admission.k8s.io/v1beta1".into())),
        ("kind is not right", review(|review| review["kind"] = "Pod".into())),
        ("request.uid", review(|review| review["request"] = Value::Null)),
        ("request.uid", review(|review| review["request"]["uid"] = "u".repeat(257).into())),
        ("request.operation", review(|review| review["request"]["operation"] = "create".into())),
        ("request.object", review(|review| review["request"]["object"] = Value::Null)),
        ("request.object", review(|review| review["request"]["object"]["kind"] = "Deployment".into())),
        ("request.object", review(|review| review["request"]["object"]["spec"] = json!([]))),
        ("request.namespace", review(|review| review["request"]["namespace"] = Value::Null)),
    ] {
        let problem = Review::parse(&body).unwrap_err().to_string();
        assert!(problem.contains(says), "{problem}");
    }
}

#[test]
fn what_makes_no_pod_is_let_through() {
    for change in [
        |review: &mut Value| review["request"]["operation"] = "UPDATE".into(),
        |review: &mut Value| review["request"]["subResource"] = "ephemeralcontainers".into(),
        |review: &mut Value| review["request"]["kind"]["kind"] = "Service".into(),
    ] {
        let review = Review::parse(&review(change)).unwrap();
        let answer = review.decide(&injector(), false);
        assert_eq!(review.response(&answer)["response"], json!({ "uid": "u", "allowed": true }));
    }
}

#[test]
fn in_a_strict_namespace_a_pod_is_told_why_it_cannot_be() {
    let review = Review::parse(&review(|_| ())).unwrap();
    assert_eq!(review.name, "a-");
    let answer = review.decide(&injector(), true);
    let response = &review.response(&answer)["response"];
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("namespace shop has pod-security") && message.contains("NET_ADMIN"), "{message}");
    let disabled = self::review(|review| {
        review["request"]["object"]["metadata"]["labels"] = json!({ "heddle.dev/inject": "disabled" });
    });
    let left = Review::parse(&disabled).unwrap().decide(&injector(), true);
    assert!(matches!(left, Answer::Left(_)), "{left:?}");
}

#[test]
fn only_what_has_other_roots_is_changed() {
    let webhook = |bundle: Value| json!({ "clientConfig": { "service": {}, "caBundle": bundle } });
    let with = |webhooks: Value| json!({ "metadata": { "resourceVersion": "7" }, "webhooks": webhooks });
    assert_eq!(authority::patch(&with(json!([webhook("cm9vdHM=".into())])), "cm9vdHM="), Vec::<Value>::new());
    assert_eq!(authority::patch(&with(Value::Null), "cm9vdHM="), Vec::<Value>::new());
    let mixed = with(json!([webhook("cm9vdHM=".into()), webhook("b2xk".into()), { "clientConfig": {} }]));
    assert_eq!(
        Value::from(authority::patch(&mixed, "cm9vdHM=")),
        json!([
            { "op": "test", "path": "/metadata/resourceVersion", "value": "7" },
            { "op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "cm9vdHM=" },
            { "op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "cm9vdHM=" },
        ])
    );
}
