//! How many connections a cluster may have, over all its endpoints.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use tokio::sync::Notify;

use super::Pool;
use crate::cluster::limit::{Limit, Permit};

/// How many connections a cluster may have, and who waits for one.
pub(crate) struct Slots {
    pub(super) limit: Limit,
    freed: Notify,
    /// Of all endpoints: an unused connection of any makes room for one that is needed.
    pools: RefCell<Vec<Weak<Pool>>>,
}

/// A place for one connection, given back when dropped.
pub(crate) struct Slot {
    permit: Option<Permit>,
    slots: Rc<Slots>,
}

impl Slots {
    pub(crate) fn new(limit: Limit) -> Rc<Self> {
        Rc::new(Self { limit, freed: Notify::new(), pools: RefCell::default() })
    }

    /// Has the unused connections of a pool make room for others.
    pub(crate) fn register(&self, pool: &Rc<Pool>) {
        let mut pools = self.pools.borrow_mut();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Rc::downgrade(pool));
    }

    /// A place, if there is one.
    pub(super) fn take(self: &Rc<Self>) -> Option<Slot> {
        Some(Slot { permit: Some(self.limit.connection()?), slots: self.clone() })
    }

    /// A place, if need be that of the connection of any endpoint that has been unused for the longest time.
    pub(crate) fn take_or_make_room(self: &Rc<Self>) -> Option<Slot> {
        self.take().or_else(|| self.make_room(None))
    }

    /// The same, waited for.
    pub(super) async fn room(self: &Rc<Self>) -> Slot {
        loop {
            // Before looking, so as not to miss one.
            let freed = self.freed();
            if let Some(slot) = self.take_or_make_room() {
                return slot;
            }
            freed.await;
        }
    }

    /// `but`: a pool that would rather use its HTTP/1.1 connections.
    pub(super) fn make_room(self: &Rc<Self>, but: Option<&Pool>) -> Option<Slot> {
        let pools: Vec<_> = self.pools.borrow().iter().filter_map(Weak::upgrade).collect();
        let unused = pools.iter().filter_map(|pool| {
            let http1 = but.is_none_or(|but| !std::ptr::eq(&raw const **pool, but));
            Some((pool.longest_unused(http1)?, http1, pool))
        });
        let (since, http1, pool) = unused.min_by_key(|(since, ..)| *since)?;
        pool.drop_unused(http1, since);
        self.take()
    }

    /// Until a connection ends or is unused; to be called before looking whether there is one.
    pub(super) fn freed(&self) -> impl Future<Output = ()> {
        let waiting = self.limit.wait();
        let (here, anywhere) = (self.freed.notified(), self.limit.freed());
        async move {
            let _waiting = waiting;
            tokio::select! {
                () = here => {}
                () = anywhere => {}
            }
        }
    }

    /// Ends a connection that is unused, if other workers wait for one to end.
    pub(crate) fn make_room_for_others(self: &Rc<Self>) {
        if self.limit.others_wait() {
            drop(self.make_room(None));
        }
    }

    /// A connection is unused: for the next request, or to make room.
    pub(super) fn unused(&self) {
        self.freed.notify_one();
    }
}

impl Slot {
    pub(super) fn slots(&self) -> &Rc<Slots> {
        &self.slots
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First: who is woken looks at once.
        self.permit = None;
        self.slots.freed.notify_one();
    }
}
