//! Upgrades: a connection that stops speaking HTTP, WebSocket above all.

use std::rc::Rc;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{task::spawn_local, time::Duration};

use crate::{
    body::{Body, Settle},
    exchange::Exchange,
    listener::Arrival,
    outcome::{ClosedBy, Error, ErrorKind},
    stream::Stream,
    tcp::{self, Failure},
};

/// The protocol that a request wants to change to, if it may be: not another version of HTTP, nor TLS, in
/// which requests would pass that no policy has seen.
pub(super) fn wanted(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 || parts.method != Method::GET {
        return None;
    }
    let listed = parts.headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    });
    let protocol = parts.headers.get(header::UPGRADE).filter(|_| listed)?;
    let name = protocol.to_str().ok()?.to_ascii_lowercase();
    let http = name.split(',').any(|name| ["h2", "http", "tls"].iter().any(|bad| name.trim().starts_with(bad)));
    (!http).then(|| protocol.clone())
}

/// Asks the upstream for an upgrade too.
pub(crate) fn ask<B>(request: &mut Request<B>, protocol: &HeaderValue) {
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol.clone());
}

/// After a 101, connects both sides; the request is over when they are. `downstream` is the caller's
/// side; `kept` lives as long as they do. The response goes to the caller as it is returned.
pub(crate) fn tunnel(
    downstream: OnUpgrade,
    mut response: Response<Body>,
    protocol: Option<HeaderValue>,
    idle: Duration,
    exchange: &Rc<Exchange>,
    kept: Rc<Arrival>,
) -> Response<Body> {
    let upstream = hyper::upgrade::on(&mut response);
    let mut settle = response.body_mut().take_settle();
    settle.exchange = Some(exchange.clone());
    exchange.note(|outcome| outcome.status = Some(StatusCode::SWITCHING_PROTOCOLS));
    let watched = exchange.clone();
    spawn_local(async move {
        let _kept = kept;
        let sides = futures_util::future::try_join(downstream, upstream).await;
        let Ok((downstream, upstream)) = sides else {
            let error = Error::new(ErrorKind::UpstreamReset, "a side went away during the upgrade").after_send();
            settle.settle(Some(error), None);
            return;
        };
        let (Some(downstream), Some(upstream)) = (stream(downstream), stream(upstream)) else {
            let error = Error::new(ErrorKind::Internal, "an upgrade of something that is no stream").after_send();
            settle.settle(Some(error), None);
            return;
        };
        let interrupted = std::future::poll_fn(|cx| watched.poll_interrupted(cx));
        let mut why = None;
        let copied = tcp::copy(downstream, upstream, idle, async {
            why = Some(interrupted.await);
        })
        .await;
        finish(&mut settle, &copied, why);
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        answer.headers_mut().insert(header::UPGRADE, protocol);
    }
    answer
}

fn finish(settle: &mut Settle, copied: &tcp::Copied, interrupted: Option<Error>) {
    settle.count(copied.received);
    let error = interrupted.or_else(|| match &copied.failure {
        None => None,
        // Whoever hangs up on a WebSocket rarely says goodbye: no failure of the request.
        Some(Failure::Broken(ClosedBy::Downstream, _)) => None,
        Some(failure) => Some(failure.error()),
    });
    settle.settle(error, copied.closed_by);
}

/// The stream beneath an upgraded connection of HTTP/1.1.
pub(crate) fn stream(upgraded: Upgraded) -> Option<Stream> {
    let parts = upgraded.downcast::<TokioIo<Stream>>().ok()?;
    Some(parts.io.into_inner().unwatched().with_prefix(parts.read_buf))
}
