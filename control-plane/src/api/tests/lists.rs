//! Lists, pages and watches.

use axum::body::BodyDataStream;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::StreamExt as _;

use super::*;
use crate::registry::Registration;

impl Server {
    async fn labelled(&self, name: &str, labels: Value) {
        let mut document = service(name);
        document["metadata"]["labels"] = labels;
        let answer = self.put(&format!("/v1/namespaces/shop/services/{name}"), &document).await;
        assert!(answer.status.is_success(), "{}", answer.body);
    }

    pub(super) async fn names(&self, path: &str) -> Vec<String> {
        names(&self.get(path).await.expect(200).json())
    }

    async fn watch(&self, path: &str) -> Lines {
        let request = self.request(Method::GET, path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Lines { stream: response.into_body().into_data_stream(), buffer: String::new() }
    }

    async fn register(&self, name: &str) {
        let registration = Registration {
            name: heddle_api::resource::Name::new("shop", name),
            revision: 0,
            identity: "spiffe://heddle.local/ns/shop/sa/orders".to_owned(),
            address: "10.0.0.1:15006".parse().unwrap(),
            services: [("shop/orders".to_owned(), Vec::new())].into(),
            app_ports: [].into(),
            labels: [("v".to_owned(), "1".to_owned())].into(),
            zone: String::new(),
            version: String::new(),
            ready: true,
        };
        assert!(self.state.registry.register(&registration, None).await.unwrap());
    }
}

pub(super) fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

struct Lines {
    stream: BodyDataStream,
    buffer: String,
}

impl Lines {
    /// The next line as (type, name or version); nothing at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        let wait = std::time::Duration::from_secs(600);
        let line = tokio::time::timeout(wait, self.line()).await.expect("a line comes")?;
        let event: Value = serde_json::from_str(&line).unwrap();
        let metadata = &event["object"]["metadata"];
        let what = if event["type"] == "BOOKMARK" { &metadata["resourceVersion"] } else { &metadata["name"] };
        Some((event["type"].as_str().unwrap().to_owned(), what.as_str().unwrap().to_owned()))
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.buffer.split_once('\n') {
                let line = line.to_owned();
                self.buffer = rest.to_owned();
                return Some(line);
            }
            self.buffer.push_str(std::str::from_utf8(&self.stream.next().await?.unwrap()).unwrap());
        }
    }

    async fn expect(&mut self, event: &str, what: &str) {
        assert_eq!(self.next().await, Some((event.to_owned(), what.to_owned())));
    }
}

#[tokio::test]
async fn lists_select_by_labels_and_namespace() {
    let server = Server::start().await;
    server.labelled("a", json!({ "tier": "web", "v": "1" })).await;
    server.labelled("b", json!({ "tier": "db" })).await;
    server.labelled("c", json!({})).await;
    let mut other = service("d");
    other["metadata"]["namespace"] = json!("web");
    server.put("/v1/namespaces/web/services/d", &other).await.expect(201);
    assert_eq!(server.names("/v1/services").await, ["a", "b", "c", "d"]);
    assert_eq!(server.names("/v1/namespaces/shop/services").await, ["a", "b", "c"]);
    assert_eq!(server.names("/v1/namespaces/shop/services?labelSelector=tier%3Dweb").await, ["a"]);
    assert_eq!(server.names("/v1/services?labelSelector=tier+in+(web,db),v").await, ["a"]);
    assert_eq!(server.names("/v1/services?labelSelector=!tier").await, ["c", "d"]);
    assert!(server.names("/v1/namespaces/none/services").await.is_empty());
    let list = server.get("/v1/meshconfigs").await.expect(200).json();
    assert_eq!((&list["kind"], &list["items"]), (&json!("MeshConfigList"), &json!([])));
}

#[tokio::test]
async fn pages_are_as_of_one_moment() {
    let server = Server::start_keeping(20).await;
    for name in ["a", "b", "c", "d", "e"] {
        server.put_service(name).await.expect(201);
    }
    let first = server.get("/v1/services?limit=2").await.expect(200).json();
    assert_eq!(names(&first), ["a", "b"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    // What happens between pages is not in them.
    server.delete("/v1/namespaces/shop/services/c").await.expect(200);
    server.put_service("bb").await.expect(201);
    let second = server.get(&format!("/v1/services?limit=2&continue={next}")).await.expect(200).json();
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let last = second["metadata"]["continue"].as_str().unwrap();
    let last = server.get(&format!("/v1/services?limit=2&continue={last}")).await.expect(200).json();
    assert_eq!(names(&last), ["e"]);
    assert!(last["metadata"].get("continue").is_none());
    assert_eq!(server.names("/v1/services?limit=4").await, ["a", "b", "bb", "d"]);

    server.get(&format!("/v1/workloads?limit=2&continue={next}")).await.expect(422);
    server.get(&format!("/v1/services?labelSelector=x&continue={next}")).await.expect(422);
    for n in 0..10 {
        for name in ["x", "y", "z", "w", "v"] {
            server.labelled(name, json!({ "n": n.to_string() })).await;
            server.get("/v1/services?limit=1").await.expect(200);
        }
    }
    // Neither writes nor those who page through other lists end it.
    let again = server.get(&format!("/v1/services?limit=2&continue={next}")).await.expect(200).json();
    assert_eq!(names(&again), ["c", "d"]);
    // What nobody pages through is not read anew, whatever a token says.
    let mut token: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(next).unwrap()).unwrap();
    token["revision"] = json!(token["revision"].as_u64().unwrap() - 1);
    let made_up = BASE64_URL_SAFE_NO_PAD.encode(token.to_string());
    server.get(&format!("/v1/services?limit=2&continue={made_up}")).await.expect(410);
}

#[tokio::test]
async fn registered_workloads_are_listed_among_the_declared() {
    let server = Server::start().await;
    server.put_service("orders").await.expect(201);
    let declared = object("Workload", "w-1", json!({ "address": "10.0.0.9", "services": [{ "name": "orders" }] }));
    server.put("/v1/namespaces/shop/workloads/w-1", &declared).await.expect(201);
    for name in ["a-1", "w-1", "z-1"] {
        server.register(name).await;
    }
    assert_eq!(server.names("/v1/workloads").await, ["w-1", "a-1", "z-1"]);
    assert_eq!(server.names("/v1/workloads?labelSelector=heddle.dev/registered").await, ["a-1", "z-1"]);
    let mut paged = Vec::new();
    let mut path = "/v1/namespaces/shop/workloads?limit=1".to_owned();
    loop {
        let page = server.get(&path).await.expect(200).json();
        paged.extend(names(&page));
        let Some(next) = page["metadata"]["continue"].as_str() else { break };
        path = format!("/v1/namespaces/shop/workloads?limit=1&continue={next}");
    }
    assert_eq!(paged, ["w-1", "a-1", "z-1"]);
    let got = server.get("/v1/namespaces/shop/workloads/w-1").await.expect(200).json();
    assert_eq!(got["spec"]["address"], "10.0.0.9", "the declared one counts");
    let got = server.get("/v1/namespaces/shop/workloads/a-1").await.expect(200).json();
    assert_eq!(got["metadata"]["labels"]["heddle.dev/registered"], "true");
    server.delete("/v1/namespaces/shop/workloads/a-1").await.expect(409);
    let patch = json!({ "spec": { "weight": 2 } });
    server.call(Method::PATCH, "/v1/namespaces/shop/workloads/a-1", &patch).await.expect(409);
    assert_eq!(server.get("/v1/revisions").await.json()["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn watches_tell_what_there_is_and_what_changes() {
    let server = Server::start().await;
    server.labelled("a", json!({ "tier": "web" })).await;
    server.labelled("b", json!({})).await;
    let mut all = server.watch("/v1/services?watch=true").await;
    let mut web = server.watch("/v1/namespaces/shop/services?watch=true&labelSelector=tier=web").await;
    all.expect("ADDED", "a").await;
    all.expect("ADDED", "b").await;
    let (bookmark, version) = all.next().await.unwrap();
    assert_eq!(bookmark, "BOOKMARK");
    web.expect("ADDED", "a").await;
    web.expect("BOOKMARK", &version).await;

    server.labelled("b", json!({ "tier": "web" })).await;
    server.labelled("a", json!({})).await;
    server.delete("/v1/namespaces/shop/services/b").await.expect(200);
    server
        .put(
            "/v1/meshconfigs/mesh",
            &json!({ "apiVersion": "heddle.dev/v1", "kind": "MeshConfig",
        "metadata": { "name": "mesh" }, "spec": {} }),
        )
        .await
        .expect(201);
    for (event, name) in [("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        all.expect(event, name).await;
    }
    for (event, name) in [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")] {
        web.expect(event, name).await;
    }
    // When nothing happens, a bookmark says how far it is: past what it does not show.
    let newest = server.state.registry.store().revision().to_string();
    all.expect("BOOKMARK", &newest).await;

    // A client that was away goes on where it was.
    let mut resumed = server.watch(&format!("/v1/services?watch=true&resourceVersion={version}")).await;
    for (event, name) in [("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        resumed.expect(event, name).await;
    }
    server.stop.drain();
    assert_eq!(resumed.next().await, None, "watches end when the server does");
}

#[tokio::test(start_paused = true)]
async fn watches_of_workloads_show_registrations() {
    let server = Server::start().await;
    server.register("a-1").await;
    let mut watch = server.watch("/v1/workloads?watch=true").await;
    watch.expect("ADDED", "a-1").await;
    assert_eq!(watch.next().await.unwrap().0, "BOOKMARK");
    server.register("b-1").await;
    watch.expect("ADDED", "b-1").await;
    let name = heddle_api::resource::Name::new("shop", "a-1");
    let known = server.state.registry.view().registration(&name).cloned().unwrap();
    assert!(server.state.registry.deregister(&[known]).await.unwrap());
    watch.expect("DELETED", "a-1").await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_what_is_forgotten_is_gone() {
    let server = Server::start_keeping(10).await;
    for n in 0..60 {
        server.labelled("a", json!({ "n": n.to_string() })).await;
    }
    // What is forgotten on disk may be in memory still, so start anew.
    let Server { folder, state, router, .. } = server;
    drop((state, router));
    let server = Server::start_in(folder, 10).await;
    server.get("/v1/services?watch=true&resourceVersion=1").await.expect(410);
    let newest = server.state.registry.store().revision();
    let mut watch = server.watch(&format!("/v1/services?watch=true&resourceVersion={newest}")).await;
    server.labelled("b", json!({})).await;
    watch.expect("ADDED", "b").await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_token() {
    let server = Server::start().await;
    let (token, text) = server.state.api_tokens.create("short", Role::Viewer).await.unwrap();
    let request = Request::get("/v1/services?watch=true").header("authorization", format!("Bearer {text}"));
    let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut watch = Lines { stream: response.into_body().into_data_stream(), buffer: String::new() };
    assert_eq!(watch.next().await.unwrap().0, "BOOKMARK");
    server.state.api_tokens.delete(&token.id).await.unwrap();
    let mut bookmarks = 0;
    while watch.next().await.is_some() {
        bookmarks += 1;
    }
    assert!(bookmarks <= 2);
}

#[tokio::test(start_paused = true)]
async fn what_goes_has_the_version_at_which_it_went() {
    let server = Server::start().await;
    server.put_service("orders").await.expect(201);
    let mut watch = server.watch("/v1/services?watch=true").await;
    watch.expect("ADDED", "orders").await;
    assert_eq!(watch.next().await.unwrap().0, "BOOKMARK");
    server.delete("/v1/namespaces/shop/services/orders").await.expect(200);
    let event: Value = serde_json::from_str(&watch.line().await.unwrap()).unwrap();
    let now = server.state.registry.view().revision().to_string();
    assert_eq!((&event["type"], &event["object"]["metadata"]["resourceVersion"]), (&json!("DELETED"), &json!(now)));
}

#[tokio::test(start_paused = true)]
async fn a_declared_workload_stands_for_the_registered_one_in_watches_too() {
    let server = Server::start().await;
    server.put_service("orders").await.expect(201);
    server.register("vm").await;
    let mut watch = server.watch("/v1/workloads?watch=true").await;
    watch.expect("ADDED", "vm").await;
    assert_eq!(watch.next().await.unwrap().0, "BOOKMARK");
    let declared = json!({ "address": "10.0.0.1", "inboundPort": 1, "serviceAccount": "orders",
        "services": [{ "name": "orders" }] });
    server.put("/v1/namespaces/shop/workloads/vm", &object("Workload", "vm", declared)).await.expect(201);
    watch.expect("MODIFIED", "vm").await;
    // The proxy goes: what was declared is there still. Then it is declared no more.
    let name = heddle_api::resource::Name::new("shop", "vm");
    let known = server.state.registry.view().registration(&name).cloned().unwrap();
    assert!(server.state.registry.deregister(&[known]).await.unwrap());
    server.delete("/v1/namespaces/shop/workloads/vm").await.expect(200);
    watch.expect("DELETED", "vm").await;
}

#[tokio::test(start_paused = true)]
async fn a_long_list_is_made_ready_bit_by_bit() {
    let server = Server::start().await;
    let operations: Vec<_> = (0..700).map(|index| json!({ "apply": service(&format!("s{index:03}")) })).collect();
    server.call(Method::POST, "/v1/transactions", &json!({ "operations": operations })).await.expect(200);
    let mut watch = server.watch("/v1/services?watch=true").await;
    for index in 0..700 {
        watch.expect("ADDED", &format!("s{index:03}")).await;
    }
    assert_eq!(watch.next().await.unwrap().0, "BOOKMARK");
    // A transaction of many, too.
    let operations: Vec<_> = (0..600)
        .map(|index| json!({ "delete": { "kind": "Service", "namespace": "shop", "name": format!("s{index:03}") } }))
        .collect();
    server.call(Method::POST, "/v1/transactions", &json!({ "operations": operations })).await.expect(200);
    for index in 0..600 {
        watch.expect("DELETED", &format!("s{index:03}")).await;
    }
}

#[tokio::test]
async fn lists_are_of_what_refers_to_a_service() {
    let server = Server::start().await;
    for name in ["orders", "payments"] {
        server.put_service(name).await.expect(201);
    }
    let policy = |target: Value| json!({ "targetRef": target, "action": "ALLOW", "rules": [{}] });
    let on = |name: &str| policy(json!({ "kind": "Service", "name": name }));
    let path = "/v1/namespaces/shop/authorizationpolicies";
    for (name, spec) in [("a", on("orders")), ("b", on("payments")), ("c", on("orders"))] {
        server.put(&format!("{path}/{name}"), &object("AuthorizationPolicy", name, spec)).await.expect(201);
    }
    let mut all = object("AuthorizationPolicy", "all", json!({ "action": "DENY", "rules": [{}] }));
    server.put(&format!("{path}/all"), &all).await.expect(201);
    all["metadata"]["namespace"] = "heddle".into();
    server.put("/v1/namespaces/heddle/authorizationpolicies/all", &all).await.expect(201);
    assert_eq!(server.names("/v1/authorizationpolicies?references=shop/orders").await, ["all", "a", "all", "c"]);
    assert_eq!(server.names(&format!("{path}?references=shop/orders")).await, ["a", "all", "c"]);
    assert_eq!(server.names("/v1/authorizationpolicies?references=other/orders").await, ["all"]);

    // Page by page, each of this list only.
    let first = server.get(&format!("{path}?references=shop/orders&limit=2")).await.expect(200).json();
    assert_eq!(names(&first), ["a", "all"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let rest = format!("limit=2&continue={next}");
    assert_eq!(server.names(&format!("{path}?references=shop/orders&{rest}")).await, ["c"]);
    server.get(&format!("{path}?references=shop/payments&{rest}")).await.expect(422);

    server.register("orders-1").await;
    assert_eq!(server.names("/v1/workloads?references=shop/orders").await, ["orders-1"]);
    assert_eq!(server.names("/v1/workloads?references=shop/payments").await, [""; 0]);
    server.get("/v1/workloads?references=orders").await.expect(400);
    server.get("/v1/workloads?references=shop/orders&watch=true").await.expect(422);
}

#[tokio::test]
async fn a_token_has_so_many_watches_and_no_more() {
    let server = Server::start().await;
    let mut open = Vec::new();
    for _ in 0..watch::MAX_OF_TOKEN {
        open.push(server.watch("/v1/services?watch=true").await);
    }
    let refused = server.get("/v1/services?watch=true").await.expect(429);
    assert_eq!(refused.header("retry-after"), "1");
    open.pop();
    open.push(server.watch("/v1/services?watch=true").await);
}
