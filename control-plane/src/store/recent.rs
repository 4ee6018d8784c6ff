//! The newest batches, kept in memory so that watchers that keep up never read the disk.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
};

use super::{Batch, Revision};

/// More batches than this are not kept.
const MAX_BATCHES: usize = 1024;
/// More bytes of values than this are not kept.
const MAX_BYTES: usize = 4 << 20;

/// A window over the newest committed batches, without gaps.
#[derive(Debug, Default)]
pub(super) struct Recent {
    window: RwLock<Window>,
}

#[derive(Debug, Default)]
struct Window {
    batches: VecDeque<(Arc<Batch>, usize)>,
    bytes: usize,
}

impl Recent {
    /// Adds the next committed batch.
    pub(super) fn push(&self, batch: Batch) {
        let size = batch.events.iter().map(|event| size_of_event(event) + 256).sum();
        let mut window = self.window.write().unwrap_or_else(PoisonError::into_inner);
        window.bytes += size;
        window.batches.push_back((Arc::new(batch), size));
        while window.batches.len() > MAX_BATCHES || (window.bytes > MAX_BYTES && window.batches.len() > 1) {
            if let Some((_, size)) = window.batches.pop_front() {
                window.bytes -= size;
            }
        }
    }

    /// All batches from revision `from` on that are there, at most `limit`; absent when the window
    /// begins after `from`.
    pub(super) fn since(&self, from: Revision, limit: usize) -> Option<Vec<Arc<Batch>>> {
        let window = self.window.read().unwrap_or_else(PoisonError::into_inner);
        let first = window.batches.front()?.0.revision;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        Some(window.batches.iter().skip(skip).take(limit).map(|(batch, _)| Arc::clone(batch)).collect())
    }
}

fn size_of_event(event: &super::Event) -> usize {
    [&event.before, &event.after].into_iter().flatten().map(|entry| entry.value.len() + entry.key.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_without_gaps() {
        let recent = Recent::default();
        assert!(recent.since(1, 10).is_none());
        for revision in 5..=2000 {
            recent.push(Batch { revision, events: Vec::new() });
        }
        assert!(recent.since(4, 10).is_none());
        assert!(recent.since(2000 - 1024, 10).is_none());
        let first = 2001 - 1024;
        let got: Vec<_> = recent.since(first, 3).expect("in the window").iter().map(|batch| batch.revision).collect();
        assert_eq!(got, [first, first + 1, first + 2]);
        assert!(recent.since(2001, 3).expect("after the window").is_empty());
    }
}
