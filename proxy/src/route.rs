//! Which rule a request matches, and what follows: where it goes, what changes, or a redirect.
//!
//! Semantics are those of the Gateway API's HTTPRoute. Rules come in its order of precedence, so that
//! the first match decides. Paths are compared as they will be forwarded, with their case; values of
//! headers and of query parameters whole. Of a repeated query parameter the first value counts; a
//! repeated header is compared as its values joined with commas.

mod filter;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use crate::{
    outcome::{Error, ErrorKind},
    snapshot::{Backend, Filter, HostPattern, HttpMatch, HttpRule, PathMatch, ServicePort, ValueMatch},
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

    /// Applies the filters of rule and backend to what is forwarded. `uri` may be in any form; its path
    /// is normalised. A rewritten host replaces `Host` and, where the URI has one, its authority.
    pub fn apply_to_request(&self, uri: &mut Uri, headers: &mut HeaderMap) -> Result<(), Error> {
        for filter in self.rule.filters.iter().chain(&self.backend().filters) {
            match filter {
                Filter::RequestHeaders(modifier) => filter::modify(headers, modifier),
                Filter::Rewrite(rewrite) => filter::rewrite(rewrite, self.rule.matches.path.as_ref(), uri, headers)?,
                Filter::ResponseHeaders(_) | Filter::Redirect(_) => {}
            }
        }
        Ok(())
    }

    /// Applies the filters of backend and rule to what comes back.
    pub fn apply_to_response(&self, headers: &mut HeaderMap) {
        for filter in self.backend().filters.iter().chain(&self.rule.filters) {
            if let Filter::ResponseHeaders(modifier) = filter {
                filter::modify(headers, modifier);
            }
        }
    }
}

/// The first rule that matches, and one of its backends by weight. Errors: `NoRoute` where rules are
/// but none matches, `NoBackend` where the rule has none to send to. `scheme` and `listener_port` are
/// those of the request, for redirects that keep them.
pub fn choose(
    port: &ServicePort,
    request: &Request<'_>,
    scheme: &str,
    listener_port: u16,
    rng: &mut impl rand::Rng,
) -> Result<Choice, Error> {
    if port.http_rules.is_empty() {
        return Ok(Choice::Service);
    }
    let host = host_of(request.authority);
    let Some(rule) = port.http_rules.iter().find(|rule| matches(rule, &host, request)) else {
        return Err(Error::new(
            ErrorKind::NoRoute,
            format!("none of {} route rules matches {} {}", port.http_rules.len(), request.method, request.path),
        ));
    };
    let redirect = rule.filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect),
        _ => None,
    });
    if let Some(redirect) = redirect {
        let location = filter::location(redirect, rule.matches.path.as_ref(), request, &host, scheme, listener_port)?;
        return Ok(Choice::Redirect { rule: rule.clone(), status: redirect.status, location });
    }
    let backend = pick_backend(rule, rng)?;
    Ok(Choice::Forward(Chosen { rule: rule.clone(), backend }))
}

/// By weight among all; the share of those that cannot be used gets its 500, as the Gateway API asks.
fn pick_backend(rule: &HttpRule, rng: &mut impl rand::Rng) -> Result<usize, Error> {
    let no_backend =
        |why: &str| Err(Error::new(ErrorKind::NoBackend, format!("{} rule {}: {why}", rule.route, rule.rule)));
    let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let index = match (rule.backends.len(), total) {
        (0, _) => return no_backend("it has no backends"),
        (_, 0) => return no_backend("all its backends have weight 0"),
        (1, _) => 0,
        (_, total) => {
            let mut ticket = rng.random_range(0..total);
            rule.backends
                .iter()
                .position(|backend| {
                    let weight = u64::from(backend.weight);
                    let hit = ticket < weight;
                    ticket = ticket.saturating_sub(weight);
                    hit
                })
                .expect("the ticket is below the sum of all weights")
        }
    };
    match &rule.backends[index].invalid {
        Some(why) => no_backend(why),
        None => Ok(index),
    }
}

fn matches(rule: &HttpRule, host: &str, request: &Request<'_>) -> bool {
    let HttpMatch { path, headers, query, method } = &rule.matches;
    method.as_ref().is_none_or(|method| method == request.method)
        && path.as_ref().is_none_or(|path| path.matches(request.path))
        && (rule.hostnames.is_empty() || rule.hostnames.iter().any(|pattern| pattern.matches(host)))
        && headers.iter().all(|(name, wanted)| header_matches(request.headers, name, wanted))
        && query.iter().all(|(name, wanted)| query_matches(request.query, name, wanted))
}

/// The host without port, lower case and without a trailing dot.
fn host_of(authority: &str) -> Cow<'_, str> {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

impl HostPattern {
    /// Whether a host, lower case and without port, matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == host,
            Self::Suffix(suffix) => host.strip_suffix(&**suffix).is_some_and(|labels| !labels.is_empty()),
        }
    }
}

impl PathMatch {
    /// Whether a normalised path matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl ValueMatch {
    /// Whether a value matches.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

fn header_matches(headers: &HeaderMap, name: &HeaderName, wanted: &ValueMatch) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    // Header values need not be UTF-8; one that is not equals no expected value.
    let Ok(first) = std::str::from_utf8(first.as_bytes()) else { return false };
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else { return false };
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(value);
    }
    wanted.matches(&joined)
}

fn query_matches(query: Option<&str>, name: &str, wanted: &ValueMatch) -> bool {
    let value = query.unwrap_or_default().split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    });
    value.is_some_and(|value| wanted.matches(&value))
}

/// As forms are encoded: `+` is a space.
fn decode(s: &str) -> Cow<'_, str> {
    if !s.contains('+') {
        return percent_decode_str(s).decode_utf8_lossy();
    }
    let spaced = s.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}
