//! Names, labels, addresses, and words that were nearly right.

use std::{fmt, net::IpAddr};

use regex::RegexBuilder;

use super::faults::{Faults, Path};
use crate::resource::AnyObject;

/// Labels with this prefix are Heddle's own.
const OWN_PREFIX: &str = "heddle.dev";
/// Most bytes of annotations of one object.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// Most labels of one object.
const MAX_LABELS: usize = 64;
/// Longest regular expression, bytes.
const MAX_REGEX: usize = 1024;
/// Most memory that a compiled regular expression may take; proxies have the same bound.
const MAX_REGEX_SIZE: usize = 1 << 18;

/// A hint at the word that was perhaps meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggest(Option<String>);

impl Suggest {
    /// The nearest of the known words, if one is near.
    pub fn for_word<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let lower = word.to_lowercase();
        let near = known
            .map(|known| (strsim::jaro_winkler(&lower, &known.to_lowercase()), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|one, other| one.0.total_cmp(&other.0));
        Self(near.map(|(_, known)| known.to_owned()))
    }
}

impl fmt::Display for Suggest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |word| write!(f, "; did you mean {word:?}?"))
    }
}

/// `a, b and c`.
pub(super) fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// Whether this is a DNS label (RFC 1123): lower-case letters, digits and `-`, 1 to 63 characters.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether this is a host name: DNS labels, separated by dots, in all at most 253 characters, and no
/// address.
pub fn is_hostname(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label) && text.parse::<IpAddr>().is_err()
}

pub(super) fn dns_label(text: &str) -> Result<(), String> {
    if is_dns_label(text) {
        return Ok(());
    }
    Err(format!("{text:?} is no DNS label: 1 to 63 of a-z, 0-9 and -, without - at either end"))
}

pub(super) fn hostname(text: &str) -> Result<(), String> {
    if is_hostname(text) {
        return Ok(());
    }
    Err(format!("{text:?} is no host name; write it in lower case and without port, such as orders.example.com"))
}

/// A host name, or `*.` before one.
pub(super) fn host_pattern(text: &str) -> Result<(), String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    if is_hostname(name) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is no host name; write it in lower case and without port, such as orders.example.com or *.example.com"
    ))
}

/// A service account: one segment of a SPIFFE ID.
pub(super) fn service_account(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err(format!("{text:?} is no service account: a-z, 0-9, - and ., at most 253"))
}

/// An address range, with nothing after its prefix.
pub(super) fn cidr(text: &str) -> Result<(), String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        return Err(format!("{text:?} is an address, not a range; write {ip}/{bits}"));
    }
    let Ok(net) = text.parse::<ipnet::IpNet>() else {
        return Err(format!("{text:?} is no address range; write one such as 10.0.0.0/8 or fd00::/8"));
    };
    if net.addr() != net.network() {
        return Err(format!("{text:?} is more than a range; write {} for the whole of it", net.trunc()));
    }
    Ok(())
}

/// A port, where the type allows 0.
pub(super) fn port(port: u16) -> Result<(), String> {
    if port == 0 { Err("is 0; a port is 1 to 65535".to_owned()) } else { Ok(()) }
}

/// A regular expression, within bounds, on its own.
pub(super) fn regex(text: &str) -> Result<(), String> {
    if text.len() > MAX_REGEX {
        return Err(format!("has {} bytes; a regular expression has at most {MAX_REGEX}", text.len()));
    }
    let compile =
        |text: &str| RegexBuilder::new(text).size_limit(MAX_REGEX_SIZE).dfa_size_limit(MAX_REGEX_SIZE).build();
    // Alone too: `a)|(b` would be one only between the anchors' parentheses.
    match compile(text).and_then(|_| compile(&format!("^(?:{text})$"))) {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err(format!("{text:?} takes too much memory when compiled; make its repetitions smaller"))
        }
        Err(error) => {
            let reason = error.to_string();
            // The last line says what; those before draw where.
            let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("{text:?} is no regular expression: {last}"))
        }
    }
}

/// A rule's name: shown in metrics, so short; not a number, so that it is no rule's index.
pub(super) fn rule_name(text: &str) -> Result<(), String> {
    dns_label(text)?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{text:?} is a number; rules without a name are shown by their number, so name it otherwise"
        ));
    }
    Ok(())
}

/// Names of rules, each once.
pub(super) fn rule_names<'a>(names: impl Iterator<Item = Option<&'a str>>, rules: &Path<'_>, faults: &mut Faults) {
    let mut seen: Vec<(usize, &str)> = Vec::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else { continue };
        let entry = rules.index(index);
        let path = entry.field("name");
        faults.check(&path, rule_name(name));
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == name) {
            faults.add(&path, format!("{name:?} is the name of rule {first} already"));
        }
        seen.push((index, name));
    }
}

/// Name, labels and annotations.
pub(super) fn metadata(object: &AnyObject, path: &Path<'_>, faults: &mut Faults) {
    let metadata = object.metadata();
    if object.kind().is_namespaced() {
        faults.check(&path.field("name"), dns_label(&metadata.name));
        faults.check(&path.field("namespace"), dns_label(metadata.namespace.as_deref().unwrap_or_default()));
    }
    let labels = path.field("labels");
    if metadata.labels.len() > MAX_LABELS {
        faults.add(&labels, format!("has {} entries; at most {MAX_LABELS} are wanted", metadata.labels.len()));
    }
    for (key, value) in &metadata.labels {
        faults.check(&labels.field(key), label(key, value));
    }
    let annotations = path.field("annotations");
    for key in metadata.annotations.keys() {
        faults.check(&annotations.field(key), label_key(key));
    }
    let size: usize = metadata.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        faults.add(&annotations, format!("has {size} bytes; at most {MAX_ANNOTATIONS} are wanted"));
    }
}

/// Whether a label is one that an object may have; if not, why.
pub fn label(key: &str, value: &str) -> Result<(), String> {
    label_key(key).and_then(|()| label_value(value))
}

/// `[<DNS name>/]<name>`, as in Kubernetes.
fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if let Some(prefix) = prefix {
        if !is_hostname(prefix) {
            return Err(format!("the prefix {prefix:?} is no DNS name"));
        }
        if prefix == OWN_PREFIX || prefix.ends_with(".heddle.dev") {
            return Err(format!("keys that begin with {prefix}/ are Heddle's own"));
        }
    }
    if name.is_empty() || !is_qualified(name) {
        return Err(format!(
            "{name:?} is no key: 1 to 63 letters, digits, -, _ and ., with a letter or digit at either end"
        ));
    }
    Ok(())
}

fn label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_qualified(value) {
        return Ok(());
    }
    Err(format!(
        "{value:?} is no label value: at most 63 letters, digits, -, _ and ., with a letter or digit at either end"
    ))
}

fn is_qualified(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
}
