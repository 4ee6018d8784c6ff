//! From peers to the app.
//!
//! ```text
//! connection: caller (TLS, identity) -> port asked for -> what it carries
//! request:    front -> port -> authorization -> headers, trace -> the app -> response
//! opaque:     preamble -> port -> authorization -> the app -> bytes
//! ```

mod access;
mod app;
mod caller;
mod captured;
mod opaque;
mod trust;

use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, Version, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::net::TcpStream;

use self::{access::Connection, caller::Caller};
pub(crate) use self::{
    access::{Connections, recheck},
    app::APP_IDLE,
    trust::follow_roots,
};
use crate::{
    body::Body,
    connect::Carried,
    detect::{self, Detected},
    exchange::{ConnectionRecord, Exchange},
    headers,
    lifecycle::Stage,
    listener::Arrival,
    outcome::{Error, ErrorKind},
    serve::{self, Ending, reply},
    snapshot::ClusterName,
    stream::Stream,
    trace_context::TraceContext,
    worker::Worker,
};

/// One connection, from accept to end.
pub(crate) async fn serve_connection(worker: Rc<Worker>, socket: TcpStream, arrival: Rc<Arrival>) {
    let mut record = arrival.record(&worker.sink);
    let result = if arrival.redirected {
        captured::serve(worker, socket, arrival.clone(), &mut record).await
    } else {
        match caller::is_tls(&worker.common.limits, &socket).await {
            Ok(Some(true)) => serve_meshed(worker, socket, Bytes::new(), arrival.clone(), &mut record).await,
            Ok(Some(false)) => serve_plaintext(worker, socket, arrival.clone(), &mut record).await,
            // A probe of the port, perhaps.
            Ok(None) => return,
            Err(error) => Err(error),
        }
    };
    if let Err(error) = result {
        record.fail(error);
    }
}

/// mTLS: the caller is who it proves to be, and says which port it wants and what it will speak. `read` is
/// what was read of it before.
async fn serve_meshed(
    worker: Rc<Worker>,
    socket: TcpStream,
    read: Bytes,
    arrival: Rc<Arrival>,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    let (stream, caller, wanted, carried) = caller::terminate(&worker, socket, read).await?;
    know(record, &caller, wanted.as_ref());
    let connection = Connection::open(worker, arrival, caller, wanted);
    match carried {
        Carried::Tcp => opaque::serve_meshed(stream, &connection, record).await,
        Carried::Http1 | Carried::Http2 => serve_http(stream, connection, carried).await,
    }
}

/// Plaintext that was sent to the listener itself: from somebody without a proxy, who gets in where policy says so.
async fn serve_plaintext(
    worker: Rc<Worker>,
    socket: TcpStream,
    arrival: Rc<Arrival>,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    know(record, &Caller::Unmeshed, None);
    let mut stream = Stream::from(socket);
    let limits = worker.common.limits;
    let detected = detect::detect(&mut stream, limits.header_timeout).await;
    let connection = Connection::open(worker, arrival, Caller::Unmeshed, None);
    match detected {
        Ok(Detected::Http1) => serve_http(stream, connection, Carried::Http1).await,
        Ok(Detected::Http2) => serve_http(stream, connection, Carried::Http2).await,
        Ok(Detected::Opaque | Detected::Silent | Detected::Tls(_)) => {
            opaque::serve_plaintext(stream, None, &connection, record).await
        }
        Ok(Detected::Ended) | Err(_) => Ok(()),
    }
}

async fn serve_http(stream: Stream, connection: Rc<Connection>, carried: Carried) -> Result<(), Error> {
    let worker = connection.worker().clone();
    let (limits, ending) = (&worker.common.limits, Ending::inbound(&worker.common.life));
    let handle = move |request| serve_request(connection.clone(), request);
    let ended = match carried {
        Carried::Http2 => Box::pin(serve::http2(stream, limits, ending, handle)).await,
        Carried::Http1 | Carried::Tcp => serve::http1(stream, limits, ending, handle).await,
    };
    ended.map_or(Ok(()), Err)
}

/// One request, from its headers to the response's.
async fn serve_request(connection: Rc<Connection>, mut request: Request<Incoming>) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let (version, grpc, tunnel) = (parts.version, serve::is_grpc(&parts), parts.method == Method::CONNECT);
    let (exchange, span) = connection.begin(&parts, grpc);
    let arrived = Arrived { parts, body, upgraded, span };
    let mut response = match forward(&connection, &exchange, arrived).await {
        Ok(response) => response,
        Err(error) => reply::error(error, grpc, &exchange),
    };
    // What follows a CONNECT, which is refused here, was meant for a tunnel: it is no request.
    if version < Version::HTTP_2 && (tunnel || Ending::inbound(&connection.worker().common.life).has_begun()) {
        reply::last(&mut response);
    }
    response
}

/// A request as it came.
struct Arrived {
    parts: Parts,
    body: Incoming,
    upgraded: OnUpgrade,
    span: TraceContext,
}

async fn forward(
    connection: &Connection,
    exchange: &Rc<Exchange>,
    Arrived { mut parts, body, upgraded, span }: Arrived,
) -> Result<Response<Body>, Error> {
    let worker = connection.worker();
    let common = &worker.common;
    if common.life.stage() >= Stage::Refusing {
        return Err(Error::new(ErrorKind::Draining, "this instance is shutting down"));
    }
    let front = serve::receive(&mut parts, &common.limits)?;
    exchange.note(|outcome| outcome.uri = parts.uri.clone());
    let port = connection.port(&front.authority)?;
    connection.authorize(&port, &parts, exchange)?;
    if front.ends_here {
        return Ok(reply::of(serve::answer_here(&parts.method), exchange));
    }
    connection.sanitize(&mut parts);
    continue_trace(worker, &mut parts, &span, exchange);
    if headers::deadline(&parts.headers).is_some_and(|left| left.is_zero()) {
        return Err(Error::new(ErrorKind::DeadlineExceeded, "the caller's deadline had passed on arrival"));
    }
    app::send(connection, &port, app::ToApp { front, parts, body, upgraded, span: span.span_id() }, exchange).await
}

/// Tells the app which trace and request this is.
fn continue_trace(worker: &Worker, parts: &mut Parts, span: &TraceContext, exchange: &Exchange) {
    span.inject(&mut parts.headers);
    let id = headers::request_id(&mut parts.headers, &mut *worker.rng.borrow_mut());
    exchange.note(|outcome| outcome.request_id = Some(id));
}

/// Notes who calls what.
fn know(record: &mut ConnectionRecord, caller: &Caller, wanted: Option<&ClusterName>) {
    record.outcome.tls = caller.id().is_some();
    record.outcome.peer = caller.id().cloned();
    if let Some(ClusterName { service, port }) = wanted {
        record.outcome.service = Some(service.clone());
        record.outcome.port = *port;
    }
}
