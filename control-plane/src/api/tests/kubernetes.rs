//! What comes from Kubernetes is shown like everything else, referred to like everything else, and read-only.

use std::collections::BTreeMap;

use heddle_api::resource::{AnyObject, Name};

use super::{lists::names, *};
use crate::{
    mesh::{
        derived::{Change, Derived, Pod},
        tests::objects,
    },
    registry::KUBERNETES_LABEL,
};

fn service(name: &str) -> Change {
    let yaml = format!(
        "{{kind: Service, metadata: {{name: {name}, labels: {{{KUBERNETES_LABEL}: 'true'}}}}, spec: {{ports: [{{port: 80}}]}}}}"
    );
    let AnyObject::Service(service) = objects(&yaml).remove(0) else { panic!() };
    Change::Service(Name::new("shop", name), Some(Arc::new(Derived { service, instances: Vec::new() })))
}

fn pod(name: &str, service: &str) -> Change {
    let pod = Pod {
        name: Name::new("shop", name),
        uid: "uid".into(),
        ips: vec!["10.1.0.1".parse().unwrap()],
        account: "web".into(),
        labels: Arc::new(BTreeMap::from([("app".to_owned(), "web".to_owned())])),
        owner: "ReplicaSet.web-7f".into(),
        services: BTreeMap::from([(Name::new("shop", service), vec![(80, 8080)])]),
    };
    Change::Pod(Name::new("shop", name), Some(Arc::new(pod)))
}

#[tokio::test]
async fn it_is_listed_after_what_is_declared() {
    let server = Server::start().await;
    for name in ["b", "d"] {
        server.put_service(name).await.expect(201);
    }
    server.state.registry.derive(&[service("a"), service("c"), service("d"), pod("a-1", "a")]);
    assert_eq!(server.names("/v1/services").await, ["b", "d", "a", "c"], "the declared d hides the other");
    assert_eq!(server.names(&format!("/v1/services?labelSelector={KUBERNETES_LABEL}")).await, ["a", "c"]);
    let mut paged = Vec::new();
    let mut path = "/v1/namespaces/shop/services?limit=1".to_owned();
    loop {
        let page = server.get(&path).await.expect(200).json();
        paged.extend(names(&page));
        let Some(next) = page["metadata"]["continue"].as_str() else { break };
        path = format!("/v1/namespaces/shop/services?limit=1&continue={next}");
    }
    assert_eq!(paged, ["b", "d", "a", "c"]);
    assert_eq!(server.names("/v1/namespaces/other/services").await, [""; 0]);
    let workload = server.get("/v1/namespaces/shop/workloads/a-1").await.expect(200).json();
    assert_eq!(workload["spec"]["address"], "10.1.0.1");
    assert_eq!(workload["spec"]["services"][0]["name"], "a");
    assert_eq!(workload["metadata"]["labels"]["heddle.dev/owner"], "ReplicaSet.web-7f");
    assert_eq!(server.names("/v1/workloads?references=shop/a").await, ["a-1"]);
    assert_eq!(server.names("/v1/workloads?references=shop/c").await, [""; 0]);
    server
        .state
        .registry
        .derive(&[Change::Service(Name::new("shop", "a"), None), Change::Pod(Name::new("shop", "a-1"), None)]);
    assert_eq!(server.names("/v1/services").await, ["b", "d", "c"]);
    server.get("/v1/namespaces/shop/workloads/a-1").await.expect(404);
    // It makes no revision, and outlives those that others make.
    server.put_service("e").await.expect(201);
    assert_eq!(server.names("/v1/services").await, ["b", "d", "e", "c"]);
    assert_eq!(server.get("/v1/revisions").await.json()["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn it_is_read_only_and_says_why() {
    let server = Server::start().await;
    server.put_service("old").await.expect(201);
    server.state.registry.derive(&[service("a"), service("old"), pod("a-1", "a")]);
    let path = "/v1/namespaces/shop/services/a";
    for refused in [
        server.put_service("a").await,
        server.delete(path).await,
        server.call(Method::PATCH, path, &json!({ "spec": { "hosts": ["x.example"] } })).await,
        server.delete("/v1/namespaces/shop/workloads/a-1").await,
    ] {
        let said = refused.expect(409).json()["detail"].as_str().unwrap().to_owned();
        assert!(said.contains("comes from Kubernetes") && said.contains("read-only"), "{said}");
    }
    // What was declared before can be changed and removed, and then the other comes to light.
    let old = "/v1/namespaces/shop/services/old";
    server.call(Method::PATCH, old, &json!({ "spec": { "hosts": ["x.example"] } })).await.expect(200);
    server.delete(old).await.expect(200);
    let got = server.get(old).await.expect(200).json();
    assert_eq!(got["metadata"]["labels"][KUBERNETES_LABEL], "true");
}

#[tokio::test]
async fn it_is_referred_to_as_any_other() {
    let server = Server::start().await;
    let target = json!({ "targetRef": { "kind": "Service", "name": "a" } });
    let policy = object("TrafficPolicy", "a", target);
    let path = "/v1/namespaces/shop/trafficpolicies/a";
    let refused = server.put(path, &policy).await.expect(422);
    assert_eq!(refused.faults(), ["spec.targetRef.name"]);
    server.state.registry.in_cluster("cluster.local");
    server.state.registry.derive(&[service("a"), service("b")]);
    server.put(path, &policy).await.expect(201);
    let backends = json!([{ "name": "b", "port": 80 }]);
    let route = json!({ "parentRefs": [{ "name": "a" }], "rules": [{ "backendRefs": backends }] });
    server.put("/v1/namespaces/shop/httproutes/r", &object("HTTPRoute", "r", route)).await.expect(201);
    let route = json!({ "parentRefs": [{ "name": "a" }], "rules": [{ "backendRefs": [{ "name": "b", "port": 81 }] }] });
    let refused = server.put("/v1/namespaces/shop/httproutes/s", &object("HTTPRoute", "s", route)).await.expect(422);
    assert!(refused.faults().iter().any(|path| path.contains("backendRefs[0].port")), "{:?}", refused.faults());
    // Names of the cluster's own are nobody's to claim.
    let claims = json!({ "ports": [{ "port": 80 }], "hosts": ["a.shop.svc.cluster.local"] });
    let refused =
        server.put("/v1/namespaces/shop/services/thief", &object("Service", "thief", claims)).await.expect(422);
    assert_eq!(refused.faults(), ["spec.hosts[0]"]);
}
