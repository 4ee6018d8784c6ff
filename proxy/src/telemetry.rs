//! Log line, metrics and span of each outcome.

pub mod access_log;
pub mod metrics;
pub mod trace;

use std::rc::Rc;

use prometheus::Registry;

use self::metrics::Metrics;
use crate::{outcome::Outcome, trace_context::Sampler};

/// What the process observes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    metrics: Metrics,
    sampler: Sampler,
}

/// Who this proxy is, for resource attributes and log lines.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// `service.name`.
    pub service: String,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.instance.id`.
    pub instance: String,
}

/// Where spans go.
#[derive(Clone, Debug, Default)]
pub struct TracingConfig {
    /// `http://host:4317` or so; falls back to `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`. None at all: spans are not made.
    pub endpoint: Option<String>,
    /// Falls back to `OTEL_EXPORTER_OTLP_(TRACES_)PROTOCOL`, then gRPC.
    pub protocol: Option<Protocol>,
    /// Overrides the mesh's; falls back to `OTEL_TRACES_SAMPLER(_ARG)`.
    pub sampling_ratio: Option<f64>,
}

/// How spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

/// Records outcomes on one worker. Cheap to clone; never leaves its thread.
#[derive(Clone, Debug)]
pub struct Recorder {
    telemetry: Rc<Telemetry>,
}

impl Telemetry {
    /// Needs a tokio runtime (the one that spans and log lines are written on), must not be called on a
    /// worker's.
    pub fn new(resource: Resource, tracing: &TracingConfig) -> Result<Self, anyhow::Error> {
        let _ = (resource, tracing);
        todo!()
    }

    /// Switches the access log.
    pub fn set_access_log(&self, on: bool) {
        let _ = on;
        todo!()
    }

    /// Takes the mesh's sampling ratio, unless the proxy's own settings name one.
    pub fn set_sampling_ratio(&self, ratio: f64) {
        let _ = ratio;
        todo!()
    }

    /// For [`crate::trace_context::TraceContext::extract`].
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// For gauges and counters that are not made from outcomes.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where others may register collectors.
    pub fn registry(&self) -> &Registry {
        self.metrics.registry()
    }

    /// One for each worker.
    pub fn recorder(&self) -> Recorder {
        Recorder { telemetry: Rc::new(self.clone()) }
    }

    /// Answer to `GET /metrics`: content type and text, as `accept` asks.
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        let _ = accept;
        todo!()
    }

    /// Writes out what is queued; at shutdown, after the workers are gone.
    pub async fn flush(&self) {
        todo!()
    }
}

impl Recorder {
    /// Metrics at once; log line and span are queued, and dropped and counted if the queue is full.
    pub fn record(&self, outcome: Outcome) {
        let _ = outcome;
        todo!()
    }

    /// The process's.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}
