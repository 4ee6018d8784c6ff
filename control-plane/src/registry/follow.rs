//! Follows the store: each committed batch makes the next view.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use tokio::sync::{broadcast, watch};

use super::{ChangeSet, View};
use crate::store::{Revision, Store};

/// Runs until the store can no longer be followed; `followed` closes then.
pub(super) async fn run(
    store: Arc<dyn Store>,
    view: Arc<ArcSwap<View>>,
    feed: broadcast::Sender<Arc<ChangeSet>>,
    followed: watch::Sender<Revision>,
) {
    let mut batches = store.watch("", view.load().revision() + 1);
    // The watch ends with the store, and must not keep it.
    drop(store);
    while let Some(batch) = batches.next().await {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(%error, "the store can no longer be followed");
                return;
            }
        };
        // What comes from Kubernetes may be put into the view meanwhile: then this is done over.
        let mut changes = ChangeSet::default();
        view.rcu(|view| {
            let (next, made) = view.advance(&batch);
            changes = made;
            next
        });
        // Nobody may be listening.
        let _ = feed.send(Arc::new(changes));
        followed.send_replace(batch.revision);
    }
}
