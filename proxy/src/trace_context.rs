//! Which trace a request belongs to: read from the headers of W3C Trace Context, B3 (single and
//! multi) or Jaeger, continued, and injected in what came in plus W3C.
//!
//! A trace whose spans this proxy does not export (not sampled, or nowhere to send them) is passed on as
//! it is: with a span id of our own in between, the next span would have a parent that nobody
//! has. So these cost no allocation. What is not sampled and came with W3C headers is not touched at
//! all. A proxy that exports no spans starts no traces either: the next one that does will. It would have to
//! say of each whether it is sampled, and an app that traces itself, as most SDKs are set, would obey: a
//! sidecar without a collector would switch the app's own tracing off.
//!
//! `baggage` and `tracestate` go on as they came; a `tracestate` without a valid `traceparent` does
//! not.

mod format;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderMap;

/// Name of a trace; not zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// Name of a span; not zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// What decides about new traces; shared between workers, cheap to clone.
#[derive(Clone, Debug)]
pub struct Sampler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bits of an `f64`.
    ratio: AtomicU64,
    exports: bool,
    heeds_caller: bool,
}

/// A request's place in a trace.
#[derive(Clone, Debug)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    sampled: bool,
    /// W3C flags besides `sampled`, to be passed on.
    other_flags: u8,
    /// B3's and Jaeger's.
    debug: bool,
    came_as: Formats,
    /// The span is nobody's: the trace begins here.
    is_root: bool,
    /// Whether this proxy exports spans at all.
    exports: bool,
}

/// Formats in which a context came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Formats {
    w3c: bool,
    b3_multi: bool,
    b3_single: bool,
    jaeger: bool,
    /// A B3 trace id of 64 bits.
    short: bool,
}

/// What headers of one format say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remote {
    ids: Option<(TraceId, SpanId)>,
    /// `None`: the decision is left to us.
    sampled: Option<bool>,
    debug: bool,
    other_flags: u8,
    short: bool,
}

impl TraceContext {
    /// What the headers say, or a new trace. The span is the caller's (or, of a new trace, nobody's);
    /// [`Self::child`] makes one's own.
    pub fn extract(headers: &HeaderMap, sampler: &Sampler, rng: &mut impl rand::Rng) -> Self {
        let (remote, came_as) = format::read(headers);
        let (trace_id, span_id, is_root) = match remote.and_then(|remote| remote.ids) {
            Some((trace_id, span_id)) => (trace_id, span_id, false),
            None => (TraceId::random(rng), SpanId::random(rng), true),
        };
        let said = remote.and_then(|remote| remote.sampled);
        let sampled = match said {
            Some(said) if sampler.shared.heeds_caller => said,
            _ => sampler.decide(trace_id),
        };
        Self {
            trace_id,
            span_id,
            parent: None,
            sampled,
            other_flags: remote.map_or(0, |remote| remote.other_flags),
            debug: sampled && remote.is_some_and(|remote| remote.debug),
            came_as,
            is_root,
            exports: sampler.shared.exports,
        }
    }

    /// A new span of the same trace, child of this. Where no spans are exported, the same again.
    #[must_use]
    pub fn child(&self, rng: &mut impl rand::Rng) -> Self {
        if !self.is_sampled() {
            return self.clone();
        }
        let parent = (!self.is_root).then_some(self.span_id);
        Self { span_id: SpanId::random(rng), parent, is_root: false, ..self.clone() }
    }

    /// Writes it into the headers, in the formats that came in plus W3C.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if !self.came_as.w3c {
            headers.remove(format::TRACESTATE);
            // What came, if it came, is no valid one.
            headers.remove(format::TRACEPARENT);
        }
        if !self.is_known() {
            return;
        }
        if self.is_sampled() || self.is_root || !self.came_as.w3c {
            format::write(self, headers);
        }
    }

    /// Whether its spans are to be exported.
    pub fn is_sampled(&self) -> bool {
        self.sampled && self.exports
    }

    /// Whether others know this trace too: it came from somebody, or is passed on.
    pub fn is_known(&self) -> bool {
        self.exports || !self.is_root
    }

    /// The trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The span.
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// The span that it is a child of.
    pub fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    /// Whether the trace begins here, so that the span is nobody's.
    pub fn is_root(&self) -> bool {
        self.is_root
    }
}

impl Sampler {
    /// Samples this share of new traces. `exports`: whether spans go anywhere at all. `heeds_caller`:
    /// whether what the caller decided stands.
    pub fn new(ratio: f64, exports: bool, heeds_caller: bool) -> Self {
        let sampler = Self { shared: Arc::new(Shared { ratio: AtomicU64::default(), exports, heeds_caller }) };
        sampler.set_ratio(ratio);
        sampler
    }

    /// Changes the share.
    pub fn set_ratio(&self, ratio: f64) {
        let ratio = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
        self.shared.ratio.store(ratio.to_bits(), Ordering::Relaxed);
    }

    /// The share.
    pub fn ratio(&self) -> f64 {
        f64::from_bits(self.shared.ratio.load(Ordering::Relaxed))
    }

    /// By the trace's name, as OpenTelemetry's `traceidratio` does: whoever decides anew, decides alike.
    fn decide(&self, TraceId(id): TraceId) -> bool {
        let ratio = self.ratio();
        let [.., a, b, c, d, e, f, g, h] = id;
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = (ratio * (1_u64 << 63) as f64) as u64;
        ratio >= 1.0 || u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < limit
    }
}

impl Default for Sampler {
    /// Of a proxy that exports no spans.
    fn default() -> Self {
        Self::new(0.0, false, true)
    }
}

impl TraceId {
    /// A new one.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        Self(rng.random::<u128>().max(1).to_be_bytes())
    }
}

impl SpanId {
    /// A new one.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        Self(rng.random::<u64>().max(1).to_be_bytes())
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}
