//! An app that tells what reached it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

/// A request as it reached the app.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: Method,
    /// Target as it stood in the request.
    pub uri: Uri,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// An HTTP/1.1 and HTTP/2 app on loopback: remembers each request, answers with its name and the
/// request's body.
#[derive(Clone, Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    seen: Mutex<Vec<Seen>>,
    count: AtomicU64,
    connections: AtomicU64,
    status: AtomicU16,
    delay_ms: AtomicU64,
    keep: bool,
}

impl App {
    /// Starts one that remembers what it saw.
    pub async fn start(name: &str) -> Self {
        Self::bind(name, true, ([127, 0, 0, 1], 0).into()).await
    }

    /// Starts one that only counts, for load.
    pub async fn start_counting(name: &str) -> Self {
        Self::bind(name, false, ([127, 0, 0, 1], 0).into()).await
    }

    /// Starts one at an address.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn bind(name: &str, keep: bool, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let app = Self {
            address: listener.local_addr().expect("a bound socket"),
            inner: Arc::new(Inner {
                name: name.to_owned(),
                seen: Mutex::default(),
                count: AtomicU64::new(0),
                connections: AtomicU64::new(0),
                status: AtomicU16::new(200),
                delay_ms: AtomicU64::new(0),
                keep,
            }),
        };
        let served = app.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let app = served.clone();
                app.inner.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    // A caller that goes away is no failure of the app.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(
                            TokioIo::new(stream),
                            hyper::service::service_fn(move |request| {
                                let app = app.clone();
                                async move { app.answer(request).await }
                            }),
                        )
                        .await;
                });
            }
        });
        app
    }

    /// What it saw so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().expect("no panic while held").clone()
    }

    /// How many requests it saw.
    pub fn count(&self) -> u64 {
        self.inner.count.load(Ordering::Relaxed)
    }

    /// How many connections it accepted.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::Relaxed)
    }

    /// From now on answers with this status.
    pub fn set_status(&self, status: StatusCode) {
        self.inner.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// From now on waits before it answers.
    pub fn set_delay(&self, delay: Duration) {
        self.inner.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        self.inner.count.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if self.inner.keep {
            let seen = Seen { method: parts.method, uri: parts.uri, headers: parts.headers, body: body.clone() };
            self.inner.seen.lock().expect("no panic while held").push(seen);
        }
        let delay = self.inner.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = StatusCode::from_u16(self.inner.status.load(Ordering::Relaxed))
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Ok(name) = self.inner.name.parse() {
            response.headers_mut().insert("x-app", name);
        }
        Ok(response)
    }
}
