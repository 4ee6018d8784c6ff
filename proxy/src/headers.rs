//! Hygiene of headers: hop-by-hop ones, forged ones, and those that the proxy sets.
//!
//! ```text
//! header                     from the app     from a peer proxy   from somebody in plaintext
//! heddle-attempt, -deadline  stripped         kept                stripped
//! other heddle-*             stripped         stripped            stripped
//! x-forwarded-client-cert    stripped         set anew            stripped
//! x-forwarded-for            kept             appended to         set anew
//! other x-forwarded-*        kept             kept                stripped
//! forwarded, x-real-ip       kept             kept                stripped
//!
//! in responses
//! heddle-error               stripped         kept                stripped
//! other heddle-*             stripped         stripped            stripped
//! ```
//!
//! None of these may be a trailer, nor may what RFC 9110 forbids there.
//!
//! What concerns one connection only never goes on. It is taken off first, so that no `Connection`
//! header can name what the proxy sets.

mod copy;
mod date;
#[cfg(test)]
mod tests;
mod timing;
mod trailers;

use std::{fmt::Write as _, net::IpAddr};

use heddle_certs::SpiffeId;
use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{CONNECTION, FORWARDED, HOST, TE, TRANSFER_ENCODING, VIA},
};

pub(crate) use self::copy::Copied;
pub use self::{
    date::date,
    timing::{deadline, pushback, set_attempt, set_deadline},
    trailers::{sanitize_request_trailers, sanitize_response_trailers},
};

/// Why the proxy answered itself.
pub const HEDDLE_ERROR: HeaderName = HeaderName::from_static("heddle-error");
/// Number of the try, from 1.
pub const HEDDLE_ATTEMPT: HeaderName = HeaderName::from_static("heddle-attempt");
/// Milliseconds left.
pub const HEDDLE_DEADLINE: HeaderName = HeaderName::from_static("heddle-deadline");
/// Identity of the caller, for the app.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The request's name in logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Longest `x-request-id` that is kept, bytes.
const MAX_REQUEST_ID: usize = 128;

/// Who is at the other end of a connection, for what is trusted of its headers.
#[derive(Clone, Copy, Debug)]
pub enum Hop<'a> {
    /// The app of this pod.
    App,
    /// A peer proxy, verified.
    Meshed {
        /// Its identity.
        id: &'a SpiffeId,
        /// SHA-256 of its leaf, hex.
        certificate_hash: Option<&'a str>,
    },
    /// Somebody in plaintext.
    Unmeshed,
}

/// Whether a message of HTTP/1.1 is framed in the one way that is taken off without changing what it carries: of
/// several codings only the last would be (RFC 9112, section 6.1).
pub fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(only), None) => only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Removes what concerns one connection only: `connection` and all it lists, `keep-alive`,
/// `proxy-connection`, `proxy-authenticate`, `proxy-authorization`, `te` (but `trailers`),
/// `transfer-encoding`, `upgrade`. An upgrade is for the caller to read before and set again.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| lists(value, "trailers"));
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            // What most say names nothing that would not be taken off anyway.
            .filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            // A request without Host would be another request.
            .filter(|name| name != HOST)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    remove_where(headers, is_hop_by_hop);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// What the app is told of a caller: the same for all requests of a connection.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Of a peer proxy.
    client_cert: Option<HeaderValue>,
    address: HeaderValue,
    scheme: HeaderValue,
}

impl Origin {
    /// Of a caller at `ip` that called as `scheme`. `own` is this workload's identity.
    pub fn new(hop: Hop<'_>, ip: IpAddr, scheme: &'static str, own: Option<&SpiffeId>) -> Self {
        let client_cert = match hop {
            Hop::Meshed { id, certificate_hash } => Some(client_cert(id, certificate_hash, own)),
            Hop::Unmeshed | Hop::App => None,
        };
        let address = HeaderValue::try_from(ip.to_canonical().to_string()).expect("an address");
        Self { client_cert, address, scheme: HeaderValue::from_static(scheme) }
    }
}

/// Cleans a request before it goes to the app, and says who called.
pub fn sanitize_inbound(headers: &mut HeaderMap, origin: &Origin) {
    match &origin.client_cert {
        Some(client_cert) => {
            remove_where(headers, |name| is_heddle(name) && name != HEDDLE_ATTEMPT && name != HEDDLE_DEADLINE);
            headers.insert(XFCC, client_cert.clone());
            append_to_list(headers, X_FORWARDED_FOR, &origin.address);
        }
        None => {
            remove_where(headers, |name| {
                is_heddle(name) || name.as_str().starts_with("x-forwarded-") || name == FORWARDED || name == X_REAL_IP
            });
            headers.insert(X_FORWARDED_FOR, origin.address.clone());
        }
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, origin.scheme.clone());
    }
}

/// Cleans a request that came from the app.
pub fn sanitize_outbound(headers: &mut HeaderMap) {
    remove_where(headers, |name| is_heddle(name) || name == XFCC);
}

/// Cleans a response before it goes on: `from` says who answered. A `heddle-error` of the app is
/// stripped, that of a peer proxy is kept.
pub fn sanitize_response(headers: &mut HeaderMap, from: Hop<'_>) {
    let keeps_error = matches!(from, Hop::Meshed { .. });
    remove_where(headers, |name| is_heddle(name) && !(keeps_error && name == HEDDLE_ERROR));
}

/// Sets `x-request-id` where there is none (or a bad one) and returns it.
pub fn request_id(headers: &mut HeaderMap, rng: &mut impl rand::Rng) -> HeaderValue {
    // Never the same again: HTTP/2's table of headers, in which each name is looked up among all its values, is for others.
    // So it is marked as what may not be in there.
    if let Some(id) = headers.get_mut(X_REQUEST_ID)
        && (1..=MAX_REQUEST_ID).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        id.set_sensitive(true);
        return id.clone();
    }
    // As a random UUID (RFC 9562, section 5.4) is written.
    let id = rng.random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut nibble = 128;
    for (at, byte) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            nibble -= 4;
            *byte = b"0123456789abcdef"[(id >> nibble) as usize & 0xf];
        }
    }
    let mut id = HeaderValue::from_bytes(&text).expect("hex digits");
    id.set_sensitive(true);
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

/// Whether this proxy has forwarded the request already.
pub fn via_contains(headers: &HeaderMap, instance: &str) -> bool {
    headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.split_ascii_whitespace().nth(1) == Some(instance))
}

/// What a proxy of this name says in `Via` of messages that it got in this version; `None` if the name has
/// characters that no header has.
pub fn via(version: Version, instance: &str) -> Option<HeaderValue> {
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    HeaderValue::try_from(format!("{version} {instance}")).ok()
}

/// Adds this proxy to `Via`. That is for the caller's proxy. The callee's, which is one with its app, leaves `Via`
/// alone: an app that hands the header on with its own calls would have them taken for loops.
pub fn append_via(headers: &mut HeaderMap, via: &HeaderValue) {
    append_to_list(headers, VIA, via);
}

/// What concerns one connection only, besides what `Connection` lists.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

fn is_heddle(name: &HeaderName) -> bool {
    name.as_str().starts_with("heddle-")
}

fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    // Most have none: then nothing is gathered.
    if !headers.keys().any(&unwanted) {
        return;
    }
    let unwanted: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

pub(crate) fn lists(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(token)))
}

/// Into one header line, as many apps read but the first.
fn append_to_list(headers: &mut HeaderMap, name: HeaderName, item: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, item.clone());
        return;
    }
    let before: usize = headers.get_all(&name).iter().map(|value| value.len() + 2).sum();
    let mut list = Vec::with_capacity(before + item.len());
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::try_from(list) {
        headers.insert(name, value);
    }
}

/// As Envoy writes it. SPIFFE IDs have none of the characters that would need quotes.
fn client_cert(id: &SpiffeId, hash: Option<&str>, own: Option<&SpiffeId>) -> HeaderValue {
    let mut value = String::with_capacity(256);
    if let Some(own) = own {
        write!(value, "By={own};").expect("writing to a string");
    }
    if let Some(hash) = hash {
        write!(value, "Hash={hash};").expect("writing to a string");
    }
    write!(value, "Subject=\"\";URI={id}").expect("writing to a string");
    HeaderValue::try_from(value).expect("visible ASCII")
}
