//! Spans: SERVER for each request that comes in, CLIENT for each try of one that goes out, made of the
//! outcome and exported over OTLP in batches (semantic conventions of OpenTelemetry 1.44).

use std::time::Duration;

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId as OtelSpanId, TraceFlags, TraceId as OtelTraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{Protocol as OtlpProtocol, SpanExporter as Exporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource as OtelResource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use prometheus::IntCounter;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Protocol, Resource, TracingConfig,
    queue::{Item, Queue},
};
use crate::{
    outcome::{Attempt, Direction, Error, RequestOutcome},
    snapshot::PathMatch,
    trace_context::{SpanId, TraceContext},
};

/// Spans that may wait for export.
const QUEUE: usize = 8192;
/// Of one export.
const BATCH: usize = 512;
/// A batch that is not full waits so long for more.
const LINGER: Duration = Duration::from_secs(1);
/// Of one export, with its retries.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between complaints about a collector.
const COMPLAINT: Duration = Duration::from_secs(60);

/// The way of spans to the collector.
#[derive(Debug)]
pub(super) struct Spans {
    queue: Queue<SpanData>,
    scope: InstrumentationScope,
}

/// Which traces are sampled, as far as the proxy's own settings say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// Share of new traces.
    pub(super) ratio: Option<f64>,
    /// Whether what a caller decided stands.
    pub(super) heeds_caller: bool,
}

impl Sampling {
    /// From the settings, or `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub(super) fn of(config: &TracingConfig) -> Self {
        let parent_based = |ratio| Self { ratio, heeds_caller: true };
        if config.sampling_ratio.is_some() {
            return parent_based(config.sampling_ratio);
        }
        let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return parent_based(None) };
        let argument = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|ratio| ratio.parse::<f64>().ok());
        let ratio = match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => argument.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or(1.0),
            _ => {
                tracing::warn!(%sampler, "OTEL_TRACES_SAMPLER names a sampler that is not known; the mesh decides");
                return parent_based(None);
            }
        };
        Self { ratio: Some(ratio), heeds_caller: sampler.starts_with("parentbased_") }
    }
}

impl Spans {
    /// Starts the export; `None` where no collector is named.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub(super) fn start(
        resource: &Resource,
        config: &TracingConfig,
        dropped: IntCounter,
    ) -> Result<Option<Self>, anyhow::Error> {
        let named = config.endpoint.is_some()
            || variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some()
            || variable("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
        if !named {
            return Ok(None);
        }
        let mut exporter = exporter(config)?;
        exporter.set_resource(&attributes(resource));
        let (queue, items) = Queue::new(QUEUE, dropped.clone());
        tokio::spawn(run(exporter, items, dropped));
        let scope = InstrumentationScope::builder("heddle-proxy").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Some(Self { queue, scope }))
    }

    /// Queues the spans of a request.
    pub(super) fn record(&self, request: &RequestOutcome) {
        match request.direction {
            Direction::Inbound => self.queue.push(|| self.server(request)),
            Direction::Outbound => {
                for (number, attempt) in request.attempts.iter().enumerate() {
                    self.queue.push(|| self.client(request, attempt, number));
                }
            }
        }
    }

    pub(super) async fn flush(&self) {
        self.queue.flush().await;
    }

    fn server(&self, request: &RequestOutcome) -> SpanData {
        let mut attributes = common(request);
        if let Some(query) = request.uri.query() {
            attributes.push(KeyValue::new("url.query", query.to_owned()));
        }
        attributes.push(KeyValue::new("url.scheme", "http"));
        attributes.push(KeyValue::new("client.address", request.peer_address.ip().to_string()));
        if let Some(agent) = request.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
            attributes.push(KeyValue::new("user_agent.original", agent.to_owned()));
        }
        if let Some(status) = request.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        if let Some(verdict) = &request.authorization {
            attributes.push(KeyValue::new("heddle.authorization.allowed", verdict.allowed));
            if let (Some(policy), Some(rule)) = (&verdict.policy, &verdict.rule) {
                attributes.push(KeyValue::new("heddle.authorization.policy", policy.to_string()));
                attributes.push(KeyValue::new("heddle.authorization.rule", rule.to_string()));
            }
        }
        let failed = request.status.is_none_or(|status| status.is_server_error());
        let status = outcome(failed, request.error.as_ref(), request.status, &mut attributes);
        SpanData {
            span_context: context(&request.trace, request.trace.span_id()),
            parent_span_id: request.trace.parent().map_or(OtelSpanId::INVALID, otel),
            parent_span_is_remote: true,
            span_kind: SpanKind::Server,
            start_time: request.started,
            end_time: request.started + request.duration,
            ..self.span(request, attributes, status)
        }
    }

    fn client(&self, request: &RequestOutcome, attempt: &Attempt, number: usize) -> SpanData {
        let mut attributes = common(request);
        let authority = request.authority.as_ref().and_then(|authority| authority.to_str().ok()).unwrap_or_default();
        attributes.push(KeyValue::new("url.full", format!("http://{authority}{}", request.uri.path())));
        attributes.push(KeyValue::new("server.port", i64::from(request.port)));
        if number > 0 {
            attributes.push(KeyValue::new("http.request.resend_count", i64::try_from(number).unwrap_or(i64::MAX)));
        }
        if let Some(endpoint) = &attempt.endpoint {
            attributes.push(KeyValue::new("network.peer.address", endpoint.address.ip().to_string()));
            attributes.push(KeyValue::new("network.peer.port", i64::from(endpoint.address.port())));
            attributes.push(KeyValue::new("heddle.endpoint.workload", endpoint.workload.clone()));
        }
        if let Some(cluster) = &request.cluster {
            attributes.push(KeyValue::new("heddle.cluster", cluster.to_string()));
        }
        if let Some(peer) = &attempt.peer {
            attributes.push(KeyValue::new("heddle.peer.identity", peer.to_string()));
        }
        if let Some(status) = attempt.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        let failed = attempt.status.is_none_or(|status| status.is_client_error() || status.is_server_error());
        let status = outcome(failed, attempt.error.as_ref(), attempt.status, &mut attributes);
        SpanData {
            span_context: context(&request.trace, attempt.span_id),
            // Of a trace that begins here the caller has no span.
            parent_span_id: if request.trace.is_root() { OtelSpanId::INVALID } else { otel(request.trace.span_id()) },
            parent_span_is_remote: true,
            span_kind: SpanKind::Client,
            start_time: attempt.started,
            end_time: attempt.started + attempt.duration,
            ..self.span(request, attributes, status)
        }
    }

    /// What both kinds have; the rest is for the caller to fill in.
    fn span(&self, request: &RequestOutcome, attributes: Vec<KeyValue>, status: Status) -> SpanData {
        SpanData {
            span_context: SpanContext::empty_context(),
            parent_span_id: OtelSpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name(request).into(),
            start_time: request.started,
            end_time: request.started,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// `{method} {route}`, or of a gRPC call its method; never the path as it came.
fn name(request: &RequestOutcome) -> String {
    if request.grpc {
        return request.uri.path().trim_start_matches('/').to_owned();
    }
    let method = known_method(request);
    match route(request) {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

fn known_method(request: &RequestOutcome) -> &str {
    match request.method.as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE" | "PATCH" | "HEAD" | "OPTIONS" | "CONNECT" | "TRACE") => known,
        _ => "_OTHER",
    }
}

/// What the rule that matched says of paths.
fn route(request: &RequestOutcome) -> Option<String> {
    match request.rule.as_ref()?.matches.path.as_ref()? {
        PathMatch::Exact(path) => Some(path.clone()),
        PathMatch::Prefix(prefix) => Some(format!("{prefix}/*")),
        PathMatch::Regex(regex) => Some(regex.as_str().to_owned()),
    }
}

fn common(request: &RequestOutcome) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(16);
    let method = known_method(request);
    attributes.push(KeyValue::new("http.request.method", method.to_owned()));
    if method == "_OTHER" {
        attributes.push(KeyValue::new("http.request.method_original", request.method.to_string()));
    }
    attributes.push(KeyValue::new("url.path", request.uri.path().to_owned()));
    let version = match request.version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.push(KeyValue::new("network.protocol.version", version));
    if let Some(authority) = request.authority.as_ref().and_then(|authority| authority.to_str().ok()) {
        attributes.push(KeyValue::new("server.address", authority.to_owned()));
    }
    if let Some(service) = &request.service {
        attributes.push(KeyValue::new("heddle.service", service.to_string()));
    }
    if let Some(route) = route(request) {
        attributes.push(KeyValue::new("http.route", route));
    }
    if let Some(rule) = &request.rule {
        attributes.push(KeyValue::new("heddle.route", format!("{}#{}", rule.route, rule.rule)));
    }
    if request.direction == Direction::Inbound
        && let Some(peer) = &request.peer
    {
        attributes.push(KeyValue::new("heddle.peer.identity", peer.to_string()));
    }
    if request.grpc {
        attributes.push(KeyValue::new("rpc.system.name", "grpc"));
        attributes.push(KeyValue::new("rpc.method", request.uri.path().trim_start_matches('/').to_owned()));
        if let Some(status) = request.grpc_status {
            attributes.push(KeyValue::new("rpc.status_code", i64::from(status)));
        }
    }
    attributes
}

/// `error.type` and the status of the span.
fn outcome(
    failed: bool,
    error: Option<&Error>,
    status: Option<http::StatusCode>,
    attributes: &mut Vec<KeyValue>,
) -> Status {
    match (error, status) {
        (Some(error), _) => {
            attributes.push(KeyValue::new("error.type", error.kind.row().reason));
            Status::error(error.detail.to_string())
        }
        (None, Some(status)) if failed => {
            attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
            Status::error("")
        }
        (None, _) => Status::Unset,
    }
}

fn context(trace: &TraceContext, span: SpanId) -> SpanContext {
    let trace_id = OtelTraceId::from_bytes(trace.trace_id().0);
    SpanContext::new(trace_id, otel(span), TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn otel(span: SpanId) -> OtelSpanId {
    OtelSpanId::from_bytes(span.0)
}

/// With what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, which wins.
fn attributes(resource: &Resource) -> OtelResource {
    let mut builder = OtelResource::builder_empty().with_attributes([
        KeyValue::new("service.name", variable("OTEL_SERVICE_NAME").unwrap_or_else(|| resource.service.clone())),
        KeyValue::new("service.namespace", resource.namespace.clone()),
        KeyValue::new("service.instance.id", resource.instance.clone()),
    ]);
    for pair in variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default().split(',') {
        if let Some((key, value)) = pair.split_once('=') {
            builder = builder.with_attribute(KeyValue::new(key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    builder.build()
}

/// The exporter of `opentelemetry-otlp`, which also reads `OTEL_EXPORTER_OTLP_*`, retries what may be
/// retried and honours `Retry-After`.
fn exporter(config: &TracingConfig) -> Result<Exporter, anyhow::Error> {
    let protocol = config.protocol.unwrap_or_else(|| {
        let named = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
        if named.is_some_and(|protocol| protocol.starts_with("http")) { Protocol::Http } else { Protocol::Grpc }
    });
    Ok(match protocol {
        Protocol::Grpc => {
            let mut builder = Exporter::builder().with_tonic().with_timeout(EXPORT_TIMEOUT);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            builder.build()?
        }
        Protocol::Http => {
            let mut builder =
                Exporter::builder().with_http().with_protocol(OtlpProtocol::HttpBinary).with_timeout(EXPORT_TIMEOUT);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(traces_url(endpoint));
            }
            builder.build()?
        }
    })
}

/// A collector's base URL is completed as one from the environment is.
fn traces_url(endpoint: &str) -> String {
    let path = endpoint.parse::<http::Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
    if path.is_empty() || path == "/" {
        format!("{}/v1/traces", endpoint.trim_end_matches('/'))
    } else {
        endpoint.to_owned()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Exports batches until the last writer is gone.
async fn run(exporter: Exporter, mut items: mpsc::Receiver<Item<SpanData>>, dropped: IntCounter) {
    let mut batch = Vec::new();
    let mut complained: Option<Instant> = None;
    let mut due: Option<Instant> = None;
    loop {
        let item = match due {
            None => Some(items.recv().await),
            Some(due) => tokio::time::timeout_at(due, items.recv()).await.ok(),
        };
        let flushed = match item {
            Some(None) => break,
            Some(Some(Item::Value(span))) => {
                batch.push(span);
                due.get_or_insert_with(|| Instant::now() + LINGER);
                if batch.len() < BATCH {
                    continue;
                }
                None
            }
            Some(Some(Item::Flush(done))) => Some(done),
            None => None,
        };
        export(&exporter, std::mem::take(&mut batch), &dropped, &mut complained).await;
        due = None;
        if let Some(done) = flushed {
            // An error means that nobody waits any more.
            let _ = done.send(());
        }
    }
    export(&exporter, batch, &dropped, &mut complained).await;
}

async fn export(exporter: &Exporter, batch: Vec<SpanData>, dropped: &IntCounter, complained: &mut Option<Instant>) {
    if batch.is_empty() {
        return;
    }
    let count = batch.len() as u64;
    let result = tokio::time::timeout(EXPORT_TIMEOUT, exporter.export(batch)).await;
    let error = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", EXPORT_TIMEOUT.as_secs()),
    };
    dropped.inc_by(count);
    if complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
        *complained = Some(Instant::now());
        tracing::warn!(spans = count, %error, "the collector did not take spans; they are dropped");
    }
}
