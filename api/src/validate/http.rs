//! Parts of HTTP requests: paths, methods, headers.

use http::{HeaderName, HeaderValue};

use super::{
    common,
    faults::{Faults, Path},
};
use crate::resource::{
    HeaderMatch, HeaderModifierSpec, HttpRouteFilter, HttpRouteFilterType, MatchType, PathModifierSpec,
    PathModifierType, QueryParamMatch, RedirectSpec, RewriteSpec,
};

/// Longest path, header value or query value, bytes.
const MAX_VALUE: usize = 4096;

/// What a proxy sets or strips itself, and a route must not touch.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "forwarded",
    "grpc-timeout",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "proxy-status",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-client-cert",
];

/// Whether a path is as proxies forward it: one that is not would never match, or not what is meant.
pub fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} does not begin with /"));
    }
    if path.len() > MAX_VALUE {
        return Err(format!("has {} bytes; at most {MAX_VALUE} are wanted", path.len()));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => encoded(path, bytes.next(), bytes.next())?,
            b'?' => return Err(format!("{path:?} has a query; match that with queryParams")),
            b'#' | b';' | b'\\' | 0..=b' ' | 0x7f..=0xff => {
                return Err(format!(
                    "{path:?} has the character {:?}, with which proxies refuse a path",
                    char::from(byte)
                ));
            }
            plain => plain,
        });
    }
    if std::str::from_utf8(&decoded).is_err() {
        return Err(format!("{path:?} does not decode to UTF-8"));
    }
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_some() => return Err(format!("{path:?} has an empty segment (//)")),
            "." | ".." => return Err(format!("{path:?} has a segment {segment:?}")),
            _ => {}
        }
    }
    Ok(())
}

fn encoded(path: &str, high: Option<u8>, low: Option<u8>) -> Result<u8, String> {
    let digit = |byte: Option<u8>| {
        byte.and_then(|byte| char::from(byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let (Some(high_digit), Some(low_digit)) = (digit(high), digit(low)) else {
        return Err(format!("{path:?} has a % without two hex digits after it"));
    };
    let byte = high_digit << 4 | low_digit;
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            Err(format!("{path:?} has {:?} encoded; write it plain", char::from(byte)))
        }
        0..=0x1f | 0x7f | b'/' | b'\\' | b';' | b'#' | b'?' => {
            Err(format!("{path:?} has an encoded {:?}, with which proxies refuse a path", char::from(byte)))
        }
        _ if [high, low].iter().flatten().any(u8::is_ascii_lowercase) => {
            Err(format!("{path:?}: write %{byte:02X} in upper case, as proxies do"))
        }
        _ => Ok(byte),
    }
}

/// A method: an upper-case token.
pub(super) fn method(text: &str) -> Result<(), String> {
    // Any token is one (RFC 9110), but nobody means "*" or "!" by that.
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    if text.is_empty() || text.len() > 32 || !is_word {
        return Err(format!("{text:?} is no method; write one such as GET"));
    }
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(format!("methods are upper case: {:?}", text.to_ascii_uppercase()));
    }
    Ok(())
}

/// Methods, each once.
pub(super) fn methods(methods: &[String], path: &Path<'_>, faults: &mut Faults) {
    for (index, text) in methods.iter().enumerate() {
        faults.check(&path.index(index), method(text));
    }
    faults.unique(path, methods, |method| format!("{method:?}"));
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    if let Some(pseudo) = text.strip_prefix(':') {
        return Err(format!("{text:?} is part of the request line; match {pseudo} by the field that is for it"));
    }
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no header name"))
}

/// A header that a route may set or take away.
fn changeable(text: &str) -> Result<(), String> {
    let name = header_name(text)?;
    let name = name.as_str();
    if name == "host" {
        return Err("Host is changed by a filter of type URLRewrite, with hostname".to_owned());
    }
    if name.starts_with("heddle-") || RESERVED.contains(&name) {
        return Err(format!("{text:?} is set by proxies themselves; no route can change it"));
    }
    Ok(())
}

fn header_value(text: &str) -> Result<(), String> {
    if text.len() > MAX_VALUE {
        return Err(format!("has {} bytes; at most {MAX_VALUE} are wanted", text.len()));
    }
    if HeaderValue::from_str(text).is_err() || !text.is_ascii() {
        return Err(format!("{text:?} is no header value: visible ASCII characters, spaces and tabs"));
    }
    if text.trim_matches([' ', '\t']) != text {
        return Err(format!("{text:?} begins or ends with blanks, which HTTP drops"));
    }
    Ok(())
}

/// Header matches of one rule.
pub(super) fn header_matches(headers: &[HeaderMatch], path: &Path<'_>, faults: &mut Faults) {
    for (index, header) in headers.iter().enumerate() {
        let entry = path.index(index);
        let name = entry.field("name");
        match header_name(&header.name).as_ref().map(HeaderName::as_str) {
            Ok("host") => faults.add(&name, "the host is matched by spec.hostnames"),
            Ok(known) if RESERVED.contains(&known) && known != "grpc-timeout" && known != "upgrade" => {
                faults.add(&name, format!("{:?} is taken away or set before routes look at headers", header.name));
            }
            Ok(_) => {}
            Err(message) => faults.add(&name, message.clone()),
        }
        let same = |other: &HeaderMatch| other.name.eq_ignore_ascii_case(&header.name);
        if let Some(first) = headers[..index].iter().position(same) {
            faults.add(&name, format!("{:?} is matched already, by entry {first}", header.name));
        }
        faults.check(
            &entry.field("value"),
            match header.r#type {
                MatchType::Exact => header_value(&header.value),
                MatchType::RegularExpression => common::regex(&header.value),
            },
        );
    }
}

/// Query matches of one rule.
pub(super) fn query_matches(params: &[QueryParamMatch], path: &Path<'_>, faults: &mut Faults) {
    for (index, param) in params.iter().enumerate() {
        let entry = path.index(index);
        if param.name.is_empty() || param.name.len() > MAX_VALUE {
            faults.add(&entry.field("name"), format!("a name has 1 to {MAX_VALUE} bytes"));
        }
        if let Some(first) = params[..index].iter().position(|other| other.name == param.name) {
            faults.add(&entry.field("name"), format!("{:?} is matched already, by entry {first}", param.name));
        }
        let value = entry.field("value");
        match param.r#type {
            MatchType::Exact if param.value.len() > MAX_VALUE => {
                faults.add(&value, format!("has {} bytes; at most {MAX_VALUE} are wanted", param.value.len()));
            }
            MatchType::Exact => {}
            MatchType::RegularExpression => faults.check(&value, common::regex(&param.value)),
        }
    }
}

/// What a place allows filters to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Everything. Whether every match of the rule is a PathPrefix.
    All { prefix: bool },
    /// Header changes.
    Headers(&'static str),
    /// Nothing.
    Nothing(&'static str),
}

/// Filters in their order.
pub(super) fn filters(filters: &[HttpRouteFilter], allowed: Allowed, path: &Path<'_>, faults: &mut Faults) {
    for (index, filter) in filters.iter().enumerate() {
        let entry = path.index(index);
        match allowed {
            Allowed::Nothing(why) => {
                faults.add(&entry, why);
                continue;
            }
            Allowed::Headers(why)
                if !matches!(
                    filter.r#type,
                    HttpRouteFilterType::RequestHeaderModifier | HttpRouteFilterType::ResponseHeaderModifier
                ) =>
            {
                faults.add(&entry.field("type"), why);
            }
            _ => {}
        }
        check_filter(filter, matches!(allowed, Allowed::All { prefix: true }), &entry, faults);
        if let Some(first) = filters[..index].iter().position(|other| other.r#type == filter.r#type) {
            faults.add(&entry.field("type"), format!("is the type of filter {first} already; put both into one"));
        }
    }
    let position = |wanted| filters.iter().position(|filter| filter.r#type == wanted);
    if let (Some(redirect), Some(rewrite)) =
        (position(HttpRouteFilterType::RequestRedirect), position(HttpRouteFilterType::UrlRewrite))
    {
        faults.add(&path.index(rewrite), format!("a rewrite cannot stand beside the redirect of filter {redirect}"));
    }
}

fn check_filter(filter: &HttpRouteFilter, prefix: bool, path: &Path<'_>, faults: &mut Faults) {
    use HttpRouteFilterType as Type;
    let given = [
        ("requestHeaderModifier", Type::RequestHeaderModifier, filter.request_header_modifier.is_some()),
        ("responseHeaderModifier", Type::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
        ("requestRedirect", Type::RequestRedirect, filter.request_redirect.is_some()),
        ("urlRewrite", Type::UrlRewrite, filter.url_rewrite.is_some()),
    ];
    for (field, of, is_given) in given {
        match (of == filter.r#type, is_given) {
            (true, false) => faults.add(&path.field(field), "is missing; the filter's type names it"),
            (false, true) => faults.add(&path.field(field), "does not belong to the filter's type"),
            _ => {}
        }
    }
    if let Some(modifier) = &filter.request_header_modifier {
        header_modifier(modifier, &path.field("requestHeaderModifier"), faults);
    }
    if let Some(modifier) = &filter.response_header_modifier {
        header_modifier(modifier, &path.field("responseHeaderModifier"), faults);
    }
    if let Some(spec) = &filter.request_redirect {
        redirect(spec, prefix, &path.field("requestRedirect"), faults);
    }
    if let Some(spec) = &filter.url_rewrite {
        rewrite(spec, prefix, &path.field("urlRewrite"), faults);
    }
}

fn header_modifier(modifier: &HeaderModifierSpec, path: &Path<'_>, faults: &mut Faults) {
    if modifier.set.is_empty() && modifier.add.is_empty() && modifier.remove.is_empty() {
        faults.add(path, "changes nothing; give set, add or remove");
    }
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut once = |name: &str, path: &Path<'_>, faults: &mut Faults| {
        let lower = name.to_ascii_lowercase();
        match seen.iter().find(|(known, _)| *known == lower) {
            Some((_, first)) => faults.add(path, format!("{name:?} is changed already, at {first}")),
            None => seen.push((lower, path.to_string())),
        }
    };
    for (field, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
        let list = path.field(field);
        for (index, header) in headers.iter().enumerate() {
            let entry = list.index(index);
            faults.check(&entry.field("name"), changeable(&header.name));
            faults.check(&entry.field("value"), header_value(&header.value));
            once(&header.name, &entry.field("name"), faults);
        }
    }
    let list = path.field("remove");
    for (index, name) in modifier.remove.iter().enumerate() {
        faults.check(&list.index(index), changeable(name));
        once(name, &list.index(index), faults);
    }
}

fn redirect(spec: &RedirectSpec, prefix: bool, path: &Path<'_>, faults: &mut Faults) {
    if spec.scheme.is_none() && spec.hostname.is_none() && spec.port.is_none() && spec.path.is_none() {
        faults.add(path, "leads back to where the request came from; give scheme, hostname, port or path");
    }
    if let Some(scheme) = &spec.scheme
        && !matches!(scheme.as_str(), "http" | "https")
    {
        faults.add(&path.field("scheme"), format!("{scheme:?} is neither \"http\" nor \"https\""));
    }
    if let Some(hostname) = &spec.hostname {
        faults.check(&path.field("hostname"), common::hostname(hostname));
    }
    if let Some(status) = spec.status_code
        && !matches!(status, 301 | 302 | 303 | 307 | 308)
    {
        faults.add(&path.field("statusCode"), format!("{status} is no redirect; 301, 302, 303, 307 or 308 is wanted"));
    }
    if let Some(modifier) = &spec.path {
        path_modifier(modifier, prefix, &path.field("path"), faults);
    }
}

fn rewrite(spec: &RewriteSpec, prefix: bool, path: &Path<'_>, faults: &mut Faults) {
    if spec.hostname.is_none() && spec.path.is_none() {
        faults.add(path, "changes nothing; give hostname or path");
    }
    if let Some(hostname) = &spec.hostname {
        faults.check(&path.field("hostname"), common::hostname(hostname));
    }
    if let Some(modifier) = &spec.path {
        path_modifier(modifier, prefix, &path.field("path"), faults);
    }
}

fn path_modifier(modifier: &PathModifierSpec, prefix: bool, path: &Path<'_>, faults: &mut Faults) {
    let fields = [
        ("replaceFullPath", PathModifierType::ReplaceFullPath, &modifier.replace_full_path),
        ("replacePrefixMatch", PathModifierType::ReplacePrefixMatch, &modifier.replace_prefix_match),
    ];
    for (field, of, value) in fields {
        let place = path.field(field);
        match (of == modifier.r#type, value) {
            (true, None) => faults.add(&place, "is missing; the type names it"),
            (false, Some(_)) => faults.add(&place, "does not belong to the type"),
            (true, Some(value)) => faults.check(&place, check_path(value)),
            (false, None) => {}
        }
    }
    if modifier.r#type == PathModifierType::ReplacePrefixMatch && !prefix {
        faults.add(
            &path.field("type"),
            "there is no prefix to replace: every match of the rule must have a path of type PathPrefix (\"/\" for any)",
        );
    }
}
