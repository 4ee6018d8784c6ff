//! Writing objects: several operations, checked together, committed as one.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use heddle_api::{
    problem::Fault,
    resource::{AnyObject, Name, ObjectKind},
};
use jiff::Timestamp;

use super::{Change, Registry, RevisionNumber, View, codec, references, revisions};
use crate::store::{Outcome, Revision, StoreError, Transaction};

/// How often a transaction is checked anew when another control plane wrote in between.
const TRIES: usize = 8;

/// What must hold of an object before it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// It was last written at this revision of the store.
    Revision(Revision),
}

/// One of the things to do.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Make the object, or replace it. What only the server sets is ignored.
    Apply {
        /// The object, valid in itself.
        object: AnyObject,
        /// Only if this holds.
        expected: Option<Expected>,
    },
    /// Make the object again as a rollback found it, with its age; or put it in the place of what is
    /// there now.
    Restore(AnyObject),
    /// Remove the object.
    Delete {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: Name,
        /// Only if this holds.
        expected: Option<Expected>,
    },
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The object is new.
    Created,
    /// It was another.
    Updated,
    /// It was like this already.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// What became of an operation.
#[derive(Clone, Debug)]
pub struct OperationResult {
    /// What it did.
    pub action: Action,
    /// The object as it is now, or as it was before it went.
    pub object: AnyObject,
}

/// What became of a transaction.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The user-visible revision that it made; the newest one if it changed nothing, or only would have.
    pub number: RevisionNumber,
    /// One for each operation, in order.
    pub results: Vec<OperationResult>,
}

/// Who does it, for the list of revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Name of the API token.
    pub name: String,
    /// What for, e.g. `rollback to revision 7`.
    pub reason: Option<String>,
}

/// What is wrong with one of the operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationFault {
    /// Index of the operation.
    pub operation: usize,
    /// What is wrong, with its path in the operation's object.
    pub fault: Fault,
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The objects do not fit together, or with those that are there.
    #[error("the objects do not fit together")]
    Invalid(Vec<OperationFault>),
    /// An object to delete does not exist.
    #[error("there is no {0} {1}")]
    NotFound(ObjectKind, Name),
    /// A workload was registered by its proxy, and goes when that goes.
    #[error("Workload {0} was registered by its proxy, and goes when that goes")]
    Registered(Name),
    /// The API server of Kubernetes is the truth of it.
    #[error("{0} {1} comes from Kubernetes: it is changed there, with kubectl, and is read-only here")]
    Kubernetes(ObjectKind, Name),
    /// Somebody else changed an object in the meantime.
    #[error("{kind} {name} is at {}, not at the one required", at_revision(*found))]
    PreconditionFailed {
        /// The object's kind.
        kind: ObjectKind,
        /// Its name.
        name: Name,
        /// Where it is; absent: it does not exist.
        found: Option<Revision>,
    },
    /// Others kept writing in between.
    #[error("others kept writing in between; try again")]
    Contended,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

fn at_revision(found: Option<Revision>) -> String {
    found.map_or_else(|| "no revision (it does not exist)".to_owned(), |found| format!("revision {found}"))
}

/// What operations come to, against one view.
struct Plan {
    results: Vec<OperationResult>,
    changes: Vec<Change>,
}

impl Registry {
    /// Does all of it or nothing. With `dry_run`, says what would be.
    pub async fn apply(
        &self,
        operations: Vec<Operation>,
        author: &Author,
        dry_run: bool,
    ) -> Result<Applied, ApplyError> {
        let operations = Arc::new(operations);
        let _turn = self.writing.lock().await;
        for _ in 0..TRIES {
            let view = self.view();
            if let Some(applied) = self.try_apply(&view, Arc::clone(&operations), author, dry_run).await? {
                return Ok(applied);
            }
        }
        Err(ApplyError::Contended)
    }

    /// Puts everything back as it was at a user-visible revision, as a new revision. With `newest`, only
    /// if that is the newest one still.
    pub async fn rollback(
        &self,
        to: RevisionNumber,
        newest: Option<RevisionNumber>,
        author: &Author,
        dry_run: bool,
    ) -> Result<Applied, RollbackError> {
        let author = Author { reason: Some(format!("rollback to revision {to}")), ..author.clone() };
        let _turn = self.writing.lock().await;
        for _ in 0..TRIES {
            let view = self.view();
            if let Some(expected) = newest.filter(|expected| *expected != view.number()) {
                return Err(RollbackError::Moved { expected, found: view.number() });
            }
            let operations = Arc::new(self.revisions().restore(&view, to).await?);
            if let Some(applied) = self.try_apply(&view, operations, &author, dry_run).await? {
                return Ok(applied);
            }
        }
        Err(ApplyError::Contended.into())
    }

    /// Applies against this view; nothing if it is no longer the newest.
    async fn try_apply(
        &self,
        view: &Arc<View>,
        operations: Arc<Vec<Operation>>,
        author: &Author,
        dry_run: bool,
    ) -> Result<Option<Applied>, ApplyError> {
        let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        // Off the async threads: a transaction may hold tens of thousands of objects.
        let work = {
            let view = Arc::clone(view);
            move || plan(&view, &operations, now)
        };
        let plan = tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)??;
        if dry_run || plan.changes.is_empty() {
            return Ok(Some(Applied { number: view.number(), results: plan.results }));
        }
        let number = view.number() + 1;
        let transaction = transaction(view, &plan, number, author, now);
        match self.store.commit(transaction).await? {
            Outcome::Committed(revision) => {
                self.reached(revision).await?;
                Ok(Some(Applied { number, results: stamped(plan.results, revision) }))
            }
            // Another control plane was faster.
            Outcome::Conflict { mod_revision, .. } => {
                self.reached(mod_revision).await?;
                Ok(None)
            }
        }
    }
}

/// Why nothing was rolled back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// Somebody else made a revision in the meantime.
    #[error("the newest revision is {found}, not {expected}; see what it changed, then decide again")]
    Moved {
        /// The one that was to be the newest.
        expected: RevisionNumber,
        /// The one that is.
        found: RevisionNumber,
    },
    /// The revision cannot be restored.
    #[error(transparent)]
    Revision(#[from] revisions::RevisionError),
    /// What it held does not fit what is there now.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Works out what operations do to a view, and whether the result holds together.
fn plan(view: &View, operations: &[Operation], now: Timestamp) -> Result<Plan, ApplyError> {
    let mut next = view.clone();
    let mut results = Vec::with_capacity(operations.len());
    let mut changes = Vec::new();
    let mut seen = BTreeSet::new();
    let mut faults = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        let (kind, name, expected) = match operation {
            Operation::Apply { object, expected } => (object.kind(), object.name(), *expected),
            Operation::Restore(object) => (object.kind(), object.name(), None),
            Operation::Delete { kind, name, expected } => (*kind, name.clone(), *expected),
        };
        if matches!(operation, Operation::Delete { .. }) && kind == ObjectKind::MeshConfig {
            let message = "a mesh always has its MeshConfig; to go back to the defaults, apply one with an empty spec";
            faults.push(OperationFault { operation: index, fault: Fault::new("kind", message) });
            continue;
        }
        if !seen.insert((kind, name.clone())) {
            let message = format!("{kind} {name} is named by an earlier operation already; name each object once");
            faults.push(OperationFault { operation: index, fault: Fault::new("", message) });
            continue;
        }
        let before = view.object(kind, &name).cloned();
        // One that was declared before Kubernetes had it may still be changed and removed.
        if before.is_none() && view.is_in_kubernetes(kind, &name) {
            return Err(ApplyError::Kubernetes(kind, name));
        }
        check_expected(kind, &name, before.as_ref(), expected)?;
        let (action, after, object) = match operation {
            Operation::Apply { object, .. } | Operation::Restore(object) => {
                let mut merged = merged(before.as_ref(), object, now);
                if matches!(operation, Operation::Restore(_)) {
                    restore(&mut merged, before.is_some(), object);
                }
                let object = merged;
                match &before {
                    None => (Action::Created, Some(object.clone()), object),
                    Some(before) if *before == object => (Action::Unchanged, None, object),
                    Some(_) => (Action::Updated, Some(object.clone()), object),
                }
            }
            Operation::Delete { .. } => match &before {
                Some(before) => (Action::Deleted, None, before.clone()),
                None if kind == ObjectKind::Workload && view.registration(&name).is_some() => {
                    return Err(ApplyError::Registered(name));
                }
                None => return Err(ApplyError::NotFound(kind, name)),
            },
        };
        if action != Action::Unchanged {
            next.with(kind, name.clone(), after.clone());
            changes.push((index, Change { kind, name, before, after }));
        }
        results.push(OperationResult { action, object });
    }
    faults.extend(references::check(&next, &changes));
    if !faults.is_empty() {
        return Err(ApplyError::Invalid(faults));
    }
    Ok(Plan { results, changes: changes.into_iter().map(|(_, change)| change).collect() })
}

fn check_expected(
    kind: ObjectKind,
    name: &Name,
    before: Option<&AnyObject>,
    expected: Option<Expected>,
) -> Result<(), ApplyError> {
    let found = before.map(revision_of);
    let holds = match expected {
        None => true,
        Some(Expected::Exists) => found.is_some(),
        Some(Expected::Absent) => found.is_none(),
        Some(Expected::Revision(revision)) => found == Some(revision),
    };
    if holds { Ok(()) } else { Err(ApplyError::PreconditionFailed { kind, name: name.clone(), found }) }
}

/// The revision at which an object of a view was last written.
fn revision_of(object: &AnyObject) -> Revision {
    object.metadata().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The object with what the server keeps about it.
fn merged(before: Option<&AnyObject>, wanted: &AnyObject, now: Timestamp) -> AnyObject {
    let mut object = wanted.clone();
    object.set_status(None);
    let metadata = object.metadata_mut();
    match before {
        None => {
            metadata.generation = Some(1);
            metadata.creation_timestamp = Some(format!("{now:.0}"));
            metadata.resource_version = None;
        }
        Some(before) => {
            let known = before.metadata();
            let grown = u64::from(!before.has_same_spec(wanted));
            metadata.generation = Some(known.generation.unwrap_or(1) + grown);
            metadata.creation_timestamp.clone_from(&known.creation_timestamp);
            metadata.resource_version.clone_from(&known.resource_version);
        }
    }
    object
}

/// Gives an object back its age, by which routes of equal rank are ordered; its generation goes on from
/// where it was.
fn restore(object: &mut AnyObject, exists: bool, recorded: &AnyObject) {
    let recorded = recorded.metadata();
    let metadata = object.metadata_mut();
    if recorded.creation_timestamp.is_some() {
        metadata.creation_timestamp.clone_from(&recorded.creation_timestamp);
    }
    if !exists {
        metadata.generation = Some(recorded.generation.unwrap_or_default() + 1);
    }
}

/// The writes of a plan, with its entry in the list of revisions.
fn transaction(view: &View, plan: &Plan, number: u64, author: &Author, now: Timestamp) -> Transaction {
    // Whatever was checked was checked against this view; it must be the newest still.
    let mut transaction = Transaction::new().when(codec::HEAD, view.head_revision());
    for change in &plan.changes {
        let key = codec::object_key(change.kind, &change.name);
        transaction = match &change.after {
            Some(object) => transaction.put(key, codec::encode_object(object)),
            None => transaction.delete(key),
        };
    }
    revisions::record(transaction, number, &plan.changes, author, now)
}

/// Results with the revision at which they were committed.
fn stamped(mut results: Vec<OperationResult>, revision: Revision) -> Vec<OperationResult> {
    for result in &mut results {
        if matches!(result.action, Action::Created | Action::Updated) {
            result.object.metadata_mut().resource_version = Some(revision.to_string());
        }
    }
    results
}
