//! Which rule a request matches, and what follows: where it goes, what changes, or a redirect.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use crate::{
    outcome::Error,
    snapshot::{Backend, HttpRule, ServicePort},
};

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `Host` or `:authority`, with or without port.
    pub authority: &'a str,
    /// As normalised by [`crate::path::normalize`].
    pub path: &'a str,
    /// Without `?`.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// What follows from a match.
#[derive(Clone, Debug)]
pub enum Choice {
    /// The service has no routes: to the service itself.
    Service,
    /// To this backend.
    Forward(Chosen),
    /// Answer with this.
    Redirect {
        /// The rule that matched.
        rule: Arc<HttpRule>,
        /// A 3xx.
        status: StatusCode,
        /// Where to.
        location: HeaderValue,
    },
}

/// A rule and one of its backends.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The rule that matched.
    pub rule: Arc<HttpRule>,
    backend: usize,
}

impl Chosen {
    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.rule.backends[self.backend]
    }

    /// Applies the filters of rule and backend to what is forwarded. `uri` is in origin form (only
    /// path and query) and its path normalised.
    pub fn apply_to_request(&self, uri: &mut Uri, headers: &mut HeaderMap) -> Result<(), Error> {
        let _ = (uri, headers);
        todo!()
    }

    /// Applies the filters of backend and rule to what comes back.
    pub fn apply_to_response(&self, headers: &mut HeaderMap) {
        let _ = headers;
        todo!()
    }
}

/// The first rule that matches, and one of its backends by weight. Errors: `NoRoute` where rules are
/// but none matches, `NoBackend` where the rule has none to send to. `scheme` and `port` are those of
/// the request, for redirects that keep them.
pub fn choose(
    port: &ServicePort,
    request: &Request<'_>,
    scheme: &str,
    listener_port: u16,
    rng: &mut impl rand::Rng,
) -> Result<Choice, Error> {
    let _ = (port, request, scheme, listener_port, rng);
    todo!()
}
