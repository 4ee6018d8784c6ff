//! Put, patch, delete, transactions, revisions.

use super::*;

const ORDERS: &str = "/v1/namespaces/shop/services/orders";

#[tokio::test]
async fn put_makes_and_replaces() {
    let server = Server::start().await;
    let made = server.put_service("orders").await.expect(201);
    assert_eq!(made.header("location"), ORDERS);
    let object = made.json();
    let version = object["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(made.header("etag"), format!("\"{version}\""));
    assert_eq!(object["metadata"]["generation"], 1);
    assert!(object["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let same = server.put_service("orders").await.expect(200);
    assert_eq!(same.json()["metadata"], object["metadata"], "nothing changed");

    let mut changed = service("orders");
    changed["metadata"]["labels"] = json!({ "a": "b" });
    let labelled = server.put(ORDERS, &changed).await.expect(200).json();
    assert_eq!(labelled["metadata"]["generation"], 1, "labels are no part of the spec");
    changed["spec"]["ports"][0]["port"] = json!(81);
    let changed = server.put(ORDERS, &changed).await.expect(200).json();
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["metadata"]["creationTimestamp"], object["metadata"]["creationTimestamp"]);
    let got = server.get(ORDERS).await.expect(200);
    assert_eq!(got.json(), changed);
    assert_eq!(got.header("etag"), format!("\"{}\"", changed["metadata"]["resourceVersion"].as_str().unwrap()));
    assert_eq!(got.json()["status"]["observedGeneration"], 2);
    server.get("/v1/namespaces/shop/services/none").await.expect(404);
}

#[tokio::test]
async fn preconditions() {
    let server = Server::start().await;
    let put = |headers: &'static [(&'static str, &'static str)]| {
        server.call_with(Method::PUT, ORDERS, SERVICE.get_or_init(|| service("orders")), headers)
    };
    put(&[("if-match", "*")]).await.expect(412);
    put(&[("if-none-match", "*")]).await.expect(201);
    put(&[("if-none-match", "*")]).await.expect(412);
    put(&[("if-match", "*")]).await.expect(200);
    put(&[("if-match", "\"99\"")]).await.expect(412);
    put(&[("if-match", "\"1\""), ("if-none-match", "*")]).await.expect(412);
    put(&[("if-match", "99")]).await.expect(412);
    let version = server.get(ORDERS).await.header("etag").to_owned();
    let patch = json!({ "metadata": { "labels": { "x": "1" } } });
    server.call_with(Method::PATCH, ORDERS, &patch, &[("if-match", &version)]).await.expect(200);
    server.call_with(Method::PATCH, ORDERS, &patch, &[("if-match", &version)]).await.expect(412);
    let delete = |tag: &str| {
        server.request(Method::DELETE, ORDERS).header("if-match", tag.to_owned()).body(Body::empty()).unwrap()
    };
    server.send(delete(&version)).await.expect(412);
    let version = server.get(ORDERS).await.header("etag").to_owned();
    server.send(delete(&version)).await.expect(200);
    server.send(delete("*")).await.expect(412);
    server.delete(ORDERS).await.expect(404);
}

static SERVICE: std::sync::OnceLock<Value> = std::sync::OnceLock::new();

#[tokio::test]
async fn dry_runs_do_nothing() {
    let server = Server::start().await;
    let dry = |method: Method, body: Value| {
        let path = format!("{ORDERS}?dryRun=true");
        let server = &server;
        async move { server.call(method, &path, &body).await }
    };
    let made = dry(Method::PUT, service("orders")).await.expect(201).json();
    assert!(made["metadata"].get("resourceVersion").is_none(), "it has none yet");
    server.get(ORDERS).await.expect(404);
    server.put_service("orders").await.expect(201);
    let patched = dry(Method::PATCH, json!({ "spec": { "hosts": ["a.example.com"] } })).await.expect(200).json();
    assert_eq!(patched["spec"]["hosts"][0], "a.example.com");
    let deleted = server.delete(&format!("{ORDERS}?dryRun=true")).await.expect(200).json();
    assert_eq!(deleted["action"], "deleted");
    assert!(server.get(ORDERS).await.expect(200).json()["spec"].get("hosts").is_none());
    dry(Method::PUT, object("Service", "orders", json!({ "ports": [] }))).await.expect(400);
    let operations = json!({ "operations": [{ "apply": service("x") }] });
    let answer = server.call(Method::POST, "/v1/transactions?dryRun=true", &operations).await.expect(200).json();
    assert_eq!((&answer["revision"], &answer["results"][0]["action"]), (&json!(1), &json!("created")));
    assert_eq!(server.get("/v1/revisions").await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn patches_merge() {
    let server = Server::start().await;
    let patch = |body: Value| {
        let server = &server;
        async move { server.call(Method::PATCH, ORDERS, &body).await }
    };
    patch(json!({})).await.expect(404);
    server.put_service("orders").await.expect(201);
    let patched =
        patch(json!({ "spec": { "hosts": ["a.example.com"] }, "metadata": { "labels": { "a": "1", "b": "2" } } }))
            .await;
    let patched = patched.expect(200).json();
    assert_eq!(patched["spec"], json!({ "ports": [{ "port": 80, "mtls": "strict" }], "hosts": ["a.example.com"] }));
    let patched =
        patch(json!({ "spec": { "hosts": null }, "metadata": { "labels": { "a": null } } })).await.expect(200).json();
    assert!(patched["spec"].get("hosts").is_none());
    assert_eq!(patched["metadata"]["labels"], json!({ "b": "2" }));
    assert_eq!(patch(json!({ "spec": { "port": 1 } })).await.expect(422).faults(), ["spec.port"]);
    assert_eq!(patch(json!({ "spec": { "ports": null } })).await.expect(422).faults(), ["spec.ports"]);
    assert_eq!(patch(json!({ "metadata": { "name": "other" } })).await.expect(422).faults(), ["metadata.name"]);
    assert_eq!(patch(json!({ "kind": "Workload" })).await.expect(422).faults(), ["kind"]);
    patch(json!([1])).await.expect(400);
    let mesh =
        json!({ "apiVersion": "heddle.dev/v1", "kind": "MeshConfig", "metadata": { "name": "mesh" }, "spec": {} });
    server.put("/v1/meshconfigs/mesh", &mesh).await.expect(201);
    let mesh = server.call(Method::PATCH, "/v1/meshconfigs/mesh", &json!({ "spec": { "egress": "allow" } })).await;
    assert_eq!(mesh.expect(200).json()["spec"]["egress"], "allow");
    server.delete("/v1/meshconfigs/mesh").await.expect(405);
}

#[tokio::test]
async fn racing_patches_lose_nothing() {
    let server = Arc::new(Server::start().await);
    server.put_service("orders").await.expect(201);
    let racing: Vec<_> = (0..10)
        .map(|n| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let patch = json!({ "metadata": { "labels": { format!("l{n}"): "1" } } });
                server.call(Method::PATCH, ORDERS, &patch).await.status.as_u16()
            })
        })
        .collect();
    for one in racing {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(server.get(ORDERS).await.json()["metadata"]["labels"].as_object().unwrap().len(), 10);
}

#[tokio::test]
async fn transactions_do_all_or_nothing() {
    let server = Server::start().await;
    let transact = |operations: Value| {
        let server = &server;
        async move { server.call(Method::POST, "/v1/transactions", &json!({ "operations": operations })).await }
    };
    let route = |backend: &str| {
        object(
            "HTTPRoute",
            "r",
            json!({
        "parentRefs": [{ "name": "orders" }], "rules": [{ "backendRefs": [{ "name": backend }] }] }),
        )
    };
    let gone = |kind: &str, name: &str| json!({ "delete": { "kind": kind, "namespace": "shop", "name": name } });
    // The route before what it refers to: order does not matter.
    let answer =
        transact(json!([{ "apply": route("orders") }, { "apply": service("orders") }])).await.expect(200).json();
    assert_eq!(answer["revision"], 1);
    assert_eq!(answer["results"][1]["action"], "created");
    assert_eq!(
        answer["results"][0]["object"]["metadata"]["resourceVersion"],
        answer["results"][1]["object"]["metadata"]["resourceVersion"]
    );
    let version = answer["results"][1]["object"]["metadata"]["resourceVersion"].as_str().unwrap();

    let answer = transact(json!([gone("Service", "orders")])).await.expect(422);
    assert_eq!(answer.faults(), ["operations[0].delete", "operations[0].delete"]);
    transact(json!([{ "apply": service("x") }, gone("Service", "none")])).await.expect(404);
    server.get("/v1/namespaces/shop/services/x").await.expect(404);
    transact(json!([{ "apply": service("orders"), "ifMatch": "0" }])).await.expect(412);
    transact(json!([{ "apply": service("none"), "ifMatch": "*" }])).await.expect(412);
    let twice = transact(json!([{ "apply": service("x") }, { "apply": service("x") }])).await.expect(422);
    assert_eq!(twice.faults(), ["operations[1].apply"]);
    let mut changed = service("orders");
    changed["spec"]["ports"][0]["protocol"] = json!("http");
    let answer = transact(json!([
        { "apply": changed, "ifMatch": version }, { "apply": route("orders") }, { "apply": service("y"), "ifMatch": "0" },
    ])).await.expect(200).json();
    let actions: Vec<_> = answer["results"].as_array().unwrap().iter().map(|result| result["action"].clone()).collect();
    assert_eq!(actions, ["updated", "unchanged", "created"]);
    let settings = json!({ "delete": { "kind": "MeshConfig", "name": "mesh" } });
    let kept = transact(json!([gone("HTTPRoute", "r"), settings])).await.expect(422);
    assert_eq!(kept.faults(), ["operations[1].delete.kind"]);
    let answer =
        transact(json!([gone("HTTPRoute", "r"), gone("Service", "orders"), gone("Service", "y")])).await.expect(200);
    assert_eq!(answer.json()["results"][1]["object"]["metadata"]["name"], "orders");
}

#[tokio::test]
async fn revisions_can_be_seen_compared_and_restored() {
    let server = Server::start().await;
    server.put_service("orders").await.expect(201);
    server.put_service("payments").await.expect(201);
    server.delete(ORDERS).await.expect(200);
    let revisions = server.get("/v1/revisions").await.expect(200).json();
    let revisions = revisions["items"].as_array().unwrap();
    assert_eq!(revisions.len(), 3);
    assert_eq!((&revisions[2]["revision"], &revisions[2]["author"]), (&json!(3), &json!("tester")));
    assert_eq!(revisions[2]["counts"], json!({ "created": 0, "updated": 0, "deleted": 1 }));
    let one = server.get("/v1/revisions/2").await.expect(200).json();
    assert_eq!(one["changes"][0]["name"], "payments");
    server.get("/v1/revisions/9").await.expect(404);
    server.get("/v1/revisions/1/diff/9").await.expect(404);
    let diff = server.get("/v1/revisions/1/diff/3").await.expect(200).json();
    let names: Vec<_> = diff["items"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["orders", "payments"]);

    let dry = server.call(Method::POST, "/v1/rollback?dryRun=true", &json!({ "revision": 1 })).await.expect(200).json();
    assert_eq!(dry["results"].as_array().unwrap().len(), 2);
    server.get(ORDERS).await.expect(404);
    server.call(Method::POST, "/v1/rollback", &json!({ "revision": 1, "ifRevision": 2 })).await.expect(412);
    let done =
        server.call(Method::POST, "/v1/rollback", &json!({ "revision": 1, "ifRevision": 3 })).await.expect(200).json();
    assert_eq!(done["revision"], 4);
    server.get(ORDERS).await.expect(200);
    server.get("/v1/namespaces/shop/services/payments").await.expect(404);
    server.call(Method::POST, "/v1/rollback", &json!({ "revision": 9 })).await.expect(404);
    for bad in [json!({}), json!({ "revision": "1" }), json!({ "revision": -1 }), json!({ "revision": 1, "x": 1 })] {
        assert_eq!(server.call(Method::POST, "/v1/rollback", &bad).await.expect(400).faults().len(), 1, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_at_the_same_time_lose_nothing() {
    let server = Arc::new(Server::start().await);
    server.put_service("orders").await.expect(201);
    // More than one would try again.
    let patches: Vec<_> = (0..200)
        .map(|index| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let patch = json!({ "metadata": { "labels": { format!("l{}", index % 50): format!("x{index}") } } });
                server.call(Method::PATCH, "/v1/namespaces/shop/services/orders", &patch).await.expect(200);
            })
        })
        .collect();
    for patch in patches {
        patch.await.unwrap();
    }
    let labels =
        server.get("/v1/namespaces/shop/services/orders").await.expect(200).json()["metadata"]["labels"].clone();
    assert_eq!(labels.as_object().unwrap().len(), 50, "{labels}");
}
