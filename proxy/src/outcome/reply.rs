//! The answer that a caller gets to an error of the proxy's own.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{Error, ErrorKind};
use crate::headers::HEDDLE_ERROR;

/// Name of the intermediary in `Proxy-Status`.
const PROXY: &str = "heddle-proxy";
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Longest detail that is told in headers, bytes: well below the header limits of any client.
const MAX_DETAIL: usize = 512;

impl ErrorKind {
    /// What a response's `heddle-error` says. A peer proxy takes this header off what its app says, so of a peer it is
    /// the proxy's own word; of anybody else it means nothing.
    pub fn said(headers: &HeaderMap) -> Option<Self> {
        headers.get(HEDDLE_ERROR)?.to_str().ok()?.parse().ok()
    }
}

impl Error {
    /// The answer to an HTTP request, or to a gRPC call (status in headers, no body): `heddle-error`,
    /// `proxy-status` with the particulars, and a sentence for people.
    pub fn reply(&self, grpc: bool) -> Response<Bytes> {
        let row = self.kind.row();
        let detail = shorten(&self.detail);
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(HEDDLE_ERROR, HeaderValue::from_static(row.reason));
        headers.insert(PROXY_STATUS, proxy_status(row.proxy_status, detail));
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(row.grpc_status)));
            headers.insert(GRPC_MESSAGE, grpc_message(row.reason, detail));
            *response.status_mut() = StatusCode::OK;
        } else {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.status_mut() = row.status;
            *response.body_mut() = Bytes::from(format!("{PROXY}: {}: {detail}\n", row.reason));
        }
        response
    }
}

/// `proxy; error=token; details="..."` (RFC 9209); a detail that a structured-field string cannot hold
/// is told in its printable part.
fn proxy_status(token: &str, detail: &str) -> HeaderValue {
    let mut value = format!("{PROXY}; error={token}; details=\"");
    for c in detail.chars() {
        match c {
            '"' | '\\' => value.extend(['\\', c]),
            ' '..='~' => value.push(c),
            _ => value.push('?'),
        }
    }
    value.push('"');
    HeaderValue::try_from(value).expect("printable ASCII")
}

/// Percent-encoded as gRPC over HTTP/2 asks: all but printable ASCII, and `%`.
fn grpc_message(reason: &str, detail: &str) -> HeaderValue {
    let mut value = format!("{PROXY}: {reason}: ");
    for byte in detail.bytes() {
        match byte {
            b'%' => value.push_str("%25"),
            b' '..=b'~' => value.push(char::from(byte)),
            _ => write!(value, "%{byte:02X}").expect("writing to a string"),
        }
    }
    HeaderValue::try_from(value).expect("printable ASCII")
}

fn shorten(detail: &str) -> &str {
    &detail[..detail.floor_char_boundary(MAX_DETAIL)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::outcome::{ErrorKind, Side};

    /// What RFC 9209, section 2.3 registers.
    const RFC_9209: &[&str] = &[
        "dns_timeout",
        "dns_error",
        "destination_not_found",
        "destination_unavailable",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "connection_limit_reached",
        "tls_protocol_error",
        "tls_certificate_error",
        "tls_alert_received",
        "http_request_error",
        "http_request_denied",
        "http_response_incomplete",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_body_size",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_response_content_coding",
        "http_response_timeout",
        "http_upgrade_failed",
        "http_protocol_error",
        "proxy_internal_response",
        "proxy_internal_error",
        "proxy_configuration_error",
        "proxy_loop_detected",
    ];

    #[test]
    fn every_kind_has_a_row_that_explains_it() {
        let mut reasons = HashSet::new();
        for (index, kind) in ErrorKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index, "{kind:?} is out of order, or one is missing before it");
            let row = kind.row();
            assert!(reasons.insert(row.reason), "{} twice", row.reason);
            assert!(row.reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", row.reason);
            assert!(row.status.is_client_error() || row.status.is_server_error());
            assert!((1..=16).contains(&row.grpc_status));
            assert!((1..=6).contains(&row.tcp_status));
            assert!(RFC_9209.contains(&row.proxy_status), "{}", row.proxy_status);
            assert_eq!(row.reason.parse(), Ok(*kind));
        }
        // `as usize` of the last variant: nothing was declared after what ALL lists.
        assert_eq!(ErrorKind::Internal as usize + 1, ErrorKind::ALL.len());
    }

    #[test]
    fn grpc_statuses_follow_http_ones() {
        for kind in ErrorKind::ALL {
            let row = kind.row();
            let expected = match row.status.as_u16() {
                400 => 3,
                403 => 7,
                404 => 5,
                408 | 504 => 4,
                421 | 502 | 503 => 14,
                431 => 8,
                499 => 1,
                500 => 13,
                508 => 10,
                other => panic!("{kind:?}: no rule for {other}"),
            };
            assert_eq!(row.grpc_status, expected, "{kind:?}");
        }
    }

    #[test]
    fn a_5xx_is_never_the_callers_fault_unless_it_was_its_deadline() {
        for kind in ErrorKind::ALL {
            let row = kind.row();
            if row.side == Side::Downstream && *kind != ErrorKind::DeadlineExceeded {
                assert!(row.status.is_client_error(), "{kind:?}");
            }
        }
    }

    #[test]
    fn every_reply_names_reason_and_detail() {
        for kind in ErrorKind::ALL {
            let error = Error::new(*kind, "AuthorizationPolicy shop/orders rule 1");
            let row = kind.row();

            let http = error.reply(false);
            assert_eq!(http.status(), row.status);
            assert_eq!(http.headers()["heddle-error"], row.reason);
            assert_eq!(
                http.headers()["proxy-status"],
                format!("heddle-proxy; error={}; details=\"AuthorizationPolicy shop/orders rule 1\"", row.proxy_status)
            );
            assert!(http.body().ends_with(b": AuthorizationPolicy shop/orders rule 1\n"));

            let grpc = error.reply(true);
            assert_eq!(grpc.status(), 200);
            assert_eq!(grpc.headers()["content-type"], "application/grpc");
            assert_eq!(grpc.headers()["grpc-status"], row.grpc_status.to_string());
            assert_eq!(grpc.headers()["heddle-error"], row.reason);
            assert_eq!(
                grpc.headers()["grpc-message"],
                format!("heddle-proxy: {}: AuthorizationPolicy shop/orders rule 1", row.reason)
            );
            assert!(grpc.body().is_empty());
        }
    }

    #[test]
    fn details_are_escaped_and_bounded() {
        let error = Error::new(ErrorKind::Internal, "a \"b\" \\ \r\n ü 100%");
        let http = error.reply(false);
        assert_eq!(
            http.headers()["proxy-status"],
            r#"heddle-proxy; error=proxy_internal_error; details="a \"b\" \\ ?? ? 100%""#
        );
        let grpc = error.reply(true);
        assert_eq!(grpc.headers()["grpc-message"], r#"heddle-proxy: internal: a "b" \ %0D%0A %C3%BC 100%25"#);

        let long = Error::new(ErrorKind::Internal, "ü".repeat(10_000));
        assert!(long.reply(false).body().len() < 600);
        assert!(long.reply(true).headers()["grpc-message"].len() < 2000);
    }
}
