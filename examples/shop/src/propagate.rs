//! Passing trace context from the request that came in to the requests made because of it: the one
//! thing that any traced app does itself, whatever carries its requests.

use std::convert::Infallible;

use axum::{extract::FromRequestParts, http::request::Parts};
use http::{HeaderMap, HeaderName, HeaderValue};

const TRACE_HEADERS: [&str; 11] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-request-id",
    "baggage",
];

/// The trace headers of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceHeaders(HeaderMap);

impl TraceHeaders {
    /// Those among `headers`.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        for name in TRACE_HEADERS.map(HeaderName::from_static) {
            for value in headers.get_all(&name) {
                kept.append(name.clone(), value.clone());
            }
        }
        Self(kept)
    }

    /// As headers of a request to be made.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.0.clone()
    }

    /// Puts them on a gRPC call.
    pub(crate) fn call<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(self.0.clone());
        request
    }

    /// As text, to be kept with work that outlives its request.
    pub(crate) fn to_text(&self) -> String {
        let pairs: Vec<(&str, &str)> =
            self.0.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
        serde_json::to_string(&pairs).unwrap_or_default()
    }

    /// The reverse of [`Self::to_text`]; what cannot be read is left out, since a trace is never worth a failure.
    pub(crate) fn from_text(text: &str) -> Self {
        let pairs: Vec<(String, String)> = serde_json::from_str(text).unwrap_or_default();
        let headers = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?)))
            .collect();
        Self::from_headers(&headers)
    }
}

impl<S: Sync> FromRequestParts<S> for TraceHeaders {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_headers(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_trace_headers_and_nothing_else_through_text_and_back() {
        let mut headers = HeaderMap::new();
        headers
            .insert("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2"));
        headers.insert("authorization", HeaderValue::from_static("secret"));
        let kept = TraceHeaders::from_text(&TraceHeaders::from_headers(&headers).to_text()).headers();
        assert_eq!(kept.get_all("tracestate").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(kept["traceparent"], headers["traceparent"]);
        assert!(!kept.contains_key("authorization"));
        assert!(TraceHeaders::from_text("no json").headers().is_empty());
    }
}
