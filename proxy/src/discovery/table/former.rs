//! Names that were a service's since this proxy started. They are not taken for hosts outside because the control plane
//! has them no longer: an object that is deleted and applied anew would let requests out in plaintext meanwhile.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Names kept; of more, those that left first are dropped. Only names that this proxy dialled and whose service
/// or instance then went away are here.
const MAX_NAMES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Former {
    names: HashSet<Arc<str>>,
    /// The same, in the order of their leaving.
    order: VecDeque<Arc<str>>,
}

impl Former {
    /// A dialled name that led to a service does no longer.
    pub(super) fn leave(&mut self, name: &str) {
        if self.names.contains(name) {
            return;
        }
        if self.order.len() >= MAX_NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        self.order.push_back(name);
    }

    pub(super) fn forget(&mut self, name: &str) {
        if self.names.remove(name) {
            self.order.retain(|left| **left != *name);
        }
    }

    /// Whether a name has led to a service.
    pub(super) fn had(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}
