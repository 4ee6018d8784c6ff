//! What is counted where no outcome tells: connections that are open, handshakes.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, core::Collector,
};

use super::{direction, sharded::BOUNDS};
use crate::outcome::{Direction, ErrorKind};

/// Handles for workers. These events are rare, compared with requests: all workers share the numbers. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct Signals {
    open: IntGaugeVec,
    accepted: IntCounterVec,
    handshakes: IntCounterVec,
    handshake_seconds: HistogramVec,
}

/// The numbers of one listener.
#[derive(Clone, Debug)]
pub struct Accepted {
    open: IntGauge,
    accepted: IntCounter,
}

/// A connection that is open, until dropped.
#[derive(Debug)]
pub struct Open(IntGauge);

impl Default for Signals {
    /// Counted, but nowhere shown.
    fn default() -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help);
        Self {
            open: IntGaugeVec::new(
                opts("heddle_listener_connections", "Connections that listeners have accepted and that are open"),
                &["listener"],
            )
            .expect("names are valid"),
            accepted: IntCounterVec::new(
                opts("heddle_listener_connections_accepted_total", "Connections that listeners have accepted"),
                &["listener"],
            )
            .expect("names are valid"),
            handshakes: IntCounterVec::new(
                opts("heddle_tls_handshakes_total", "TLS handshakes with peer proxies; result is ok or the reason"),
                &["direction", "result"],
            )
            .expect("names are valid"),
            handshake_seconds: HistogramVec::new(
                HistogramOpts::new("heddle_tls_handshake_duration_seconds", "TLS handshakes of callers")
                    .buckets(BOUNDS.to_vec()),
                &["direction"],
            )
            .expect("names are valid"),
        }
    }
}

impl Signals {
    /// For the connections of one listener.
    pub fn accepted(&self, listener: &str) -> Accepted {
        let labels = &[listener];
        Accepted { open: self.open.with_label_values(labels), accepted: self.accepted.with_label_values(labels) }
    }

    /// A handshake of a caller is over.
    pub fn accepted_handshake(&self, failure: Option<ErrorKind>, took: Duration) {
        self.handshake(Direction::Inbound, failure);
        let seconds = self.handshake_seconds.with_label_values(&[direction(Direction::Inbound)]);
        seconds.observe(took.as_secs_f64());
    }

    pub(super) fn handshake(&self, to: Direction, failure: Option<ErrorKind>) {
        let result = failure.map_or("ok", |kind| kind.row().reason);
        self.handshakes.with_label_values(&[direction(to), result]).inc();
    }

    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 4] {
        [
            Box::new(self.open.clone()),
            Box::new(self.accepted.clone()),
            Box::new(self.handshakes.clone()),
            Box::new(self.handshake_seconds.clone()),
        ]
    }
}

impl Accepted {
    /// A connection was accepted.
    pub fn count(&self) -> Open {
        self.accepted.inc();
        self.open.inc();
        Open(self.open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
