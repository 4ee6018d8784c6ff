//! Answers that the proxy makes itself.

use std::rc::Rc;

use http::{HeaderValue, Response, header};
use http_body::Body as _;

use crate::{
    body::{Body, Settle, grpc_status},
    exchange::Exchange,
    outcome::{Error, ErrorKind},
};

/// Answers with an error, and puts that on record.
pub(crate) fn error(error: Error, grpc: bool, exchange: &Rc<Exchange>) -> Response<Body> {
    // A body that did not come is why all else failed.
    let error = exchange.read(|outcome| outcome.error.clone()).flatten().unwrap_or(error);
    let response = error.reply(grpc).map(Body::from);
    exchange.note(|outcome| {
        outcome.grpc_status = grpc.then(|| u32::from(error.kind.row().grpc_status));
        outcome.error = Some(error);
    });
    of(response, exchange)
}

/// Puts a response on record when it is over.
pub(crate) fn of(mut response: Response<Body>, exchange: &Rc<Exchange>) -> Response<Body> {
    let grpc = if response.body().is_end_stream() { grpc_status(response.headers()) } else { None };
    exchange.note(|outcome| {
        outcome.status = Some(response.status());
        outcome.grpc_status = grpc.or(outcome.grpc_status);
    });
    let settle: &mut Settle = response.body_mut().settle();
    settle.exchange = Some(exchange.clone());
    response
}

/// Has the connection of an HTTP/1.1 response end with it.
pub(crate) fn last<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// An error as bytes of HTTP/1.1, for a caller whose request hyper has not seen.
pub(crate) fn raw(error: &Error) -> Vec<u8> {
    let response = error.reply(false);
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(format!("content-length: {}\r\nconnection: close\r\n\r\n", response.body().len()).into_bytes());
    bytes.extend_from_slice(response.body());
    bytes
}

/// What to say instead of what hyper says by itself to bytes that are no request: the same, and why. Asked for what
/// is written while no request is under way. (The end of the last response may still be; it never reads like this: a
/// `connection` header that is ours comes last.)
pub(crate) fn instead_of(bytes: &[u8]) -> Option<Vec<u8>> {
    const OWN: &[u8] = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let line = bytes.strip_suffix(OWN)?.strip_prefix(b"HTTP/1.1 ")?;
    let error = match line.get(..4)? {
        b"400 " => Error::new(ErrorKind::BadRequest, "what came is no request of HTTP/1.1"),
        b"414 " | b"431 " => too_large(),
        _ => return None,
    };
    Some(raw(&error))
}

/// The headers, or the target before them.
pub(crate) fn too_large() -> Error {
    Error::new(ErrorKind::HeadersTooLarge, "more or larger headers than the limits of this proxy allow")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_answer_is_one_that_any_client_reads() {
        let bytes = raw(&Error::new(ErrorKind::HeaderTimeout, "x"));
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(at) = response.parse(&bytes).unwrap() else { panic!("not complete") };
        assert_eq!(response.code, Some(408));
        let value = |name: &str| {
            let header = response.headers.iter().find(|header| header.name == name).unwrap();
            std::str::from_utf8(header.value).unwrap()
        };
        assert_eq!(value("heddle-error"), "header-timeout");
        assert_eq!(value("content-length").parse::<usize>().unwrap(), bytes.len() - at);
    }
}
