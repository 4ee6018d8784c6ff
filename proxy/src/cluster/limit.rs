//! How much at once: connections, requests in flight, requests that wait for a connection.

use std::{cell::Cell, rc::Rc};

use crate::snapshot::Limits;

/// The limits of one cluster and what is in use. Cheap to clone; single-threaded.
#[derive(Clone, Debug)]
pub struct Limit {
    limits: Rc<Cell<Limits>>,
}

/// One unit in use, given back when dropped.
#[derive(Debug)]
pub struct Permit {}

impl Limit {
    /// Nothing in use.
    pub fn new(limits: Limits) -> Self {
        Self { limits: Rc::new(Cell::new(limits)) }
    }

    /// Takes changed limits; what is in use stays in use.
    pub fn set(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// A connection.
    pub fn connection(&self) -> Option<Permit> {
        todo!()
    }

    /// A request in flight, until its response is complete.
    pub fn request(&self) -> Option<Permit> {
        todo!()
    }

    /// A request that waits for a connection.
    pub fn pending(&self) -> Option<Permit> {
        todo!()
    }
}
