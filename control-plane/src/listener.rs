//! A TLS listener: accepts, shakes hands, serves HTTP, all within limits.

mod admission;
mod stalled;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::Router;
use heddle_certs::verify;
use heddle_runtime::{accept::accept, drain};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;

pub use self::admission::Room;
use self::{
    admission::{Admission, Place},
    stalled::Stalled,
};
use crate::{
    metrics::Metrics,
    peer::{Peer, Shown},
    tokens::fingerprint,
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: u32 = 32 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests on one connection at once.
const MAX_STREAMS: u32 = 32;
/// Bytes of a request that are taken in before anybody has asked for them. A message of discovery is small.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same of all requests of a connection: one that stalls leaves room for others.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// How long connections may go on once draining began.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// How long a connection without certificate may stay without asking for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Until the first request.
    pub first_request: Duration,
    /// After a request.
    pub idle: Duration,
}

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("setting {setting}: cannot listen on {address}")]
pub struct BindError {
    setting: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Binds the address of a setting.
pub async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { setting, address, source })
}

/// A bound TLS listener.
pub struct Listener<C> {
    /// For metrics.
    pub name: &'static str,
    /// The socket.
    pub socket: TcpListener,
    /// The TLS configuration for the next handshake.
    pub tls: C,
    /// What is spoken.
    pub http: Http,
    /// Connections at once; further ones are closed at once.
    pub room: Room,
    /// What holds for connections without certificate; `None`: no more than HTTP asks for.
    pub deadlines: Option<Deadlines>,
    /// Counts.
    pub metrics: Metrics,
}

impl<C> Listener<C>
where
    C: Fn() -> Arc<ServerConfig>,
{
    /// Serves until drained; then lets connections finish, for [`CLOSE_TIMEOUT`] at most.
    pub async fn serve(self, router: Router, drain: drain::Watch) {
        let admission = Arc::new(Admission::new(self.room));
        let (connections, watch) = drain::channel();
        let _guard = drain.guard();
        loop {
            let (stream, address) = tokio::select! {
                accepted = accept(&self.socket) => accepted,
                () = drain.drained() => break,
            };
            let place = match admission.enter(address.ip()) {
                Ok(place) => place,
                Err(full) => {
                    self.metrics.connections_refused.with_label_values(&[self.name, full.label()]).inc();
                    continue;
                }
            };
            let connection = Connection {
                name: self.name,
                acceptor: TlsAcceptor::from((self.tls)()),
                http: self.http,
                deadlines: self.deadlines,
                address,
                metrics: self.metrics.clone(),
            };
            let (router, closing) = (router.clone(), watch.clone());
            watch.spawn(async move {
                Box::pin(connection.run(stream, place, router, closing)).await;
            });
        }
        drop(self.socket);
        connections.drain_within(CLOSE_TIMEOUT).await;
    }
}

struct Connection {
    name: &'static str,
    acceptor: TlsAcceptor,
    http: Http,
    deadlines: Option<Deadlines>,
    address: SocketAddr,
    metrics: Metrics,
}

impl Connection {
    async fn run(self, stream: TcpStream, mut place: Place, router: Router, drain: drain::Watch) {
        let stream = match self.handshake(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(listener = self.name, peer = %self.address, %error, "no TLS connection");
                self.metrics.connections_refused.with_label_values(&[self.name, "tls"]).inc();
                return;
            }
        };
        let peer = match self.peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(listener = self.name, peer = %self.address, %error, "a verified certificate cannot be read");
                return;
            }
        };
        let verified = peer.certificate.is_some();
        if let Err(full) = place.shook_hands(verified) {
            self.metrics.connections_refused.with_label_values(&[self.name, full.label()]).inc();
            return;
        }
        let open = self.metrics.connections.with_label_values(&[self.name]);
        open.inc();
        let asking = Arc::new(Asking::default());
        let served = serve(stream, peer, self.http, router, Arc::clone(&asking), drain);
        match self.deadlines.filter(|_| !verified) {
            None => served.await,
            Some(deadlines) => tokio::select! {
                () = served => {}
                () = asking.idles(deadlines) => {
                    tracing::debug!(listener = self.name, peer = %self.address, "no certificate and no request");
                }
            },
        }
        open.dec();
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await?
    }

    fn peer(&self, stream: &TlsStream<TcpStream>) -> Result<Peer, verify::VerifyError> {
        let address = SocketAddr::new(self.address.ip().to_canonical(), self.address.port());
        let chain = stream.get_ref().1.peer_certificates();
        let fingerprint = chain.and_then(|chain| chain.first()).map(|leaf| fingerprint(leaf).into());
        let shown = chain.map(|chain| Arc::new(Shown::new(chain)));
        Ok(Peer { address, certificate: chain.map(verify::peer).transpose()?, fingerprint, shown })
    }
}

/// The requests of a connection that are under way.
#[derive(Debug, Default)]
struct Asking {
    now: AtomicUsize,
    changed: Notify,
}

/// A request under way.
struct Asked(Arc<Asking>);

impl Asked {
    fn new(asking: &Arc<Asking>) -> Self {
        asking.now.fetch_add(1, Ordering::Relaxed);
        asking.changed.notify_one();
        Self(Arc::clone(asking))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

impl Asking {
    /// Returns when nothing was asked for too long.
    async fn idles(&self, deadlines: Deadlines) {
        let mut left = deadlines.first_request;
        loop {
            if self.now.load(Ordering::Relaxed) > 0 {
                self.changed.notified().await;
            } else if timeout(left, self.changed.notified()).await.is_err() {
                return;
            }
            left = deadlines.idle;
        }
    }
}

async fn serve(
    stream: TlsStream<TcpStream>,
    peer: Peer,
    http: Http,
    router: Router,
    asking: Arc<Asking>,
    drain: drain::Watch,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (asked, router) = (Asked::new(&asking), router.clone());
        async move {
            let answer = router.oneshot(request).await;
            drop(asked);
            answer
        }
    });
    let stream = TokioIo::new(Stalled::new(stream, WRITE_TIMEOUT));
    // How a connection ends is the peer's business; what was wrong with a request, it was told.
    match http {
        Http::One => {
            let mut connection = pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(MAX_HEADER_BYTES as usize)
                    .serve_connection(stream, service)
            );
            tokio::select! {
                _ = connection.as_mut() => return,
                () = drain.drained() => connection.as_mut().graceful_shutdown(),
            }
            let _ = timeout(CLOSE_TIMEOUT, connection).await;
        }
        Http::Two => {
            let mut connection = pin!(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(MAX_STREAMS)
                    .max_header_list_size(MAX_HEADER_BYTES)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                    .serve_connection(stream, service)
            );
            tokio::select! {
                _ = connection.as_mut() => return,
                () = drain.drained() => connection.as_mut().graceful_shutdown(),
            }
            let _ = timeout(CLOSE_TIMEOUT, connection).await;
        }
    }
}
