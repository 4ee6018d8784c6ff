//! Reads a tree of settings key by key, so that every fault is found in one go, unknown keys too.

use std::{cell::RefCell, collections::BTreeMap, fmt, rc::Rc};

use serde_json::{Map, Value};

use super::error::Fault;

/// Where faults are gathered.
#[derive(Clone, Default)]
pub(super) struct Faults {
    found: Rc<RefCell<Vec<Fault>>>,
    /// Where a setting was typed, if not in the file: path to flag.
    typed: Rc<BTreeMap<String, String>>,
}

impl Faults {
    pub(super) fn new(typed: BTreeMap<String, String>) -> Self {
        Self { found: Rc::default(), typed: Rc::new(typed) }
    }

    /// Notes a fault at a path.
    pub(super) fn add(&self, path: &str, message: impl fmt::Display) {
        let flag = self.typed.iter().find(|(typed, _)| path == *typed || path.starts_with(&format!("{typed}[")));
        let path = match flag {
            Some((_, flag)) => format!("{path} ({flag})"),
            None => path.to_owned(),
        };
        self.found.borrow_mut().push(Fault { path, message: message.to_string() });
    }

    /// All that were found, in the order of the settings.
    pub(super) fn into_found(self) -> Vec<Fault> {
        self.found.take()
    }
}

/// One mapping of the tree. What [`Section::finish`] finds unread is unknown.
pub(super) struct Section {
    path: String,
    unread: Map<String, Value>,
    known: Vec<&'static str>,
    faults: Faults,
}

impl Section {
    /// Of a value that should be a mapping; anything else is a fault, null is empty.
    pub(super) fn new(path: String, value: Value, faults: &Faults) -> Self {
        let unread = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                faults.add(&path, format_args!("{} is no mapping of keys to values", show(&other)));
                Map::new()
            }
        };
        Self { path, unread, known: Vec::new(), faults: faults.clone() }
    }

    /// Full path of a key.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a fault at a key.
    pub(super) fn fault(&self, key: &str, message: impl fmt::Display) {
        self.faults.add(&self.path(key), message);
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.unread.remove(key)
    }

    /// Keys that mean nothing here but are not wrong.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.unread.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// A section below.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let value = self.take(key).unwrap_or(Value::Null);
        Self::new(self.path(key), value, &self.faults)
    }

    /// Sections below, in a list.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let faults = self.faults.clone();
        self.list(key).into_iter().map(|(path, value)| Self::new(path, value, &faults)).collect()
    }

    fn list(&mut self, key: &'static str) -> Vec<(String, Value)> {
        let path = self.path(key);
        match self.take(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(values)) => {
                values.into_iter().enumerate().map(|(index, value)| (format!("{path}[{index}]"), value)).collect()
            }
            Some(other) => {
                self.faults.add(&path, format_args!("{} is no list", show(&other)));
                Vec::new()
            }
        }
    }

    /// Texts by key.
    pub(super) fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let below = self.section(key);
        let mut texts = BTreeMap::new();
        for (name, value) in below.unread {
            match text(&value) {
                Some(text) => _ = texts.insert(name, text),
                None => {
                    below.faults.add(&format!("{}.{name}", below.path), format_args!("{} is no text", show(&value)))
                }
            }
        }
        texts
    }

    /// Whether anything is written there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.unread.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the key is there and switched off: `null`, `false` or `off`.
    pub(super) fn is_off(&self, key: &str) -> bool {
        match self.unread.get(key) {
            Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::String(text)) => text == "off",
            _ => false,
        }
    }

    /// A value by this parser, whose error says what would be right.
    pub(super) fn parse_with<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = match self.take(key)? {
            Value::Null => return None,
            value => value,
        };
        let Some(text) = text(&value) else {
            self.fault(key, format_args!("{} is no single value", show(&value)));
            return None;
        };
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(right) => {
                self.fault(key, format_args!("{} is not right: {right}", show(&value)));
                None
            }
        }
    }

    /// Values by this parser: a list, or text with commas between them. None if the key is absent, or one of them is
    /// wrong.
    pub(super) fn parse_each<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = match self.take(key)? {
            Value::Null => return None,
            value => value,
        };
        let values = match value {
            Value::Array(values) => values,
            Value::String(text) => text.split(',').map(|text| Value::String(text.trim().to_owned())).collect(),
            value => vec![value],
        };
        let mut parsed = Vec::new();
        let mut right = true;
        for value in values {
            match text(&value).ok_or_else(|| "write single values".to_owned()).and_then(|text| parse(&text)) {
                Ok(one) => parsed.push(one),
                Err(why) => {
                    self.fault(key, format_args!("{} is not right: {why}", show(&value)));
                    right = false;
                }
            }
        }
        right.then_some(parsed)
    }

    /// As [`Section::parse_with`]; absent is a fault.
    pub(super) fn require<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if matches!(self.unread.get(key), None | Some(Value::Null)) {
            self.known.push(key);
            self.unread.remove(key);
            let right = parse("").err().unwrap_or_else(|| "write it".to_owned());
            self.fault(key, format_args!("is missing: {right}"));
            return None;
        }
        self.parse_with(key, parse)
    }

    /// Keys that nobody asked for are faults.
    pub(super) fn finish(self) {
        for key in self.unread.keys() {
            self.faults.add(&self.path(key), format_args!("is unknown; known here: {}", self.known.join(", ")));
        }
    }
}

/// A scalar as the text that a flag would have been.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A value for a message, short.
fn show(value: &Value) -> String {
    let mut shown = value.to_string();
    if shown.chars().count() > 60 {
        shown = shown.chars().take(57).chain("...".chars()).collect();
    }
    shown
}
