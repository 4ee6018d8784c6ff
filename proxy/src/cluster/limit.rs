//! How much at once: connections, requests in flight, requests that wait for a connection.
//!
//! What is in use is counted over all workers of the proxy; who uses it, by each worker for itself.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

use crate::snapshot::Limits;

/// What all workers have in use of one cluster.
#[derive(Debug, Default)]
pub struct Used {
    counts: [AtomicU32; 3],
    /// Those who wait for a connection to end.
    waiting: AtomicU32,
    /// One has ended.
    freed: Notify,
}

/// The limits of one cluster and what is in use. Cheap to clone; single-threaded.
#[derive(Clone, Debug)]
pub struct Limit {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Cell<Limits>,
    /// By this worker.
    own: [Cell<u32>; 3],
    own_waiting: Cell<u32>,
    all: Arc<Used>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connection,
    Request,
    Pending,
}

/// One unit in use, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Rc<Shared>,
    kind: Kind,
}

/// Somebody who waits for a connection to end, until dropped.
#[derive(Debug)]
pub(crate) struct Waiting(Rc<Shared>);

impl Limit {
    /// Nothing in use, and by no other worker.
    pub fn new(limits: Limits) -> Self {
        Self::of(limits, Arc::default())
    }

    /// With what others have in use.
    pub fn of(limits: Limits, all: Arc<Used>) -> Self {
        let shared = Shared { limits: Cell::new(limits), own: Default::default(), own_waiting: Cell::default(), all };
        Self { shared: Rc::new(shared) }
    }

    /// Takes changed limits; what is in use stays in use.
    pub fn set(&self, limits: Limits) {
        self.shared.limits.set(limits);
    }

    /// A connection. A worker may have one whatever others have: else it would wait for connections of theirs that
    /// it cannot use.
    pub fn connection(&self) -> Option<Permit> {
        self.acquire(Kind::Connection, self.shared.limits.get().max_connections)
    }

    /// A request in flight, until its response is complete.
    pub fn request(&self) -> Option<Permit> {
        self.acquire(Kind::Request, self.shared.limits.get().max_requests)
    }

    /// A request that waits for a connection.
    pub fn pending(&self) -> Option<Permit> {
        self.acquire(Kind::Pending, self.shared.limits.get().max_pending)
    }

    /// What this worker has in use: connections, requests, waiting requests.
    pub fn in_use(&self) -> [u32; 3] {
        self.shared.own.each_ref().map(Cell::get)
    }

    /// Somebody begins to wait for a connection to end; to be called before looking whether one has.
    pub(crate) fn wait(&self) -> Waiting {
        self.shared.own_waiting.update(|waiting| waiting + 1);
        self.shared.all.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self.shared.clone())
    }

    /// Until a connection of any worker ends.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.shared.all.freed.notified()
    }

    /// Whether other workers wait for connections to end.
    pub(crate) fn others_wait(&self) -> bool {
        self.shared.all.waiting.load(Ordering::Relaxed) > self.shared.own_waiting.get()
    }

    fn acquire(&self, kind: Kind, limit: u32) -> Option<Permit> {
        let own = &self.shared.own[kind as usize];
        let all = &self.shared.all.counts[kind as usize];
        let first = kind == Kind::Connection && limit > 0 && own.get() == 0;
        // Who is refused is never counted, not for a moment: another might be refused for it, or wait in vain.
        all.fetch_update(kind.ordering(), kind.ordering(), |used| (first || used < limit).then_some(used + 1)).ok()?;
        own.update(|own| own + 1);
        Some(Permit { shared: self.shared.clone(), kind })
    }
}

impl Kind {
    /// Whoever waits for a connection looks whether one has ended after saying so; whoever ends one looks
    /// whether anybody waits after that: one of both sees the other. Of the rest only the sum counts.
    fn ordering(self) -> Ordering {
        match self {
            Self::Connection => Ordering::SeqCst,
            Self::Request | Self::Pending => Ordering::Relaxed,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (own, all) = (&self.shared.own[self.kind as usize], &self.shared.all);
        own.update(|own| own - 1);
        all.counts[self.kind as usize].fetch_sub(1, self.kind.ordering());
        if self.kind == Kind::Connection && all.waiting.load(Ordering::SeqCst) > 0 {
            all.freed.notify_waiters();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.own_waiting.update(|waiting| waiting - 1);
        self.0.all.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_limit() {
        let limit = Limit::new(Limits { max_connections: 1, max_requests: 2, max_pending: 0 });
        let connection = limit.connection().unwrap();
        assert!(limit.connection().is_none());
        let requests: Vec<_> = std::iter::from_fn(|| limit.request()).collect();
        assert_eq!(requests.len(), 2);
        assert!(limit.pending().is_none());
        assert_eq!(limit.in_use(), [1, 2, 0]);
        drop(connection);
        assert!(limit.connection().is_some());
        assert_eq!(limit.in_use(), [0, 2, 0]);
    }

    #[test]
    fn changed_limits_hold_for_what_comes() {
        let limit = Limit::new(Limits { max_connections: 0, max_requests: 3, max_pending: 0 });
        let mut held: Vec<_> = std::iter::from_fn(|| limit.request()).collect();
        limit.set(Limits { max_connections: 0, max_requests: 1, max_pending: 0 });
        held.pop();
        held.pop();
        assert!(limit.request().is_none(), "one is still in use");
        held.pop();
        assert!(limit.request().is_some());
    }

    #[test]
    fn who_is_refused_takes_nothing_from_others() {
        let used = Arc::<Used>::default();
        let of = |max_requests, used| Limit::of(Limits { max_connections: 0, max_requests, max_pending: 0 }, used);
        let one = {
            let used = used.clone();
            std::thread::spawn(move || {
                let limit = of(1, used);
                (0..200_000).filter(|_| limit.request().is_none()).count()
            })
        };
        let refused = of(0, used);
        while !one.is_finished() {
            assert!(refused.request().is_none());
        }
        assert_eq!(one.join().unwrap(), 0);
    }

    #[test]
    fn limits_are_those_of_all_workers_together() {
        let limits = Limits { max_connections: 3, max_requests: 10, max_pending: 1 };
        let used = Arc::<Used>::default();
        let hold = |count: usize| {
            let used = used.clone();
            move || {
                let limit = Limit::of(limits, used);
                let requests: Vec<_> = std::iter::from_fn(|| limit.request()).take(count).collect();
                (requests.len(), limit.pending().is_some())
            }
        };
        let workers: Vec<_> = (0..4).map(|_| std::thread::spawn(hold(1000))).collect();
        for worker in workers {
            assert!(worker.join().unwrap().0 <= 10);
        }
        let (one, two, three) =
            (Limit::of(limits, used.clone()), Limit::of(limits, used.clone()), Limit::of(limits, used));
        let mut requests: Vec<_> = std::iter::from_fn(|| one.request()).take(7).collect();
        requests.extend(std::iter::from_fn(|| two.request()));
        assert_eq!((requests.len(), two.in_use()), (10, [0, 3, 0]));
        drop(requests);
        assert!(two.request().is_some());
        let pending = one.pending().unwrap();
        assert!(two.pending().is_none());
        drop(pending);
        // Connections too; but each may have one.
        let connections: Vec<_> = std::iter::from_fn(|| one.connection()).collect();
        assert_eq!(connections.len(), 3);
        let first = two.connection().unwrap();
        assert!(two.connection().is_none());
        assert!(three.connection().is_some());
        drop(connections);
        assert!(two.connection().is_some());
        drop(first);
        assert!(!one.others_wait());
        let waiting = two.wait();
        assert!(one.others_wait() && !two.others_wait());
        drop(waiting);
        assert!(!one.others_wait());
    }
}
