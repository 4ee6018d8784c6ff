//! Values as text that fits where it is put.

use serde::Serialize as _;
use serde_json::{Map, Value, ser::PrettyFormatter};

/// `key: value` by indentation, its first line without, its last without line break.
pub(super) fn entry(key: &str, value: &Value, indent: usize) -> String {
    let mut text = String::new();
    put_entry(&mut text, key, value, indent);
    text
}

/// `- value`, as above.
pub(super) fn item(value: &Value, indent: usize) -> String {
    let mut text = String::new();
    put_item(&mut text, value, indent);
    text
}

/// JSON on one line, or over several of this indentation; `step` is what each level adds.
pub(super) fn json(value: &Value, lines: Option<(&str, &str)>) -> String {
    let Some((indent, step)) = lines else { return value.to_string() };
    let mut text = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(step.as_bytes()));
    // What is in memory can be written to memory.
    let _ = value.serialize(&mut writer);
    String::from_utf8_lossy(&text).replace('\n', &format!("\n{indent}"))
}

fn put_entry(text: &mut String, key: &str, value: &Value, indent: usize) {
    text.push_str(&scalar(key));
    text.push(':');
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in in_order(map) {
                line(text, indent + 2);
                put_entry(text, key, value, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for value in items {
                line(text, indent + 2);
                put_item(text, value, indent + 2);
            }
        }
        Value::String(value) if is_lines(value) => {
            text.push_str(" |");
            for part in value.lines() {
                line(text, indent + 2);
                text.push_str(part);
            }
        }
        value => {
            text.push(' ');
            text.push_str(&leaf(value));
        }
    }
}

fn put_item(text: &mut String, value: &Value, indent: usize) {
    text.push_str("- ");
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in in_order(map).enumerate() {
                if index > 0 {
                    line(text, indent + 2);
                }
                put_entry(text, key, value, indent + 2);
            }
        }
        value => text.push_str(&leaf(value)),
    }
}

fn line(text: &mut String, indent: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n(' ', indent));
}

/// What people look for first comes first.
fn in_order(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    const FIRST: [&str; 3] = ["name", "image", "restartPolicy"];
    let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| rank(key));
    entries.into_iter()
}

/// Text that is best read as lines: each has something visible at both ends, and the last one ends.
fn is_lines(text: &str) -> bool {
    let visible = |line: &str| !line.is_empty() && line.trim() == line && !line.contains(char::is_control);
    text.ends_with('\n') && text.lines().count() > 1 && text.lines().all(visible)
}

fn leaf(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// Plain where that can mean nothing else, in any version of YAML; else in quotes.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'=' | b':');
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(inner)
        && !text.ends_with(['=', ':'])
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}
