//! Changes of a manifest: what injection does, as small steps that can be applied to a value, sent as a JSON patch
//! (RFC 6902), or made in the text of a file.

use std::fmt;

use serde_json::{Map, Value, json};

/// One step down into a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Entry of a mapping.
    Key(String),
    /// Item of a sequence.
    Index(usize),
}

/// Where in a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub Vec<Step>);

/// One change. Its place is as the changes before it have left it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A mapping gets an entry that it does not have.
    AddEntry {
        /// The mapping.
        at: Path,
        /// The entry's key.
        key: String,
        /// The entry's value.
        value: Value,
    },
    /// A sequence gets a first item.
    AddFirst {
        /// The sequence.
        at: Path,
        /// The item.
        value: Value,
    },
    /// An entry gets another value and perhaps another key.
    ReplaceEntry {
        /// The mapping.
        at: Path,
        /// The key until now.
        key: String,
        /// The key from now on.
        new_key: String,
        /// The value from now on.
        value: Value,
    },
    /// A mapping loses an entry.
    RemoveEntry {
        /// The mapping.
        at: Path,
        /// The entry's key.
        key: String,
    },
    /// A sequence loses an item.
    RemoveItem {
        /// The sequence.
        at: Path,
        /// Which.
        index: usize,
    },
}

/// A change that does not fit the value that it is to be made in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct Misfit {
    at: String,
    problem: &'static str,
}

impl Path {
    /// The place of an entry below this one.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    /// The place of an item below this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// What is there; `None`: nothing.
    pub fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
    }

    fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(index) => value.get_mut(index),
        })
    }

    fn misfit(&self, problem: &'static str) -> Misfit {
        Misfit { at: if self.0.is_empty() { "the object".to_owned() } else { self.to_string() }, problem }
    }
}

/// As a JSON pointer (RFC 6901).
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| match step {
            Step::Key(key) => write!(f, "/{}", key.replace('~', "~0").replace('/', "~1")),
            Step::Index(index) => write!(f, "/{index}"),
        })
    }
}

impl Change {
    /// Makes the change in a value.
    ///
    /// # Errors
    /// It does not fit; the value is as it was.
    pub fn apply(&self, object: &mut Value) -> Result<(), Misfit> {
        match self {
            Self::AddEntry { at, key, value } => {
                let map = mapping(object, at)?;
                if map.contains_key(key) {
                    return Err(at.key(key).misfit("is there already"));
                }
                map.insert(key.clone(), value.clone());
            }
            Self::AddFirst { at, value } => sequence(object, at)?.insert(0, value.clone()),
            Self::ReplaceEntry { at, key, new_key, value } => {
                let map = mapping(object, at)?;
                if key != new_key && map.contains_key(new_key) {
                    return Err(at.key(new_key).misfit("is there already"));
                }
                map.remove(key).ok_or_else(|| at.key(key).misfit("is not there"))?;
                map.insert(new_key.clone(), value.clone());
            }
            Self::RemoveEntry { at, key } => {
                mapping(object, at)?.remove(key).ok_or_else(|| at.key(key).misfit("is not there"))?;
            }
            Self::RemoveItem { at, index } => {
                let items = sequence(object, at)?;
                if *index >= items.len() {
                    return Err(at.index(*index).misfit("is not there"));
                }
                items.remove(*index);
            }
        }
        Ok(())
    }

    /// The change as operations of a JSON patch.
    fn operations(&self) -> Vec<Value> {
        let add = |at: Path, value: &Value| json!({ "op": "add", "path": at.to_string(), "value": value });
        let remove = |at: Path| json!({ "op": "remove", "path": at.to_string() });
        match self {
            Self::AddEntry { at, key, value } => vec![add(at.key(key), value)],
            Self::AddFirst { at, value } => vec![add(at.index(0), value)],
            Self::ReplaceEntry { at, key, new_key, value } if key == new_key => {
                vec![json!({ "op": "replace", "path": at.key(key).to_string(), "value": value })]
            }
            Self::ReplaceEntry { at, key, new_key, value } => vec![remove(at.key(key)), add(at.key(new_key), value)],
            Self::RemoveEntry { at, key } => vec![remove(at.key(key))],
            Self::RemoveItem { at, index } => vec![remove(at.index(*index))],
        }
    }
}

/// All changes as one JSON patch (RFC 6902).
pub fn json_patch(changes: &[Change]) -> Value {
    changes.iter().flat_map(Change::operations).collect()
}

fn mapping<'a>(object: &'a mut Value, at: &Path) -> Result<&'a mut Map<String, Value>, Misfit> {
    at.find_mut(object).and_then(Value::as_object_mut).ok_or_else(|| at.misfit("is no mapping"))
}

fn sequence<'a>(object: &'a mut Value, at: &Path) -> Result<&'a mut Vec<Value>, Misfit> {
    at.find_mut(object).and_then(Value::as_array_mut).ok_or_else(|| at.misfit("is no list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        let path = Path::default().key("metadata").key("annotations").key("heddle.dev/a~b").index(3);
        assert_eq!(path.to_string(), "/metadata/annotations/heddle.dev~1a~0b/3");
    }

    #[test]
    fn changes_are_made_in_order_or_not_at_all() {
        let top = Path::default();
        let changes = [
            Change::AddEntry { at: top.clone(), key: "b".into(), value: json!([1]) },
            Change::AddFirst { at: top.key("b"), value: json!(0) },
            Change::ReplaceEntry { at: top.clone(), key: "a".into(), new_key: "c".into(), value: json!("x") },
            Change::RemoveItem { at: top.key("b"), index: 1 },
        ];
        let mut value = json!({ "a": 1 });
        changes.iter().for_each(|change| change.apply(&mut value).unwrap());
        assert_eq!(value, json!({ "b": [0], "c": "x" }));
        let failed = Change::RemoveEntry { at: top.clone(), key: "a".into() }.apply(&mut value).unwrap_err();
        assert_eq!(failed.to_string(), "/a: is not there");
        assert_eq!(
            json_patch(&changes[2..]),
            json!([
                { "op": "remove", "path": "/a" },
                { "op": "add", "path": "/c", "value": "x" },
                { "op": "remove", "path": "/b/1" },
            ])
        );
    }
}
