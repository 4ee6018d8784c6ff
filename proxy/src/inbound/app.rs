//! The app: requests to it over plaintext connections that are kept.

use std::{cell::Cell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::SystemTime};

use http::{HeaderValue, Request, Response, Version, request::Parts};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::{Duration, Instant};

use super::access::{Connection, Port};
use crate::{
    body::{Body, grpc_status},
    connect::{Carried, Dial, Via},
    exchange::{AttemptId, Exchange},
    headers::{self, Hop},
    listener::Arrival,
    outcome::{ClosedBy, Error, ErrorKind},
    serve::{Front, reply, upgrade},
    trace_context::SpanId,
    worker::Worker,
};

/// Apps close connections that are idle, many after 5 s; not to meet in the middle, we are earlier.
pub(crate) const APP_IDLE: Duration = Duration::from_secs(4);
/// An app on this machine accepts at once, or its queue is full.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// A connection that was idle for so long may be about to be closed by the app.
const DOUBTFUL: Duration = Duration::from_secs(1);
/// A tunnel without a byte is closed after this.
pub(super) const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// A request for the app, clean and allowed.
pub(super) struct ToApp {
    pub(super) front: Front,
    pub(super) parts: Parts,
    pub(super) body: Incoming,
    pub(super) upgraded: OnUpgrade,
    pub(super) span: SpanId,
}

/// Sends a request to the app and prepares its response for the caller.
pub(super) async fn send(
    connection: &Connection,
    port: &Port,
    ToApp { front, mut parts, body, upgraded, span }: ToApp,
    exchange: &Rc<Exchange>,
) -> Result<Response<Body>, Error> {
    let worker = connection.worker();
    let carried = if parts.version == Version::HTTP_2 { Carried::Http2 } else { Carried::Http1 };
    let reading = parts.extensions.remove();
    let mut body = Body::from(body).counted(exchange, &worker.common.limits).telling(reading);
    let mut request = Box::new(Request::from_parts(parts, Body::empty()));
    if let Some(expect) = front.expect {
        expect.listen(&mut request);
        body = body.expect(expect);
    }
    if let Some(protocol) = &front.upgrade {
        upgrade::ask(&mut request, protocol);
    }
    let id = exchange.begin_attempt(None, span, Instant::now());
    *request.body_mut() = body;
    let mut answer = pin!(answer(worker, port, request, carried, exchange, id));
    let result = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Pending => exchange.poll_interrupted(cx).map(Err),
        answered => answered,
    });
    let result = result.await;
    let mut response = result.map_err(|error| {
        let error = as_of_app(error);
        let closed_by = (error.kind == ErrorKind::UpstreamReset).then_some(ClosedBy::Upstream);
        exchange.end_attempt(id, None, Some(error.clone()), closed_by);
        error
    })?;
    let grpc = if response.body().is_end_stream() { grpc_status(response.headers()) } else { None };
    exchange.answered(id, response.status(), grpc);
    response.body_mut().settle().attempt = Some((exchange.clone(), id));
    finish(response, front.upgrade, upgraded, exchange, connection.arrival().clone())
}

/// Takes off the response what concerns the app's connection only.
fn finish(
    mut response: Response<Body>,
    asked: Option<HeaderValue>,
    upgraded: OnUpgrade,
    exchange: &Rc<Exchange>,
    kept: Rc<Arrival>,
) -> Result<Response<Body>, Error> {
    let protocol = response.headers().get(http::header::UPGRADE).cloned();
    headers::strip_hop_by_hop(response.headers_mut());
    headers::sanitize_response(response.headers_mut(), Hop::App);
    headers::date(response.headers_mut(), SystemTime::now);
    let begun = upgrade::is_begun(&response, asked.is_some())?;
    *response.version_mut() = Version::HTTP_11;
    if !begun {
        return Ok(reply::of(response, exchange));
    }
    Ok(upgrade::tunnel(upgraded, response, protocol, TUNNEL_IDLE, exchange, kept))
}

/// The app's answer. A request that may be sent twice is, if the app closed a connection that had been idle
/// at the very moment (RFC 9110, section 9.2.2).
async fn answer(
    worker: &Worker,
    port: &Port,
    request: Box<Request<Body>>,
    carried: Carried,
    exchange: &Exchange,
    id: AttemptId,
) -> Result<Response<Body>, Error> {
    let limits = &worker.common.limits;
    let dial = Dial {
        timeout: CONNECT,
        idle: APP_IDLE,
        slots: None,
        max_header_bytes: limits.max_header_bytes,
        max_headers: limits.max_headers,
    };
    let pool = worker.app(port.app);
    let repeatable = request.body().is_end_stream()
        && request.method().is_idempotent()
        && !request.headers().contains_key(http::header::UPGRADE);
    let copy = Cell::new(None);
    let on_connection = |via: &Via<'_>, request: &Request<Body>| {
        exchange.connected(id, via.connect, via.peer);
        if repeatable && via.connect.is_none() && via.idle > DOUBTFUL {
            copy.set(Some(headers_of(request)));
        }
    };
    let result = pool.send(request, carried, &dial, on_connection).await;
    match (result, copy.take()) {
        (Err(error), Some(copy)) if error.kind == ErrorKind::UpstreamReset => {
            let again =
                pool.send(Box::new(copy), carried, &dial, |via, _| exchange.connected(id, via.connect, via.peer));
            Box::pin(again).await
        }
        (result, _) => result,
    }
}

fn headers_of(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What fails on the way to the app says that the app cannot be reached: nothing was sent to it, and another instance
/// may do better. Here that goes for what this host lacks, too.
pub(super) fn as_of_app(error: Error) -> Error {
    match error.kind {
        ErrorKind::ConnectFailed | ErrorKind::ConnectTimeout | ErrorKind::Overloaded => {
            Error { kind: ErrorKind::AppUnavailable, ..error }
        }
        _ => error,
    }
}
