//! A TLS listener: accepts, shakes hands, serves HTTP, all within limits.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use heddle_certs::verify;
use heddle_runtime::{accept::accept, drain};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;

use crate::{metrics::Metrics, peer::Peer};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: u32 = 32 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests on one connection at once.
const MAX_STREAMS: u32 = 32;
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
    pub max_connections: usize,
    /// Counts.
    pub metrics: Metrics,
}

impl<C> Listener<C>
where
    C: Fn() -> Arc<ServerConfig>,
{
    /// Serves until drained; then lets connections finish, for [`CLOSE_TIMEOUT`] at most.
    pub async fn serve(self, router: Router, drain: drain::Watch) {
        let room = Arc::new(Semaphore::new(self.max_connections));
        let (connections, watch) = drain::channel();
        let _guard = drain.guard();
        loop {
            let (stream, address) = tokio::select! {
                accepted = accept(&self.socket) => accepted,
                () = drain.drained() => break,
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.metrics.connections_refused.with_label_values(&[self.name, "limit"]).inc();
                continue;
            };
            let connection = Connection {
                name: self.name,
                acceptor: TlsAcceptor::from((self.tls)()),
                http: self.http,
                address,
                metrics: self.metrics.clone(),
            };
            let (router, closing) = (router.clone(), watch.clone());
            watch.spawn(async move {
                Box::pin(connection.run(stream, router, closing)).await;
                drop(permit);
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
    address: SocketAddr,
    metrics: Metrics,
}

impl Connection {
    async fn run(self, stream: TcpStream, router: Router, drain: drain::Watch) {
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
        let open = self.metrics.connections.with_label_values(&[self.name]);
        open.inc();
        serve(stream, peer, self.http, router, drain).await;
        open.dec();
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await?
    }

    fn peer(&self, stream: &TlsStream<TcpStream>) -> Result<Peer, verify::VerifyError> {
        let address = SocketAddr::new(self.address.ip().to_canonical(), self.address.port());
        let chain = stream.get_ref().1.peer_certificates();
        Ok(Peer { address, certificate: chain.map(verify::peer).transpose()? })
    }
}

async fn serve(stream: TlsStream<TcpStream>, peer: Peer, http: Http, router: Router, drain: drain::Watch) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let stream = TokioIo::new(stream);
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
