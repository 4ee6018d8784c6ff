//! Watches of the embedded backend.

use std::sync::{Arc, atomic::Ordering};

use redb::{Database, ReadableDatabase as _};
use tokio::sync::watch;

use super::{
    Shared, WriteError,
    format::{self, LOG, META, META_COMPACTED, VERSIONS},
    read_number,
};
use crate::store::{Batch, Revision, StoreError};

/// Batches that a watch that lags reads from disk at once.
const WATCH_CHUNK: u64 = 256;

/// A watch: follows the head, from memory while it keeps up, else from disk.
pub(super) struct Watching {
    shared: Arc<Shared>,
    head: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
    ready: std::vec::IntoIter<Arc<Batch>>,
    done: bool,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>, prefix: &str, from: Revision) -> Self {
        let head = shared.head.subscribe();
        Self { shared, head, prefix: prefix.to_owned(), next: from.max(1), ready: Vec::new().into_iter(), done: false }
    }

    pub(super) async fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        loop {
            if self.done {
                return None;
            }
            if let Some(batch) = self.ready.next() {
                self.next = batch.revision + 1;
                if let Some(batch) = self.select(&batch) {
                    return Some(Ok(batch));
                }
                continue;
            }
            let newest = *self.head.borrow_and_update();
            if self.next > newest {
                if self.shared.closed.load(Ordering::Acquire) || self.head.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            match self.fill(newest).await {
                Ok(ready) => self.ready = ready.into_iter(),
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }

    async fn fill(&self, newest: Revision) -> Result<Vec<Arc<Batch>>, StoreError> {
        let from = self.next;
        if let Some(batches) = self.shared.recent.since(from, WATCH_CHUNK as usize) {
            return Ok(batches);
        }
        // However long it takes: who follows must not miss anything.
        let database = self.shared.file.opened().await.ok_or(StoreError::Closed)?;
        let to = newest.min(from + WATCH_CHUNK - 1);
        let work = move || read_log(&database, from, to);
        let batches = tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))?;
        Ok(batches.into_iter().map(Arc::new).collect())
    }

    fn select(&self, batch: &Batch) -> Option<Batch> {
        let events: Vec<_> = batch.events.iter().filter(|event| event.key.starts_with(&self.prefix)).cloned().collect();
        (!events.is_empty()).then_some(Batch { revision: batch.revision, events })
    }
}

/// The batches from one revision to another, if none of them is compacted.
pub(super) fn read_log(database: &Database, from: Revision, to: Revision) -> Result<Vec<Batch>, StoreError> {
    let read = || -> Result<(Vec<Batch>, Revision), WriteError> {
        let read = database.begin_read()?;
        let oldest = read_number(&read.open_table(META)?, META_COMPACTED)?.unwrap_or(0);
        let (log, versions) = (read.open_table(LOG)?, read.open_table(VERSIONS)?);
        Ok((format::read_batches(&log, &versions, from.max(oldest + 1)..=to)?, oldest))
    };
    match read()? {
        (_, oldest) if from <= oldest => Err(StoreError::Compacted { requested: from, oldest: oldest + 1 }),
        (batches, _) => Ok(batches),
    }
}
