//! Every metric, declared once.

use prometheus::Registry;

/// Handles of the metrics that are not made from outcomes.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}
