//! Forms: YAML, faults, the OpenAPI document.

use super::*;

#[tokio::test]
async fn yaml_goes_in_and_out() {
    let server = Server::start().await;
    let yaml = "apiVersion: heddle.dev/v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec:\n  ports:\n  - port: 80\n";
    let request = server
        .request(Method::PUT, "/v1/namespaces/shop/services/orders")
        .header("content-type", "application/yaml")
        .header("accept", "application/yaml");
    let answer = server.send(request.body(Body::from(yaml)).unwrap()).await.expect(201);
    assert_eq!(answer.header("content-type"), "application/yaml");
    let back: Value = serde_yaml_ng::from_str(&answer.body).unwrap();
    assert_eq!(back["spec"]["ports"][0]["port"], 80);
    assert_eq!(back["status"]["applied"], 3);
    // What is got can be put back as it is.
    let again =
        server.request(Method::PUT, "/v1/namespaces/shop/services/orders").header("content-type", "application/yaml");
    let again = server.send(again.body(Body::from(answer.body)).unwrap()).await.expect(200).json();
    assert_eq!(again["metadata"], back["metadata"]);
}

#[tokio::test]
async fn every_fault_is_told_with_its_path() {
    let server = Server::start().await;
    let bad = object("Service", "orders", json!({ "ports": [{ "port": 0 }, { "prot": 1 }], "x": 1 }));
    let answer = server.put("/v1/namespaces/shop/services/orders", &bad).await.expect(400);
    assert_eq!(answer.faults(), ["spec.ports[0].port", "spec.ports[1].port", "spec.ports[1].prot", "spec.x"]);
    let odd = object("Service", "orders", json!({ "ports": [{ "port": 80 }, { "port": 80 }] }));
    let answer = server.put("/v1/namespaces/shop/services/orders", &odd).await.expect(422);
    assert_eq!(answer.faults(), ["spec.ports[1].port"]);
    let other = server.put("/v1/namespaces/web/services/payments", &service("orders")).await.expect(422);
    assert_eq!(other.faults(), ["metadata.name", "metadata.namespace"]);
    let kind = server.put("/v1/namespaces/shop/workloads/orders", &service("orders")).await.expect(400);
    assert_eq!(kind.faults(), ["kind"]);
    let route = object(
        "HTTPRoute",
        "r",
        json!({
        "parentRefs": [{ "name": "nobody" }], "rules": [{ "backendRefs": [{ "name": "nobody" }] }] }),
    );
    let dangling = server.put("/v1/namespaces/shop/httproutes/r", &route).await.expect(422);
    assert_eq!(dangling.faults(), ["spec.parentRefs[0].name", "spec.rules[0].backendRefs[0].name"]);

    let operations = json!({ "operations": [
        { "apply": bad },
        { "apply": object("HTTPRoute", "r", json!({ "parentRefs": [{ "name": "x" }], "rules": [{}] })) },
        { "apply": service("a"), "delete": { "kind": "Service", "name": "a", "namespace": "shop" } },
        { "delete": { "kind": "Service", "name": "a" } },
        { "delete": { "kind": "Srvice", "name": "a", "namespace": "shop" } },
        {},
        { "apply": service("b"), "ifMatch": 12 },
        { "apply": service("c"), "ifmatch": "12" },
        7,
    ], "dryRun": true });
    let answer = server.call(Method::POST, "/v1/transactions", &operations).await.expect(400);
    assert_eq!(
        answer.faults(),
        [
            "dryRun",
            "operations[0].apply.spec.ports[0].port",
            "operations[0].apply.spec.ports[1].port",
            "operations[0].apply.spec.ports[1].prot",
            "operations[0].apply.spec.x",
            "operations[1].apply.spec.rules[0].backendRefs",
            "operations[2]",
            "operations[3].delete.namespace",
            "operations[4].delete.kind",
            "operations[5]",
            "operations[6].ifMatch",
            "operations[7].ifmatch",
            "operations[8]",
        ]
    );
    let operations = json!({ "operations": [{ "apply": service("a") }, { "apply": route }] });
    let answer = server.call(Method::POST, "/v1/transactions", &operations).await.expect(422);
    assert_eq!(answer.faults()[0], "operations[1].apply.spec.parentRefs[0].name");
    for empty in [json!({}), json!({ "operations": [] }), json!([]), json!(null)] {
        server.call(Method::POST, "/v1/transactions", &empty).await.expect(400);
    }
}

#[tokio::test]
async fn the_openapi_document_is_one() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.expect(200).json();
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    // Every reference leads somewhere, and every definition is used.
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    for name in schemas.keys() {
        assert!(text.contains(&format!("\"#/components/schemas/{name}\"")), "{name} is not used");
    }
    let ids: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation["operationId"].as_str())
        .collect();
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    let put = &document["paths"]["/v1/namespaces/{namespace}/services/{name}"]["put"];
    for status in ["200", "201", "400", "401", "403", "406", "412", "413", "415", "422", "429"] {
        assert!(put["responses"].get(status).is_some(), "{status}");
    }
}

#[tokio::test]
async fn the_examples_hold_together() {
    use heddle_api::schema::examples;
    let server = Server::start().await;
    for kind in heddle_api::resource::ObjectKind::ALL {
        let name = AnyObject::from_value(*kind, examples::object(*kind)).unwrap().name();
        server.put(&call::place(*kind, &name), &examples::object(*kind)).await.expect(201);
    }
}
