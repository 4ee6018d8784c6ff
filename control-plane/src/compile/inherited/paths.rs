//! Where the paths that a rule denies end up when a route rewrites them.

use heddle_api::resource::{HttpRouteMatch, PathMatchType, PathModifierSpec, PathModifierType};

/// What a rule of a route matches of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matched<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    /// Any path, or one that an expression describes.
    Any,
}

/// The paths that one of these matches takes.
pub(super) fn matched(matches: &[HttpRouteMatch]) -> Vec<Matched<'_>> {
    if matches.is_empty() {
        return vec![Matched::Any];
    }
    let paths = matches.iter().map(|wanted| wanted.path.as_ref());
    paths
        .map(|path| match path.map(|path| (path.r#type, path.value.as_str())) {
            None | Some((PathMatchType::RegularExpression, _)) => Matched::Any,
            Some((PathMatchType::Exact, path)) => Matched::Exact(path),
            Some((PathMatchType::PathPrefix, path)) => Matched::Prefix(path),
        })
        .collect()
}

/// Patterns that cover what paths of a pattern can become. In doubt, more: a denial must not be missed.
pub(super) fn rewritten(pattern: &str, modifier: &PathModifierSpec, matched: &[Matched<'_>]) -> Vec<String> {
    match modifier.r#type {
        PathModifierType::ReplaceFullPath => {
            let full = modifier.replace_full_path.as_deref().unwrap_or("/");
            let may_match = matched.iter().any(|matched| overlaps(pattern, *matched));
            if may_match { vec![literal(full)] } else { Vec::new() }
        }
        PathModifierType::ReplacePrefixMatch => {
            let new = modifier.replace_prefix_match.as_deref().unwrap_or("/");
            matched.iter().flat_map(|matched| replaced(pattern, *matched, new)).collect()
        }
    }
}

/// Where a pattern's paths go, of which a matched prefix is replaced.
fn replaced(pattern: &str, matched: Matched<'_>, new: &str) -> Vec<String> {
    let new = literal(new.trim_end_matches('/'));
    let below = || vec![or_root(&new), format!("{new}/*")];
    let Matched::Prefix(prefix) = matched else {
        // There is no prefix that could be replaced; the proxies refuse such a rule.
        return below();
    };
    if !overlaps(pattern, matched) {
        return Vec::new();
    }
    let prefix = prefix.trim_end_matches('/');
    let is_any = matches!(pattern, "*" | "/*");
    // Written otherwise, one could still be the other once decoded.
    if is_any || pattern.contains('%') || prefix.contains('%') {
        return below();
    }
    match pattern.strip_suffix("/*") {
        Some(base) => match rest_below(base, prefix) {
            Some(rest) => vec![format!("{new}{rest}/*")],
            None => below(),
        },
        None => match rest_below(pattern, prefix) {
            Some("") => vec![or_root(&new), format!("{new}/")],
            Some(rest) => vec![format!("{new}{rest}")],
            None => below(),
        },
    }
}

/// Whether a path can fit both.
fn overlaps(pattern: &str, matched: Matched<'_>) -> bool {
    let (path, is_prefix) = match matched {
        Matched::Any => return true,
        Matched::Exact(path) => (path, false),
        Matched::Prefix(path) => (path.trim_end_matches('/'), true),
    };
    if matches!(pattern, "*" | "/*") || pattern.contains('%') || path.contains('%') {
        return true;
    }
    match pattern.strip_suffix("/*") {
        Some(base) => rest_below(path, base).is_some() || (is_prefix && rest_below(base, path).is_some()),
        None if is_prefix => rest_below(pattern, path).is_some(),
        None => pattern == path,
    }
}

/// What follows a prefix of whole segments.
fn rest_below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn or_root(path: &str) -> String {
    if path.is_empty() { "/".to_owned() } else { path.to_owned() }
}

/// A path as a pattern that means only this path.
fn literal(path: &str) -> String {
    path.replace('*', "%2A")
}
