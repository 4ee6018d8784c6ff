use http::{HeaderName, HeaderValue};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const SHORT: &str = "a3ce929d0e0e4736";

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn extract(headers: &[(&str, &str)], sampler: &Sampler) -> TraceContext {
    TraceContext::extract(&map(headers), sampler, &mut StdRng::seed_from_u64(1))
}

/// Samples no new trace, heeds callers.
fn exporting() -> Sampler {
    Sampler::new(0.0, true, true)
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// What the next one gets.
fn passed_on(came: &[(&str, &str)], sampler: &Sampler) -> (TraceContext, HeaderMap) {
    let mut rng = StdRng::seed_from_u64(2);
    let mut headers = map(came);
    let child = TraceContext::extract(&headers, sampler, &mut rng).child(&mut rng);
    child.inject(&mut headers);
    (child, headers)
}

#[test]
fn w3c_is_read() {
    for (value, sampled) in [
        (traceparent("01"), true),
        (traceparent("00"), false),
        (traceparent("03"), true),
        (traceparent("fe"), false),
        (format!("cc-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what-the-future-holds"), true),
    ] {
        let context = extract(&[("traceparent", &value)], &exporting());
        assert_eq!(context.trace_id().to_string(), TRACE, "{value}");
        assert_eq!(context.span_id().to_string(), SPAN);
        assert_eq!(context.is_sampled(), sampled);
        assert!(!context.is_root() && context.is_known());
    }
}

#[test]
fn a_bad_traceparent_begins_a_new_trace_without_tracestate() {
    let zeros = "0".repeat(32);
    for value in [
        String::new(),
        "00".into(),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{zeros}-{SPAN}-01"),
        format!("00-{TRACE}-{}-01", &zeros[..16]),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{SPAN}-0"),
        format!("00-{TRACE}-{SPAN}-01-"),
        format!("00-{TRACE}-{SPAN}-01-x"),
        format!("cc-{TRACE}-{SPAN}-01x"),
        format!("00_{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}_01"),
        format!("00-{}-{SPAN}-01", TRACE.replace('b', "g")),
        format!("00-+{}-{SPAN}-01", &TRACE[1..]),
        format!(" 0-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-ü"),
        format!("00-{}ü-{SPAN}-01", &TRACE[2..]),
        format!("0\u{e9}{TRACE}-{SPAN}-01"),
    ] {
        let (context, headers) =
            passed_on(&[("traceparent", &value), ("tracestate", "a=b")], &Sampler::new(1.0, true, true));
        assert_ne!(context.trace_id().to_string(), TRACE, "{value}");
        assert_eq!(context.parent(), None);
        assert!(!headers.contains_key("tracestate"), "{value}");
        assert_eq!(headers["traceparent"], format!("00-{}-{}-01", context.trace_id(), context.span_id()));
    }
    let twice = [("traceparent", &*traceparent("01")), ("traceparent", &traceparent("01"))];
    assert_ne!(extract(&twice, &exporting()).trace_id().to_string(), TRACE);
}

#[test]
fn b3_is_read() {
    for (headers, sampled, parent_known) in [
        (&[("b3", &*format!("{TRACE}-{SPAN}-1"))][..], true, true),
        (&[("b3", &format!("{TRACE}-{SPAN}-0"))], false, true),
        (&[("b3", &format!("{TRACE}-{SPAN}-d"))], true, true),
        (&[("b3", &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"))], true, true),
        (&[("b3", &format!("{TRACE}-{SPAN}"))], false, true),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")], true, true),
        (&[("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "0")], false, true),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")], true, true),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)], false, true),
        (&[("b3", "1")], true, false),
        (&[("b3", "d")], true, false),
        (&[("b3", "0")], false, false),
        (&[("x-b3-sampled", "1")], true, false),
        (&[("b3", &format!("{TRACE}-{SPAN}-x"))], false, false),
        (&[("b3", &format!("{TRACE}-{SPAN}-1-1"))], false, false),
        (&[("b3", &format!("{}-{SPAN}-1", &TRACE[1..]))], false, false),
        (&[("x-b3-traceid", TRACE)], false, false),
    ] {
        let context = extract(headers, &exporting());
        assert_eq!(context.is_sampled(), sampled, "{headers:?}");
        assert_eq!(context.trace_id().to_string() == TRACE, parent_known, "{headers:?}");
        assert_eq!(context.is_root(), !parent_known);
    }
    // Left to us to decide.
    let deferred = format!("{TRACE}-{SPAN}");
    assert!(extract(&[("b3", &deferred)], &Sampler::new(1.0, true, true)).is_sampled());
    // 64 bits.
    let short = extract(&[("b3", &format!("{SHORT}-{SPAN}-1"))], &exporting());
    assert_eq!(short.trace_id().to_string(), format!("0000000000000000{SHORT}"));
}

#[test]
fn jaeger_is_read() {
    for (value, trace, sampled) in [
        (format!("{TRACE}:{SPAN}:0:1"), TRACE.to_owned(), true),
        (format!("{TRACE}%3A{SPAN}%3a0%3A1"), TRACE.to_owned(), true),
        (format!("{TRACE}:{SPAN}:{SPAN}:0"), TRACE.to_owned(), false),
        (format!("{TRACE}:{SPAN}:0:3"), TRACE.to_owned(), true),
        ("a:f067aa0ba902b7:0:01".to_owned(), format!("{:032x}", 10), true),
    ] {
        let context = extract(&[("uber-trace-id", &value)], &exporting());
        assert_eq!(context.trace_id().to_string(), trace, "{value}");
        assert_eq!(context.span_id().to_string(), SPAN);
        assert_eq!(context.is_sampled(), sampled);
    }
    for bad in
        ["", ":::", "0:1:0:1", "1:0:0:1", "1:1:0", "1:1:0:1:1", "x:1:0:1", "1:11111111111111111:0:1", "1:1:0:100"]
    {
        assert!(extract(&[("uber-trace-id", bad)], &exporting()).is_root(), "{bad}");
    }
}

#[test]
fn w3c_goes_before_b3_before_jaeger() {
    let other = "11111111111111111111111111111111";
    let w3c = traceparent("01");
    let b3 = format!("{other}-{SPAN}-0");
    let uber = format!("2:{SPAN}:0:1");
    let all = [("uber-trace-id", &*uber), ("b3", &b3), ("traceparent", &w3c)];
    assert_eq!(extract(&all, &exporting()).trace_id().to_string(), TRACE);
    assert_eq!(extract(&all[..2], &exporting()).trace_id().to_string(), other);
    // A broken one is passed over.
    assert_eq!(extract(&[("traceparent", "junk"), ("b3", &b3)], &exporting()).trace_id().to_string(), other);
}

#[test]
fn what_came_goes_on_with_a_span_of_our_own_plus_w3c() {
    let w3c = traceparent("03");
    let b3 = format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90");
    let uber = format!("{TRACE}:{SPAN}:0:1");
    let (child, headers) = passed_on(
        &[
            ("traceparent", &w3c),
            ("tracestate", "a=b,c=d"),
            ("baggage", "k=v"),
            ("b3", &b3),
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
            ("x-b3-sampled", "1"),
            ("uber-trace-id", &uber),
        ],
        &exporting(),
    );
    let span = child.span_id();
    assert_eq!(child.trace_id().to_string(), TRACE);
    assert_eq!(child.parent().unwrap().to_string(), SPAN);
    assert_ne!(span.to_string(), SPAN);
    assert_eq!(headers["traceparent"], format!("00-{TRACE}-{span}-03"));
    assert_eq!(headers["tracestate"], "a=b,c=d");
    assert_eq!(headers["baggage"], "k=v");
    assert_eq!(headers["b3"], format!("{TRACE}-{span}-1-{SPAN}"));
    assert_eq!(headers["x-b3-traceid"], TRACE);
    assert_eq!(headers["x-b3-spanid"], span.to_string());
    assert_eq!(headers["x-b3-parentspanid"], SPAN);
    assert_eq!(headers["x-b3-sampled"], "1");
    assert_eq!(headers["uber-trace-id"], format!("{TRACE}:{span}:0:1"));
    // And is understood.
    let again = TraceContext::extract(&headers, &exporting(), &mut StdRng::seed_from_u64(1));
    assert_eq!((again.trace_id(), again.span_id()), (child.trace_id(), span));

    let (child, headers) = passed_on(&[("b3", &format!("{SHORT}-{SPAN}-d"))], &exporting());
    assert_eq!(headers["b3"], format!("{SHORT}-{}-d-{SPAN}", child.span_id()));
    assert_eq!(headers["traceparent"], format!("00-0000000000000000{SHORT}-{}-01", child.span_id()));
    let debug = [("x-b3-traceid", SHORT), ("x-b3-spanid", SPAN), ("x-b3-flags", "1"), ("x-b3-sampled", "1")];
    let (_, headers) = passed_on(&debug, &exporting());
    assert_eq!((&headers["x-b3-flags"], headers.get("x-b3-sampled")), (&HeaderValue::from_static("1"), None));
    assert!(!headers.contains_key("b3") && !headers.contains_key("uber-trace-id"));
}

#[test]
fn each_attempt_has_a_span_of_its_own() {
    let mut rng = StdRng::seed_from_u64(1);
    let caller = extract(&[("traceparent", &traceparent("01"))], &exporting());
    let (first, second) = (caller.child(&mut rng), caller.child(&mut rng));
    assert_ne!(first.span_id(), second.span_id());
    assert_eq!(first.parent(), Some(caller.span_id()));
    assert_eq!(second.parent(), Some(caller.span_id()));
    assert_eq!(first.child(&mut rng).parent(), Some(first.span_id()));
}

#[test]
fn what_is_not_sampled_goes_on_untouched() {
    let w3c = traceparent("00");
    for sampler in [exporting(), Sampler::default()] {
        let (child, headers) = passed_on(&[("traceparent", &w3c), ("tracestate", "a=b")], &sampler);
        assert_eq!(child.span_id().to_string(), SPAN);
        assert_eq!(headers, map(&[("traceparent", &w3c), ("tracestate", "a=b")]));
        let b3 = format!("{TRACE}-{SPAN}-0");
        let (_, headers) = passed_on(&[("b3", &b3)], &sampler);
        assert_eq!(headers, map(&[("b3", &b3), ("traceparent", &w3c)]), "W3C is added");
    }
    // Sampled, but not exported here: the caller's span stays the parent of the next.
    let sampled = traceparent("01");
    let (child, headers) = passed_on(&[("traceparent", &sampled)], &Sampler::default());
    assert!(!child.is_sampled() && child.is_known());
    assert_eq!(headers["traceparent"], sampled);
}

#[test]
fn new_traces_begin_only_where_spans_are_exported() {
    let (context, headers) = passed_on(&[], &Sampler::default());
    assert!(headers.is_empty() && !context.is_known() && !context.is_sampled());
    let (context, headers) = passed_on(&[], &Sampler::new(1.0, true, true));
    assert!(context.is_sampled());
    assert_eq!(context.parent(), None);
    assert_eq!(headers["traceparent"], format!("00-{}-{}-01", context.trace_id(), context.span_id()));
    // Decided against: told to all that follow.
    let (context, headers) = passed_on(&[], &exporting());
    assert!(!context.is_sampled());
    assert_eq!(headers["traceparent"], format!("00-{}-{}-00", context.trace_id(), context.span_id()));
}

#[test]
fn the_ratio_is_kept_and_callers_are_heeded_or_not() {
    let mut rng = StdRng::seed_from_u64(3);
    for ratio in [0.0, 0.1, 0.5, 1.0] {
        let sampler = Sampler::new(ratio, true, true);
        let sampled = (0..10_000).filter(|_| sampler.decide(TraceId::random(&mut rng))).count();
        let expected = (ratio * 10_000.0) as usize;
        assert!(sampled.abs_diff(expected) < 200, "{ratio}: {sampled}");
        if ratio == 0.0 || ratio == 1.0 {
            assert_eq!(sampled, expected);
        }
    }
    let sampler = Sampler::new(f64::NAN, true, true);
    assert_eq!(sampler.ratio(), 0.0);
    sampler.set_ratio(7.0);
    assert_eq!(sampler.ratio(), 1.0);
    let always = Sampler::new(1.0, true, false);
    assert!(extract(&[("traceparent", &traceparent("00"))], &always).is_sampled());
}

#[test]
fn no_header_makes_it_panic() {
    let mut rng = StdRng::seed_from_u64(5);
    let names = [
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-sampled",
        "x-b3-flags",
        "uber-trace-id",
    ];
    let alphabet: Vec<char> = "0123456789abcdefABCDEF-:%dxü 3A".chars().collect();
    for _ in 0..50_000 {
        let mut headers = HeaderMap::new();
        for name in names {
            if rng.random_bool(0.4) {
                let length = *[0, 1, 16, 32, 51, 55, 60].get(rng.random_range(0..7)).unwrap();
                let value: String = (0..length).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect();
                headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
        }
        let child = TraceContext::extract(&headers, &exporting(), &mut rng).child(&mut rng);
        child.inject(&mut headers);
        let again = TraceContext::extract(&headers, &exporting(), &mut rng);
        assert_eq!(again.trace_id(), child.trace_id());
        assert_eq!(again.span_id(), child.span_id());
    }
}
