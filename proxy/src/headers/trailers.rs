//! Trailers: some who receive them merge them into the headers, after all that was checked there.

use http::{
    HeaderMap, HeaderName,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        COOKIE, EXPECT, FORWARDED, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
        MAX_FORWARDS, PRAGMA, RANGE, SET_COOKIE, TRAILER, VIA, WWW_AUTHENTICATE,
    },
};

use super::{X_REAL_IP, is_heddle, is_hop_by_hop, remove_where};

/// Framing, routing, and how to read the content.
static ALWAYS: [HeaderName; 7] =
    [CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, TRAILER];
/// Who asks, by which way, and what for.
static OF_REQUESTS: [HeaderName; 15] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    COOKIE,
    EXPECT,
    FORWARDED,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    MAX_FORWARDS,
    PRAGMA,
    RANGE,
    VIA,
    X_REAL_IP,
];
/// Who may ask.
static OF_RESPONSES: [HeaderName; 2] = [SET_COOKIE, WWW_AUTHENTICATE];

/// Cleans the trailers of a request, wherever it comes from: of what may be no trailer (RFC 9110, section 6.5.1),
/// and of what the proxy alone says, or says of the caller.
pub fn sanitize_request_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| {
        is_never(name) || OF_REQUESTS.contains(name) || name.as_str().starts_with("x-forwarded-")
    });
}

/// Cleans the trailers of a response, wherever it comes from.
pub fn sanitize_response_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| is_never(name) || OF_RESPONSES.contains(name));
}

fn is_never(name: &HeaderName) -> bool {
    is_heddle(name) || is_hop_by_hop(name) || ALWAYS.contains(name)
}
