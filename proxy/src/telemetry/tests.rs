use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Method, StatusCode, Version};
use rand::{SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::{
    cluster::retry::Refusal,
    outcome::{Attempt, Authorization, Direction, Error, ErrorKind, RequestOutcome},
    snapshot::{ClusterName, Endpoint, ServiceName},
    trace_context::{SpanId, TraceContext},
};

fn request(direction: Direction) -> RequestOutcome {
    let mut rng = SmallRng::seed_from_u64(1);
    let trace = TraceContext::extract(&HeaderMap::new(), &Sampler::new(1.0, true, true), &mut rng);
    let peer: SocketAddr = ([127, 0, 0, 1], 4711).into();
    let head = (Version::HTTP_11, Method::GET, "/orders?secret=1".parse().unwrap());
    let mut request = RequestOutcome::new(direction, head, peer, SystemTime::UNIX_EPOCH, trace.child(&mut rng));
    request.service = Some(ServiceName { namespace: "shop".into(), name: "orders".into() });
    request.status = Some(StatusCode::FORBIDDEN);
    request.duration = Duration::from_millis(30);
    request.error = Some(Error::new(ErrorKind::Denied, "no rule allows it"));
    if direction == Direction::Inbound {
        let policy = Some("AuthorizationPolicy shop/x".into());
        request.authorization = Some(Authorization { allowed: false, policy, rule: Some("0".into()) });
    }
    request.attempts = (0..3)
        .map(|_| {
            let mut attempt = Attempt::new(None, SystemTime::UNIX_EPOCH, SpanId::random(&mut rng));
            attempt.status = Some(StatusCode::SERVICE_UNAVAILABLE);
            attempt
        })
        .collect();
    request
}

fn telemetry() -> Telemetry {
    Telemetry::new(Resource::default(), &TracingConfig::default()).unwrap()
}

#[tokio::test]
async fn outcomes_of_all_workers_are_summed() {
    let telemetry = telemetry();
    for recorder in [telemetry.recorder(), telemetry.recorder()] {
        recorder.record(Outcome::Request(Box::new(request(Direction::Inbound))));
        recorder.record(Outcome::Request(Box::new(request(Direction::Outbound))));
    }
    let (content_type, text) = telemetry.render(None);
    assert!(content_type.starts_with("text/plain"));
    for line in [
        r#"heddle_denials_total{policy="AuthorizationPolicy shop/x",rule="0",service="shop/orders"} 2"#,
        r#"heddle_errors_total{direction="inbound",reason="denied",service="shop/orders"} 2"#,
        r#"heddle_retries_total{cluster="unknown",reason="503"} 4"#,
        r#"heddle_spans_dropped_total 0"#,
        r#"heddle_attempts_total{cluster="unknown",result="5xx"} 6"#,
    ] {
        let found = sorted(&text).contains(&sort_labels(line));
        assert!(found, "{line}\n{text}");
    }
    let histogram = text.lines().find(|line| line.starts_with("http_server_request_duration_seconds_count")).unwrap();
    assert!(histogram.contains(r#"peer="unauthenticated""#) && histogram.ends_with(" 2"), "{histogram}");
    let (content_type, text) = telemetry.render(Some("application/openmetrics-text; version=1.0.0"));
    assert!(content_type.starts_with("application/openmetrics-text"));
    assert!(text.ends_with("# EOF\n"), "{text}");
}

fn sorted(text: &str) -> Vec<String> {
    text.lines().map(sort_labels).collect()
}

/// The order of labels means nothing.
fn sort_labels(line: &str) -> String {
    let Some((name, rest)) = line.split_once('{') else { return line.to_owned() };
    let Some((labels, value)) = rest.rsplit_once('}') else { return line.to_owned() };
    let mut labels: Vec<&str> = labels.split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}{value}", labels.join(","))
}

#[tokio::test]
async fn what_is_like_the_request_before_is_counted_alike() {
    let telemetry = telemetry();
    let recorder = telemetry.recorder();
    for (direction, status, times) in [
        (Direction::Outbound, 200, 5),
        (Direction::Inbound, 200, 4),
        (Direction::Outbound, 404, 3),
        (Direction::Outbound, 200, 2),
    ] {
        for _ in 0..times {
            let mut outcome = request(direction);
            outcome.status = Some(StatusCode::from_u16(status).unwrap());
            (outcome.error, outcome.authorization) = (None, None);
            outcome.attempts.truncate(1);
            outcome.attempts[0].status = outcome.status;
            outcome.response_bytes = 10;
            recorder.record(Outcome::Request(Box::new(outcome)));
        }
    }
    let (_, text) = telemetry.render(None);
    for line in [
        r#"heddle_attempts_total{cluster="unknown",result="2xx"} 7"#,
        r#"heddle_attempts_total{cluster="unknown",result="4xx"} 3"#,
        r#"heddle_response_bytes_total{direction="inbound",service="shop/orders"} 40"#,
        r#"heddle_response_bytes_total{direction="outbound",service="shop/orders"} 100"#,
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
    for (start, count) in
        [("http_client_request_duration_seconds_count", 10), ("http_server_request_duration_seconds_count", 4)]
    {
        let counts = text.lines().filter(|line| line.starts_with(start));
        let sum: u32 = counts.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap()).sum();
        assert_eq!(sum, count, "{text}");
    }
}

#[tokio::test]
async fn a_log_line_is_json_that_names_the_rule_and_hides_the_query() {
    let line = access_log::line(&Outcome::Request(Box::new(request(Direction::Inbound))));
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(line.ends_with("}\n") && !line.contains("secret"), "{line}");
    assert_eq!(value["time"], "1970-01-01T00:00:00.000Z");
    assert_eq!(value["status"], 403);
    assert_eq!(value["authorization"]["policy"], "AuthorizationPolicy shop/x");
    assert_eq!(value["error"]["reason"], "denied");
    assert_eq!(value["duration_ms"], 30.0);
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let telemetry = telemetry();
    telemetry.set_access_log(true);
    let recorder = telemetry.recorder();
    // Nothing else runs on this thread meanwhile, so that nobody empties the queue.
    for _ in 0..OUTCOMES + 5 {
        recorder.record(Outcome::Request(Box::new(request(Direction::Inbound))));
    }
    let metrics = telemetry.render(None).1;
    assert!(metrics.contains("\nheddle_access_log_dropped_total 5\n"), "{metrics}");
}

#[tokio::test]
async fn connections_and_handshakes_are_counted() {
    let telemetry = telemetry();
    let signals = telemetry.signals();
    let open = [signals.accepted("inbound").count(), signals.accepted("inbound").count()];
    drop(signals.accepted("http-proxy").count());
    signals.accepted_handshake(None, Duration::from_millis(3));
    signals.accepted_handshake(Some(ErrorKind::TlsFailed), Duration::from_millis(3));
    let metrics = telemetry.render(None).1;
    for line in [
        r#"heddle_listener_connections{listener="inbound"} 2"#,
        r#"heddle_listener_connections{listener="http-proxy"} 0"#,
        r#"heddle_listener_connections_accepted_total{listener="http-proxy"} 1"#,
        r#"heddle_tls_handshakes_total{direction="inbound",result="ok"} 1"#,
        r#"heddle_tls_handshakes_total{direction="inbound",result="tls-failed"} 1"#,
        r#"heddle_tls_handshake_duration_seconds_count{direction="inbound"} 2"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    drop(open);
    assert!(telemetry.render(None).1.contains("heddle_listener_connections{listener=\"inbound\"} 0\n"));
}

#[tokio::test]
async fn tries_tell_of_connections_retries_and_calls() {
    let telemetry = telemetry();
    let recorder = telemetry.recorder();
    let mut call = request(Direction::Outbound);
    call.grpc = true;
    call.grpc_status = Some(14);
    call.error = None;
    call.retry_refused = Some(Refusal::Budget);
    let service = ServiceName { namespace: "shop".into(), name: "orders".into() };
    call.cluster = Some(ClusterName { service, port: 80 });
    let endpoint = Arc::new(Endpoint {
        address: ([10, 0, 0, 1], 15006).into(),
        identities: Vec::new(),
        meshed: true,
        ports: [(80, 0)].into(),
        zone: String::new(),
        weight: 1,
        ready: true,
        workload: "shop/orders-1".into(),
        hostname: None,
    });
    for attempt in &mut call.attempts {
        attempt.endpoint = Some(endpoint.clone());
    }
    call.attempts[0].error = Some(Error::new(ErrorKind::PeerIdentity, ""));
    call.attempts[1].connect = Some(Duration::from_millis(2));
    call.attempts[1].grpc_status = Some(14);
    recorder.record(Outcome::Request(Box::new(call)));
    let metrics = sorted(&telemetry.render(None).1);
    for line in [
        r#"heddle_retries_total{cluster="shop/orders:80",reason="peer-identity"} 1"#,
        r#"heddle_retries_total{cluster="shop/orders:80",reason="UNAVAILABLE"} 1"#,
        r#"heddle_retries_refused_total{cluster="shop/orders:80",reason="budget"} 1"#,
        r#"heddle_connect_duration_seconds_count{cluster="shop/orders:80"} 1"#,
        r#"heddle_tls_handshakes_total{direction="outbound",result="ok"} 1"#,
        r#"heddle_tls_handshakes_total{direction="outbound",result="peer-identity"} 1"#,
        r#"rpc_client_call_duration_seconds_count{cluster="shop/orders:80",route="",rpc_status_code="UNAVAILABLE"} 1"#,
    ] {
        assert!(metrics.contains(&sort_labels(line)), "{line}\n{}", metrics.join("\n"));
    }
}
