//! A connection and what becomes of it, where no request tells: opaque bytes, or an end before any request.

use std::sync::Arc;

use tokio::time::Instant;

use super::Sink;
use crate::{
    outcome::{ConnectionOutcome, Error, Outcome},
    tcp::Copied,
};

/// A connection under way. Put on record when it fails, or as soon as it is opaque; one that carried requests is
/// not: they are.
pub(crate) struct ConnectionRecord {
    /// What is known so far.
    pub(crate) outcome: ConnectionOutcome,
    since: Instant,
    sink: Sink,
    recorded: bool,
}

impl ConnectionRecord {
    /// Begins with what is known at the beginning.
    pub(crate) fn new(outcome: ConnectionOutcome, since: Instant, sink: &Sink) -> Self {
        Self { outcome, since, sink: sink.clone(), recorded: false }
    }

    /// It is opaque, and over.
    pub(crate) fn finish(&mut self, copied: &Copied, interrupted: Option<Error>) {
        self.outcome.received_bytes = copied.sent;
        self.outcome.sent_bytes = copied.received;
        self.outcome.closed_by = copied.closed_by;
        self.outcome.error = interrupted.or_else(|| copied.failure.as_ref().map(crate::tcp::Failure::error));
        self.record();
    }

    /// It came to nothing.
    pub(crate) fn fail(&mut self, error: Error) {
        self.outcome.error = Some(error);
        self.record();
    }

    /// The name of what it was meant for.
    pub(crate) fn target(&mut self, target: impl Into<Arc<str>>) {
        self.outcome.target = Some(target.into());
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let outcome = ConnectionOutcome { duration: self.since.elapsed(), ..self.outcome.clone() };
        (self.sink)(Outcome::Connection(Box::new(outcome)));
    }
}
