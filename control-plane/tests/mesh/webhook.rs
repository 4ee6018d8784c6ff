//! The webhook as the API server calls it: by TLS, checked under the roots that the configuration is given.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use heddle_certs::SystemClock;
use heddle_control_plane::config::written::Written;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};
use tokio_rustls::TlsConnector;

use crate::world::World;

const NAME: &str = "heddle-control-plane.heddle-system.svc";

async fn world() -> World {
    let written = Written {
        webhook: Some("127.0.0.1:0".to_owned()),
        api_names: Some(vec![NAME.to_owned()]),
        advertise_mesh: Some(format!("{NAME}:9701")),
        proxy_image: Some("heddle-proxy:1".to_owned()),
        ..Written::default()
    };
    World::start_with(written, SystemClock::shared()).await
}

/// The API server.
struct Caller(SendRequest<Full<bytes::Bytes>>);

impl Caller {
    async fn connect(world: &World) -> Self {
        let mut roots = RootCertStore::empty();
        for root in world.roots().roots() {
            roots.add(root.clone()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(heddle_certs::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(world.app.addresses().webhook.unwrap()).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn post(&mut self, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        let request = Request::post(path).header("host", NAME).header("content-type", "application/json");
        let answer = self.0.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let status = answer.status();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn admit(&mut self, namespace: &str, pod: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "namespace": namespace,
                "operation": "CREATE",
                "object": pod,
            },
        });
        let (status, text) = self.post("/inject", review.to_string().into_bytes()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        answer["response"].clone()
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" },
        "spec": { "containers": [{
            "name": "app",
            "livenessProbe": { "httpGet": { "path": "/", "port": 80 } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 80 } } },
        }] },
    })
}

/// The object with a patch of additions and replacements made in it.
fn patched(object: &Value, response: &Value) -> Value {
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let mut object = object.clone();
    for operation in serde_json::from_slice::<Vec<Value>>(&patch).unwrap() {
        let (parent, key) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        let (key, parent) = (key.replace("~1", "/"), object.pointer_mut(parent).unwrap());
        match (operation["op"].as_str().unwrap(), parent) {
            ("add" | "replace", Value::Object(map)) => _ = map.insert(key, operation["value"].clone()),
            ("add", Value::Array(items)) => items.insert(key.parse().unwrap(), operation["value"].clone()),
            other => panic!("{other:?}"),
        }
    }
    object
}

#[tokio::test]
async fn a_pod_gets_a_proxy_of_this_mesh_and_only_once() {
    let world = world().await;
    let mut caller = Caller::connect(&world).await;
    let injected = patched(&pod(), &caller.admit("shop", &pod()).await);
    let proxy = &injected["spec"]["initContainers"][1];
    assert_eq!((&proxy["name"], &proxy["image"]), (&json!("heddle-proxy"), &json!("heddle-proxy:1")));
    let variable = |name: &str| {
        let all = proxy["env"].as_array().unwrap();
        all.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(variable("HEDDLE_PROXY_CONTROL_PLANE"), format!("{NAME}:9701"));
    assert_eq!(variable("HEDDLE_TRUST_DOMAIN"), "td");
    assert_eq!(variable("HEDDLE_TRUST_ROOTS"), world.roots().to_pem());

    // Another webhook may have it asked again.
    let again = caller.admit("shop", &injected).await;
    assert_eq!((&again["allowed"], again.get("patch")), (&json!(true), None));
    // No pod's hooks can be called by who knows another's.
    let other = patched(&pod(), &caller.admit("shop", &pod()).await);
    let hook = |pod: &Value| pod.pointer("/spec/containers/0/lifecycle/preStop/httpGet/path").unwrap().clone();
    assert_ne!(hook(&injected), hook(&other));
    world.app.shutdown().await;
}

#[tokio::test]
async fn what_is_left_alone_and_what_is_refused() {
    let world = world().await;
    let mut caller = Caller::connect(&world).await;
    for namespace in ["kube-system", "heddle-system"] {
        let left = caller.admit(namespace, &pod()).await;
        assert_eq!((&left["allowed"], left.get("patch")), (&json!(true), None), "{namespace}");
    }
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(caller.admit("shop", &host).await.get("patch"), None);
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({ "heddle.dev/log-level": "loud" });
    let refused = caller.admit("shop", &wrong).await;
    assert_eq!((&refused["allowed"], refused.get("patch")), (&json!(false), None));
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("heddle: annotation heddle.dev/log-level: \"loud\" is not right"), "{message}");
    world.app.shutdown().await;
}

#[tokio::test]
async fn a_malformed_review_changes_nothing() {
    let world = world().await;
    let mut caller = Caller::connect(&world).await;
    let (status, text) = caller.post("/inject", b"{}".to_vec()).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::BAD_REQUEST, "apiVersion is not right: it is admission.k8s.io/v1\n")
    );
    let (status, _) = caller.post("/elsewhere", b"{}".to_vec()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = Caller::connect(&world).await.post("/inject", vec![b' '; 5 << 20]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    // It goes on as if nothing had been.
    assert_eq!(Caller::connect(&world).await.admit("shop", &pod()).await["allowed"], true);
    world.app.shutdown().await;
}

/// By hand, in release: `cargo test --release -p heddle-control-plane --test mesh -- --ignored --nocapture admissions`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for release builds"]
async fn a_hundred_admissions_a_second() {
    const RATE: u32 = 100;
    const SECONDS: u32 = 10;
    let world = world().await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(Arc::new(tokio::sync::Mutex::new(Caller::connect(&world).await)));
    }
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for number in 0..RATE * SECONDS {
        let due = begun + Duration::from_secs(1) * number / RATE;
        let caller = Arc::clone(&callers[number as usize % callers.len()]);
        all.spawn(async move {
            tokio::time::sleep_until(due).await;
            let answer = caller.lock().await.admit("shop", &pod()).await;
            assert_eq!(answer["allowed"], true);
            due.elapsed()
        });
    }
    let mut times = all.join_all().await;
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{} admissions at {RATE}/s: p50 {:?}, p99 {:?}, longest {:?}", times.len(), at(0.5), at(0.99), at(1.0));
    assert!(at(0.99) < Duration::from_millis(50));
    world.app.shutdown().await;
}
