//! The one thread that writes: gathers what is waiting into one redb commit, so that many small
//! writers share an fsync, and acknowledges each only after it.

use std::{sync::Arc, time::Duration};

use redb::{Database, Durability, ReadableTable};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Shared, WriteError,
    file::{Opener, Reopening},
    format::{self, LOG, META, META_COMPACTED, META_REVISION, VERSIONS, Version},
    watching,
};
use crate::store::{Batch, Event, KeyValue, Outcome, Revision, StoreError, Transaction, Write};

/// At most so many transactions share a commit.
const MAX_GROUP: usize = 512;
/// A group is closed once its values come to so many bytes, so that one commit stays short.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Revisions that one compaction step forgets, so that writers never wait long for it.
const COMPACT_STEP: u64 = 1024;

/// Between two attempts to open the file again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the thread is asked to do.
pub(super) enum Request {
    /// Commit a transaction.
    Commit(Transaction, oneshot::Sender<Result<Outcome, StoreError>>),
    /// Forget what lies before a revision.
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
}

impl Request {
    /// The file cannot be written now.
    fn refuse(self) {
        let error = StoreError::backend(Reopening);
        // Whoever asked may be gone.
        match self {
            Self::Commit(_, answer) => drop(answer.send(Err(error))),
            Self::Compact(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

/// The writing thread's state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    opener: Opener,
    keep: u64,
    give_up_after: Duration,
    revision: Revision,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, opener: Opener, keep: u64, give_up_after: Duration) -> Self {
        let revision = *shared.head.borrow();
        Self { shared, opener, keep, give_up_after, revision }
    }

    /// Runs until every sender is gone, or the file cannot be had again; the store is shut then.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut held = None;
        while let Some(request) = held.take().or_else(|| requests.blocking_recv()) {
            let Some(database) = self.shared.file.now() else { break };
            let written = match request {
                Request::Compact(to, answer) => {
                    let compacted = compact(&database, &self.shared, to.min(self.revision));
                    let (told, written) = split(compacted);
                    // The caller may be gone; compaction is wanted anyway.
                    let _ = answer.send(told);
                    written
                }
                Request::Commit(transaction, answer) => {
                    let group = gather(&mut requests, &mut held, (transaction, answer));
                    let written = self.commit_group(&database, group);
                    written.and_then(|()| self.compact_old(&database))
                }
            };
            drop(database);
            if let Err(error) = written {
                tracing::error!(%error, "the store could not write; its file is opened again");
                if !self.reopen(&mut requests) {
                    tracing::error!(after = ?self.give_up_after, "the store's file cannot be used again; giving up");
                    break;
                }
            }
        }
        self.shared.close();
    }

    /// Forgets old revisions, when there are many.
    fn compact_old(&self, database: &Database) -> Result<(), StoreError> {
        // Half as much again as is kept, so that compaction works on many revisions at once.
        if self.revision.saturating_sub(self.shared.compacted()) <= self.keep + self.keep / 2 {
            return Ok(());
        }
        split(compact(database, &self.shared, self.revision - self.keep)).1
    }

    /// Commits a group and answers its senders.
    fn commit_group(&mut self, database: &Database, group: Vec<Waiting>) -> Result<(), StoreError> {
        let (transactions, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        match write_group(database, self.revision, &transactions) {
            Ok((outcomes, batches)) => {
                self.publish(batches);
                for (outcome, answer) in outcomes.into_iter().zip(answers) {
                    // A caller that no longer waits does not take its transaction back.
                    let _ = answer.send(Ok(outcome));
                }
                Ok(())
            }
            Err(error) => {
                let error = StoreError::from(error);
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
                Err(error)
            }
        }
    }

    /// Tells watches of committed batches.
    fn publish(&mut self, batches: Vec<Batch>) {
        self.revision = batches.last().map_or(self.revision, |batch| batch.revision);
        for batch in batches {
            self.shared.recent.push(batch);
        }
        let newest = self.revision;
        self.shared.head.send_if_modified(|head| std::mem::replace(head, newest) != newest);
    }

    /// Opens the file again, until it can be written or the time is over; says whether it can. Whoever
    /// wants to write meanwhile is refused.
    fn reopen(&mut self, requests: &mut mpsc::Receiver<Request>) -> bool {
        let deadline = Instant::now() + self.give_up_after;
        let mut pause = FIRST_PAUSE;
        self.shared.health.send_modify(|health| {
            health.writable = false;
            health.failures += 1;
        });
        // Its lock on the file goes with the last read that is under way.
        self.shared.file.let_go();
        loop {
            match self.try_reopen() {
                Ok(()) => {
                    self.shared.health.send_modify(|health| health.writable = true);
                    tracing::info!(revision = self.revision, "the store's file can be written again");
                    return true;
                }
                Err(error) => tracing::warn!(?error, "the store's file is not usable yet"),
            }
            while let Ok(request) = requests.try_recv() {
                request.refuse();
            }
            if Instant::now() >= deadline || requests.is_closed() {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_reopen(&mut self) -> Result<(), StoreError> {
        let (database, newest, compacted) = open_for_writing(&self.opener)?;
        // What was answered by an error may have reached the disk all the same.
        let missed =
            if newest > self.revision { watching::read_log(&database, self.revision + 1, newest)? } else { Vec::new() };
        self.shared.set_compacted(compacted);
        self.shared.file.put(database);
        self.publish(missed);
        Ok(())
    }
}

/// Opens the file and makes sure that it can be written; with the newest and the oldest revision in it.
fn open_for_writing(opener: &Opener) -> Result<(Database, Revision, Revision), WriteError> {
    let database = opener()?;
    let (_, newest, compacted) = super::prepare(&database)?;
    // That it opens says little: the disk may be full still.
    let write = database.begin_write()?;
    write.open_table(META)?.insert(META_REVISION, newest)?;
    write.commit()?;
    Ok((database, newest, compacted))
}

/// A result for the caller, and one for the writer.
fn split<T>(result: Result<T, WriteError>) -> (Result<T, StoreError>, Result<(), StoreError>) {
    match result.map_err(StoreError::from) {
        Ok(value) => (Ok(value), Ok(())),
        Err(error) => (Err(error.clone()), Err(error)),
    }
}

/// Adds what else waits to a group, until it is full.
fn gather(requests: &mut mpsc::Receiver<Request>, held: &mut Option<Request>, first: Waiting) -> Vec<Waiting> {
    let mut bytes = size(&first.0);
    let mut group = vec![first];
    while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
        match requests.try_recv() {
            Ok(Request::Commit(transaction, answer)) => {
                bytes += size(&transaction);
                group.push((transaction, answer));
            }
            Ok(other) => {
                *held = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    group
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
