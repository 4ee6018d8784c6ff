//! Trace headers: a trace that came goes on as the same trace, in every format in which it came; nothing that is
//! no trace goes on as one.
#![no_main]

use heddle_proxy::trace_context::{Sampler, TraceContext};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::SmallRng};

const NAMES: [&str; 9] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
];

fuzz_target!(|input: &[u8]| {
    let Some((&settings, lines)) = input.split_first() else { return };
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else { continue };
        let name = NAMES[usize::from(*name) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let (exports, heeds_caller) = (settings & 1 != 0, settings & 2 != 0);
    let sampler = Sampler::new(if settings & 4 != 0 { 1.0 } else { 0.0 }, exports, heeds_caller);
    let mut rng = SmallRng::seed_from_u64(u64::from(settings));
    let came = TraceContext::extract(&headers, &sampler, &mut rng);
    let before = headers.clone();
    let own = came.child(&mut rng);
    assert_eq!(own.trace_id(), came.trace_id());
    assert!(own.trace_id().0 != [0; 16] && own.span_id().0 != [0; 8]);
    if own.is_sampled() && !came.is_root() {
        assert_eq!(own.parent(), Some(came.span_id()));
    }
    own.inject(&mut headers);

    // Vendors' state goes on with the trace that it belongs to, untouched, and with no other.
    let all = |headers: &HeaderMap, name| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    let state = all(&headers, "tracestate");
    let w3c = all(&before, "traceparent");
    assert!(state.is_empty() || state == all(&before, "tracestate"));
    assert!(state.is_empty() || (w3c.len() == 1 && w3c[0].as_bytes()[3..35] == *own.trace_id().to_string().as_bytes()));

    // The next one reads the same trace, and what was decided.
    let next = TraceContext::extract(&headers, &Sampler::new(0.0, true, true), &mut rng);
    if own.is_known() {
        assert_eq!(next.trace_id(), own.trace_id());
        assert!(!next.is_root());
        if own.is_sampled() {
            assert_eq!(next.span_id(), own.span_id());
            assert!(next.is_sampled());
        }
        assert_eq!(all(&headers, "traceparent").len(), 1);
    }
    // Written once more it is the same: one form.
    let once = headers.clone();
    own.inject(&mut headers);
    assert_eq!(headers, once);
});
