//! Every metric of the traffic, declared once.
//!
//! No label has a value that a client controls: services, clusters, routes and rules come from the
//! control plane, peers from verified certificates, methods from a fixed list.

mod last;
mod openmetrics;
mod sharded;
mod signals;

use std::{
    cell::RefCell,
    fmt::{Display, Write as _},
    sync::Arc,
};

use http::{Method, StatusCode};
use prometheus::{Encoder, IntCounter, IntGauge, Opts, Registry, TextEncoder, core::Collector};

pub use self::signals::{Accepted, Open, Signals};
use self::{
    last::{Labels, Last},
    sharded::{Cell, Collected, Counter, Durations, Family, Local},
};
use super::trace::Counts;
use crate::{
    cluster::retry::Refusal,
    outcome::{Attempt, Authorization, ConnectionOutcome, Direction, ErrorKind, Outcome, RequestOutcome},
    snapshot::{ClusterName, Protocol, ServiceName},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All families, and where they are registered.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    registry: Registry,
    families: Arc<Families>,
    /// What no outcome tells.
    pub(super) signals: Signals,
    pub(super) spans: Counts,
    /// Lines of the access log that the queue had no room for.
    pub(super) lines_dropped: IntCounter,
}

#[derive(Debug)]
struct Families {
    server: Arc<Family<5, Durations>>,
    client: Arc<Family<5, Durations>>,
    rpc_server: Arc<Family<3, Durations>>,
    rpc_client: Arc<Family<3, Durations>>,
    errors: Arc<Family<3, Counter>>,
    denials: Arc<Family<3, Counter>>,
    attempts: Arc<Family<2, Counter>>,
    retries: Arc<Family<2, Counter>>,
    retries_refused: Arc<Family<2, Counter>>,
    connects: Arc<Family<1, Durations>>,
    ejections: Arc<Family<1, Counter>>,
    request_bytes: Arc<Family<2, Counter>>,
    response_bytes: Arc<Family<2, Counter>>,
    connections: Arc<Family<4, Counter>>,
    received_bytes: Arc<Family<2, Counter>>,
    sent_bytes: Arc<Family<2, Counter>>,
}

/// One worker's cells.
#[derive(Debug)]
pub(super) struct Cells {
    last: RefCell<Last>,
    names: RefCell<Names>,
    server: Local<5, Durations>,
    client: Local<5, Durations>,
    rpc_server: Local<3, Durations>,
    rpc_client: Local<3, Durations>,
    errors: Local<3, Counter>,
    denials: Local<3, Counter>,
    attempts: Local<2, Counter>,
    retries: Local<2, Counter>,
    retries_refused: Local<2, Counter>,
    connects: Local<1, Durations>,
    ejections: Local<1, Counter>,
    request_bytes: Local<2, Counter>,
    response_bytes: Local<2, Counter>,
    connections: Local<4, Counter>,
    received_bytes: Local<2, Counter>,
    sent_bytes: Local<2, Counter>,
}

/// Names as labels have them; the memory is used again for each request.
#[derive(Debug, Default)]
struct Names {
    service: Written<ServiceName>,
    cluster: Written<ClusterName>,
    route: String,
}

/// A name as text. One request is mostly for what the one before was for: then it is not written anew.
#[derive(Debug)]
struct Written<T> {
    of: Option<T>,
    text: String,
}

impl Metrics {
    /// With nothing counted yet.
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        let families = Families {
            server: family(
                &registry,
                "http_server_request_duration_seconds",
                "Requests that came in, until the response was complete",
                ["service", "peer", "http_request_method", "http_response_status_code", "error_type"],
            ),
            client: family(
                &registry,
                "http_client_request_duration_seconds",
                "Requests of the application, with all tries, until the response was complete",
                ["cluster", "route", "http_request_method", "http_response_status_code", "error_type"],
            ),
            rpc_server: family(
                &registry,
                "rpc_server_call_duration_seconds",
                "gRPC calls that came in, until the response was complete",
                ["service", "peer", "rpc_status_code"],
            ),
            rpc_client: family(
                &registry,
                "rpc_client_call_duration_seconds",
                "gRPC calls of the application, with all tries, until the response was complete",
                ["cluster", "route", "rpc_status_code"],
            ),
            errors: family(
                &registry,
                "heddle_errors_total",
                "Requests and connections that this proxy refused or failed itself, by reason",
                ["direction", "service", "reason"],
            ),
            denials: family(
                &registry,
                "heddle_denials_total",
                "Refusals by authorization, with the rule that decided; none: the mesh's default",
                ["service", "policy", "rule"],
            ),
            attempts: family(
                &registry,
                "heddle_attempts_total",
                "Tries of requests; result is a status class or the reason of a failure",
                ["cluster", "result"],
            ),
            retries: family(
                &registry,
                "heddle_retries_total",
                "Tries after the first; reason is how the one before failed",
                ["cluster", "reason"],
            ),
            retries_refused: family(
                &registry,
                "heddle_retries_refused_total",
                "Failed tries that were not made again, and why",
                ["cluster", "reason"],
            ),
            connects: family(
                &registry,
                "heddle_connect_duration_seconds",
                "Connections made for requests: TCP, and TLS to peer proxies",
                ["cluster"],
            ),
            ejections: family(&registry, "heddle_ejections_total", "Endpoints ejected for failing", ["cluster"]),
            request_bytes: family(
                &registry,
                "heddle_request_bytes_total",
                "Of bodies of requests",
                ["direction", "service"],
            ),
            response_bytes: family(
                &registry,
                "heddle_response_bytes_total",
                "Of bodies of responses",
                ["direction", "service"],
            ),
            connections: family(
                &registry,
                "heddle_connections_total",
                "Opaque connections, tunnels, and connections that ended before a request",
                ["direction", "service", "protocol", "result"],
            ),
            received_bytes: family(
                &registry,
                "heddle_connection_received_bytes_total",
                "Of opaque connections, from their callers",
                ["direction", "service"],
            ),
            sent_bytes: family(
                &registry,
                "heddle_connection_sent_bytes_total",
                "Of opaque connections, to their callers",
                ["direction", "service"],
            ),
        };
        let spans = Counts {
            exported: counter(&registry, "heddle_spans_exported_total", "Spans that the collector took"),
            dropped: counter(&registry, "heddle_spans_dropped_total", "Spans that no collector got"),
        };
        let lines_dropped = counter(&registry, "heddle_access_log_dropped_total", "Lines that were not written");
        let info = Opts::new("heddle_build_info", "Always 1; what is running").const_label("version", VERSION);
        let info = IntGauge::with_opts(info).expect("names are valid");
        info.set(1);
        register(&registry, Box::new(info));
        let signals = Signals::default();
        signals.collectors().into_iter().for_each(|collector| register(&registry, collector));
        Self { registry, families: Arc::new(families), signals, spans, lines_dropped }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn cells(&self) -> Cells {
        let families = &self.families;
        Cells {
            last: RefCell::default(),
            names: RefCell::default(),
            server: families.server.local(),
            client: families.client.local(),
            rpc_server: families.rpc_server.local(),
            rpc_client: families.rpc_client.local(),
            errors: families.errors.local(),
            denials: families.denials.local(),
            attempts: families.attempts.local(),
            retries: families.retries.local(),
            retries_refused: families.retries_refused.local(),
            connects: families.connects.local(),
            ejections: families.ejections.local(),
            request_bytes: families.request_bytes.local(),
            response_bytes: families.response_bytes.local(),
            connections: families.connections.local(),
            received_bytes: families.received_bytes.local(),
            sent_bytes: families.sent_bytes.local(),
        }
    }

    /// Content type and text.
    pub(super) fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        let families = self.registry.gather();
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            return (openmetrics::CONTENT_TYPE, openmetrics::encode(&families));
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        ("text/plain; version=0.0.4; charset=utf-8", String::from_utf8_lossy(&text).into_owned())
    }
}

fn family<const N: usize, C: Cell>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: [&'static str; N],
) -> Arc<Family<N, C>> {
    let family = Family::new(name, help, labels);
    register(registry, Box::new(Collected(family.clone())));
    family
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("names are valid");
    register(registry, Box::new(counter.clone()));
    counter
}

fn register(registry: &Registry, collector: Box<dyn Collector>) {
    registry.register(collector).expect("each name is declared once");
}

impl Cells {
    /// Counts an outcome.
    pub(super) fn count(&self, outcome: &Outcome, signals: &Signals) {
        match outcome {
            Outcome::Request(request) => self.request(request, signals),
            Outcome::Connection(connection) => self.connection(connection, signals),
        }
    }

    fn request(&self, request: &RequestOutcome, signals: &Signals) {
        let mut last = self.last.borrow_mut();
        if last.count(request) {
            return;
        }
        let mut names = self.names.borrow_mut();
        let Names { service, cluster, route } = &mut *names;
        let service = service.write(request.service.as_ref());
        let direction = direction(request.direction);
        let reason = request.error.as_ref().map(|error| error.kind.row().reason);
        let method = method(&request.method);
        let status = status(request.status.as_ref());
        let error_type = match (reason, request.status) {
            (Some(reason), _) => reason,
            (None, Some(code)) if code.is_client_error() || code.is_server_error() => status,
            (None, _) => "",
        };
        let grpc_status = request.grpc.then(|| request.grpc_status.map_or("none", super::grpc_status));
        let (durations, attempts) = match request.direction {
            Direction::Inbound => {
                let peer = request.peer.as_ref().map_or("unauthenticated", |id| id.as_str());
                let labels = [service, peer, method, status, error_type];
                self.server.with(labels, |cell| cell.observe(request.duration));
                if let Some(grpc_status) = grpc_status {
                    self.rpc_server.with([service, peer, grpc_status], |cell| cell.observe(request.duration));
                }
                (labels, None)
            }
            Direction::Outbound => {
                let cluster = cluster.write(request.cluster.as_ref());
                route.clear();
                if let Some(rule) = &request.rule {
                    write!(route, "{}#{}", rule.route, rule.rule).expect("writing to a string");
                }
                let labels = [cluster, route, method, status, error_type];
                self.client.with(labels, |cell| cell.observe(request.duration));
                if let Some(grpc_status) = grpc_status {
                    self.rpc_client.with([cluster, route, grpc_status], |cell| cell.observe(request.duration));
                }
                self.attempts(request, cluster, signals);
                (labels, request.attempts.first().map(|attempt| [cluster, result(attempt)]))
            }
        };
        if let Some(reason) = reason {
            self.errors.with([direction, service, reason], |cell| cell.add(1));
        }
        self.denial(service, request.authorization.as_ref());
        self.request_bytes.with([direction, service], |cell| cell.add(request.request_bytes));
        self.response_bytes.with([direction, service], |cell| cell.add(request.response_bytes));
        last.note(request, &Labels { durations, attempts, bytes: [direction, service] }, self);
    }

    fn attempts(&self, request: &RequestOutcome, cluster: &str, signals: &Signals) {
        let mut before: Option<&Attempt> = None;
        for attempt in &request.attempts {
            self.attempts.with([cluster, result(attempt)], |cell| cell.add(1));
            if let Some(before) = before {
                self.retries.with([cluster, retried(before)], |cell| cell.add(1));
            }
            if attempt.ejected {
                self.ejections.with([cluster], |cell| cell.add(1));
            }
            if let Some(took) = attempt.connect {
                self.connects.with([cluster], |cell| cell.observe(took));
            }
            if attempt.endpoint.as_ref().is_some_and(|endpoint| endpoint.meshed) {
                let failure = attempt.error.as_ref().map(|error| error.kind).filter(|kind| is_of_handshake(*kind));
                if failure.is_some() || attempt.connect.is_some() {
                    signals.handshake(Direction::Outbound, failure);
                }
            }
            before = Some(attempt);
        }
        if let Some(refusal) = request.retry_refused {
            self.retries_refused.with([cluster, refused(refusal)], |cell| cell.add(1));
        }
    }

    fn connection(&self, connection: &ConnectionOutcome, signals: &Signals) {
        let mut names = self.names.borrow_mut();
        let service = names.service.write(connection.service.as_ref());
        let direction = direction(connection.direction);
        let result = connection.error.as_ref().map_or("ok", |error| error.kind.row().reason);
        self.connections.with([direction, service, protocol(connection.protocol), result], |cell| cell.add(1));
        self.received_bytes.with([direction, service], |cell| cell.add(connection.received_bytes));
        self.sent_bytes.with([direction, service], |cell| cell.add(connection.sent_bytes));
        if connection.error.is_some() {
            self.errors.with([direction, service, result], |cell| cell.add(1));
        }
        self.denial(service, connection.authorization.as_ref());
        // Those that came in are counted where they are made, as most of them carry requests.
        if connection.direction == Direction::Outbound
            && connection.endpoint.as_ref().is_some_and(|endpoint| endpoint.meshed)
        {
            let failure = connection.error.as_ref().map(|error| error.kind).filter(|kind| is_of_handshake(*kind));
            signals.handshake(Direction::Outbound, failure);
        }
    }

    fn denial(&self, service: &str, verdict: Option<&Authorization>) {
        if let Some(verdict) = verdict.filter(|verdict| !verdict.allowed) {
            let policy = verdict.policy.as_deref().unwrap_or("none");
            let rule = verdict.rule.as_deref().unwrap_or("none");
            self.denials.with([service, policy, rule], |cell| cell.add(1));
        }
    }
}

impl<T: Clone + Display + PartialEq> Written<T> {
    fn write(&mut self, name: Option<&T>) -> &str {
        if self.text.is_empty() || self.of.as_ref() != name {
            self.text.clear();
            match name {
                Some(name) => write!(self.text, "{name}").expect("writing to a string"),
                None => self.text.push_str("unknown"),
            }
            self.of = name.cloned();
        }
        &self.text
    }
}

impl<T> Default for Written<T> {
    fn default() -> Self {
        Self { of: None, text: String::new() }
    }
}

fn is_of_handshake(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TlsFailed | ErrorKind::PeerIdentity | ErrorKind::NoCertificate)
}

/// A status class or the reason of a failure.
fn result(attempt: &Attempt) -> &'static str {
    match (&attempt.error, attempt.status) {
        (Some(error), _) => error.kind.row().reason,
        (None, Some(status)) => class(status),
        (None, None) => "none",
    }
}

/// How a try failed that was made again.
fn retried(attempt: &Attempt) -> &str {
    match (&attempt.error, attempt.grpc_status, &attempt.status) {
        (Some(error), ..) => error.kind.row().reason,
        (None, Some(status @ 1..), _) => super::grpc_status(status),
        (None, _, Some(status)) => status.as_str(),
        (None, _, None) => "none",
    }
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotRetryable => "not-retryable",
        Refusal::Method => "method",
        Refusal::Body => "body",
        Refusal::Attempts => "attempts",
        Refusal::Pushback => "pushback",
        Refusal::Deadline => "deadline",
        Refusal::Budget => "budget",
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

/// As the semantic conventions say: what is not well known is `_OTHER`.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn status(status: Option<&StatusCode>) -> &str {
    status.map_or("none", StatusCode::as_str)
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500..600 => "5xx",
        _ => "other",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "undetected",
        Protocol::Http => "http",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    }
}
