//! Every metric of the traffic, declared once.
//!
//! No label has a value that a client controls: services, clusters, routes and rules come from the
//! control plane, peers from verified certificates, methods from a fixed list.

mod openmetrics;
mod sharded;

use std::sync::Arc;

use http::{Method, StatusCode};
use prometheus::{Encoder, IntCounter, Registry, TextEncoder, core::Collector};

use self::sharded::{Cell, Collected, Counter, Durations, Family, Local};
use crate::{
    outcome::{ConnectionOutcome, Direction, Outcome, RequestOutcome},
    snapshot::{ClusterName, Protocol, ServiceName},
};

/// All families, and where they are registered.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    families: Arc<Families>,
    /// Spans that the queue had no room for, or that no collector took.
    pub(super) spans_dropped: IntCounter,
    /// Lines of the access log that the queue had no room for.
    pub(super) lines_dropped: IntCounter,
}

#[derive(Debug)]
struct Families {
    server: Arc<Family<4, Durations>>,
    client: Arc<Family<4, Durations>>,
    errors: Arc<Family<3, Counter>>,
    denials: Arc<Family<3, Counter>>,
    attempts: Arc<Family<2, Counter>>,
    retries: Arc<Family<1, Counter>>,
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
    server: Local<4, Durations>,
    client: Local<4, Durations>,
    errors: Local<3, Counter>,
    denials: Local<3, Counter>,
    attempts: Local<2, Counter>,
    retries: Local<1, Counter>,
    ejections: Local<1, Counter>,
    request_bytes: Local<2, Counter>,
    response_bytes: Local<2, Counter>,
    connections: Local<4, Counter>,
    received_bytes: Local<2, Counter>,
    sent_bytes: Local<2, Counter>,
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
                ["service", "peer", "http_request_method", "http_response_status_code"],
            ),
            client: family(
                &registry,
                "http_client_request_duration_seconds",
                "Requests of the application, with all tries, until the response was complete",
                ["cluster", "route", "http_request_method", "http_response_status_code"],
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
            retries: family(&registry, "heddle_retries_total", "Tries after the first", ["cluster"]),
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
        let spans_dropped = counter(&registry, "heddle_spans_dropped_total", "Spans that no collector got");
        let lines_dropped = counter(&registry, "heddle_access_log_dropped_total", "Lines that were not written");
        Self { registry, families: Arc::new(families), spans_dropped, lines_dropped }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn cells(&self) -> Cells {
        let families = &self.families;
        Cells {
            server: families.server.local(),
            client: families.client.local(),
            errors: families.errors.local(),
            denials: families.denials.local(),
            attempts: families.attempts.local(),
            retries: families.retries.local(),
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
    pub(super) fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Request(request) => self.request(request),
            Outcome::Connection(connection) => self.connection(connection),
        }
    }

    fn request(&self, request: &RequestOutcome) {
        let direction = direction(request.direction);
        let service = service(request.service.as_ref());
        let method = method(&request.method);
        let status = status(request.status);
        match request.direction {
            Direction::Inbound => {
                let peer = request.peer.as_ref().map_or("unauthenticated", |id| id.as_str());
                self.server.with([&service, peer, method, &status], |cell| cell.observe(request.duration));
                if let Some(verdict) = request.authorization.as_ref().filter(|verdict| !verdict.allowed) {
                    let policy = verdict.policy.as_deref().unwrap_or("none");
                    self.denials
                        .with([&service, policy, verdict.rule.as_deref().unwrap_or("none")], |cell| cell.add(1));
                }
            }
            Direction::Outbound => {
                let cluster = cluster(request.cluster.as_ref());
                let route = request.rule.as_ref().map_or(String::new(), |rule| format!("{}#{}", rule.route, rule.rule));
                self.client.with([&cluster, &route, method, &status], |cell| cell.observe(request.duration));
                for attempt in &request.attempts {
                    let result = match (&attempt.error, attempt.status) {
                        (Some(error), _) => error.kind.row().reason,
                        (None, Some(status)) => class(status),
                        (None, None) => "none",
                    };
                    self.attempts.with([&cluster, result], |cell| cell.add(1));
                    if attempt.ejected {
                        self.ejections.with([&cluster], |cell| cell.add(1));
                    }
                }
                let retries = request.attempts.len().saturating_sub(1);
                if retries > 0 {
                    self.retries.with([&cluster], |cell| cell.add(retries as u64));
                }
            }
        }
        if let Some(error) = &request.error {
            self.errors.with([direction, &service, error.kind.row().reason], |cell| cell.add(1));
        }
        self.request_bytes.with([direction, &service], |cell| cell.add(request.request_bytes));
        self.response_bytes.with([direction, &service], |cell| cell.add(request.response_bytes));
    }

    fn connection(&self, connection: &ConnectionOutcome) {
        let direction = direction(connection.direction);
        let service = service(connection.service.as_ref());
        let result = connection.error.as_ref().map_or("ok", |error| error.kind.row().reason);
        self.connections.with([direction, &service, protocol(connection.protocol), result], |cell| cell.add(1));
        self.received_bytes.with([direction, &service], |cell| cell.add(connection.received_bytes));
        self.sent_bytes.with([direction, &service], |cell| cell.add(connection.sent_bytes));
        if connection.error.is_some() {
            self.errors.with([direction, &service, result], |cell| cell.add(1));
        }
        if let Some(verdict) = connection.authorization.as_ref().filter(|verdict| !verdict.allowed) {
            let policy = verdict.policy.as_deref().unwrap_or("none");
            self.denials.with([&service, policy, verdict.rule.as_deref().unwrap_or("none")], |cell| cell.add(1));
        }
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

fn service(service: Option<&ServiceName>) -> String {
    service.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

fn cluster(cluster: Option<&ClusterName>) -> String {
    cluster.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// As the semantic conventions say: what is not well known is `_OTHER`.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn status(status: Option<StatusCode>) -> String {
    status.map_or_else(|| "none".to_owned(), |status| status.as_str().to_owned())
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
