//! Hygiene of headers: hop-by-hop ones, forged ones, and those that the proxy sets.

use std::net::IpAddr;

use heddle_certs::SpiffeId;
use http::{HeaderMap, HeaderName, HeaderValue};

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

/// Removes what concerns one connection only: `connection` and all it lists, `keep-alive`,
/// `proxy-connection`, `proxy-authenticate`, `proxy-authorization`, `te` (but `trailers`),
/// `transfer-encoding`, `upgrade`. An upgrade is for the caller to read before and set again.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let _ = headers;
    todo!()
}

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

/// Cleans a request that came from `hop` at `ip`, called as `scheme`: forged `heddle-*` and XFCC go,
/// `x-forwarded-*` is kept only from a meshed hop, and is set. `own` is this workload's identity.
pub fn sanitize_inbound(headers: &mut HeaderMap, hop: Hop<'_>, ip: IpAddr, scheme: &str, own: Option<&SpiffeId>) {
    let _ = (headers, hop, ip, scheme, own);
    todo!()
}

/// Cleans a request that came from the app.
pub fn sanitize_outbound(headers: &mut HeaderMap) {
    let _ = headers;
    todo!()
}

/// Cleans a response before it goes on: `from` says who answered. A `heddle-error` of the app is
/// stripped, that of a peer proxy is kept.
pub fn sanitize_response(headers: &mut HeaderMap, from: Hop<'_>) {
    let _ = (headers, from);
    todo!()
}

/// Sets `x-request-id` where there is none (or a bad one) and returns it.
pub fn request_id(headers: &mut HeaderMap, rng: &mut impl rand::Rng) -> HeaderValue {
    let _ = (headers, rng);
    todo!()
}

/// Whether this proxy has forwarded the request already.
pub fn via_contains(headers: &HeaderMap, instance: &str) -> bool {
    let _ = (headers, instance);
    todo!()
}

/// Appends `Via: <version> <instance>`.
pub fn append_via(headers: &mut HeaderMap, version: http::Version, instance: &str) {
    let _ = (headers, version, instance);
    todo!()
}
