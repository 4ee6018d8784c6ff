//! Turns by name: who has one is alone with it, and many names go on at once, so that their writes share
//! a commit of the store.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
};

use heddle_api::resource::Name;
use tokio::sync::{Mutex, MutexGuard};

/// Names that fall together share a turn.
const SHARDS: usize = 256;

/// One turn for each name.
#[derive(Debug)]
pub(super) struct Turns {
    shards: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }
}

impl Turns {
    /// Waits for the turn of a name. Who has one must not wait for another.
    pub(super) async fn of(&self, name: &Name) -> MutexGuard<'_, ()> {
        self.shards[self.shard(name)].lock().await
    }

    /// Waits for the turns of several names; always in the same order, so that nobody waits in a circle.
    pub(super) async fn all_of(&self, names: &[Name]) -> Vec<MutexGuard<'_, ()>> {
        let shards: BTreeSet<_> = names.iter().map(|name| self.shard(name)).collect();
        let mut turns = Vec::with_capacity(shards.len());
        for shard in shards {
            turns.push(self.shards[shard].lock().await);
        }
        turns
    }

    fn shard(&self, name: &Name) -> usize {
        (self.hasher.hash_one(name) % SHARDS as u64) as usize
    }
}
