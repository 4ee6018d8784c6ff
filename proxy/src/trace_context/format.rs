//! The four formats of headers.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Formats, Remote, SpanId, TraceContext, TraceId};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const UBER_TRACE_ID: HeaderName = HeaderName::from_static("uber-trace-id");

const SAMPLED: u8 = 1;
/// Jaeger's.
const DEBUG: u8 = 2;

/// What the first valid format says, and which of them came. A `traceparent` that is invalid does not
/// count as come.
pub(super) fn read(headers: &HeaderMap) -> (Option<Remote>, Formats) {
    let w3c = single(headers, &TRACEPARENT).and_then(read_w3c);
    // Few have another: one look at all names instead of one for each that there could be.
    let is_other = |name: &HeaderName| matches!(name.as_str().as_bytes(), b"b3" | [b'x', b'-', b'b', ..] | [b'u', ..]);
    if !headers.keys().any(is_other) {
        return (w3c, Formats { w3c: w3c.is_some(), ..Formats::default() });
    }
    let b3_single = single(headers, &B3).and_then(read_b3_single);
    let b3_multi = read_b3_multi(headers);
    let jaeger = single(headers, &UBER_TRACE_ID).and_then(read_jaeger);
    let came_as = Formats {
        w3c: w3c.is_some(),
        b3_multi: b3_multi.is_some(),
        b3_single: b3_single.is_some(),
        jaeger: jaeger.is_some(),
        short: b3_single.or(b3_multi).is_some_and(|remote| remote.short),
    };
    (w3c.or(b3_single).or(b3_multi).or(jaeger), came_as)
}

/// A header that came twice says nothing.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case; of later versions only this much is read.
fn read_w3c(value: &str) -> Option<Remote> {
    let bytes = value.as_bytes();
    if bytes.iter().take(55).any(u8::is_ascii_uppercase) {
        return None;
    }
    let version = hex(value.get(..2)?)?;
    let later = version > 0 && version != 0xff && bytes.len() > 55 && bytes[55] == b'-';
    if !(later || version != 0xff && bytes.len() == 55) {
        return None;
    }
    if bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
        return None;
    }
    let ids = ids(value.get(3..35)?, value.get(36..52)?)?;
    let flags = u8::try_from(hex(value.get(53..55)?)?).ok()?;
    // Of the others only "random" is defined.
    let other_flags = flags & 0b10;
    Some(Remote { ids: Some(ids), sampled: Some(flags & SAMPLED != 0), debug: false, other_flags, short: false })
}

/// `<trace>-<span>[-<state>[-<parent>]]`, or only `<state>`.
fn read_b3_single(value: &str) -> Option<Remote> {
    let state = |state: &str| match state {
        "0" => Some((Some(false), false)),
        "1" => Some((Some(true), false)),
        "d" => Some((Some(true), true)),
        _ => None,
    };
    if let Some((sampled, debug)) = state(value) {
        return Some(Remote { ids: None, sampled, debug, other_flags: 0, short: false });
    }
    let mut parts = value.split('-');
    let trace = parts.next()?;
    let ids = b3_ids(trace, parts.next()?)?;
    let (sampled, debug) = match parts.next() {
        Some(part) => state(part)?,
        None => (None, false),
    };
    // The caller's parent is none of our business, but must be one.
    if let Some(parent) = parts.next()
        && (parent.len() != 16 || hex(parent).is_none())
    {
        return None;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(Remote { ids: Some(ids), sampled, debug, other_flags: 0, short: trace.len() == 16 })
}

fn read_b3_multi(headers: &HeaderMap) -> Option<Remote> {
    let debug = single(headers, &B3_FLAGS) == Some("1");
    let sampled = match single(headers, &B3_SAMPLED) {
        _ if debug => Some(true),
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    let trace = single(headers, &B3_TRACE_ID);
    let ids = trace.zip(single(headers, &B3_SPAN_ID)).and_then(|(trace, span)| b3_ids(trace, span));
    if ids.is_none() && sampled.is_none() {
        return None;
    }
    let short = ids.is_some() && trace.is_some_and(|trace| trace.len() == 16);
    Some(Remote { ids, sampled, debug, other_flags: 0, short })
}

/// `<trace>:<span>:<parent>:<flags>` in hex without leading zeros, perhaps percent-encoded.
fn read_jaeger(value: &str) -> Option<Remote> {
    let decoded;
    let value = if value.contains('%') {
        decoded = value.replace("%3A", ":").replace("%3a", ":");
        &decoded
    } else {
        value
    };
    let mut parts = value.split(':');
    let ids = ids(parts.next()?, parts.next()?)?;
    let _parent = hex(parts.next()?)?;
    let flags = u8::try_from(hex(parts.next()?)?).ok()?;
    if parts.next().is_some() {
        return None;
    }
    let debug = flags & DEBUG != 0;
    let sampled = Some(flags & SAMPLED != 0 || debug);
    Some(Remote { ids: Some(ids), sampled, debug, other_flags: 0, short: false })
}

fn b3_ids(trace: &str, span: &str) -> Option<(TraceId, SpanId)> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    ids(trace, span)
}

/// Neither is zero.
fn ids(trace: &str, span: &str) -> Option<(TraceId, SpanId)> {
    let trace = hex(trace).filter(|id| *id != 0)?;
    let span = hex(span).filter(|id| *id != 0)?;
    Some((TraceId(trace.to_be_bytes()), SpanId(u64::try_from(span).ok()?.to_be_bytes())))
}

/// 1 to 32 hex digits; not what `from_str_radix` also takes: signs.
fn hex(digits: &str) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    digits.bytes().try_fold(0, |number, byte| Some(number << 4 | u128::from(char::from(byte).to_digit(16)?)))
}

/// W3C, and what came.
pub(super) fn write(context: &TraceContext, headers: &mut HeaderMap) {
    let TraceContext { trace_id, span_id, parent, sampled, other_flags, debug, came_as, .. } = context;
    let state = match (debug, sampled) {
        (true, _) => 'd',
        (false, true) => '1',
        (false, false) => '0',
    };
    let flags = u8::from(*sampled) | other_flags;
    headers.insert(TRACEPARENT, traceparent(trace_id, span_id, flags));
    if came_as.b3_single || came_as.b3_multi {
        let long = trace_id.to_string();
        let trace_id = if came_as.short { &long[16..] } else { &long };
        if came_as.b3_single {
            match parent {
                Some(parent) => set(headers, B3, format_args!("{trace_id}-{span_id}-{state}-{parent}")),
                None => set(headers, B3, format_args!("{trace_id}-{span_id}-{state}")),
            }
        }
        if came_as.b3_multi {
            set(headers, B3_TRACE_ID, format_args!("{trace_id}"));
            set(headers, B3_SPAN_ID, format_args!("{span_id}"));
            match parent {
                Some(parent) => set(headers, B3_PARENT, format_args!("{parent}")),
                None => drop(headers.remove(B3_PARENT)),
            }
            if *debug {
                headers.insert(B3_FLAGS, HeaderValue::from_static("1"));
                headers.remove(B3_SAMPLED);
            } else {
                headers.insert(B3_SAMPLED, HeaderValue::from_static(if *sampled { "1" } else { "0" }));
                headers.remove(B3_FLAGS);
            }
        }
    }
    if came_as.jaeger {
        let flags = if *debug { SAMPLED | DEBUG } else { u8::from(*sampled) };
        set(headers, UBER_TRACE_ID, format_args!("{trace_id}:{span_id}:0:{flags:x}"));
    }
}

/// As `00-{trace_id}-{span_id}-{flags:02x}`, which every request needs and which the formatting of `std` makes slowly.
fn traceparent(TraceId(trace): &TraceId, SpanId(span): &SpanId, flags: u8) -> HeaderValue {
    let mut text = *b"00-________________________________-________________-__";
    write_hex(&mut text[3..35], trace);
    write_hex(&mut text[36..52], span);
    write_hex(&mut text[53..55], &[flags]);
    let mut value = HeaderValue::from_bytes(&text).expect("hex digits and dashes");
    // Never the same again, like `x-request-id`.
    value.set_sensitive(true);
    value
}

fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: std::fmt::Arguments<'_>) {
    let mut text = String::with_capacity(80);
    text.write_fmt(value).expect("writing to a string");
    // Takes the string's memory over: no second copy.
    let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("hex digits and dashes");
    headers.insert(name, value);
}
