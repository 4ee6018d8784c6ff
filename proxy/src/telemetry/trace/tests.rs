mod collector;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use opentelemetry::Value;
use rand::{SeedableRng as _, rngs::SmallRng};

use self::collector::{Collector, Said};
use super::*;
use crate::{
    outcome::{Authorization, ErrorKind, Outcome},
    snapshot::{ClusterName, Endpoint, HttpMatch, HttpRule, ServiceName},
    telemetry::{Protocol, Telemetry, metrics::Metrics},
    trace_context::Sampler,
};

fn request(direction: Direction, uri: &str) -> RequestOutcome {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut headers = HeaderMap::new();
    let parent = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    headers.insert("traceparent", parent);
    let mut trace = TraceContext::extract(&headers, &Sampler::new(0.0, true, true), &mut rng);
    if direction == Direction::Inbound {
        trace = trace.child(&mut rng);
    }
    let peer: SocketAddr = ([10, 0, 0, 9], 4711).into();
    let head = (Version::HTTP_11, Method::GET, uri.parse().unwrap());
    let mut request = RequestOutcome::new(direction, head, peer, SystemTime::UNIX_EPOCH, trace);
    let service = ServiceName { namespace: "shop".into(), name: "orders".into() };
    request.authority = Some(HeaderValue::from_static("orders.shop"));
    request.service = Some(service.clone());
    request.port = 80;
    request.duration = Duration::from_millis(30);
    request.status = Some(StatusCode::OK);
    if direction == Direction::Outbound {
        request.cluster = Some(ClusterName { service, port: 80 });
        request.rule = Some(Arc::new(HttpRule {
            route: "HTTPRoute shop/orders".into(),
            rule: "0".into(),
            hostnames: Vec::new(),
            matches: HttpMatch { path: Some(PathMatch::Prefix("/orders".into())), ..HttpMatch::default() },
            filters: Vec::new(),
            backends: Vec::new(),
            request_timeout: None,
            per_try_timeout: None,
            retry: None,
        }));
    }
    request
}

fn attempt(number: u8) -> Attempt {
    let endpoint = Endpoint {
        address: ([10, 0, 0, number], 15006).into(),
        identities: Vec::new(),
        meshed: true,
        ports: [(80, 0)].into(),
        zone: String::new(),
        weight: 1,
        ready: true,
        workload: format!("shop/orders-{number}"),
        hostname: None,
    };
    let mut attempt = Attempt::new(Some(Arc::new(endpoint)), SystemTime::UNIX_EPOCH, SpanId([number; 8]));
    attempt.duration = Duration::from_millis(10);
    attempt.status = Some(StatusCode::OK);
    attempt
}

fn attribute<'a>(span: &'a SpanData, name: &str) -> Option<&'a Value> {
    let mut found = span.attributes.iter().filter(|pair| pair.key.as_str() == name).map(|pair| &pair.value);
    let value = found.next();
    assert!(found.next().is_none(), "{name} twice");
    value
}

fn text(span: &SpanData, name: &str) -> String {
    attribute(span, name).map(ToString::to_string).unwrap_or_default()
}

fn spans(request: &RequestOutcome) -> Vec<SpanData> {
    let spans = of_request(request, &scope());
    assert_eq!(spans.len() as u64, count(request));
    spans
}

#[test]
fn what_comes_in_is_a_server_span_below_the_callers() {
    let mut request = request(Direction::Inbound, "/orders/7?page=1&token=abc");
    request.peer = Some("spiffe://heddle.local/ns/shop/sa/storefront".parse().unwrap());
    request.user_agent = Some(HeaderValue::from_static("curl/8"));
    request.request_id = Some(HeaderValue::from_static("r-1"));
    let policy = Some("AuthorizationPolicy shop/x".into());
    request.authorization = Some(Authorization { allowed: true, policy, rule: Some("0".into()) });
    let [span] = &spans(&request)[..] else { panic!("one span") };
    assert_eq!((span.span_kind.clone(), &*span.name), (SpanKind::Server, "GET"));
    assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span.span_context.span_id().to_string(), request.trace.span_id().to_string());
    assert_eq!(span.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(span.end_time, SystemTime::UNIX_EPOCH + Duration::from_millis(30));
    assert_eq!(span.status, Status::Unset);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/orders/7"),
        ("url.query", "page=1&token=REDACTED"),
        ("url.scheme", "http"),
        ("server.address", "orders.shop"),
        ("server.port", "80"),
        ("client.address", "10.0.0.9"),
        ("network.peer.port", "4711"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
        ("heddle.request_id", "r-1"),
        ("heddle.service", "shop/orders"),
        ("heddle.peer.identity", "spiffe://heddle.local/ns/shop/sa/storefront"),
        ("heddle.authorization.policy", "AuthorizationPolicy shop/x"),
        ("heddle.authorization.rule", "0"),
        ("error.type", ""),
    ] {
        assert_eq!(text(span, name), value, "{name}");
    }
}

#[test]
fn each_try_is_a_client_span_of_its_own() {
    let mut request = request(Direction::Outbound, "/orders/7?sig=s3cr3t&x=%20");
    request.authority = Some(HeaderValue::from_static("user:pw@orders.shop:8080"));
    let mut failed = attempt(1);
    failed.status = None;
    failed.error = Some(Error::new(ErrorKind::ConnectFailed, "10.0.0.1:15006: refused"));
    failed.closed_by = Some(ClosedBy::Upstream);
    failed.ejected = true;
    let mut missing = attempt(3);
    missing.status = Some(StatusCode::NOT_FOUND);
    request.attempts = vec![failed, attempt(2), missing].into();
    let spans = spans(&request);
    for (number, span) in spans.iter().enumerate() {
        assert_eq!((span.span_kind.clone(), &*span.name), (SpanKind::Client, "GET /orders/*"));
        assert_eq!(span.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(span.span_context.span_id().to_string(), format!("0{}", number + 1).repeat(8));
        let resent = if number == 0 { String::new() } else { number.to_string() };
        assert_eq!(text(span, "http.request.resend_count"), resent);
        assert_eq!(text(span, "url.full"), "http://orders.shop:8080/orders/7?sig=REDACTED&x=%20");
        assert_eq!(text(span, "server.port"), "8080");
        assert_eq!(text(span, "http.route"), "/orders/*");
        assert_eq!(text(span, "heddle.route"), "HTTPRoute shop/orders#0");
        assert_eq!(text(span, "heddle.cluster"), "shop/orders:80");
        assert_eq!(text(span, "network.peer.address"), format!("10.0.0.{}", number + 1));
        assert_eq!(text(span, "heddle.endpoint.workload"), format!("shop/orders-{}", number + 1));
    }
    assert_eq!(text(&spans[0], "error.type"), "connect-failed");
    assert_eq!(text(&spans[0], "heddle.closed_by"), "upstream");
    assert_eq!(text(&spans[0], "heddle.endpoint.ejected"), "true");
    assert_eq!(spans[0].status, Status::error("10.0.0.1:15006: refused"));
    assert_eq!((&spans[1].status, text(&spans[1], "error.type")), (&Status::Unset, String::new()));
    assert_eq!((&spans[2].status, text(&spans[2], "error.type")), (&Status::error(""), "404".to_owned()));
}

#[test]
fn what_was_refused_before_any_try_is_seen_too() {
    let mut request = request(Direction::Outbound, "/");
    request.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    request.error = Some(Error::new(ErrorKind::CircuitOpen, "all 2 ready instances are ejected"));
    let [span] = &spans(&request)[..] else { panic!("one span") };
    assert_eq!(text(span, "error.type"), "circuit-open");
    assert_eq!(span.status, Status::error("all 2 ready instances are ejected"));
    assert_eq!(span.end_time, SystemTime::UNIX_EPOCH + Duration::from_millis(30));
}

#[test]
fn a_trace_that_begins_here_has_no_parent() {
    let mut rng = SmallRng::seed_from_u64(1);
    let root = TraceContext::extract(&HeaderMap::new(), &Sampler::new(1.0, true, true), &mut rng);
    let mut inbound = request(Direction::Inbound, "/");
    inbound.trace = root.child(&mut rng);
    assert_eq!(spans(&inbound)[0].parent_span_id, OtelSpanId::INVALID);
    let mut outbound = request(Direction::Outbound, "/");
    outbound.trace = root;
    assert_eq!(spans(&outbound)[0].parent_span_id, OtelSpanId::INVALID);
}

#[test]
fn what_counts_as_failed() {
    let statuses = |direction, change: &dyn Fn(&mut RequestOutcome)| {
        let mut request = request(direction, "/");
        change(&mut request);
        if direction == Direction::Outbound {
            let mut attempt = attempt(1);
            attempt.status = request.status;
            attempt.grpc_status = request.grpc_status;
            attempt.error = request.error.clone();
            request.attempts = vec![attempt].into();
        }
        let span = spans(&request).remove(0);
        (matches!(span.status, Status::Error { .. }), text(&span, "error.type"))
    };
    type Change = fn(&mut RequestOutcome);
    let cases: [(Change, bool, bool, &str); 7] = [
        (|request| request.status = Some(StatusCode::NOT_FOUND), false, true, "404"),
        (|request| request.status = Some(StatusCode::BAD_GATEWAY), true, true, "502"),
        (|request| request.status = Some(StatusCode::FOUND), false, false, ""),
        (|request| request.grpc_status = Some(0), false, false, ""),
        (|request| request.grpc_status = Some(14), true, true, "UNAVAILABLE"),
        (|request| request.grpc_status = Some(5), false, true, "NOT_FOUND"),
        (|request| request.error = Some(Error::new(ErrorKind::RequestTimeout, "")), true, true, "request-timeout"),
    ];
    for (change, server, client, error_type) in cases {
        let (failed, found) = statuses(Direction::Inbound, &change);
        assert_eq!(failed, server, "{error_type}");
        assert!(found == error_type || !failed, "{found} {error_type}");
        assert_eq!(statuses(Direction::Outbound, &change), (client, error_type.to_owned()));
    }
    // What policy refuses is named, and no failure of the server.
    let denied = |request: &mut RequestOutcome| request.error = Some(Error::new(ErrorKind::Denied, "no rule"));
    assert_eq!(statuses(Direction::Inbound, &denied), (false, "denied".to_owned()));
}

#[test]
fn names_are_few() {
    let mut grpc = request(Direction::Inbound, "/shop.Inventory/Reserve");
    grpc.grpc = true;
    grpc.grpc_status = Some(0);
    let span = spans(&grpc).remove(0);
    assert_eq!(span.name, "shop.Inventory/Reserve");
    assert_eq!(text(&span, "rpc.method"), "shop.Inventory/Reserve");
    assert_eq!(text(&span, "rpc.status_code"), "OK");
    let mut odd = request(Direction::Inbound, "/a/b/c");
    odd.method = Method::from_bytes(b"BREW").unwrap();
    let span = spans(&odd).remove(0);
    assert_eq!(span.name, "HTTP");
    assert_eq!(text(&span, "http.request.method"), "_OTHER");
    assert_eq!(text(&span, "http.request.method_original"), "BREW");
}

#[test]
fn hosts_and_ports() {
    for (authority, port, expected) in [
        ("orders", 80, ("orders", 80)),
        ("orders:8080", 80, ("orders", 8080)),
        ("[::1]:8080", 80, ("[::1]", 8080)),
        ("[::1]", 90, ("[::1]", 90)),
        ("a:b@orders", 0, ("orders", 80)),
        ("orders:x", 81, ("orders", 81)),
    ] {
        let mut request = request(Direction::Inbound, "/");
        request.authority = Some(HeaderValue::from_str(authority).unwrap());
        request.port = port;
        assert_eq!(host_and_port(&request), expected, "{authority}");
    }
}

#[test]
fn the_environment_is_heeded() {
    let config = |ratio| TracingConfig { sampling_ratio: ratio, ..TracingConfig::default() };
    let sampling = |config: &TracingConfig, sampler: &'static str, arg: &'static str| {
        let variable = move |name: &str| {
            let value = match name {
                "OTEL_TRACES_SAMPLER" => sampler,
                "OTEL_TRACES_SAMPLER_ARG" => arg,
                _ => "",
            };
            (!value.is_empty()).then(|| value.to_owned())
        };
        let Sampling { ratio, heeds_caller } = Sampling::of(config, &variable);
        (ratio, heeds_caller)
    };
    for (sampler, arg, expected) in [
        ("", "", (None, true)),
        ("always_on", "", (Some(1.0), false)),
        ("always_off", "", (Some(0.0), false)),
        ("traceidratio", "0.25", (Some(0.25), false)),
        ("parentbased_traceidratio", "0.25", (Some(0.25), true)),
        ("parentbased_traceidratio", "junk", (Some(1.0), true)),
        ("parentbased_always_on", "", (Some(1.0), true)),
        ("jaeger_remote", "", (None, true)),
    ] {
        assert_eq!(sampling(&config(None), sampler, arg), expected, "{sampler}");
    }
    assert_eq!(sampling(&config(Some(0.5)), "always_off", ""), (Some(0.5), true), "the settings win");

    let set = |pairs: &'static [(&'static str, &'static str)]| {
        move |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    let none = TracingConfig::default();
    let named = TracingConfig { endpoint: Some("http://collector:4317".into()), ..TracingConfig::default() };
    assert!(!export::is_wanted(&none, &set(&[])));
    assert!(export::is_wanted(&named, &set(&[])));
    assert!(export::is_wanted(&none, &set(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")])));
    assert!(!export::is_wanted(&named, &set(&[("OTEL_SDK_DISABLED", "TRUE")])));
    assert!(!export::is_wanted(&named, &set(&[("OTEL_TRACES_EXPORTER", "none")])));
    let error = export::exporter(&named, &set(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")])).unwrap_err();
    assert!(error.to_string().contains("http/json"), "{error}");

    let resource = Resource { service: "orders".into(), namespace: "shop".into(), instance: "orders-1".into() };
    let attributes = export::attributes(&resource, &set(&[]));
    let value = |name: &'static str| attributes.get(&name.into()).map(|value| value.to_string());
    assert_eq!(value("service.name").as_deref(), Some("orders"));
    assert_eq!(value("service.namespace").as_deref(), Some("shop"));
    assert_eq!(value("service.instance.id").as_deref(), Some("orders-1"));
    let said = "service.name=said, k8s.pod.name=orders%2D1,service.namespace=other";
    let said: &'static [_] = vec![("OTEL_RESOURCE_ATTRIBUTES", said), ("OTEL_SERVICE_NAME", "wins")].leak();
    let attributes = export::attributes(&resource, &set(said));
    let value = |name: &'static str| attributes.get(&name.into()).map(|value| value.to_string());
    assert_eq!(value("service.name").as_deref(), Some("wins"));
    assert_eq!(value("service.namespace").as_deref(), Some("other"));
    assert_eq!(value("k8s.pod.name").as_deref(), Some("orders-1"));
}

fn telemetry(collector: &Collector, protocol: Protocol) -> Telemetry {
    let resource = Resource { service: "orders".into(), namespace: "shop".into(), instance: "orders-1".into() };
    let endpoint = Some(collector.url());
    let config = TracingConfig { endpoint, protocol: Some(protocol), sampling_ratio: Some(1.0) };
    Telemetry::new(resource, &config).unwrap()
}

fn metric(telemetry: &Telemetry, name: &str) -> u64 {
    let (_, text) = telemetry.render(None);
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn spans_reach_the_collector_over_either_protocol() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol, vec![]).await;
        let telemetry = telemetry(&collector, protocol);
        let recorders = [telemetry.recorder(), telemetry.recorder()];
        let inbound = request(Direction::Inbound, "/orders");
        let span_id = inbound.trace.span_id().0.to_vec();
        recorders[0].record(Outcome::Request(Box::new(inbound)));
        let mut outbound = request(Direction::Outbound, "/orders");
        outbound.attempts = vec![attempt(1), attempt(2)].into();
        recorders[1].record(Outcome::Request(Box::new(outbound)));
        let mut unsampled = request(Direction::Inbound, "/orders");
        unsampled.trace = TraceContext::extract(&HeaderMap::new(), &Sampler::default(), &mut rand::rng());
        recorders[0].record(Outcome::Request(Box::new(unsampled)));
        telemetry.flush().await;

        let got = collector.spans();
        let mut names: Vec<_> = got.iter().map(|span| (span.kind, span.name.as_str())).collect();
        names.sort_unstable();
        assert_eq!(names, [(2, "GET"), (3, "GET /orders/*"), (3, "GET /orders/*")], "{protocol:?}");
        assert!(got.iter().any(|span| span.span_id == span_id));
        assert!(got.iter().all(|span| span.parent_span_id == [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert_eq!(collector.resource("service.name"), "orders");
        assert_eq!(collector.resource("service.instance.id"), "orders-1");
        assert_eq!(metric(&telemetry, "heddle_spans_exported_total"), 3);
        assert_eq!(metric(&telemetry, "heddle_spans_dropped_total"), 0);
    }
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol, vec![Said::Busy, Said::BusyFor(Duration::from_secs(1))]).await;
        let telemetry = telemetry(&collector, protocol);
        telemetry.recorder().record(Outcome::Request(Box::new(request(Direction::Inbound, "/"))));
        let began = tokio::time::Instant::now();
        telemetry.flush().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{protocol:?}: not before it says");
        assert_eq!((collector.spans().len(), collector.asked()), (1, 3), "{protocol:?}");
        assert_eq!(metric(&telemetry, "heddle_spans_dropped_total"), 0);
    }
}

#[tokio::test]
async fn what_a_collector_refuses_is_dropped_and_counted() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol, vec![Said::No]).await;
        let telemetry = telemetry(&collector, protocol);
        let recorder = telemetry.recorder();
        recorder.record(Outcome::Request(Box::new(request(Direction::Inbound, "/"))));
        telemetry.flush().await;
        assert_eq!((collector.spans().len(), collector.asked()), (0, 1), "{protocol:?}");
        assert_eq!(metric(&telemetry, "heddle_spans_dropped_total"), 1);
        recorder.record(Outcome::Request(Box::new(request(Direction::Inbound, "/"))));
        telemetry.flush().await;
        assert_eq!(metric(&telemetry, "heddle_spans_exported_total"), 1, "{protocol:?}: it goes on");
    }
}

#[tokio::test]
async fn without_a_collector_nothing_waits_and_all_that_is_lost_is_counted() {
    let gone = Collector::start(Protocol::Grpc, vec![]).await.gone().await;
    let config = TracingConfig { endpoint: Some(gone), protocol: Some(Protocol::Grpc), ..TracingConfig::default() };
    let impatient = |name: &str| (name == "OTEL_EXPORTER_OTLP_TIMEOUT").then(|| "200".to_owned());
    let exporter = export::exporter(&config, &impatient).unwrap();
    let counts = Metrics::new().spans;
    let (queue, items) = Queue::new(10, counts.dropped.clone());
    let (linger, timeout) = (export::linger(&impatient), export::timeout(&impatient));
    assert_eq!((linger, timeout), (Duration::from_secs(1), Duration::from_millis(200)));
    let spans = Spans { queue, scope: scope() };
    let running = tokio::spawn(export::run(exporter, items, (linger, timeout), counts.clone()));
    let request = request(Direction::Inbound, "/");
    let began = tokio::time::Instant::now();
    (0..1000).for_each(|_| spans.record(&request));
    assert!(began.elapsed() < Duration::from_secs(1));
    spans.flush().await;
    assert_eq!((counts.dropped.get(), counts.exported.get()), (1000, 0));
    drop(spans);
    running.await.unwrap();
}
