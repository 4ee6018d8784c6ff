//! The API from outside, request by request.

mod access;
mod documents;
mod kubernetes;
mod lists;
mod writes;

use std::sync::Arc;

use axum::{Router, body::Body};
use heddle_api::resource::{AnyObject, ObjectStatus};
use heddle_runtime::drain;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    store::{RedbOptions, RedbStore, Store},
    tokens::Role,
};

/// An API with an empty registry.
struct Server {
    router: Router,
    state: ApiState,
    token: String,
    stop: drain::Signal,
    folder: tempfile::TempDir,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks the status, and that a refusal is a problem of that status.
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        if status >= 400 {
            assert_eq!(self.header("content-type"), "application/problem+json");
            let problem = self.json();
            assert_eq!(problem["status"], status);
            assert!(problem["type"].as_str().unwrap().starts_with("/problems/"), "{problem}");
            assert!(!problem["detail"].as_str().unwrap().is_empty());
        }
        self
    }

    /// Paths of the faults.
    fn faults(&self) -> Vec<String> {
        let faults = self.json()["faults"].as_array().cloned().unwrap_or_default();
        faults.iter().map(|fault| fault["path"].as_str().unwrap().to_owned()).collect()
    }
}

#[derive(Debug)]
struct Statuses;

impl StatusSource for Statuses {
    fn status(&self, object: &AnyObject) -> ObjectStatus {
        let observed_generation = object.metadata().generation.unwrap_or(0);
        ObjectStatus { observed_generation, applied: 3, ..ObjectStatus::default() }
    }

    fn proxies(&self) -> Vec<ProxyStatus> {
        vec![ProxyStatus {
            name: "shop/orders-1".to_owned(),
            identity: "spiffe://heddle.local/ns/shop/sa/orders".to_owned(),
            services: vec!["shop/orders".to_owned()],
            address: None,
            connected: true,
            since: Some("2026-01-01T00:00:00Z".to_owned()),
            version: "0.1.0".to_owned(),
            resources: ProxyResources::default(),
            ready: Some(true),
            contested: false,
            certificate_expiry: None,
        }]
    }
}

#[derive(Debug)]
struct Join;

impl JoinInfo for Join {
    fn mesh_address(&self) -> String {
        "127.0.0.1:9701".to_owned()
    }

    fn trust_anchors(&self) -> String {
        "PEM".to_owned()
    }
}

/// Somebody else's.
#[derive(Debug)]
struct NoRoots;

impl RootKeeper for NoRoots {
    fn status(&self) -> RootStatus {
        RootStatus {
            phase: RootPhase::Steady,
            epoch: 1,
            roots: Vec::new(),
            trust_anchors: "PEM".to_owned(),
            proxies: 0,
            behind_count: 0,
            behind: Vec::new(),
            old_certificates_count: 0,
            old_certificates: Vec::new(),
            old_certificates_until: None,
            waits_until: None,
        }
    }

    fn step(&self, step: RootStep, force: bool) -> Result<RootStatus, RootRefusal> {
        if force { Ok(self.status()) } else { Err(RootRefusal::Conflict(format!("no {step:?}"))) }
    }
}

impl Server {
    async fn start() -> Self {
        Self::start_keeping(10_000).await
    }

    async fn start_keeping(keep_revisions: u64) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), keep_revisions).await
    }

    async fn start_in(folder: tempfile::TempDir, keep_revisions: u64) -> Self {
        let options = RedbOptions { cache_bytes: 1 << 20, keep_revisions, ..RedbOptions::default() };
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&folder.path().join("store.redb"), &options).unwrap());
        let (stop, watch) = drain::channel();
        let state = ApiState {
            registry: Registry::open(Arc::clone(&store)).await.unwrap(),
            api_tokens: ApiTokens::new(Arc::clone(&store)),
            join_tokens: JoinTokens::new(Arc::clone(&store)),
            revocations: Revocations::open(store).await.unwrap(),
            status: Arc::new(Statuses),
            join: Arc::new(Join),
            roots: Arc::new(NoRoots),
            trust_domain: "heddle.local".parse().unwrap(),
            drain: watch,
        };
        let (_, token) = state.api_tokens.create("tester", Role::Admin).await.unwrap();
        Self { router: router(state.clone()), state, token, stop, folder }
    }

    /// A token of another role.
    async fn token_of(&self, role: Role) -> String {
        self.state.api_tokens.create(role.as_str(), role).await.unwrap().1
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header("authorization", format!("Bearer {}", self.token))
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path).body(Body::empty()).unwrap()).await
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.call_with(method, path, body, &[]).await
    }

    async fn call_with(&self, method: Method, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = self.request(method, path).header("content-type", media);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    /// Puts a service into namespace `shop`.
    async fn put_service(&self, name: &str) -> Answer {
        self.put(&format!("/v1/namespaces/shop/services/{name}"), &service(name)).await
    }
}

fn service(name: &str) -> Value {
    object("Service", name, json!({ "ports": [{ "port": 80 }] }))
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "heddle.dev/v1", "kind": kind, "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
    })
}
