//! How revisioned keys lie in redb, and how they are read.
//!
//! `versions` holds each version of each key that is not compacted, in order of key and revision, so
//! that a key as of a revision is one step back from `(key, revision + 1)`. `log` lists which keys a
//! revision wrote, for watches. `meta` holds the newest and the oldest readable revision.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, StorageError, TableDefinition};

use crate::store::{Batch, Event, KeyValue, Page, Range, Revision};

/// (key, revision) -> [`Version`], encoded.
pub(super) const VERSIONS: TableDefinition<'_, (&[u8], u64), &[u8]> = TableDefinition::new("versions");
/// (revision, position in the transaction) -> key.
pub(super) const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
/// Counters by name.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: the newest revision.
pub(super) const META_REVISION: &str = "revision";
/// In [`META`]: the oldest revision that can be read.
pub(super) const META_COMPACTED: &str = "compacted";
/// In [`META`]: the layout's number.
pub(super) const META_FORMAT: &str = "format";
/// The layout described above.
pub(super) const FORMAT: u64 = 1;

const PUT: u8 = 1;
const DELETED: u8 = 0;
const HEADER: usize = 17;

/// A version of a key: what was put, or that it was deleted.
pub(super) enum Version<'a> {
    Put { create_revision: Revision, version: u64, value: &'a [u8] },
    Deleted,
}

impl<'a> Version<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Put { create_revision, version, value } => {
                let mut bytes = Vec::with_capacity(HEADER + value.len());
                bytes.push(PUT);
                bytes.extend_from_slice(&create_revision.to_be_bytes());
                bytes.extend_from_slice(&version.to_be_bytes());
                bytes.extend_from_slice(value);
                bytes
            }
            Self::Deleted => vec![DELETED],
        }
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StorageError> {
        let corrupt = || StorageError::Corrupted("a version in the store is too short".to_owned());
        if bytes.first() == Some(&DELETED) {
            return Ok(Self::Deleted);
        }
        let number = |at: usize| -> Result<u64, StorageError> {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(corrupt)?;
            Ok(u64::from_be_bytes(bytes))
        };
        Ok(Self::Put {
            create_revision: number(1)?,
            version: number(9)?,
            value: bytes.get(HEADER..).ok_or_else(corrupt)?,
        })
    }
}

/// Reads a key as of a revision.
pub(super) fn read_key(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    key: &str,
    at: Revision,
) -> Result<Option<KeyValue>, StorageError> {
    let Some(found) = versions.range((key.as_bytes(), 0)..=(key.as_bytes(), at))?.next_back() else {
        return Ok(None);
    };
    let (position, value) = found?;
    key_value(&Arc::from(key), position.value().1, value.value())
}

fn key_value(key: &Arc<str>, revision: Revision, bytes: &[u8]) -> Result<Option<KeyValue>, StorageError> {
    Ok(match Version::decode(bytes)? {
        Version::Put { create_revision, version, value } => Some(KeyValue {
            key: Arc::clone(key),
            value: Bytes::copy_from_slice(value),
            create_revision,
            mod_revision: revision,
            version,
        }),
        Version::Deleted => None,
    })
}

/// Reads keys in order as of a revision. `range.at` is already settled.
pub(super) fn read_range(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    range: &Range,
    at: Revision,
) -> Result<Page, StorageError> {
    let mut page = Page { revision: at, ..Page::default() };
    let prefix = range.prefix.as_bytes();
    let start = match &range.after {
        Some(after) if after.as_str() >= range.prefix.as_str() => (after.as_bytes(), u64::MAX),
        _ => (prefix, 0),
    };
    let mut newest: Option<(Vec<u8>, Option<KeyValue>)> = None;
    for item in versions.range(start..)? {
        let (position, value) = item?;
        let (key, revision) = position.value();
        if !key.starts_with(prefix) {
            break;
        }
        if range.after.as_deref().is_some_and(|after| key == after.as_bytes()) {
            continue;
        }
        if newest.as_ref().is_none_or(|(newest, _)| newest != key) {
            if flush(&mut page, newest.take(), range.limit) {
                return Ok(page);
            }
            newest = Some((key.to_vec(), None));
        }
        if revision <= at
            && let Some((_, newest)) = &mut newest
        {
            *newest = key_value(&text(key)?, revision, value.value())?;
        }
    }
    flush(&mut page, newest, range.limit);
    Ok(page)
}

/// Adds a key that exists to the page; true when there is no room for it.
fn flush(page: &mut Page, found: Option<(Vec<u8>, Option<KeyValue>)>, limit: usize) -> bool {
    let Some((_, Some(entry))) = found else { return false };
    if limit != 0 && page.entries.len() == limit {
        page.more = true;
        return true;
    }
    page.entries.push(entry);
    false
}

/// Reads the batches of some revisions from the log.
pub(super) fn read_batches(
    log: &impl ReadableTable<(u64, u32), &'static [u8]>,
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    revisions: std::ops::RangeInclusive<Revision>,
) -> Result<Vec<Batch>, StorageError> {
    let mut batches: Vec<Batch> = Vec::new();
    for item in log.range((*revisions.start(), 0)..=(*revisions.end(), u32::MAX))? {
        let (position, key) = item?;
        let revision = position.value().0;
        let key = text(key.value())?;
        let event =
            Event { before: read_key(versions, &key, revision - 1)?, after: read_key(versions, &key, revision)?, key };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(Batch { revision, events: vec![event] }),
        }
    }
    Ok(batches)
}

/// A key's text.
pub(super) fn text(key: &[u8]) -> Result<Arc<str>, StorageError> {
    std::str::from_utf8(key)
        .map(Arc::from)
        .map_err(|_| StorageError::Corrupted("a key in the store is not UTF-8".to_owned()))
}
