//! The access log: one JSON line per request or connection, on standard output.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use prometheus::IntCounter;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::queue::{Item, Queue};
use crate::outcome::{Authorization, ConnectionOutcome, Direction, Error, Outcome, RequestOutcome};

/// Starts the writer.
pub(super) fn start(capacity: usize, dropped: IntCounter) -> Queue<String> {
    let (queue, mut lines) = Queue::new(capacity, dropped);
    tokio::spawn(async move {
        let mut out = BufWriter::new(tokio::io::stdout());
        while let Some(item) = lines.recv().await {
            // A log that cannot be written is no reason to end anything.
            match item {
                Item::Value(line) => {
                    let line: String = line;
                    let _ = out.write_all(line.as_bytes()).await;
                    if lines.is_empty() {
                        let _ = out.flush().await;
                    }
                }
                Item::Flush(done) => {
                    let _ = out.flush().await;
                    let _ = done.send(());
                }
            }
        }
    });
    queue
}

/// The line, with its end.
pub(crate) fn line(outcome: &Outcome) -> String {
    let fields = match outcome {
        Outcome::Request(request) => of_request(request),
        Outcome::Connection(connection) => of_connection(connection),
    };
    let mut line = Value::Object(fields).to_string();
    line.push('\n');
    line
}

fn of_request(request: &RequestOutcome) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        // What is not known is left out.
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("time", time(request.started));
    set("direction", direction(request.direction));
    set("method", json!(request.method.as_str()));
    set("authority", text(request.authority.as_ref()));
    // Without the query, which may hold secrets.
    set("path", json!(request.uri.path()));
    set("protocol", json!(format!("{:?}", request.version)));
    set("status", json!(request.status.map(|status| status.as_u16())));
    set("grpc_status", json!(request.grpc_status));
    set("duration_ms", millis(request.duration));
    set("request_bytes", json!(request.request_bytes));
    set("response_bytes", json!(request.response_bytes));
    set("peer", json!(request.peer.as_ref().map(ToString::to_string)));
    set("peer_address", json!(request.peer_address.to_string()));
    set("service", json!(request.service.as_ref().map(ToString::to_string)));
    set("cluster", json!(request.cluster.as_ref().map(ToString::to_string)));
    set("route", json!(request.rule.as_ref().map(|rule| format!("{}#{}", rule.route, rule.rule))));
    set("request_id", text(request.request_id.as_ref()));
    set("user_agent", text(request.user_agent.as_ref()));
    set("trace_id", json!(request.trace.is_known().then(|| request.trace.trace_id().to_string())));
    set("authorization", authorization(request.authorization.as_ref()));
    set("error", error(request.error.as_ref()));
    if request.direction == Direction::Outbound {
        let attempts = request.attempts.iter().map(|attempt| {
            json!({
                "endpoint": attempt.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
                "status": attempt.status.map(|status| status.as_u16()),
                "duration_ms": millis(attempt.duration),
                "ejected": attempt.ejected,
                "error": attempt.error.as_ref().map(ToString::to_string),
            })
        });
        set("attempts", attempts.collect());
    }
    fields
}

fn of_connection(connection: &ConnectionOutcome) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        // What is not known is left out.
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("time", time(connection.started));
    set("direction", direction(connection.direction));
    set("protocol", json!(format!("{:?}", connection.protocol).to_lowercase()));
    set("tls", json!(connection.tls));
    set("target", json!(connection.target.as_deref()));
    set("duration_ms", millis(connection.duration));
    set("received_bytes", json!(connection.received_bytes));
    set("sent_bytes", json!(connection.sent_bytes));
    set("peer", json!(connection.peer.as_ref().map(ToString::to_string)));
    set("peer_address", json!(connection.peer_address.to_string()));
    set("service", json!(connection.service.as_ref().map(ToString::to_string)));
    set("cluster", json!(connection.cluster.as_ref().map(ToString::to_string)));
    set("endpoint", json!(connection.endpoint.as_ref().map(|endpoint| endpoint.address.to_string())));
    set("route", json!(connection.route.as_deref()));
    set("closed_by", json!(connection.closed_by.map(|side| format!("{side:?}").to_lowercase())));
    set("authorization", authorization(connection.authorization.as_ref()));
    set("error", error(connection.error.as_ref()));
    fields
}

fn time(at: SystemTime) -> Value {
    Timestamp::try_from(at).map_or(Value::Null, |at| json!(format!("{at:.3}")))
}

fn millis(duration: Duration) -> Value {
    // Microseconds are enough.
    json!((duration.as_secs_f64() * 1e6).round() / 1e3)
}

fn direction(direction: Direction) -> Value {
    json!(match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    })
}

fn text(value: Option<&http::HeaderValue>) -> Value {
    value.map_or(Value::Null, |value| json!(String::from_utf8_lossy(value.as_bytes())))
}

fn error(error: Option<&Error>) -> Value {
    error.map_or(Value::Null, |error| json!({ "reason": error.kind.row().reason, "detail": &*error.detail }))
}

fn authorization(authorization: Option<&Authorization>) -> Value {
    authorization.map_or(Value::Null, |verdict| {
        json!({ "allowed": verdict.allowed, "policy": verdict.policy.as_deref(), "rule": verdict.rule.as_deref() })
    })
}
