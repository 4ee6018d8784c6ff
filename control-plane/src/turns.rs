//! Turns by name: who has one is alone with it, and many names go on at once, so that their writes share
//! a commit of the store.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, Hash, RandomState},
};

use tokio::sync::{Mutex, MutexGuard};

/// Names that fall together share a turn.
const SHARDS: usize = 256;

/// One turn for each name.
#[derive(Debug)]
pub(crate) struct Turns {
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
    pub(crate) async fn of(&self, name: &impl Hash) -> MutexGuard<'_, ()> {
        self.shards[self.shard(name)].lock().await
    }

    /// Waits for the turns of several names; always in the same order, so that nobody waits in a circle.
    pub(crate) async fn all_of(&self, names: &[impl Hash]) -> Vec<MutexGuard<'_, ()>> {
        let shards: BTreeSet<_> = names.iter().map(|name| self.shard(name)).collect();
        let mut turns = Vec::with_capacity(shards.len());
        for shard in shards {
            turns.push(self.shards[shard].lock().await);
        }
        turns
    }

    fn shard(&self, name: &impl Hash) -> usize {
        (self.hasher.hash_one(name) % SHARDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_one_ones_at_a_time_and_others_go_on() {
        let turns = Turns::default();
        let names: Vec<usize> = (0..1000).collect();
        let first = turns.of(&names[0]).await;
        let now = |name: &usize| turns.shards[turns.shard(name)].try_lock().is_ok();
        assert!(!now(&names[0]));
        assert!(names.iter().filter(|name| now(name)).count() > 900);
        drop(first);
        let all = turns.all_of(&names).await;
        assert!(!names.iter().any(now));
        drop(all);
        assert!(names.iter().all(now));
    }
}
