//! The answer that a caller gets to an error of the proxy's own.

use bytes::Bytes;
use http::Response;

use super::Error;

/// Name of the intermediary in `Proxy-Status`.
const PROXY: &str = "heddle-proxy";

impl Error {
    /// The answer to an HTTP request, or to a gRPC call (status in headers, no body): `heddle-error`,
    /// `proxy-status` with the particulars, and a sentence for people.
    pub fn reply(&self, grpc: bool) -> Response<Bytes> {
        let _ = (grpc, PROXY);
        todo!()
    }
}
