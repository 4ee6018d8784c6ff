//! How many retries all requests to a cluster may cause.

use tokio::time::Instant;

/// A retry budget: a share of recent requests plus a few a second. Single-threaded.
#[derive(Debug)]
pub struct Budget {}

impl Budget {
    /// A full budget.
    pub fn new(percent: u32, min_per_second: u32, now: Instant) -> Self {
        let _ = (percent, min_per_second, now);
        todo!()
    }

    /// A request (not a retry) was made.
    pub fn deposit(&self, now: Instant) {
        let _ = now;
        todo!()
    }

    /// Pays for a retry, if there is enough.
    pub fn withdraw(&self, now: Instant) -> bool {
        let _ = now;
        todo!()
    }
}
