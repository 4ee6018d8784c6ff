//! Names of objects.

use std::{fmt, sync::Arc};

use super::Metadata;

/// `<namespace>/<name>`; the namespace is empty for kinds without.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name in it.
    pub name: Arc<str>,
}

impl Name {
    /// A name from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// An object's name.
    pub fn of(metadata: &Metadata) -> Self {
        Self::new(metadata.namespace.as_deref().unwrap_or_default(), &metadata.name)
    }

    /// Reads `<namespace>/<name>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Self::new(namespace, name))
    }

    /// Another name in the same namespace.
    pub fn sibling(&self, name: &str) -> Self {
        Self { namespace: Arc::clone(&self.namespace), name: name.into() }
    }

    /// A name as an object of this name writes it: in its own namespace unless it says otherwise.
    pub fn relative(&self, namespace: Option<&str>, name: &str) -> Self {
        match namespace {
            Some(namespace) => Self::new(namespace, name),
            None => self.sibling(name),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}
