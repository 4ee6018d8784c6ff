//! Documents as they are sent: JSON or YAML, read strictly and within bounds.
//!
//! What could mean two things is refused: keys that are there twice, YAML keys that are no text, YAML
//! tags, numbers that JSON does not have. What could grow without bound is bounded: depth, and the
//! number of values, which YAML aliases would multiply.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::problem::Fault;

/// Deepest nesting.
pub const MAX_DEPTH: usize = 32;
/// Most values (of objects, lists, and within them) in one input.
pub const MAX_VALUES: usize = 4_000_000;
/// Most text in one input, bytes: again for YAML aliases.
pub const MAX_TEXT: usize = 64 << 20;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML 1.2.
    Yaml,
}

/// Reads one document. Its errors are about the text: where it is no JSON or YAML, or ambiguous.
pub fn parse(text: &[u8], format: Format) -> Result<Value, Vec<Fault>> {
    match format {
        Format::Json => {
            let reader = Reader::default();
            let mut json = serde_json::Deserializer::from_slice(text);
            let value = reader.read(&mut json)?;
            json.end().map_err(|error| vec![Fault::new("", format!("is no JSON: {error}"))])?;
            Ok(value)
        }
        Format::Yaml => {
            let mut documents = parse_yaml_stream(text)?;
            match documents.len() {
                1 => Ok(documents.remove(0)),
                0 => Err(vec![Fault::new("", "is empty; one document is wanted")]),
                more => Err(vec![Fault::new("", format!("holds {more} documents; one is wanted here"))]),
            }
        }
    }
}

/// Reads a stream of YAML documents, separated by `---`. Empty ones are left out.
pub fn parse_yaml_stream(text: &[u8]) -> Result<Vec<Value>, Vec<Fault>> {
    let text = std::str::from_utf8(text)
        .map_err(|error| vec![Fault::new("", format!("is no UTF-8 from byte {} on", error.valid_up_to()))])?;
    let mut documents = Vec::new();
    let reader = Reader::default();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        match reader.read(document)? {
            Value::Null => {}
            value => documents.push(value),
        }
    }
    Ok(documents)
}

/// What is counted and found while reading.
#[derive(Default)]
struct Reader {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    values: usize,
    text: usize,
    path: Vec<Step>,
    faults: Vec<Fault>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Reader {
    fn read<'de, D: Deserializer<'de>>(&self, input: D) -> Result<Value, Vec<Fault>>
    where
        D::Error: fmt::Display,
    {
        let outcome = Node { reader: self }.deserialize(input);
        let mut state = self.state.borrow_mut();
        if let Err(error) = outcome {
            // The path is that of the innermost value that was being read.
            let fault = Fault::new(path_text(&state.path), error.to_string());
            state.faults.push(fault);
            return Err(std::mem::take(&mut state.faults));
        }
        if !state.faults.is_empty() {
            return Err(std::mem::take(&mut state.faults));
        }
        outcome.map_err(|_| Vec::new())
    }

    fn fault(&self, message: impl Into<String>) {
        let mut state = self.state.borrow_mut();
        let path = path_text(&state.path);
        state.faults.push(Fault::new(path, message));
    }

    /// Enters a value, if there is room for it.
    fn enter<E: de::Error>(&self, step: Step) -> Result<(), E> {
        let mut state = self.state.borrow_mut();
        state.values += 1;
        state.path.push(step);
        if state.values > MAX_VALUES {
            return Err(E::custom(format!("there are more than {MAX_VALUES} values (YAML aliases count each time)")));
        }
        if state.path.len() > MAX_DEPTH {
            return Err(E::custom(format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    /// Counts text.
    fn text<E: de::Error>(&self, text: &str) -> Result<(), E> {
        let mut state = self.state.borrow_mut();
        state.text += text.len();
        if state.text > MAX_TEXT {
            return Err(E::custom(format!(
                "there is more than {MAX_TEXT} bytes of text (YAML aliases count each time)"
            )));
        }
        Ok(())
    }

    fn leave(&self) {
        self.state.borrow_mut().path.pop();
    }
}

fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => push_key(&mut text, key),
            Step::Index(index) => push_index(&mut text, *index),
        }
    }
    text
}

/// Adds a key to a path: `.key`, or `["key"]` where the key is no plain word.
pub fn push_key(path: &mut String, key: &str) {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !plain {
        path.push_str(&format!("[{}]", Value::from(key)));
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Adds an index to a path.
pub fn push_index(path: &mut String, index: usize) {
    path.push_str(&format!("[{index}]"));
}

#[derive(Clone, Copy)]
struct Node<'a> {
    reader: &'a Reader,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // `80.0` is a whole number, as JSON Schema says.
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
        if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
            return Ok(Value::from(value as i64));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("is a number that JSON does not have"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.reader.text(value)?;
        Ok(Value::from(value))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        self.reader.text(&value)?;
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        self.deserialize(input)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(de::Error::custom("has a YAML tag (!…), which means nothing here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.reader.enter(Step::Index(list.len()))?;
            let Some(item) = items.next_element_seed(self)? else { break };
            self.reader.leave();
            list.push(item);
        }
        self.reader.leave();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            self.reader.enter(Step::Key(key.clone()))?;
            if map.contains_key(&key) {
                self.reader.fault("is there twice; which of the two is meant?");
            }
            let value = entries.next_value_seed(self)?;
            self.reader.leave();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key: text only.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<String, D::Error> {
        input.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text as a key (write it in quotes)")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_string<E>(self, key: String) -> Result<String, E> {
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(text: &str, format: Format) -> Vec<String> {
        parse(text.as_bytes(), format).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn json_and_yaml_read_alike() {
        assert_eq!(parse(b"[80.0, -1.0, 0.5, 1e3]", Format::Json).unwrap(), json!([80, -1, 0.5, 1000]));
        let yaml = "a: 1\nb:\n  - x: \"text\"\n    y: -2.5\n  - null\n  - yes\nc: {}\n";
        let json = r#"{"a":1,"b":[{"x":"text","y":-2.5},null,"yes"],"c":{}}"#;
        assert_eq!(parse(yaml.as_bytes(), Format::Yaml).unwrap(), parse(json.as_bytes(), Format::Json).unwrap());
        assert_eq!(parse_yaml_stream(b"a: 1\n---\n---\nb: 2\n").unwrap(), [json!({"a": 1}), json!({"b": 2})]);
    }

    #[test]
    fn what_is_ambiguous_is_refused_with_its_path() {
        for (text, format, fault) in [
            (r#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#, Format::Json, "a.b: is there twice"),
            ("a:\n  b: 1\n  b: 2\n", Format::Yaml, "a.b: is there twice"),
            ("x: [1, {y: .nan}]", Format::Yaml, "x[1].y: is a number that JSON does not have"),
            ("x: {1: 2}", Format::Yaml, "text as a key"),
            ("x: !secret y", Format::Yaml, "x: has a YAML tag"),
            ("a: 1\n---\nb: 2\n", Format::Yaml, "holds 2 documents"),
            ("", Format::Yaml, "is empty"),
            ("{\"a\":1} x", Format::Json, "is no JSON"),
            ("{\"a\":", Format::Json, "a: EOF"),
            ("a: [", Format::Yaml, ""),
            ("a: *b", Format::Yaml, "unknown anchor"),
        ] {
            let found = faults(text, format);
            assert!(found.iter().any(|found| found.contains(fault)), "{text}: {found:?}");
        }
        assert_eq!(faults(r#"{"a":1,"a":2,"b":{"c":1,"c":1}}"#, Format::Json).len(), 2, "every fault is told");
        assert!(parse(&[b'"', 0xff, b'"'], Format::Json).is_err());
        assert!(parse(&[0xff], Format::Yaml).is_err());
    }

    #[test]
    fn bombs_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        assert!(faults(&deep, Format::Json)[0].contains("deeper than 32"));
        assert!(!faults(&deep, Format::Yaml).is_empty());
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(","));
        assert!(faults(&text, Format::Yaml)[0].contains("bytes of text"));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let before = n - 1;
            let list = vec![format!("*a{before}"); 10].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        let found = faults(&bomb, Format::Yaml);
        assert!(found[0].contains("more than") || found[0].contains("repetition"), "{found:?}");
    }
}
