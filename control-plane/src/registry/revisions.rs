//! User-visible revisions: what each transaction over objects changed, kept apart from the store's
//! own history, so that differences and rollback work on every backend and long after compaction.

use std::{collections::BTreeMap, sync::Arc};

use heddle_api::resource::{API_VERSION, AnyObject, Name, ObjectKind};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    Author, Change, Operation, RegistryError, View,
    codec::{self, encode_object},
};
use crate::store::{KeyValue, Range, Store, StoreError, Transaction};

/// Counts user-visible revisions, from 1; 0 is the empty registry.
pub type RevisionNumber = u64;

/// Revisions that are kept; older ones cannot be restored.
const KEPT: u64 = 1000;
/// Bytes of changes that are put together for a comparison or a rollback.
const MAX_FOLDED: usize = 256 << 20;
const SUMMARIES: &str = "/revisions/summary/";
const CHANGES: &str = "/revisions/changes/";

/// A revision in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevisionSummary {
    /// Its number.
    pub revision: RevisionNumber,
    /// When it was made, RFC 3339.
    pub time: String,
    /// Name of the API token that made it.
    pub author: String,
    /// What for, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many objects it changed.
    pub counts: Counts,
}

/// How many objects a revision changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counts {
    /// Made.
    pub created: u64,
    /// Changed.
    pub updated: u64,
    /// Removed.
    pub deleted: u64,
}

/// How an object differs between two revisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Difference {
    /// Its kind.
    pub kind: String,
    /// Its namespace, for kinds that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The object at the first revision; absent: it did not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The object at the second revision; absent: it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// Why a revision could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// There is none of this number yet.
    #[error("there is no revision {0}")]
    NotFound(RevisionNumber),
    /// It is too old to be kept.
    #[error("revision {requested} is no longer kept; the oldest is {oldest}")]
    Gone {
        /// What was asked for.
        requested: RevisionNumber,
        /// The oldest that is kept.
        oldest: RevisionNumber,
    },
    /// More changed in between than is put together at once.
    #[error("more than {} MiB changed between the revisions {from} and {to}; go by steps", MAX_FOLDED >> 20)]
    TooMuch {
        /// The first.
        from: RevisionNumber,
        /// The last.
        to: RevisionNumber,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for RevisionError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// Adds a revision's record to the transaction that makes it, and drops the one that grows too old.
pub(super) fn record(
    transaction: Transaction,
    number: RevisionNumber,
    changes: &[Change],
    author: &Author,
    now: Timestamp,
) -> Transaction {
    let mut counts = Counts::default();
    let mut differences = Vec::with_capacity(changes.len());
    for change in changes {
        *match (&change.before, &change.after) {
            (None, _) => &mut counts.created,
            (_, None) => &mut counts.deleted,
            _ => &mut counts.updated,
        } += 1;
        let stored = |object: &Option<AnyObject>| {
            object.as_ref().and_then(|object| serde_json::from_slice(&encode_object(object)).ok())
        };
        differences.push(difference(change.kind, &change.name, stored(&change.before), stored(&change.after)));
    }
    let summary = RevisionSummary {
        revision: number,
        time: format!("{now:.3}"),
        author: author.name.clone(),
        reason: author.reason.clone(),
        counts,
    };
    let json = |value: serde_json::Result<Vec<u8>>| value.expect("a revision is JSON: its maps have text keys");
    let mut transaction = transaction
        .put(codec::HEAD, json(serde_json::to_vec(&number)))
        .put(summary_key(number), json(serde_json::to_vec(&summary)))
        .put(changes_key(number), json(serde_json::to_vec(&differences)));
    if let Some(old) = number.checked_sub(KEPT).filter(|old| *old > 0) {
        transaction = transaction.delete(summary_key(old)).delete(changes_key(old));
    }
    transaction
}

fn difference(kind: ObjectKind, name: &Name, before: Option<Value>, after: Option<Value>) -> Difference {
    Difference {
        kind: kind.as_str().to_owned(),
        namespace: kind.is_namespaced().then(|| name.namespace.to_string()),
        name: name.name.to_string(),
        before,
        after,
    }
}

// Numbers are padded, so that keys lie in their order.
fn summary_key(number: RevisionNumber) -> Arc<str> {
    format!("{SUMMARIES}{number:020}").into()
}

fn changes_key(number: RevisionNumber) -> Arc<str> {
    format!("{CHANGES}{number:020}").into()
}

/// Reads user-visible revisions.
#[derive(Clone, Copy, Debug)]
pub struct Revisions<'a> {
    store: &'a dyn Store,
    folding: &'a Semaphore,
}

impl<'a> Revisions<'a> {
    pub(super) fn new(store: &'a dyn Store, folding: &'a Semaphore) -> Self {
        Self { store, folding }
    }

    /// Those that are kept, oldest first.
    pub async fn list(&self) -> Result<Vec<RevisionSummary>, RevisionError> {
        let page = self.store.range(Range::prefix(SUMMARIES)).await?;
        page.entries.iter().map(parse).collect()
    }

    /// One revision: its summary and what it changed.
    pub async fn get(&self, number: RevisionNumber) -> Result<(RevisionSummary, Vec<Difference>), RevisionError> {
        self.check(number).await?;
        let summary = self.store.read(&summary_key(number), None).await?;
        let changes = self.store.read(&changes_key(number), None).await?;
        match (summary, changes) {
            (Some(summary), Some(changes)) => Ok((parse(&summary)?, parse_apart(changes).await?)),
            _ => Err(RevisionError::NotFound(number)),
        }
    }

    /// How the objects differ between two revisions, by kind and name.
    pub async fn diff(&self, from: RevisionNumber, to: RevisionNumber) -> Result<Vec<Difference>, RevisionError> {
        self.check(from).await?;
        self.check(to).await?;
        let folded = self.fold(from.min(to), from.max(to)).await?;
        let differences = folded.into_iter().filter(|(_, (before, after))| before != after);
        Ok(differences
            .map(|((kind, name), (before, after))| {
                let (before, after) = if from <= to { (before, after) } else { (after, before) };
                difference(kind, &name, before, after)
            })
            .collect())
    }

    /// The operations that make everything as it was at a revision, from the newest view.
    pub(super) async fn restore(&self, view: &View, to: RevisionNumber) -> Result<Vec<Operation>, RevisionError> {
        if to > view.number() {
            return Err(RevisionError::NotFound(to));
        }
        self.check(to).await?;
        let folded = self.fold(to, view.number()).await?;
        let mut operations = Vec::new();
        for ((kind, name), (wanted, _)) in folded {
            match wanted {
                Some(wanted) => {
                    let object = AnyObject::from_value(kind, wanted).map_err(|error| RegistryError::Unreadable {
                        key: changes_key(to + 1),
                        reason: error.to_string(),
                    })?;
                    operations.push(Operation::Restore(object));
                }
                // A mesh always has its settings: before the first were written, they were the defaults.
                None if kind == ObjectKind::MeshConfig => {
                    let document = serde_json::json!({
                        "apiVersion": API_VERSION, "kind": kind.as_str(), "metadata": { "name": name.name.to_string() },
                        "spec": {},
                    });
                    let object = AnyObject::from_value(kind, document).map_err(|error| RegistryError::Unreadable {
                        key: changes_key(to + 1),
                        reason: error.to_string(),
                    })?;
                    operations.push(Operation::Apply { object, expected: None });
                }
                None if view.object(kind, &name).is_some() => {
                    operations.push(Operation::Delete { kind, name, expected: None });
                }
                None => {}
            }
        }
        Ok(operations)
    }

    /// Each object that changed after `from` and up to `to`, as it was before and after.
    #[allow(clippy::type_complexity)]
    async fn fold(
        &self,
        from: RevisionNumber,
        to: RevisionNumber,
    ) -> Result<BTreeMap<(ObjectKind, Name), (Option<Value>, Option<Value>)>, RevisionError> {
        // Closed never: it goes with the registry.
        let _turn = self.folding.acquire().await.map_err(|_| StoreError::Closed)?;
        let mut folded = BTreeMap::new();
        let mut bytes = 0;
        for number in from + 1..=to {
            let Some(entry) = self.store.read(&changes_key(number), None).await? else {
                return Err(RevisionError::Gone { requested: from, oldest: number + 1 });
            };
            bytes += entry.value.len();
            if bytes > MAX_FOLDED {
                return Err(RevisionError::TooMuch { from, to });
            }
            for change in parse_apart::<Vec<Difference>>(entry).await? {
                let Some(kind) = ObjectKind::from_kind(&change.kind) else { continue };
                let name = Name::new(change.namespace.as_deref().unwrap_or_default(), &change.name);
                folded
                    .entry((kind, name))
                    .and_modify(|(_, after): &mut (_, Option<Value>)| after.clone_from(&change.after))
                    .or_insert((change.before, change.after));
            }
        }
        Ok(folded)
    }

    /// Refuses numbers that are not kept.
    async fn check(&self, number: RevisionNumber) -> Result<(), RevisionError> {
        let head = self.store.read(codec::HEAD, None).await?;
        let head = head.map_or(Ok(0), |head| codec::decode_number(&head))?;
        if number > head {
            return Err(RevisionError::NotFound(number));
        }
        let oldest = (head + 1).saturating_sub(KEPT);
        if number < oldest {
            return Err(RevisionError::Gone { requested: number, oldest });
        }
        Ok(())
    }
}

fn parse<T: serde::de::DeserializeOwned>(entry: &KeyValue) -> Result<T, RevisionError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| RegistryError::Unreadable { key: Arc::clone(&entry.key), reason: error.to_string() }.into())
}

/// As [`parse`], off the async threads: it may be many MiB.
async fn parse_apart<T: serde::de::DeserializeOwned + Send + 'static>(entry: KeyValue) -> Result<T, RevisionError> {
    tokio::task::spawn_blocking(move || parse(&entry)).await.map_err(|_| StoreError::Closed)?
}
