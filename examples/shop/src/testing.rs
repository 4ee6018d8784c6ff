//! The shop in one process, without a mesh, with calls that fail where a test wants it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{
    books::{Books, INVENTORY_DB, ORDERS_DB, PAYMENTS_DB},
    database::Database,
    inventory,
    orders::{self, Saga, Suppliers, SuppliersArgs},
    payments, service, storefront,
};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const GOOD_CARD: &str = "4242424242424242";
pub(crate) const DECLINED_CARD: &str = "4000000000000002";

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not take effect and fails.
    FailBefore,
    /// It takes effect, and fails nevertheless.
    FailAfter,
    /// It does not take effect and is never answered.
    HangBefore,
    /// It takes effect and is never answered.
    HangAfter,
}

type Plan = dyn Fn(usize, &str) -> Option<Fault> + Send;

/// Which calls fail, by their number (from 0, over both suppliers) and `METHOD /path`.
#[derive(Clone)]
pub(crate) struct Faults {
    plan: Arc<Mutex<Box<Plan>>>,
    calls: Arc<Mutex<Vec<String>>>,
    hanging: Arc<Notify>,
}

impl Faults {
    fn none() -> Self {
        Self { plan: Arc::new(Mutex::new(Box::new(|_, _| None))), calls: Arc::default(), hanging: Arc::default() }
    }

    pub(crate) fn plan(&self, plan: impl Fn(usize, &str) -> Option<Fault> + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    /// Calls so far, as `METHOD /path`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Until a call hangs.
    pub(crate) async fn hanging(&self) {
        tokio::time::timeout(PATIENCE, self.hanging.notified()).await.expect("no call hangs");
    }

    fn next(&self, request: &Request) -> Option<Fault> {
        let call = format!("{} {}", request.method(), request.uri().path());
        let mut calls = self.calls.lock().unwrap();
        let fault = self.plan.lock().unwrap()(calls.len(), &call);
        calls.push(call);
        fault
    }

    async fn layer(State(faults): State<Self>, request: Request, next: Next) -> Response {
        let fault = faults.next(&request);
        let failed = || StatusCode::SERVICE_UNAVAILABLE.into_response();
        match fault {
            None => next.run(request).await,
            Some(Fault::FailBefore) => failed(),
            Some(Fault::FailAfter) => {
                next.run(request).await;
                failed()
            }
            Some(Fault::HangBefore) => faults.hang().await,
            Some(Fault::HangAfter) => {
                next.run(request).await;
                faults.hang().await
            }
        }
    }

    async fn hang(&self) -> Response {
        self.hanging.notify_one();
        std::future::pending().await
    }
}

/// Inventory and payments, served as long as the test runs; orders is started apart.
pub(crate) struct TestShop {
    directory: TempDir,
    pub(crate) faults: Faults,
    pub(crate) inventory_url: String,
    payments_url: String,
}

impl TestShop {
    pub(crate) async fn start() -> Self {
        install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::none();
        let sickly = |router: Router| router.layer(middleware::from_fn_with_state(faults.clone(), Faults::layer));
        let database = Database::open(&directory.path().join(INVENTORY_DB), inventory::SCHEMA).await.unwrap();
        let inventory_url = serve(sickly(inventory::router(inventory::Store::new(database)))).await;
        let database = Database::open(&directory.path().join(PAYMENTS_DB), payments::SCHEMA).await.unwrap();
        let payments = payments::router(payments::Store::new(database), "v1".to_owned());
        let payments_url = serve(sickly(payments)).await;
        Self { directory, faults, inventory_url, payments_url }
    }

    /// Starts orders; any earlier one must have ended.
    pub(crate) async fn orders(&self) -> TestOrders {
        let args = SuppliersArgs {
            payments: self.payments_url.clone(),
            inventory: self.inventory_url.clone(),
            call_timeout_ms: 2_000,
        };
        TestOrders::start(self.directory.path(), args).await
    }

    /// A storefront of its own for these orders.
    pub(crate) async fn storefront(&self, orders: &TestOrders) -> String {
        serve(storefront::router(&orders.url, &self.inventory_url, CancellationToken::new()).unwrap()).await
    }

    pub(crate) fn orders_db(&self) -> PathBuf {
        self.directory.path().join(ORDERS_DB)
    }

    pub(crate) async fn books(&self) -> Books {
        Books::read(self.directory.path()).await.unwrap()
    }

    /// That everything adds up.
    pub(crate) async fn check_books(&self) -> Books {
        let books = self.books().await;
        assert_eq!(books.faults(), Vec::<String>::new());
        books
    }
}

/// Orders, on a thread of its own so that it can crash.
pub(crate) struct TestOrders {
    pub(crate) url: String,
    crash: oneshot::Sender<()>,
    crashed: oneshot::Receiver<()>,
    http: reqwest::Client,
}

impl TestOrders {
    async fn start(directory: &Path, args: SuppliersArgs) -> Self {
        let (crash, crash_now) = oneshot::channel();
        let (ended, crashed) = oneshot::channel();
        let (serving, address) = oneshot::channel();
        let path: PathBuf = directory.join(ORDERS_DB);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let stop = CancellationToken::new();
                let store = orders::Store::new(Database::open(&path, orders::SCHEMA).await.unwrap());
                let saga = Saga::new(store, Suppliers::new(&args).unwrap(), stop.clone());
                saga.resume().await.unwrap();
                let url = serve(orders::router(saga, stop)).await;
                serving.send(url).unwrap();
                let _ = crash_now.await;
            });
            // Every task ends where it stands.
            drop(runtime);
            let _ = ended.send(());
        });
        Self { url: address.await.unwrap(), crash, crashed, http: reqwest::Client::new() }
    }

    /// Ends it as `kill -9` would.
    pub(crate) async fn crash(self) {
        let _ = self.crash.send(());
        let _ = self.crashed.await;
    }

    pub(crate) async fn post(&self, key: Option<&str>, order: &Value) -> (StatusCode, Value) {
        post(&self.http, &self.url, key, order).await
    }

    /// Places an order; its name.
    pub(crate) async fn place(&self, key: &str, order: &Value) -> String {
        let (status, answer) = self.post(Some(key), order).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    }

    /// Waits for an order's end: its state, and its events.
    pub(crate) async fn outcome(&self, id: &str) -> (String, Vec<String>) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let url = format!("{}/orders/{id}", self.url);
            let order: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
            let state = order["state"].as_str().unwrap().to_owned();
            if ["confirmed", "cancelled"].contains(&state.as_str()) {
                let events = order["history"].as_array().unwrap();
                return (state, events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect());
            }
            assert!(tokio::time::Instant::now() < deadline, "no end of {order}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(crate) async fn post(http: &reqwest::Client, base: &str, key: Option<&str>, order: &Value) -> (StatusCode, Value) {
    let mut request = http.post(format!("{base}/orders")).json(order);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

/// An order of one product.
pub(crate) fn order(sku: &str, quantity: u32, card: &str) -> Value {
    json!({ "customer": "Ada", "items": [{ "sku": sku, "quantity": quantity }], "card": card })
}

/// Serves on a free port; the URL.
pub(crate) async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(service::serve_on(listener, router, CancellationToken::new()));
    url
}

/// As `main` does.
pub(crate) fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
