//! Spans: SERVER for each request that comes in, CLIENT for each try of one that goes out, made of the
//! outcome and exported over OTLP in batches (semantic conventions of OpenTelemetry 1.44).

mod export;
#[cfg(test)]
mod tests;

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId as OtelSpanId, TraceFlags, TraceId as OtelTraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

pub(super) use self::export::{Counts, Sampling};
use super::{Resource, TracingConfig, queue::Queue};
use crate::{
    outcome::{Attempt, ClosedBy, Direction, Error, RequestOutcome},
    snapshot::PathMatch,
    trace_context::{SpanId, TraceContext},
};

/// Spans that may wait for export.
const QUEUE: usize = 4096;
/// Parameters of queries whose values are secrets by their nature, in lower case. The first four are those of the
/// semantic conventions.
const SECRETS: [&str; 12] = [
    "awsaccesskeyid",
    "signature",
    "sig",
    "x-goog-signature",
    "x-amz-signature",
    "x-amz-security-token",
    "token",
    "access_token",
    "id_token",
    "api_key",
    "password",
    "secret",
];

/// The way of spans to the collector.
#[derive(Debug)]
pub(super) struct Spans {
    queue: Queue<SpanData>,
    scope: InstrumentationScope,
}

/// From the settings, or the environment.
pub(super) fn sampling(config: &TracingConfig) -> Sampling {
    Sampling::of(config, &variable)
}

impl Spans {
    /// Starts the export; `None` where no collector is named.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub(super) fn start(
        resource: &Resource,
        config: &TracingConfig,
        counts: Counts,
    ) -> Result<Option<Self>, anyhow::Error> {
        if !export::is_wanted(config, &variable) {
            return Ok(None);
        }
        let mut exporter = export::exporter(config, &variable)?;
        exporter.set_resource(&export::attributes(resource, &variable));
        let (queue, items) = Queue::new(QUEUE, counts.dropped.clone());
        let times = (export::linger(&variable), export::timeout(&variable));
        tokio::spawn(export::run(exporter, items, times, counts));
        Ok(Some(Self { queue, scope: scope() }))
    }

    /// Queues the spans of a request.
    pub(super) fn record(&self, request: &RequestOutcome) {
        for span in of_request(request, &self.scope) {
            self.queue.push(|| span);
        }
    }

    pub(super) async fn flush(&self) {
        self.queue.flush().await;
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("heddle-proxy").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// How many spans a request makes.
pub(super) fn count(request: &RequestOutcome) -> u64 {
    match request.direction {
        Direction::Inbound => 1,
        Direction::Outbound => request.attempts.len().max(1) as u64,
    }
}

fn of_request(request: &RequestOutcome, scope: &InstrumentationScope) -> Vec<SpanData> {
    match request.direction {
        Direction::Inbound => vec![server(request, scope)],
        // Refused before any try: that is to be seen too.
        Direction::Outbound if request.attempts.is_empty() => {
            let mut nothing = Attempt::new(None, request.started, SpanId::random(&mut rand::rng()));
            nothing.duration = request.duration;
            nothing.status = request.status;
            nothing.error = request.error.clone();
            vec![client(request, &nothing, 0, scope)]
        }
        Direction::Outbound => {
            let tries = request.attempts.iter().enumerate();
            tries.map(|(number, attempt)| client(request, attempt, number, scope)).collect()
        }
    }
}

fn server(request: &RequestOutcome, scope: &InstrumentationScope) -> SpanData {
    let mut attributes = common(request);
    if let Some(query) = request.uri.query() {
        attributes.push(KeyValue::new("url.query", redact(query)));
    }
    attributes.push(KeyValue::new("url.scheme", "http"));
    attributes.push(KeyValue::new("client.address", request.peer_address.ip().to_string()));
    attributes.push(KeyValue::new("network.peer.address", request.peer_address.ip().to_string()));
    attributes.push(KeyValue::new("network.peer.port", i64::from(request.peer_address.port())));
    if let Some(agent) = request.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        attributes.push(KeyValue::new("user_agent.original", agent.to_owned()));
    }
    if let Some(peer) = &request.peer {
        attributes.push(KeyValue::new("heddle.peer.identity", peer.to_string()));
    }
    if let Some(verdict) = &request.authorization {
        attributes.push(KeyValue::new("heddle.authorization.allowed", verdict.allowed));
        if let (Some(policy), Some(rule)) = (&verdict.policy, &verdict.rule) {
            attributes.push(KeyValue::new("heddle.authorization.policy", policy.to_string()));
            attributes.push(KeyValue::new("heddle.authorization.rule", rule.to_string()));
        }
    }
    let result = Ending { status: request.status, grpc_status: request.grpc_status, error: request.error.as_ref() };
    let status = result.describe(SpanKind::Server, &mut attributes);
    SpanData {
        parent_span_id: request.trace.parent().map_or(OtelSpanId::INVALID, otel),
        span_kind: SpanKind::Server,
        end_time: request.started + request.duration,
        ..span(request, request.trace.span_id(), attributes, status, scope)
    }
}

fn client(request: &RequestOutcome, attempt: &Attempt, number: usize, scope: &InstrumentationScope) -> SpanData {
    let mut attributes = common(request);
    attributes.push(KeyValue::new("url.full", full_url(request)));
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
    if let Some(closed_by) = attempt.closed_by {
        let side = match closed_by {
            ClosedBy::Downstream => "downstream",
            ClosedBy::Upstream => "upstream",
            ClosedBy::Proxy => "proxy",
        };
        attributes.push(KeyValue::new("heddle.closed_by", side));
    }
    if attempt.ejected {
        attributes.push(KeyValue::new("heddle.endpoint.ejected", true));
    }
    let result = Ending { status: attempt.status, grpc_status: attempt.grpc_status, error: attempt.error.as_ref() };
    let status = result.describe(SpanKind::Client, &mut attributes);
    SpanData {
        // Of a trace that begins here the caller has no span.
        parent_span_id: if request.trace.is_root() { OtelSpanId::INVALID } else { otel(request.trace.span_id()) },
        span_kind: SpanKind::Client,
        start_time: attempt.started,
        end_time: attempt.started + attempt.duration,
        ..span(request, attempt.span_id, attributes, status, scope)
    }
}

/// What both kinds have.
fn span(
    request: &RequestOutcome,
    id: SpanId,
    attributes: Vec<KeyValue>,
    status: Status,
    scope: &InstrumentationScope,
) -> SpanData {
    SpanData {
        span_context: context(&request.trace, id),
        parent_span_id: OtelSpanId::INVALID,
        parent_span_is_remote: true,
        span_kind: SpanKind::Internal,
        name: name(request).into(),
        start_time: request.started,
        end_time: request.started,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

/// `{method} {route}`, or of a gRPC call its method; never the path as it came.
fn name(request: &RequestOutcome) -> String {
    if request.grpc {
        return grpc_method(request).to_owned();
    }
    // As the conventions say of methods that are not well known.
    let method = known_method(request).unwrap_or("HTTP");
    match route(request) {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

fn grpc_method(request: &RequestOutcome) -> &str {
    request.uri.path().trim_start_matches('/')
}

fn known_method(request: &RequestOutcome) -> Option<&str> {
    match request.method.as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE" | "PATCH" | "HEAD" | "OPTIONS" | "CONNECT" | "TRACE") => Some(known),
        _ => None,
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
    let mut attributes = Vec::with_capacity(20);
    let method = known_method(request);
    attributes.push(KeyValue::new("http.request.method", method.unwrap_or("_OTHER").to_owned()));
    if method.is_none() {
        attributes.push(KeyValue::new("http.request.method_original", request.method.to_string()));
    }
    attributes.push(KeyValue::new("url.path", request.uri.path().to_owned()));
    let version = match request.version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.push(KeyValue::new("network.protocol.version", version));
    let (host, port) = host_and_port(request);
    if !host.is_empty() {
        attributes.push(KeyValue::new("server.address", host.to_owned()));
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
    if let Some(id) = request.request_id.as_ref().and_then(|id| id.to_str().ok()) {
        attributes.push(KeyValue::new("heddle.request_id", id.to_owned()));
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
    if request.grpc {
        attributes.push(KeyValue::new("rpc.system.name", "grpc"));
        attributes.push(KeyValue::new("rpc.method", grpc_method(request).to_owned()));
    }
    attributes
}

/// As the caller named them, without credentials.
fn host_and_port(request: &RequestOutcome) -> (&str, u16) {
    let authority = request.authority.as_ref().and_then(|authority| authority.to_str().ok()).unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let default = if request.port == 0 { 80 } else { request.port };
    match authority.rsplit_once(':') {
        // Not the middle of an address of version 6.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(default)),
        _ => (authority, default),
    }
}

fn full_url(request: &RequestOutcome) -> String {
    let (host, port) = host_and_port(request);
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let query = request.uri.query().map(|query| format!("?{}", redact(query))).unwrap_or_default();
    format!("http://{host}{port}{}{query}", request.uri.path())
}

/// Hides what is secret by its nature.
fn redact(query: &str) -> String {
    let parts = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if SECRETS.contains(&&*name.to_ascii_lowercase()) => format!("{name}=REDACTED"),
        _ => pair.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

/// How a request or try ended.
struct Ending<'a> {
    status: Option<http::StatusCode>,
    grpc_status: Option<u32>,
    error: Option<&'a Error>,
}

impl Ending<'_> {
    /// Statuses, `error.type`, and whether the span counts as failed.
    fn describe(&self, kind: SpanKind, attributes: &mut Vec<KeyValue>) -> Status {
        let is_client = kind == SpanKind::Client;
        if let Some(status) = self.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        if let Some(status) = self.grpc_status {
            attributes.push(KeyValue::new("rpc.status_code", super::grpc_status(status)));
        }
        if let Some(error) = self.error {
            attributes.push(KeyValue::new("error.type", error.kind.row().reason));
            // What the caller did wrong, and what policy refuses, is no failure of this server.
            let is_refusal = error.kind.row().status.is_client_error();
            return if is_refusal && !is_client { Status::Unset } else { Status::error(error.detail.to_string()) };
        }
        if let Some(status @ 1..) = self.grpc_status {
            // Of the server's own making: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
            if is_client || matches!(status, 2 | 4 | 12..=15) {
                attributes.push(KeyValue::new("error.type", super::grpc_status(status)));
                return Status::error("");
            }
        }
        match self.status {
            Some(status) if status.is_server_error() || is_client && status.is_client_error() => {
                attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
                Status::error("")
            }
            Some(_) => Status::Unset,
            None => Status::error("no response"),
        }
    }
}

fn context(trace: &TraceContext, span: SpanId) -> SpanContext {
    let trace_id = OtelTraceId::from_bytes(trace.trace_id().0);
    SpanContext::new(trace_id, otel(span), TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn otel(span: SpanId) -> OtelSpanId {
    OtelSpanId::from_bytes(span.0)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
