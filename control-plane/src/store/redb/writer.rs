//! The one thread that writes: gathers what is waiting into one redb commit, so that many small
//! writers share an fsync, and acknowledges each only after it.

use std::sync::Arc;

use redb::{Database, Durability, ReadableTable};
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared, WriteError,
    format::{self, LOG, META, META_COMPACTED, META_REVISION, VERSIONS, Version},
};
use crate::store::{Batch, Event, KeyValue, Outcome, Revision, StoreError, Transaction, Write};

/// At most so many transactions share a commit.
const MAX_GROUP: usize = 512;
/// A group is closed once its values come to so many bytes, so that one commit stays short.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Revisions that one compaction step forgets, so that writers never wait long for it.
const COMPACT_STEP: u64 = 1024;

/// What the thread is asked to do.
pub(super) enum Request {
    /// Commit a transaction.
    Commit(Transaction, oneshot::Sender<Result<Outcome, StoreError>>),
    /// Forget what lies before a revision.
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
}

/// Runs until every sender is gone.
pub(super) fn run(database: &Database, shared: &Shared, keep: u64, mut requests: mpsc::Receiver<Request>) {
    let mut revision = *shared.head.borrow();
    let mut held = None;
    while let Some(request) = held.take().or_else(|| requests.blocking_recv()) {
        match request {
            Request::Compact(to, answer) => {
                // The caller may be gone; compaction is wanted anyway.
                let _ = answer.send(compact(database, shared, to.min(revision)).map_err(StoreError::from));
            }
            Request::Commit(transaction, answer) => {
                let mut bytes = size(&transaction);
                let mut group = vec![(transaction, answer)];
                while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
                    match requests.try_recv() {
                        Ok(Request::Commit(transaction, answer)) => {
                            bytes += size(&transaction);
                            group.push((transaction, answer));
                        }
                        Ok(other) => {
                            held = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                revision = commit_group(database, shared, revision, group);
                // Half as much again as is kept, so that compaction works on many revisions at once.
                if revision.saturating_sub(shared.compacted()) > keep + keep / 2
                    && let Err(error) = compact(database, shared, revision - keep)
                {
                    tracing::error!(error = %StoreError::from(error), "the store's history could not be compacted");
                }
            }
        }
    }
}

fn size(transaction: &Transaction) -> usize {
    transaction
        .writes
        .iter()
        .map(|write| match write {
            Write::Put { value, .. } => value.len() + 64,
            Write::Delete { .. } => 64,
        })
        .sum()
}

type Waiting = (Transaction, oneshot::Sender<Result<Outcome, StoreError>>);

/// Commits a group and answers its senders; returns the newest revision.
fn commit_group(database: &Database, shared: &Shared, revision: Revision, group: Vec<Waiting>) -> Revision {
    let (transactions, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
    match write_group(database, revision, &transactions) {
        Ok((outcomes, batches)) => {
            let newest = batches.last().map_or(revision, |batch| batch.revision);
            for batch in batches {
                shared.recent.push(batch);
            }
            shared.head.send_if_modified(|head| std::mem::replace(head, newest) != newest);
            for (outcome, answer) in outcomes.into_iter().zip(answers) {
                // A caller that no longer waits does not take its transaction back.
                let _ = answer.send(Ok(outcome));
            }
            newest
        }
        Err(error) => {
            let error = StoreError::from(error);
            tracing::error!(error = ?error, "the store could not commit");
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
            revision
        }
    }
}

/// Writes a group in one redb transaction. Each of its transactions sees those before it.
fn write_group(
    database: &Database,
    mut revision: Revision,
    transactions: &[Transaction],
) -> Result<(Vec<Outcome>, Vec<Batch>), WriteError> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    let mut outcomes = Vec::with_capacity(transactions.len());
    let mut batches = Vec::new();
    {
        let mut versions = write.open_table(VERSIONS)?;
        let mut log = write.open_table(LOG)?;
        for transaction in transactions {
            if let Some(conflict) = first_conflict(&versions, transaction)? {
                outcomes.push(conflict);
                continue;
            }
            let next = revision + 1;
            let mut events = Vec::with_capacity(transaction.writes.len());
            for one in &transaction.writes {
                let key = one.key();
                let before = format::read_key(&versions, key, u64::MAX)?;
                let after = match one {
                    Write::Delete { .. } if before.is_none() => continue,
                    Write::Delete { .. } => None,
                    Write::Put { value, .. } => Some(KeyValue {
                        key: Arc::clone(key),
                        value: value.clone(),
                        create_revision: before.as_ref().map_or(next, |before| before.create_revision),
                        mod_revision: next,
                        version: before.as_ref().map_or(1, |before| before.version + 1),
                    }),
                };
                let encoded = after.as_ref().map_or(Version::Deleted, |after| Version::Put {
                    create_revision: after.create_revision,
                    version: after.version,
                    value: &after.value,
                });
                versions.insert((key.as_bytes(), next), encoded.encode().as_slice())?;
                let position = u32::try_from(events.len()).unwrap_or(u32::MAX);
                log.insert((next, position), key.as_bytes())?;
                events.push(Event { key: Arc::clone(key), before, after });
            }
            if !events.is_empty() {
                revision = next;
                batches.push(Batch { revision, events });
            }
            outcomes.push(Outcome::Committed(revision));
        }
        if !batches.is_empty() {
            write.open_table(META)?.insert(META_REVISION, revision)?;
        }
    }
    if batches.is_empty() {
        write.abort()?;
    } else {
        write.commit()?;
    }
    Ok((outcomes, batches))
}

fn first_conflict(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    transaction: &Transaction,
) -> Result<Option<Outcome>, WriteError> {
    for compare in &transaction.compares {
        let found = format::read_key(versions, &compare.key, u64::MAX)?.map_or(0, |found| found.mod_revision);
        if found != compare.mod_revision {
            return Ok(Some(Outcome::Conflict { key: Arc::clone(&compare.key), mod_revision: found }));
        }
    }
    Ok(None)
}

/// Forgets versions that were overwritten or deleted at or before `to`, some revisions at a time.
fn compact(database: &Database, shared: &Shared, to: Revision) -> Result<(), WriteError> {
    let mut from = shared.compacted();
    while from < to {
        let step = (from + COMPACT_STEP).min(to);
        let write = database.begin_write()?;
        {
            let mut versions = write.open_table(VERSIONS)?;
            let mut log = write.open_table(LOG)?;
            let mut keys = Vec::new();
            for item in log.range((0, 0)..=(step, u32::MAX))? {
                keys.push(item?.1.value().to_vec());
            }
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let mut old = Vec::new();
                for item in versions.range((key.as_slice(), 0)..=(key.as_slice(), step))? {
                    let (position, value) = item?;
                    old.push((position.value().1, matches!(Version::decode(value.value())?, Version::Deleted)));
                }
                // The newest is the state as of `step`, unless that is "deleted".
                if old.last().is_some_and(|(_, deleted)| !deleted) {
                    old.pop();
                }
                for (revision, _) in old {
                    versions.remove((key.as_slice(), revision))?;
                }
            }
            log.retain_in((0, 0)..=(step, u32::MAX), |_, _| false)?;
            write.open_table(META)?.insert(META_COMPACTED, step)?;
        }
        // Readers that begin from now on are refused before what they need goes.
        shared.set_compacted(step);
        write.commit()?;
        from = step;
    }
    Ok(())
}
