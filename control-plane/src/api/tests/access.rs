//! Who may do what, and what is refused before any handler.

use super::*;

#[tokio::test(start_paused = true)]
async fn only_known_tokens_come_in() {
    let server = Server::start().await;
    let send = |authorization: Option<String>| {
        let mut request = Request::get("/v1/services");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        server.send(request.body(Body::empty()).unwrap())
    };
    let wrong = format!("heddle_{}_{}", "0".repeat(16), "0".repeat(64));
    for authorization in
        [None, Some("Basic eDp5".to_owned()), Some("Bearer x".to_owned()), Some(format!("Bearer {wrong}"))]
    {
        let answer = send(authorization).await.expect(401);
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
    send(Some(format!("bearer {}", server.token))).await.expect(200);
    let twice = Request::get("/v1/services")
        .header("authorization", format!("Bearer {}", server.token))
        .header("authorization", "Bearer x");
    server.send(twice.body(Body::empty()).unwrap()).await.expect(401);
    server.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await.expect(200);

    // A storm of wrong ones is cut off; a right one comes through meanwhile.
    let storm: Vec<_> = (0..100)
        .map(|_| {
            let (router, wrong) = (server.router.clone(), wrong.clone());
            tokio::spawn(async move {
                let request = Request::get("/v1/services").header("authorization", format!("Bearer {wrong}"));
                router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    server.get("/v1/services").await.expect(200);
    let mut refused = [0, 0];
    for one in storm {
        match one.await.unwrap() {
            401 => refused[0] += 1,
            429 => refused[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused[1] > 0 && refused[0] >= 64, "{refused:?}");
}

#[tokio::test]
async fn roles_limit_what_a_token_does() {
    let server = Server::start().await;
    server.put_service("orders").await.expect(201);
    let rules = [
        (Method::GET, "/v1/services", Role::Viewer),
        (Method::GET, "/v1/namespaces/shop/services/orders", Role::Viewer),
        (Method::GET, "/v1/revisions", Role::Viewer),
        (Method::GET, "/v1/revisions/1/diff/0", Role::Viewer),
        (Method::GET, "/v1/proxies", Role::Viewer),
        (Method::PUT, "/v1/namespaces/shop/services/orders", Role::Operator),
        (Method::PATCH, "/v1/namespaces/shop/services/orders", Role::Operator),
        (Method::DELETE, "/v1/namespaces/shop/services/orders", Role::Operator),
        (Method::PUT, "/v1/meshconfigs/mesh", Role::Operator),
        (Method::POST, "/v1/transactions", Role::Operator),
        (Method::POST, "/v1/rollback", Role::Operator),
        (Method::POST, "/v1/join-tokens", Role::Operator),
        (Method::GET, "/v1/join-tokens", Role::Operator),
        (Method::DELETE, "/v1/join-tokens/0123456789abcdef", Role::Operator),
        (Method::GET, "/v1/roots", Role::Viewer),
        (Method::POST, "/v1/roots/prepare", Role::Admin),
        (Method::POST, "/v1/roots/activate", Role::Admin),
        (Method::POST, "/v1/roots/retire", Role::Admin),
        (Method::POST, "/v1/api-tokens", Role::Admin),
        (Method::GET, "/v1/api-tokens", Role::Admin),
        (Method::DELETE, "/v1/api-tokens/0123456789abcdef", Role::Admin),
    ];
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        let token = server.token_of(role).await;
        for (method, path, needed) in &rules {
            let request =
                Request::builder().method(method).uri(*path).header("authorization", format!("Bearer {token}"));
            let status = server.send(request.body(Body::empty()).unwrap()).await.status;
            assert_eq!(status == StatusCode::FORBIDDEN, role < *needed, "{role:?} {method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn the_table_of_operations_is_all_there_is() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.expect(200).json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 25);
    for (path, item) in paths {
        let path = path.replace("{namespace}", "shop").replace("{name}", "x").replace("{id}", "0123456789abcdef");
        let path = path.replace("{revision}", "1").replace("{from}", "1").replace("{to}", "1");
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = server.send(server.request(method.clone(), &path).body(Body::empty()).unwrap()).await;
            let known = item.get(method.as_str().to_ascii_lowercase()).is_some();
            assert_eq!(answer.status != StatusCode::METHOD_NOT_ALLOWED, known, "{method} {path}");
            if !known {
                let allow = answer.expect(405).header("allow").to_owned();
                assert!(!allow.is_empty() && !allow.split(',').any(|one| one == method.as_str()), "{allow}");
            }
        }
    }
    for path in ["/", "/v1", "/v1/nothing", "/v1/services/", "/v1/namespaces/shop/meshconfigs", "/v1/meshconfigs/other"]
    {
        server.get(path).await.expect(404);
    }
}

#[tokio::test]
async fn parameters_and_forms_that_are_not_known_are_refused() {
    let server = Server::start().await;
    for query in [
        "resourceVersion=1",
        "continue=x",
        "labelSelector=a%20b",
        "watch=true&limit=1",
        "watch=true&resourceVersion=99",
    ] {
        assert_eq!(server.get(&format!("/v1/services?{query}")).await.expect(422).faults().len(), 1, "{query}");
    }
    let long = format!("labelSelector={}", "a".repeat(1025));
    for query in [
        long.as_str(),
        "lable=x",
        "limit=x",
        "limit=0",
        "limit=5001",
        "watch=yes",
        "limit=1&limit=2",
        "watch=true&resourceVersion=x",
        "dryRun=true",
    ] {
        let answer = server.get(&format!("/v1/services?{query}")).await.expect(400);
        assert_eq!(answer.faults().len(), 1, "{query}: {}", answer.body);
    }
    let typo = server.get("/v1/services?labelselector=x").await;
    assert!(typo.body.contains("did you mean \\\"labelSelector\\\"?"), "{}", typo.body);
    server.get("/v1/revisions/x").await.expect(400);

    let put = |headers: &[(&'static str, &'static str)], body: &str| {
        let mut request = server.request(Method::PUT, "/v1/namespaces/shop/services/orders");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        server.send(request.body(Body::from(body.to_owned())).unwrap())
    };
    let good = service("orders").to_string();
    put(&[], &good).await.expect(415);
    put(&[("content-type", "text/plain")], &good).await.expect(415);
    put(&[("content-type", "application/json"), ("content-encoding", "gzip")], &good).await.expect(415);
    put(&[("content-type", "application/json"), ("accept", "text/html")], &good).await.expect(406);
    put(&[("content-type", "application/json"), ("if-match", "x")], &good).await.expect(400);
    put(&[("content-type", "application/json"), ("if-none-match", "\"1\"")], &good).await.expect(400);
    put(&[("content-type", "application/json")], "{").await.expect(400);
    put(&[("content-type", "application/json")], &good.replace("\"kind\"", "\"kind\":\"Service\",\"kind\""))
        .await
        .expect(400);
    put(&[("content-type", "application/json")], &format!("{good}{}", " ".repeat(4 << 20))).await.expect(413);
    put(&[("content-type", "application/yaml")], "a: &a [*a]").await.expect(400);
    put(&[("content-type", "application/json")], &good).await.expect(201);
}

#[tokio::test]
async fn tokens_are_made_listed_and_deleted() {
    let server = Server::start().await;
    let made =
        server.call(Method::POST, "/v1/api-tokens", &json!({ "name": "ci", "role": "operator" })).await.expect(201);
    let made = made.json();
    let listed = server.get("/v1/api-tokens").await.expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(listed["items"].as_array().unwrap().iter().all(|token| token.get("token").is_none()));
    let used =
        Request::get("/v1/services").header("authorization", format!("Bearer {}", made["token"].as_str().unwrap()));
    server.send(used.body(Body::empty()).unwrap()).await.expect(200);
    server.delete(&format!("/v1/api-tokens/{}", made["id"].as_str().unwrap())).await.expect(204);
    let admin = listed["items"].as_array().unwrap().iter().find(|token| token["role"] == "admin").unwrap();
    let own = admin["id"].as_str().unwrap();
    server.delete(&format!("/v1/api-tokens/{own}")).await.expect(409);
    let other = server.token_of(Role::Admin).await;
    let delete_self = Request::delete(format!("/v1/api-tokens/{}", other.split('_').nth(1).unwrap()));
    let delete_self = delete_self.header("authorization", format!("Bearer {other}")).body(Body::empty()).unwrap();
    server.send(delete_self).await.expect(409);
    let delete_other =
        Request::delete(format!("/v1/api-tokens/{own}")).header("authorization", format!("Bearer {other}"));
    server.send(delete_other.body(Body::empty()).unwrap()).await.expect(204);
    let server = Server { token: other, ..server };
    server.delete("/v1/api-tokens/0123456789abcdef").await.expect(404);
    for (body, path) in [
        (json!({ "name": "x" }), "role"),
        (json!({ "name": "x", "role": "root" }), "role"),
        (json!({ "name": "x\ny", "role": "admin" }), "name"),
        (json!({ "name": "x", "role": "admin", "ttl": "1h" }), "ttl"),
    ] {
        assert_eq!(server.call(Method::POST, "/v1/api-tokens", &body).await.expect(400).faults(), [path]);
    }

    // Whatever a service lists can join.
    let dotted = json!({ "namespace": "shop", "serviceAccount": "ci.bot" });
    let made = server.call(Method::POST, "/v1/join-tokens", &dotted).await.expect(201).json();
    assert!(made["identity"].as_str().unwrap().ends_with("/ns/shop/sa/ci.bot"), "{made}");
    server.delete(&format!("/v1/join-tokens/{}", made["id"].as_str().unwrap())).await;
    let wanted = json!({ "namespace": "shop", "serviceAccount": "orders", "ttl": "10m", "uses": 3 });
    let join = server.call(Method::POST, "/v1/join-tokens", &wanted).await.expect(201).json();
    assert_eq!(join["controlPlane"], "127.0.0.1:9701");
    assert_eq!(join["identity"], "spiffe://heddle.local/ns/shop/sa/orders");
    assert_eq!(join["trustAnchors"], "PEM");
    let text = join["token"].as_str().unwrap();
    let redeemed = server.state.join_tokens.redeem(text, b"key", std::time::SystemTime::now()).await.unwrap();
    assert_eq!(redeemed.service_account, "orders");
    let listed = server.get("/v1/join-tokens").await.expect(200).json();
    assert_eq!((&listed["items"][0]["used"], &listed["items"][0]["uses"]), (&json!(1), &json!(3)));
    assert!(listed["items"][0].get("token").is_none() && listed["items"][0].get("digest").is_none());
    server.delete(&format!("/v1/join-tokens/{}", join["id"].as_str().unwrap())).await.expect(204);
    for (body, status, path) in [
        (json!({ "namespace": "Shop", "serviceAccount": "a" }), 400, "namespace"),
        (json!({ "namespace": "shop", "serviceAccount": "ci..bot" }), 400, "serviceAccount"),
        (json!({ "namespace": "shop", "serviceAccount": "a", "uses": 0 }), 400, "uses"),
        (json!({ "namespace": "shop", "serviceAccount": "a", "ttl": "1 hour" }), 400, "ttl"),
        (json!({ "namespace": "shop", "serviceAccount": "a", "ttl": "0s" }), 422, "ttl"),
        (json!({ "namespace": "shop", "serviceAccount": "a", "ttl": "99999h" }), 422, "ttl"),
    ] {
        assert_eq!(server.call(Method::POST, "/v1/join-tokens", &body).await.expect(status).faults(), [path]);
    }
}

#[tokio::test]
async fn proxies_are_listed() {
    let server = Server::start().await;
    let proxies = server.get("/v1/proxies").await.expect(200).json();
    assert_eq!(proxies["items"][0]["name"], "shop/orders-1");
    assert_eq!(proxies["items"][0]["resources"]["applied"], 0);
}

#[tokio::test]
async fn revocations_are_made_and_listed() {
    let server = Server::start().await;
    let identity = json!({ "namespace": "shop", "serviceAccount": "orders" });
    let made = server.call(Method::POST, "/v1/revocations", &identity).await.expect(201).json();
    assert_eq!((&made["namespace"], &made["serviceAccount"]), (&identity["namespace"], &identity["serviceAccount"]));
    assert!(made["revoked"].as_str() < made["until"].as_str(), "{made}");
    assert_eq!(server.get("/v1/revocations").await.expect(200).json()["items"], json!([made]));
    for body in [json!({ "namespace": "shop" }), json!({ "namespace": "Shop", "serviceAccount": "a" })] {
        server.call(Method::POST, "/v1/revocations", &body).await.expect(400);
    }
}
