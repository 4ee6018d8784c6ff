//! What filters do to requests, responses and redirects.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderValue, Uri,
    header::HOST,
    uri::{Authority, PathAndQuery},
};

use super::Request;
use crate::{
    outcome::{Error, ErrorKind},
    path,
    snapshot::{HeaderModifier, PathMatch, PathModifier, Redirect, Rewrite},
};

/// Set, add, remove, in this order.
pub(super) fn modify(headers: &mut HeaderMap, modifier: &HeaderModifier) {
    for (name, value) in &modifier.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name, value.clone());
    }
    for name in &modifier.remove {
        headers.remove(name);
    }
}

pub(super) fn rewrite(
    rewrite: &Rewrite,
    matched: Option<&PathMatch>,
    uri: &mut Uri,
    headers: &mut HeaderMap,
) -> Result<(), Error> {
    let mut parts = std::mem::take(uri).into_parts();
    if let Some(modifier) = &rewrite.path {
        let (old, query) = parts.path_and_query.as_ref().map_or(("/", None), |pq| (pq.path(), pq.query()));
        let new = with_query(replace(modifier, matched, old)?, query);
        parts.path_and_query = Some(PathAndQuery::try_from(new.as_ref()).map_err(|_| unusable("path", &new))?);
    }
    if let Some(host) = &rewrite.hostname {
        if parts.authority.is_some() {
            let authority = Authority::try_from(host.as_bytes());
            parts.authority = Some(authority.map_err(|_| unusable("host", &String::from_utf8_lossy(host.as_bytes())))?);
        }
        // HTTP/2 without Host keeps without: its authority says it.
        if headers.contains_key(HOST) || parts.authority.is_none() {
            headers.insert(HOST, host.clone());
        }
    }
    *uri = Uri::from_parts(parts).map_err(|error| unusable("URI", &error.to_string()))?;
    Ok(())
}

/// `Location` of a redirect. The port: the one given; else, where the scheme is given, that scheme's
/// own; else the one that the request came to. `:80` of http and `:443` of https are left out.
pub(super) fn location(
    redirect: &Redirect,
    matched: Option<&PathMatch>,
    request: &Request<'_>,
    host: &str,
    scheme: &str,
    listener_port: u16,
) -> Result<HeaderValue, Error> {
    let port = redirect.port.unwrap_or(match redirect.scheme.as_deref() {
        Some("http") => 80,
        Some("https") => 443,
        _ => listener_port,
    });
    let scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let host = redirect.hostname.as_deref().unwrap_or(host);
    // An address of version 6 lost its brackets when the port was taken off.
    let host = if host.contains(':') { Cow::Owned(format!("[{host}]")) } else { Cow::Borrowed(host) };
    let port = match (scheme, port) {
        ("http", 80) | ("https", 443) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let path = match &redirect.path {
        Some(modifier) => replace(modifier, matched, request.path)?,
        None => Cow::Borrowed(request.path),
    };
    let location = format!("{scheme}://{host}{port}{}", with_query(path, request.query));
    HeaderValue::try_from(&location).map_err(|_| unusable("location", &location))
}

/// The new path: normal again, or nothing (a replacement can make `//` or be an impossible path).
fn replace<'a>(modifier: &'a PathModifier, matched: Option<&PathMatch>, old: &'a str) -> Result<Cow<'a, str>, Error> {
    let new = match (modifier, matched) {
        (PathModifier::Full(new), _) => Cow::Borrowed(new.as_str()),
        (PathModifier::Prefix(new), Some(PathMatch::Prefix(prefix))) => {
            let rest = old.strip_prefix(prefix.as_str()).unwrap_or(old);
            let new = new.strip_suffix('/').unwrap_or(new);
            match (new, rest) {
                ("", "") => Cow::Borrowed("/"),
                // What follows a prefix of whole segments is nothing, or begins with a slash.
                _ => Cow::Owned(format!("{new}{rest}")),
            }
        }
        (PathModifier::Prefix(_), _) => return Err(unusable("path", "the rule matches no prefix to replace")),
    };
    match path::normalize(&new) {
        Ok(normal) => Ok(Cow::Owned(normal.into_owned())),
        Err(error) => Err(unusable("path", &error.detail)),
    }
}

fn with_query<'a>(path: Cow<'a, str>, query: Option<&str>) -> Cow<'a, str> {
    match query {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => path,
    }
}

fn unusable(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::NoBackend, format!("the route's filter makes an unusable {what}: {why}"))
}
