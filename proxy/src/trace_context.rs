//! Which trace a request belongs to: read from the headers of W3C Trace Context, B3 (single and
//! multi) or Jaeger, continued, and injected in what came in plus W3C.

use std::{fmt, sync::Arc};

use http::HeaderMap;

/// Name of a trace; not zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// Name of a span; not zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

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

/// Share of new traces that are sampled; shared between workers, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    _ratio: Arc<std::sync::atomic::AtomicU64>,
}

/// A request's place in a trace.
#[derive(Clone, Debug)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    sampled: bool,
}

impl TraceContext {
    /// What the headers say, or a new trace. The span is the caller's (or, of a new trace, its root);
    /// [`Self::child`] makes one's own.
    pub fn extract(headers: &HeaderMap, sampler: &Sampler, rng: &mut impl rand::Rng) -> Self {
        let _ = (headers, sampler, rng);
        todo!()
    }

    /// A new span of the same trace, child of this.
    #[must_use]
    pub fn child(&self, rng: &mut impl rand::Rng) -> Self {
        let _ = rng;
        todo!()
    }

    /// Writes it into the headers, in the formats that came in plus W3C.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let _ = headers;
        todo!()
    }

    /// Whether its spans are to be exported.
    pub fn is_sampled(&self) -> bool {
        self.sampled
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
}
