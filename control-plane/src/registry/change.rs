//! What changed, for those who follow.

use std::sync::Arc;

use arc_swap::ArcSwap;
use heddle_api::resource::{AnyObject, Name, ObjectKind};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Registration, View};
use crate::store::Revision;

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: Name,
    /// Before; absent: it was made.
    pub before: Option<AnyObject>,
    /// After; absent: it was removed.
    pub after: Option<AnyObject>,
}

/// Everything that one transaction changed.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    /// The store's revision.
    pub revision: Revision,
    /// Number of the user-visible revision, if it is one.
    pub number: Option<u64>,
    /// Changes of objects.
    pub objects: Vec<Change>,
    /// Registrations written or (absent) removed.
    pub registrations: Vec<(Name, Option<Arc<Registration>>)>,
}

/// What a subscriber is told.
#[derive(Clone, Debug)]
pub enum Update {
    /// This changed.
    Changed(Arc<ChangeSet>),
    /// The subscriber was too slow to be told of each change: start over from this view.
    Resync(Arc<View>),
}

/// Every change after some revision, in order.
#[derive(Debug)]
pub struct Changes {
    feed: Receiver<Arc<ChangeSet>>,
    view: Arc<ArcSwap<View>>,
    seen: Revision,
}

impl Changes {
    pub(super) fn new(feed: Receiver<Arc<ChangeSet>>, view: Arc<ArcSwap<View>>, seen: Revision) -> Self {
        Self { feed, view, seen }
    }

    /// The next change; absent when the registry is gone. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            match self.feed.recv().await {
                Ok(changes) if changes.revision <= self.seen => {}
                Ok(changes) => {
                    self.seen = changes.revision;
                    return Some(Update::Changed(changes));
                }
                Err(RecvError::Lagged(_)) => {
                    // From the end: what is in the feed is in the view, too.
                    self.feed = self.feed.resubscribe();
                    let view = self.view.load_full();
                    self.seen = view.revision();
                    return Some(Update::Resync(view));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
