//! Gathering faults, with paths that cost nothing until one is told.

use std::fmt;

use crate::{
    document::{push_index, push_key},
    problem::Fault,
};

/// A place in a document: a chain on the stack, written out only for faults.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    outer: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub(super) fn root() -> Self {
        Self { outer: None, step: Step::Root }
    }

    /// A field, or a key of a map.
    pub(super) fn field(&'a self, key: &'a str) -> Self {
        Self { outer: Some(self), step: Step::Key(key) }
    }

    /// An entry of a list.
    pub(super) fn index(&'a self, index: usize) -> Self {
        Self { outer: Some(self), step: Step::Index(index) }
    }

    fn write(&self, text: &mut String) {
        if let Some(outer) = self.outer {
            outer.write(text);
        }
        match self.step {
            Step::Root => {}
            Step::Key(key) => push_key(text, key),
            Step::Index(index) => push_index(text, index),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

/// Gathers faults.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.0.push(Fault::new(path.to_string(), message));
    }

    /// Adds a fault unless the check passed.
    pub(super) fn check(&mut self, path: &Path<'_>, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.add(path, message);
        }
    }

    /// Tells each entry that is equal to an earlier one of the list.
    pub(super) fn unique<T: PartialEq>(&mut self, path: &Path<'_>, list: &[T], what: impl Fn(&T) -> String) {
        for (index, one) in list.iter().enumerate() {
            if let Some(first) = list[..index].iter().position(|other| other == one) {
                self.add(&path.index(index), format!("{} is there already, as entry {first}", what(one)));
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Fault> {
        self.0
    }
}
