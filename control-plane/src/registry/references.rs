//! Whether objects hold together: what refers to what, and what excludes what.

use heddle_api::problem::Fault;

use super::{Change, View};

/// Checks changes in the view that they make. Each comes with the index of its operation.
pub(super) fn check<'a>(_view: &View, _changes: impl Iterator<Item = (usize, &'a Change)>) -> Vec<Fault> {
    Vec::new()
}
