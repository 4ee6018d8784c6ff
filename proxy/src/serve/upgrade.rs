//! Upgrades: a connection that stops speaking HTTP, WebSocket above all.

use std::rc::Rc;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{task::spawn_local, time::Duration};

use crate::{
    body::{Body, Settle},
    exchange::Exchange,
    outcome::{ClosedBy, Error, ErrorKind},
    stream::Stream,
    tcp::{self, Failure},
};

/// Whether a request is what HTTP/2 has in place of an upgrade (RFC 8441).
pub(crate) fn is_extended_connect(parts: &Parts) -> bool {
    parts.version == Version::HTTP_2 && parts.method == Method::CONNECT && parts.extensions.get::<Protocol>().is_some()
}

/// The protocol that a request wants to change to. It may not be another version of HTTP, nor TLS, in which requests
/// would pass that no policy has seen: in HTTP/1.1 such a wish is not heard, in HTTP/2 it is the whole request.
pub(super) fn wanted(parts: &Parts) -> Result<Option<HeaderValue>, Error> {
    if !is_extended_connect(parts) {
        return Ok(wanted_by_header(parts));
    }
    let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str).unwrap_or_default();
    if is_http(protocol) {
        let detail = format!("a tunnel of {protocol} would carry requests past policy");
        return Err(Error::new(ErrorKind::UpgradeRefused, detail));
    }
    HeaderValue::from_str(protocol)
        .map(Some)
        .map_err(|_| Error::new(ErrorKind::BadRequest, ":protocol is no header value"))
}

fn wanted_by_header(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 || parts.method != Method::GET {
        return None;
    }
    let listed = parts.headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    });
    let protocol = parts.headers.get(header::UPGRADE).filter(|_| listed)?;
    (!is_http(protocol.to_str().ok()?)).then(|| protocol.clone())
}

fn is_http(protocols: &str) -> bool {
    let protocols = protocols.to_ascii_lowercase();
    protocols.split(',').any(|name| ["h2", "http", "tls"].iter().any(|bad| name.trim().starts_with(bad)))
}

/// Asks the upstream for an upgrade too; an extended CONNECT says so itself.
pub(crate) fn ask<B>(request: &mut Request<B>, protocol: &HeaderValue) {
    if request.version() == Version::HTTP_2 {
        return;
    }
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol.clone());
}

/// Whether a response, as it came from the upstream, is the beginning of something else than HTTP; `asked`: the
/// request wanted that.
pub(crate) fn is_begun<B>(response: &Response<B>, asked: bool) -> Result<bool, Error> {
    let protocol_error = |why: &str| Err(Error::new(ErrorKind::UpstreamProtocol, why.to_owned()).after_send());
    match (response.version(), response.status()) {
        (Version::HTTP_2, StatusCode::OK) => Ok(asked),
        (Version::HTTP_2, status) if asked && status.is_success() => {
            protocol_error("an extended CONNECT was answered with a success that is not 200")
        }
        (Version::HTTP_2, StatusCode::SWITCHING_PROTOCOLS) => protocol_error("101, which HTTP/2 does not have"),
        (_, StatusCode::SWITCHING_PROTOCOLS) if !asked => protocol_error("101 to a request for no upgrade"),
        (_, status) => Ok(status == StatusCode::SWITCHING_PROTOCOLS),
    }
}

/// After [a beginning](is_begun), connects both sides; the request is over when they are. `downstream` is the caller's
/// side; `kept` lives as long as they do. The response goes to the caller as it is returned.
pub(crate) fn tunnel(
    downstream: OnUpgrade,
    mut response: Response<Body>,
    protocol: Option<HeaderValue>,
    idle: Duration,
    exchange: &Rc<Exchange>,
    kept: impl Sized + 'static,
) -> Response<Body> {
    let upstream = hyper::upgrade::on(&mut response);
    let mut settle = response.body_mut().take_settle();
    settle.exchange = Some(exchange.clone());
    let status = response.status();
    exchange.note(|outcome| outcome.status = Some(status));
    let watched = exchange.clone();
    spawn_local(async move {
        let _kept = kept;
        let sides = futures_util::future::try_join(downstream, upstream).await;
        let Ok((downstream, upstream)) = sides else {
            let error = Error::new(ErrorKind::UpstreamReset, "a side went away during the upgrade").after_send();
            settle.settle(Some(error), None);
            return;
        };
        let interrupted = std::future::poll_fn(|cx| watched.poll_interrupted(cx));
        let mut why = None;
        let copied = tcp::copy(stream(downstream), stream(upstream), idle, async {
            why = Some(interrupted.await);
        })
        .await;
        finish(&mut settle, &copied, why);
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return answer;
    }
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

/// What an upgraded connection is from now on: of HTTP/1.1 the stream beneath it, of HTTP/2 one of its streams.
pub(crate) fn stream(upgraded: Upgraded) -> Stream {
    match upgraded.downcast::<TokioIo<Stream>>() {
        Ok(parts) => parts.io.into_inner().unwatched().with_prefix(parts.read_buf),
        Err(upgraded) => upgraded.into(),
    }
}
