//! Log line, metrics and span of each outcome.
//!
//! Metrics are counted at once, in cells of the worker's own. An outcome of which a line or a span is to be
//! made goes into a bounded queue; another thread makes and writes them. When a queue is full, what does not
//! fit is dropped and counted, and no request waits.

mod access_log;
mod metrics;
mod queue;
mod trace;

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::Registry;

#[cfg(test)]
pub(crate) use self::access_log::line as log_line;
pub use self::metrics::{Accepted, Open, Signals};
use self::{
    metrics::{Cells, Metrics},
    queue::{Hub, Queue, Shard},
    trace::Spans,
};
use crate::{outcome::Outcome, trace_context::Sampler};

/// Outcomes of one worker that may wait for their lines and spans to be made.
const OUTCOMES: usize = 4096;
/// Log lines that may wait to be written.
const LOG_LINES: usize = 8192;
/// Longest wait for what is queued to be written at shutdown.
const FLUSH: Duration = Duration::from_secs(5);

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
    outcomes: Arc<Hub<Noted>>,
    lines: Queue<String>,
    spans: Option<Spans>,
}

/// An outcome and what is to be made of it.
#[derive(Debug)]
struct Noted {
    outcome: Outcome,
    line: bool,
    spans: bool,
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
    outcomes: Rc<Shard<Noted>>,
}

impl Telemetry {
    /// Needs a tokio runtime (the one that spans and log lines are written on), must not be called on a
    /// worker's.
    ///
    /// # Errors
    /// Settings of the export of spans that cannot be used.
    pub fn new(resource: Resource, tracing: &TracingConfig) -> Result<Self, anyhow::Error> {
        let metrics = Metrics::new();
        let spans = Spans::start(&resource, tracing, metrics.spans.clone())?;
        let sampling = trace::sampling(tracing);
        let shared = Arc::new(Shared {
            sampler: Sampler::new(sampling.ratio.unwrap_or_default(), spans.is_some(), sampling.heeds_caller),
            fixed_ratio: sampling.ratio.is_some(),
            access_log: AtomicBool::new(false),
            outcomes: Hub::new(OUTCOMES),
            lines: access_log::start(LOG_LINES, metrics.lines_dropped.clone()),
            spans,
            metrics,
        });
        tokio::spawn({
            let shared = shared.clone();
            async move { shared.outcomes.read(|noted| shared.write(&noted)).await }
        });
        Ok(Self { shared })
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

    /// What is counted where no outcome tells.
    pub fn signals(&self) -> Signals {
        self.shared.metrics.signals.clone()
    }

    /// Where others may register collectors.
    pub fn registry(&self) -> &Registry {
        self.shared.metrics.registry()
    }

    /// One for each worker.
    pub fn recorder(&self) -> Recorder {
        Recorder {
            telemetry: self.clone(),
            cells: Rc::new(self.shared.metrics.cells()),
            outcomes: Rc::new(self.shared.outcomes.shard()),
        }
    }

    /// Answer to `GET /metrics`: content type and text, as `accept` asks.
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        self.shared.metrics.render(accept)
    }

    /// Writes out what is queued; at shutdown, after the workers are gone. What a collector or a reader of the
    /// log does not take in time is lost.
    pub async fn flush(&self) {
        let shared = &self.shared;
        let flushing = async {
            shared.outcomes.flush().await;
            let spans = async {
                if let Some(spans) = &shared.spans {
                    spans.flush().await;
                }
            };
            tokio::join!(shared.lines.flush(), spans);
        };
        if tokio::time::timeout(FLUSH, flushing).await.is_err() {
            tracing::warn!("log lines or spans that were still queued are lost");
        }
    }
}

impl Shared {
    fn write(&self, Noted { outcome, line, spans }: &Noted) {
        if *line {
            self.lines.push(|| access_log::line(outcome));
        }
        if let (true, Some(exported), Outcome::Request(request)) = (spans, &self.spans, outcome) {
            exported.record(request);
        }
    }

    fn dropped(&self, Noted { outcome, line, spans }: &Noted) {
        if *line {
            self.metrics.lines_dropped.inc();
        }
        if let (true, Outcome::Request(request)) = (spans, outcome) {
            self.metrics.spans.dropped.inc_by(trace::count(request));
        }
    }
}

impl Recorder {
    /// Metrics at once; log line and span are queued, and dropped and counted if the queue is full.
    pub fn record(&self, outcome: Outcome) {
        let shared = &self.telemetry.shared;
        self.cells.count(&outcome, &shared.metrics.signals);
        let line = shared.access_log.load(Ordering::Relaxed);
        let spans = matches!(&outcome, Outcome::Request(request) if request.trace.is_sampled());
        if (line || spans)
            && let Err(noted) = self.outcomes.push(Noted { outcome, line, spans })
        {
            shared.dropped(&noted);
        }
    }

    /// The process's.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}

/// As gRPC calls them.
fn grpc_status(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    // What is no status is unknown (gRPC over HTTP/2).
    usize::try_from(status).ok().and_then(|status| NAMES.get(status)).unwrap_or(&"UNKNOWN")
}

#[cfg(test)]
mod tests;
