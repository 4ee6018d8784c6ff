//! Log line, metrics and span of each outcome.
//!
//! Metrics are counted at once, in cells of the worker's own. Log lines and spans are put into bounded
//! queues that another thread empties: when one is full, what does not fit is dropped and counted, and
//! no request waits.

pub mod access_log;
pub mod metrics;
mod queue;
pub mod trace;

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus::Registry;

use self::{
    metrics::{Cells, Metrics},
    queue::Queue,
    trace::Spans,
};
use crate::{outcome::Outcome, trace_context::Sampler};

/// Log lines that may wait to be written.
const LOG_LINES: usize = 8192;

/// What the process observes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    sampler: Sampler,
    /// The proxy's own settings name the share of sampled traces.
    fixed_ratio: bool,
    access_log: AtomicBool,
    lines: Queue<String>,
    spans: Option<Spans>,
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
    telemetry: Telemetry,
    cells: Rc<Cells>,
}

impl Telemetry {
    /// Needs a tokio runtime (the one that spans and log lines are written on), must not be called on a
    /// worker's.
    ///
    /// # Errors
    /// Settings of the export of spans that cannot be used.
    pub fn new(resource: Resource, tracing: &TracingConfig) -> Result<Self, anyhow::Error> {
        let metrics = Metrics::new();
        let spans = Spans::start(&resource, tracing, metrics.spans_dropped.clone())?;
        let sampling = trace::Sampling::of(tracing);
        let sampler = Sampler::new(sampling.ratio.unwrap_or_default(), spans.is_some(), sampling.heeds_caller);
        let lines = access_log::start(LOG_LINES, metrics.lines_dropped.clone());
        let fixed_ratio = sampling.ratio.is_some();
        let access_log = AtomicBool::new(false);
        Ok(Self { shared: Arc::new(Shared { metrics, sampler, fixed_ratio, access_log, lines, spans }) })
    }

    /// Switches the access log.
    pub fn set_access_log(&self, on: bool) {
        self.shared.access_log.store(on, Ordering::Relaxed);
    }

    /// Takes the mesh's sampling ratio, unless the proxy's own settings name one.
    pub fn set_sampling_ratio(&self, ratio: f64) {
        if !self.shared.fixed_ratio {
            self.shared.sampler.set_ratio(ratio);
        }
    }

    /// For [`crate::trace_context::TraceContext::extract`].
    pub fn sampler(&self) -> &Sampler {
        &self.shared.sampler
    }

    /// Where others may register collectors.
    pub fn registry(&self) -> &Registry {
        self.shared.metrics.registry()
    }

    /// One for each worker.
    pub fn recorder(&self) -> Recorder {
        Recorder { telemetry: self.clone(), cells: Rc::new(self.shared.metrics.cells()) }
    }

    /// Answer to `GET /metrics`: content type and text, as `accept` asks.
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        self.shared.metrics.render(accept)
    }

    /// Writes out what is queued; at shutdown, after the workers are gone.
    pub async fn flush(&self) {
        self.shared.lines.flush().await;
        if let Some(spans) = &self.shared.spans {
            spans.flush().await;
        }
    }
}

impl Recorder {
    /// Metrics at once; log line and span are queued, and dropped and counted if the queue is full.
    pub fn record(&self, outcome: Outcome) {
        let shared = &self.telemetry.shared;
        self.cells.count(&outcome);
        if shared.access_log.load(Ordering::Relaxed) {
            shared.lines.push(|| access_log::line(&outcome));
        }
        if let (Some(spans), Outcome::Request(request)) = (&shared.spans, &outcome)
            && request.trace.is_sampled()
        {
            spans.record(request);
        }
    }

    /// The process's.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}

#[cfg(test)]
mod tests;
