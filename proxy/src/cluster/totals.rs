//! What the clusters of all workers of a proxy have in common: policy limits the proxy, not each of its threads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::time::Instant;

use super::{budget::Account, limit::Used};
use crate::snapshot::ClusterName;

/// Of how many clusters at least to keep what is no longer used, before looking for such.
const FEW: usize = 64;

/// The totals of each cluster that any worker has. Cheap to clone. Looked into when a worker makes a cluster, not for
/// requests.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    all: Arc<Mutex<HashMap<ClusterName, Weak<Total>>>>,
}

/// Of one cluster.
#[derive(Debug)]
pub(super) struct Total {
    pub(super) used: Arc<Used>,
    pub(super) account: Arc<Account>,
}

impl Totals {
    /// Those of a cluster, for as long as any worker has it.
    pub(super) fn of(&self, name: &ClusterName, now: Instant) -> Arc<Total> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(total) = all.get(name).and_then(Weak::upgrade) {
            return total;
        }
        if all.len() >= FEW && all.len() == all.capacity() {
            all.retain(|_, total| total.strong_count() > 0);
            // Not again before as many have come.
            let live = all.len();
            all.reserve(live.max(FEW));
        }
        let total = Arc::new(Total { used: Arc::default(), account: Arc::new(Account::new(now)) });
        all.insert(name.clone(), Arc::downgrade(&total));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ServiceName;

    #[test]
    fn totals_live_as_long_as_a_cluster_and_no_longer() {
        let totals = Totals::default();
        let now = Instant::now();
        let name = |n: u16| ClusterName { service: ServiceName { namespace: "".into(), name: "x".into() }, port: n };
        let kept = totals.of(&name(1), now);
        assert!(Arc::ptr_eq(&kept, &totals.clone().of(&name(1), now)));
        assert!(!Arc::ptr_eq(&kept, &totals.of(&name(2), now)));
        for n in 2..20_000 {
            totals.of(&name(n), now);
        }
        assert!(totals.all.lock().unwrap().len() < 1000);
        assert!(Arc::ptr_eq(&kept, &totals.of(&name(1), now)));
    }
}
