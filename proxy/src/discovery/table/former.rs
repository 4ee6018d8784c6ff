//! What was of the mesh since this proxy started. It is not taken for a host outside because the control plane has
//! it no longer: an object that is deleted and applied anew would let requests out in plaintext meanwhile.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

/// Names kept; of more, those that left first are dropped. Only names that this proxy dialled and whose service
/// or instance then went away are here.
const MAX_NAMES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Former {
    namespaces: Arc<BTreeSet<Arc<str>>>,
    names: HashSet<Arc<str>>,
    /// The same, in the order of their leaving.
    order: VecDeque<Arc<str>>,
}

impl Former {
    /// Namespaces of now and before.
    pub(super) fn namespaces(&self) -> &Arc<BTreeSet<Arc<str>>> {
        &self.namespaces
    }

    pub(super) fn know_namespace(&mut self, namespace: &str) {
        if !self.namespaces.contains(namespace) {
            Arc::make_mut(&mut self.namespaces).insert(namespace.into());
        }
    }

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
