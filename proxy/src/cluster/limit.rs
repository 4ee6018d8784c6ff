//! How much at once: connections, requests in flight, requests that wait for a connection.

use std::{cell::Cell, rc::Rc};

use crate::snapshot::Limits;

/// The limits of one cluster and what is in use. Cheap to clone; single-threaded.
#[derive(Clone, Debug)]
pub struct Limit {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Cell<Limits>,
    used: [Cell<u32>; 3],
}

#[derive(Clone, Copy, Debug)]
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

impl Limit {
    /// Nothing in use.
    pub fn new(limits: Limits) -> Self {
        Self { shared: Rc::new(Shared { limits: Cell::new(limits), used: Default::default() }) }
    }

    /// Takes changed limits; what is in use stays in use.
    pub fn set(&self, limits: Limits) {
        self.shared.limits.set(limits);
    }

    /// A connection.
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

    /// What is in use: connections, requests, waiting requests.
    pub fn in_use(&self) -> [u32; 3] {
        self.shared.used.each_ref().map(Cell::get)
    }

    fn acquire(&self, kind: Kind, limit: u32) -> Option<Permit> {
        let used = &self.shared.used[kind as usize];
        if used.get() >= limit {
            return None;
        }
        used.set(used.get() + 1);
        Some(Permit { shared: self.shared.clone(), kind })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.used[self.kind as usize].update(|used| used - 1);
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
}
