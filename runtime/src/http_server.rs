//! The small HTTP/1.1 server of the admin, health and metrics ports. Not the data path.
//!
//! A client that is slow, silent or greedy costs one of [`MAX_CONNECTIONS`] for a bounded time and
//! bounded memory.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{accept::accept, drain};

/// How many connections are open at once; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 256;
/// The longest that a request head may take to arrive, and that a connection may idle between requests.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest request head, in bytes.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// How many header fields a request may have.
pub const MAX_HEADERS: usize = 64;
/// The longest that a handler may take.
pub const HANDLER_TIMEOUT: Duration = Duration::from_secs(30);
/// After this a connection is asked to end, and [`CLOSE_TIMEOUT`] later is made to.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(120);
/// How long a connection may take to finish once it has been asked to end.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A response of this server; small, whole, in memory.
pub type Reply = Response<Full<Bytes>>;

/// Serves until `drain` is raised; then answers what it has begun and returns.
///
/// Health and metrics are wanted most while the traffic drains: give this the channel of the last
/// stage of a shutdown.
pub async fn serve<H, F>(listener: TcpListener, handler: H, drain: drain::Watch)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let _guard = drain.guard();
    let (connections, watch) = drain::channel();
    tokio::select! {
        // Dropped with the listening socket when the other is first.
        () = accept_all(listener, handler, watch) => {}
        () = drain.drained() => {}
    }
    connections.drain_within(CLOSE_TIMEOUT * 2).await;
}

async fn accept_all<H, F>(listener: TcpListener, handler: H, connections: drain::Watch)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends only with the semaphore, which nobody closes.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let (stream, _) = accept(&listener).await;
        let connection = serve_connection(stream, handler.clone(), connections.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
}

async fn serve_connection<H, F>(stream: TcpStream, handler: H, drain: drain::Watch)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Reply>,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move {
            Ok::<_, Infallible>(match timeout(HANDLER_TIMEOUT, answer).await {
                Ok(response) => response,
                Err(_) => reply(StatusCode::SERVICE_UNAVAILABLE, "it took too long\n"),
            })
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // Whatever the client did wrong is no news to anybody.
        _ = connection.as_mut() => return,
        () = drain.drained() => {}
        () = sleep(MAX_CONNECTION_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(CLOSE_TIMEOUT, connection).await;
}

/// A plain-text response.
pub fn reply(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// A JSON response.
pub fn reply_json(status: StatusCode, json: impl Into<Bytes>) -> Reply {
    let mut response = reply(status, json);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Reads a request's body whole. `Err` is the answer to a body that is longer than `limit`, broken, or
/// slow.
pub async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, Reply> {
    match timeout(HEADER_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(reply(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is limited to {limit} bytes\n")))
        }
        Ok(Err(_)) => Err(reply(StatusCode::BAD_REQUEST, "the body cannot be read\n")),
        Err(_) => Err(reply(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n")),
    }
}

#[cfg(test)]
mod tests;
