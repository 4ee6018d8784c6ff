//! The registry: typed objects over the store.
//!
//! Reads come from an immutable [`View`] in memory, which follows the store. Writes go through
//! [`Registry::apply`]: operations are checked against the view, together, and committed as one
//! transaction of the store, which makes one user-visible revision (see [`Revisions`]). Workloads that
//! their own proxies register lie beside the objects, and make no such revision.

mod apply;
mod change;
mod codec;
mod follow;
mod kubernetes;
mod references;
mod registration;
mod revisions;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Semaphore, broadcast, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use crate::store::{Revision, Store, StoreError};

pub use self::{
    apply::{Action, Applied, ApplyError, Author, Expected, Operation, OperationFault, OperationResult, RollbackError},
    change::{Change, ChangeSet, Changes, Update},
    codec::StoredChange,
    kubernetes::KUBERNETES_LABEL,
    registration::Registration,
    revisions::{Counts, Difference, RevisionError, RevisionNumber, RevisionSummary, Revisions},
    view::View,
};

/// Views of past revisions that are kept for lists that are being paged through: so many, for so long
/// after the last page.
const PAST_VIEWS: usize = 1000;
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Comparisons of revisions and rollbacks at once.
const FOLDING: usize = 2;
/// Change sets that a subscriber may lag behind before it starts over from a view.
const FEED: usize = 1024;

/// Typed objects over the store. Shared by `Arc`.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    view: Arc<ArcSwap<View>>,
    past: Mutex<VecDeque<(Arc<View>, Instant)>>,
    /// Who puts revisions together: that takes memory.
    folding: Semaphore,
    feed: broadcast::Sender<Arc<ChangeSet>>,
    /// The revision of `view`; closed when the store can no longer be followed.
    followed: watch::Receiver<Revision>,
    /// One writer at a time checks against the view, so that none has to check twice.
    writing: tokio::sync::Mutex<()>,
    _follower: AbortOnDropHandle<()>,
}

/// Why the registry could not be opened or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error("the registry's store failed")]
    Store(#[from] StoreError),
    /// What is in the store cannot be read.
    #[error("{key} in the store cannot be read: {reason}")]
    Unreadable {
        /// The key.
        key: Arc<str>,
        /// Why.
        reason: String,
    },
}

impl Registry {
    /// Reads everything and begins to follow the store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, RegistryError> {
        let view = View::load(&*store).await?;
        let (followed_by, followed) = watch::channel(view.revision());
        let view = Arc::new(ArcSwap::from_pointee(view));
        let feed = broadcast::Sender::new(FEED);
        let follower = follow::run(Arc::clone(&store), Arc::clone(&view), feed.clone(), followed_by);
        Ok(Arc::new(Self {
            store,
            view,
            past: Mutex::default(),
            folding: Semaphore::new(FOLDING),
            feed,
            followed,
            writing: tokio::sync::Mutex::default(),
            _follower: AbortOnDropHandle::new(tokio::spawn(follower)),
        }))
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Everything, as of the newest revision that this instance has seen.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Everything as of a past revision, if that is at hand still (see [`Registry::keep`]).
    pub fn view_at(&self, revision: Revision) -> Result<Arc<View>, StoreError> {
        let view = self.view();
        if view.revision() == revision {
            return Ok(view);
        }
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = past.iter().find(|(kept, _)| kept.revision() == revision).map(|(kept, _)| Arc::clone(kept));
        kept.ok_or(match revision > view.revision() {
            true => StoreError::Future { requested: revision, newest: view.revision() },
            false => StoreError::Compacted { requested: revision, oldest: view.revision() },
        })
    }

    /// Keeps a view at hand for [`Registry::view_at`] for some minutes, for a list that is being paged
    /// through. Views share what did not change between them, so this costs little.
    pub fn keep(&self, view: &Arc<View>) {
        let now = Instant::now();
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|(kept, until)| *until > now && kept.revision() != view.revision());
        past.push_back((Arc::clone(view), now + KEPT_FOR));
        if past.len() > PAST_VIEWS {
            past.pop_front();
        }
    }

    /// A view, and every change after it.
    pub fn subscribe(&self) -> (Arc<View>, Changes) {
        // Subscribed first: what is told twice is left out by its revision, nothing is missed.
        let feed = self.feed.subscribe();
        let view = self.view();
        (Arc::clone(&view), Changes::new(feed, Arc::clone(&self.view), view.revision()))
    }

    /// Returns when this instance has seen a revision of the store.
    pub async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        let mut followed = self.followed.clone();
        followed.wait_for(|seen| *seen >= revision).await.map_err(|_| StoreError::Closed)?;
        Ok(())
    }

    /// Returns when the store can no longer be followed: views are stale from then on.
    pub async fn lost(&self) {
        let mut followed = self.followed.clone();
        while followed.changed().await.is_ok() {}
    }

    /// User-visible revisions: list, differences.
    pub fn revisions(&self) -> Revisions<'_> {
        Revisions::new(&*self.store, &self.folding)
    }
}
