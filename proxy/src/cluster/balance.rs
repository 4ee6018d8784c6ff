//! Which endpoint of a cluster gets the next request.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::time::Instant;

use crate::{
    outcome::Error,
    snapshot::{Balancing, Endpoint, Endpoints, OutlierDetection},
};

/// The endpoints of one cluster with what is known of them: latency, load, ejection. Single-threaded;
/// knowledge is keyed by address and survives updates.
#[derive(Debug)]
pub struct Balancer {}

/// An endpoint picked for one try. Its load counts until dropped; dropped without a report (the caller
/// went away) it says nothing about the endpoint.
#[derive(Debug)]
pub struct Picked {
    endpoint: Arc<Endpoint>,
    _state: Rc<()>,
}

/// What a try says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, and not with a 5xx.
    Success,
    /// 5xx, failed connection, reset, timeout.
    Failure,
}

impl Balancer {
    /// Without endpoints yet.
    pub fn new(balancing: Balancing, outlier: OutlierDetection, seed: u64) -> Self {
        let _ = (balancing, outlier, seed);
        todo!()
    }

    /// Takes a changed policy; what is known of endpoints stays.
    pub fn set_policy(&mut self, balancing: Balancing, outlier: OutlierDetection) {
        let _ = (balancing, outlier);
        todo!()
    }

    /// Takes the endpoints that serve `port`; what is known of those that stay, stays.
    pub fn update(&mut self, endpoints: &Endpoints, port: u16, now: Instant) {
        let _ = (endpoints, port, now);
        todo!()
    }

    /// Picks an endpoint, if possible none of `tried`. Errors: `NoEndpoints`, `CircuitOpen`.
    pub fn pick(&mut self, now: Instant, tried: &[SocketAddr]) -> Result<Picked, Error> {
        let _ = (now, tried);
        todo!()
    }
}

impl Picked {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The try is decided: at response headers, or when it failed. Only the first report counts.
    pub fn report(&self, verdict: Verdict, now: Instant) {
        let _ = (verdict, now);
        todo!()
    }
}
