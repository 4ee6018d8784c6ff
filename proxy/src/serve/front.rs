//! The front of a request: what must hold of it before anything is decided, and what is taken off it.

use std::{borrow::Cow, str};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HOST, MAX_FORWARDS, TE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    body::{Body, Expect},
    config::Limits,
    headers,
    outcome::{Error, ErrorKind},
    path,
};

/// What was learnt of a request from its front, which is now clean.
#[derive(Debug)]
pub(crate) struct Front {
    /// Whom it is meant for: `host[:port]`.
    pub(crate) authority: HeaderValue,
    /// The protocol that the caller wants to change to.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The caller waits for a 100 before it sends the body.
    pub(crate) expect: Option<Expect>,
    /// It may go no further than to this proxy.
    pub(crate) ends_here: bool,
}

/// Checks a request and takes off it what concerns its connection only. Afterwards its path is normalised,
/// `Host` (HTTP/1.1) or `:authority` (HTTP/2) says alone whom it is meant for, and an absolute URI is
/// gone from HTTP/1.1.
///
/// CONNECT is not for this, but for the one that asks for a protocol (RFC 8441): that is HTTP/2's upgrade.
pub(crate) fn receive(parts: &mut Parts, limits: &Limits) -> Result<Front, Error> {
    if parts.headers.len() > limits.max_headers {
        return Err(Error::new(
            ErrorKind::HeadersTooLarge,
            format!("{} headers, where {} are allowed", parts.headers.len(), limits.max_headers),
        ));
    }
    // HTTP/1.1's server has looked already.
    if parts.version == Version::HTTP_2 && size_of(&parts.headers) > limits.max_header_bytes as usize {
        return Err(Error::new(
            ErrorKind::HeadersTooLarge,
            format!("{} bytes of headers, where {} are allowed", size_of(&parts.headers), limits.max_header_bytes),
        ));
    }
    if parts.method == Method::CONNECT && !super::upgrade::is_extended_connect(parts) {
        return Err(Error::new(ErrorKind::UpgradeRefused, "CONNECT is for the HTTP proxy port, and only there"));
    }
    if parts.version < Version::HTTP_2 && !headers::is_plainly_framed(&parts.headers) {
        return Err(Error::new(ErrorKind::BadRequest, "a transfer coding other than chunked"));
    }
    let authority = authority_of(parts)?;
    normalize_path(parts)?;
    // HTTP/1.0 knows neither; what it says of them is not heard (RFC 9110, sections 7.8 and 10.1.1).
    let upgrade = super::upgrade::wanted(parts)?;
    let is_held = parts.version == Version::HTTP_11 && Expect::is_asked(&parts.headers);
    if parts.version == Version::HTTP_10 {
        parts.headers.remove(EXPECT);
    }
    if parts.version < Version::HTTP_2 {
        parts.headers.insert(HOST, authority.clone());
        // What is forwarded is 1.1, whatever the caller speaks: HTTP/1.0 has no chunks.
        if parts.version == Version::HTTP_10 {
            parts.version = Version::HTTP_11;
        }
    } else {
        name_authority(parts, &authority)?;
        parts.headers.remove(HOST);
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    // It is of this connection only, and of the next again (RFC 9110, section 10.1.4).
    if parts.version < Version::HTTP_2 && upgrade.is_none() && parts.headers.contains_key(TE) {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    let ends_here = ends_here(parts)?;
    Ok(Front { authority, upgrade, expect: is_held.then(Expect::default), ends_here })
}

/// Bytes of headers, as HTTP/2 counts them (RFC 9113, section 6.5.2).
fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Counts down `Max-Forwards` where it means something; whether this proxy is as far as the request may go (RFC 9110,
/// section 7.6.2).
fn ends_here(parts: &mut Parts) -> Result<bool, Error> {
    if !matches!(parts.method, Method::OPTIONS | Method::TRACE) {
        return Ok(false);
    }
    let Some(value) = parts.headers.get(MAX_FORWARDS) else { return Ok(false) };
    let left: Option<u64> = value.to_str().ok().and_then(|value| value.parse().ok());
    let left = left.ok_or_else(|| Error::new(ErrorKind::BadRequest, "a Max-Forwards that is no number"))?;
    let Some(rest) = left.checked_sub(1) else { return Ok(true) };
    parts.headers.insert(MAX_FORWARDS, HeaderValue::from(rest));
    Ok(false)
}

/// The answer to a request that may go no further: that there is a proxy. TRACE would show what other proxies have
/// set.
pub(crate) fn answer_here(method: &Method) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if method == Method::TRACE {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("OPTIONS"));
    }
    response
}

/// Whether a request of HTTP/1 is the last of its connection, as it says (RFC 9112, section 9.6).
pub(super) fn is_last<B>(request: &Request<B>) -> bool {
    let says = |what| request.headers().get_all(CONNECTION).iter().any(|value| headers::lists(value, what));
    if request.version() == Version::HTTP_10 { !says("keep-alive") } else { says("close") }
}

/// Whom a request is meant for: exactly one authority, told once or told alike.
fn authority_of(parts: &Parts) -> Result<HeaderValue, Error> {
    let bad = |why: &str| Err(Error::new(ErrorKind::BadRequest, why.to_owned()));
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("more than one Host");
    }
    if host.is_some_and(|host| !is_authority(host.as_bytes())) {
        return bad("a Host that is no host");
    }
    match (parts.uri.authority(), host) {
        // HTTP/2 (RFC 9113, section 8.3.1): both must say the same.
        (Some(authority), Some(host)) if parts.version >= Version::HTTP_2 => {
            if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) {
                Ok(host.clone())
            } else {
                bad(":authority and Host differ")
            }
        }
        // HTTP/1.1 (RFC 9112, section 3.2.2): the absolute URI wins.
        (Some(authority), _) if is_authority(authority.as_str().as_bytes()) => {
            HeaderValue::from_str(authority.as_str())
                .map_err(|_| Error::new(ErrorKind::BadRequest, "an authority that is no header value"))
        }
        (Some(_), _) => bad("an authority with more than host and port"),
        (None, Some(host)) => Ok(host.clone()),
        (None, None) if parts.version == Version::HTTP_10 => Ok(HeaderValue::from_static("")),
        (None, None) => bad("no Host"),
    }
}

/// Has `:authority` say what only Host did, as translators from HTTP/1.1 leave it (RFC 9113, section 8.3.1).
fn name_authority(parts: &mut Parts, authority: &HeaderValue) -> Result<(), Error> {
    if parts.uri.authority().is_some() {
        return Ok(());
    }
    let mut uri = parts.uri.clone().into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Authority::try_from(authority.as_bytes()).ok();
    parts.uri = Uri::from_parts(uri)
        .map_err(|_| Error::new(ErrorKind::BadRequest, "a Host that makes no URI with the path"))?;
    Ok(())
}

/// `host[:port]`, without user or anything else that somebody could read otherwise.
fn is_authority(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~:[]!$&'()*+,;=%".contains(&byte))
}

/// The URI as it will be forwarded: normalised path, and for HTTP/1.1 nothing before it.
fn normalize_path(parts: &mut Parts) -> Result<(), Error> {
    let asterisk = parts.uri.path() == "*";
    if asterisk && parts.method != Method::OPTIONS {
        return Err(Error::new(ErrorKind::BadRequest, "only OPTIONS may have no path"));
    }
    let normalized = path::normalize(parts.uri.path())?;
    let absolute = parts.uri.authority().is_some();
    // `http://host?query` and `http://host#fragment` have a path for who asks, and none that could be sent.
    let written = parts.uri.path_and_query().is_some_and(|path| path.as_str().starts_with(['/', '*']));
    if matches!(normalized, Cow::Borrowed(_)) && written {
        if absolute && parts.version < Version::HTTP_2 {
            let path = parts.uri.path_and_query().filter(|path| path.as_str() != "/").cloned();
            parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        return Ok(());
    }
    let path_and_query = match parts.uri.query() {
        Some(query) => format!("{normalized}?{query}"),
        None => normalized.into_owned(),
    };
    let bad = |_| Error::new(ErrorKind::BadRequest, "a path that makes no URI");
    let path_and_query = PathAndQuery::try_from(path_and_query).map_err(|error| bad(error.into()))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(path_and_query);
    if parts.version < Version::HTTP_2 {
        uri.scheme = None;
        uri.authority = None;
    }
    parts.uri = Uri::from_parts(uri).map_err(|error| bad(http::Error::from(error)))?;
    Ok(())
}

/// Whom a request says it is meant for, for the record.
pub(crate) fn authority(parts: &Parts) -> Option<HeaderValue> {
    match parts.headers.get(HOST) {
        Some(host) => Some(host.clone()),
        None => HeaderValue::from_str(parts.uri.authority()?.as_str()).ok(),
    }
}

/// Whether a request is a gRPC call, whose errors are told otherwise.
pub(crate) fn is_grpc(parts: &Parts) -> bool {
    let is_type = |value: &HeaderValue| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    };
    parts.version == Version::HTTP_2 && parts.headers.get(CONTENT_TYPE).is_some_and(is_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str, version: Version, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refused(mut parts: Parts) -> ErrorKind {
        receive(&mut parts, &Limits::default()).unwrap_err().kind
    }

    #[test]
    fn what_is_forwarded_is_in_one_form() {
        let mut absolute = parts("GET", "http://orders.shop/%61?q", Version::HTTP_11, &[("host", "other")]);
        let front = receive(&mut absolute, &Limits::default()).unwrap();
        assert_eq!((absolute.uri.to_string(), front.authority.to_str().unwrap()), ("/a?q".into(), "orders.shop"));
        assert_eq!(absolute.headers[HOST], "orders.shop");

        let mut bare = parts("GET", "http://orders.shop", Version::HTTP_11, &[]);
        receive(&mut bare, &Limits::default()).unwrap();
        assert_eq!(bare.uri, "/");
        for (target, version, sent) in [
            ("http://orders.shop#x", Version::HTTP_11, "/"),
            ("http://orders.shop?q", Version::HTTP_11, "/?q"),
            ("http://orders.shop?q#x", Version::HTTP_11, "/?q"),
            ("http://orders.shop?q", Version::HTTP_2, "/?q"),
        ] {
            let mut bare = parts("GET", target, version, &[]);
            receive(&mut bare, &Limits::default()).unwrap();
            assert_eq!((bare.uri.path(), bare.uri.path_and_query().unwrap().as_str()), ("/", sent), "{target}");
        }

        let mut old = parts("GET", "/a", Version::HTTP_10, &[("host", "a")]);
        receive(&mut old, &Limits::default()).unwrap();
        assert_eq!(old.version, Version::HTTP_11);

        for (headers, version, expect, upgrade) in [
            (&[("host", "a"), ("expect", "100-continue")][..], Version::HTTP_10, false, false),
            (&[("host", "a"), ("expect", "100-continue")], Version::HTTP_11, true, false),
            (&[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")], Version::HTTP_10, false, false),
            (&[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")], Version::HTTP_11, false, true),
        ] {
            let mut parts = parts("GET", "/", version, headers);
            let front = receive(&mut parts, &Limits::default()).unwrap();
            assert_eq!((front.expect.is_some(), front.upgrade.is_some()), (expect, upgrade), "{version:?} {headers:?}");
            assert_eq!(parts.headers.contains_key(EXPECT), expect);
        }
        let te = [("host", "a"), ("te", "trailers"), ("connection", "te")];
        for (version, listed) in [(Version::HTTP_11, Some("te")), (Version::HTTP_2, None)] {
            let mut parts = parts("GET", "http://a/", version, &te);
            receive(&mut parts, &Limits::default()).unwrap();
            assert_eq!(parts.headers[TE], "trailers");
            assert_eq!(parts.headers.get(CONNECTION).map(|value| value.to_str().unwrap()), listed);
        }

        let mut two = parts("GET", "http://orders.shop/%7e", Version::HTTP_2, &[("host", "ORDERS.shop")]);
        let front = receive(&mut two, &Limits::default()).unwrap();
        assert_eq!(
            (two.uri.to_string(), front.authority.to_str().unwrap()),
            ("http://orders.shop/~".into(), "ORDERS.shop")
        );
        assert!(!two.headers.contains_key(HOST));

        let mut options = parts("OPTIONS", "*", Version::HTTP_11, &[("host", "a")]);
        receive(&mut options, &Limits::default()).unwrap();
        assert_eq!(options.uri.path(), "*");
    }

    #[test]
    fn ambiguous_ones_are_refused() {
        let v11 = Version::HTTP_11;
        for bad in [
            parts("GET", "/", v11, &[]),
            parts("GET", "/", v11, &[("host", "a"), ("host", "a")]),
            parts("GET", "/", v11, &[("host", "")]),
            parts("GET", "/", v11, &[("host", "user@a")]),
            parts("GET", "/", v11, &[("host", "a b")]),
            parts("GET", "http://user@a/", v11, &[("host", "a")]),
            parts("GET", "*", v11, &[("host", "a")]),
            parts("GET", "/a//b", v11, &[("host", "a")]),
            parts("GET", "http://a/", Version::HTTP_2, &[("host", "b")]),
        ] {
            let what = format!("{bad:?}");
            assert_eq!(refused(bad), ErrorKind::BadRequest, "{what}");
        }
        assert_eq!(refused(parts("CONNECT", "a:80", v11, &[("host", "a:80")])), ErrorKind::UpgradeRefused);
        assert_eq!(refused(parts("GET", "/", v11, &[("x", "y"); 101])), ErrorKind::HeadersTooLarge);
        let long: &'static str = "y".repeat(64 << 10).leak();
        assert_eq!(refused(parts("GET", "http://a/", Version::HTTP_2, &[("x", long)])), ErrorKind::HeadersTooLarge);
    }

    #[test]
    fn max_forwards_are_counted_where_they_mean_something() {
        for (method, value, rest, ends) in [
            ("OPTIONS", "3", "2", false),
            ("TRACE", "1", "0", false),
            ("TRACE", "0", "0", true),
            ("GET", "0", "0", false),
            ("GET", "x", "x", false),
        ] {
            let mut parts = parts(method, "/", Version::HTTP_11, &[("host", "a"), ("max-forwards", value)]);
            let front = receive(&mut parts, &Limits::default()).unwrap();
            assert_eq!((front.ends_here, parts.headers[MAX_FORWARDS].to_str().unwrap()), (ends, rest), "{method}");
        }
        let odd = parts("TRACE", "/", Version::HTTP_11, &[("host", "a"), ("max-forwards", "-1")]);
        assert_eq!(refused(odd), ErrorKind::BadRequest);
    }

    #[test]
    fn extended_connect_is_an_upgrade_to_anything_but_http() {
        let connect = |protocol: &'static str, version| {
            let mut parts = parts("CONNECT", "http://a/chat", version, &[]);
            parts.extensions.insert(hyper::ext::Protocol::from_static(protocol));
            parts
        };
        let front = receive(&mut connect("websocket", Version::HTTP_2), &Limits::default()).unwrap();
        assert_eq!(front.upgrade.unwrap(), "websocket");
        for bad in ["h2c", "HTTP/1.1", "tls/1.3", "websocket, h2c"] {
            assert_eq!(refused(connect(bad, Version::HTTP_2)), ErrorKind::UpgradeRefused, "{bad}");
        }
        assert_eq!(refused(connect("websocket", Version::HTTP_11)), ErrorKind::UpgradeRefused);
    }

    #[test]
    fn grpc_is_told_from_its_look_alikes() {
        for (version, content_type, expected) in [
            (Version::HTTP_2, "application/grpc", true),
            (Version::HTTP_2, "application/grpc+proto", true),
            (Version::HTTP_2, "application/grpc;x=y", true),
            (Version::HTTP_2, "application/grpc-web", false),
            (Version::HTTP_2, "application/json", false),
            (Version::HTTP_11, "application/grpc", false),
        ] {
            assert_eq!(is_grpc(&parts("POST", "/", version, &[("content-type", content_type)])), expected);
        }
    }
}
