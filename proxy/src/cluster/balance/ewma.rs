//! A moving average of latency that rises at once and falls slowly.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which an estimate falls to 1/e.
const DECAY: Duration = Duration::from_secs(10);
/// Of an endpoint that has not answered yet.
const DEFAULT_RTT: Duration = Duration::from_millis(30);

/// Peak-sensitive, exponentially weighted moving average: an answer slower than the estimate becomes the
/// estimate; a faster one draws it down, the more the longer ago the last one was. Without answers it
/// falls towards zero, so that an endpoint that was slow is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeakEwma {
    /// Seconds.
    rtt: f64,
    at: Instant,
}

impl PeakEwma {
    pub(super) fn new(now: Instant) -> Self {
        Self { rtt: DEFAULT_RTT.as_secs_f64(), at: now }
    }

    /// Seconds.
    pub(super) fn estimate(&self, now: Instant) -> f64 {
        self.rtt * self.weight(now)
    }

    pub(super) fn observe(&mut self, rtt: Duration, now: Instant) {
        let rtt = rtt.as_secs_f64();
        let weight = self.weight(now);
        self.rtt = if rtt > self.rtt * weight { rtt } else { self.rtt * weight + rtt * (1.0 - weight) };
        self.at = now;
    }

    /// A failure can make it dearer, never cheaper.
    pub(super) fn observe_failure(&mut self, rtt: Duration, now: Instant) {
        if rtt.as_secs_f64() > self.rtt {
            self.observe(rtt, now);
        } else {
            self.at = now;
        }
    }

    fn weight(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}
