//! The store: the one place where the control plane keeps truth.
//!
//! One trait with etcd's semantics. Every committed transaction that writes gets the next
//! [`Revision`]; keys remember at which revision they were made and last changed; reads, ranges and
//! watches can be asked as of a revision until [`compact`](Store::compact) forgets it. Transactions
//! compare revisions of any number of keys and write all or nothing, and are durable once
//! acknowledged.
//!
//! Keys are text with `/` between parts, e.g. `/objects/Service/shop/orders`.

mod recent;
mod redb;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};

pub use self::redb::{OpenError, RedbOptions, RedbStore, WriteHealth};

/// Counts committed transactions that wrote something, from 1; 0 is the empty store.
pub type Revision = u64;

/// A key with its value as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Bytes,
    /// When the key came into being (again).
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// How often it was written since it came into being, from 1.
    pub version: u64,
}

/// What must hold of a key for a transaction to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Arc<str>,
    /// Its `mod_revision`; 0: the key must not exist.
    pub mod_revision: Revision,
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Makes the key, or replaces its value.
    Put {
        /// The key.
        key: Arc<str>,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key, if it is there.
    Delete {
        /// The key.
        key: Arc<str>,
    },
}

impl Write {
    /// The key that is written.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Writes that happen together if all comparisons hold. No key is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// All happen at one revision.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that `key` was last written at `mod_revision` (0: does not exist).
    #[must_use]
    pub fn when(mut self, key: impl Into<Arc<str>>, mod_revision: Revision) -> Self {
        self.compares.push(Compare { key: key.into(), mod_revision });
        self
    }

    /// Makes or replaces `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into() });
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Arc<str>>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was written, durably, at this revision. (A transaction that changed nothing gets
    /// the revision that the store was at.)
    Committed(Revision),
    /// Nothing was written: this key is not as the transaction required.
    Conflict {
        /// The first key whose comparison failed.
        key: Arc<str>,
        /// Where it really is; 0: it does not exist.
        mod_revision: Revision,
    },
}

/// Which keys to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Keys that begin so; empty: all.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<String>,
    /// At most this many keys; 0: no limit.
    pub limit: usize,
    /// As of this revision; the newest when absent.
    pub at: Option<Revision>,
}

impl Range {
    /// All keys that begin so, at the newest revision.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }
}

/// Keys in order, as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The revision that was read.
    pub revision: Revision,
    /// The keys.
    pub entries: Vec<KeyValue>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// Before; absent: the key was made.
    pub before: Option<KeyValue>,
    /// After; absent: the key was removed.
    pub after: Option<KeyValue>,
}

/// All changes of one transaction (those that a watch asked for).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When it was committed.
    pub revision: Revision,
    /// In the transaction's order; each key once.
    pub events: Vec<Event>,
}

/// Committed transactions in order, each whole; ends only with an error or with the store.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision was compacted away; read anew and watch from there.
    #[error("revision {requested} is forgotten; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision has not happened yet.
    #[error("revision {requested} has not happened yet; the newest is {newest}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest revision.
        newest: Revision,
    },
    /// The transaction writes a key twice, or a key is empty or too long.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// The backend failed; whether a transaction was written is not known.
    #[error("the store failed")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store is shut.
    #[error("the store is shut")]
    Closed,
}

impl StoreError {
    fn backend(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Backend(Arc::new(error))
    }
}

impl Clone for StoreError {
    fn clone(&self) -> Self {
        match self {
            Self::Compacted { requested, oldest } => Self::Compacted { requested: *requested, oldest: *oldest },
            Self::Future { requested, newest } => Self::Future { requested: *requested, newest: *newest },
            Self::Invalid(what) => Self::Invalid(what.clone()),
            Self::Backend(source) => Self::Backend(Arc::clone(source)),
            Self::Closed => Self::Closed,
        }
    }
}

/// A revisioned store of keys.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The newest committed revision that this instance knows of.
    fn revision(&self) -> Revision;

    /// One key, as of a revision (the newest when absent).
    fn read(&self, key: &str, at: Option<Revision>) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>>;

    /// Keys by prefix.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Commits a transaction, or refuses it. Committed means: it survives the machine's power going.
    /// Dropping the future does not take the transaction back.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// Every transaction from revision `from` on (included; it may lie in the future) that touches
    /// a key that begins with `prefix`.
    fn watch(&self, prefix: &str, from: Revision) -> Watch;

    /// Forgets history: what was overwritten or removed at or before `revision`. The state as of
    /// `revision` and everything later stays.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;
}
