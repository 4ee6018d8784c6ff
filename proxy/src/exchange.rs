//! One request and what becomes of it, while it is under way; at its end the one [`Outcome`] is made of it.
//!
//! Everyone who has a part in a request (its body, its tries, the body of its response) holds the same
//! exchange. Whoever finishes it puts it on record; if nobody does, the last who lets go of it does: then
//! the caller was gone.

mod connection;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use heddle_certs::SpiffeId;
use http::StatusCode;
use tokio::time::{Duration, Instant};

pub(crate) use self::connection::ConnectionRecord;
use crate::{
    outcome::{Attempt, ClosedBy, Error, ErrorKind, Outcome, RequestOutcome},
    snapshot::Endpoint,
    trace_context::SpanId,
};

/// Where outcomes go.
pub(crate) type Sink = Rc<dyn Fn(Outcome)>;

/// A request under way.
pub(crate) struct Exchange {
    /// `None` once on record.
    outcome: RefCell<Option<Box<RequestOutcome>>>,
    sink: Sink,
    started: Instant,
    request_bytes: Cell<u64>,
    interrupt: Interrupt,
}

/// Says that a request must end before its time.
#[derive(Debug, Default)]
struct Interrupt {
    error: RefCell<Option<Error>>,
    waker: RefCell<Option<Waker>>,
}

/// One try of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptId {
    index: usize,
    started: Instant,
}

impl AttemptId {
    /// When the try began.
    pub(crate) fn started(self) -> Instant {
        self.started
    }
}

impl Exchange {
    /// Begins with what is known at the beginning.
    pub(crate) fn begin(outcome: RequestOutcome, sink: &Sink) -> Rc<Self> {
        Rc::new(Self {
            outcome: RefCell::new(Some(Box::new(outcome))),
            sink: sink.clone(),
            started: Instant::now(),
            request_bytes: Cell::new(0),
            interrupt: Interrupt::default(),
        })
    }

    /// Adds to what is known. After the end there is nothing to add to.
    pub(crate) fn note(&self, change: impl FnOnce(&mut RequestOutcome)) {
        if let Some(outcome) = &mut *self.outcome.borrow_mut() {
            change(outcome);
        }
    }

    /// Reads what is known, while it is not over.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&RequestOutcome) -> T) -> Option<T> {
        self.outcome.borrow().as_deref().map(read)
    }

    /// After this try its endpoint was ejected.
    pub(crate) fn ejected(&self, attempt: AttemptId) {
        self.note(|outcome| outcome.attempts[attempt.index].ejected = true);
    }

    /// When the request came.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Part of the request's body came.
    pub(crate) fn count_request_bytes(&self, bytes: usize) {
        self.request_bytes.update(|total| total + bytes as u64);
    }

    /// A try begins.
    pub(crate) fn begin_attempt(&self, endpoint: Option<Arc<Endpoint>>, span_id: SpanId, now: Instant) -> AttemptId {
        let mut index = 0;
        self.note(|outcome| {
            index = outcome.attempts.len();
            let started = outcome.started + (now - self.started);
            outcome.attempts.push(Attempt::new(endpoint, started, span_id));
        });
        AttemptId { index, started: now }
    }

    fn note_attempt(&self, id: AttemptId, change: impl FnOnce(&mut Attempt)) {
        self.note(|outcome| {
            if let Some(attempt) = outcome.attempts.get_mut(id.index) {
                change(attempt);
            }
        });
    }

    /// A connection was found or made for a try.
    pub(crate) fn connected(&self, id: AttemptId, took: Option<Duration>, peer: Option<&SpiffeId>) {
        self.note_attempt(id, |attempt| {
            attempt.connect = took;
            attempt.peer = peer.cloned();
        });
    }

    /// A try is answered.
    pub(crate) fn answered(&self, id: AttemptId, status: StatusCode, grpc_status: Option<u32>) {
        self.note_attempt(id, |attempt| {
            attempt.status = Some(status);
            attempt.grpc_status = grpc_status;
        });
    }

    /// A try is over.
    pub(crate) fn end_attempt(
        &self,
        id: AttemptId,
        grpc_status: Option<u32>,
        error: Option<Error>,
        closed_by: Option<ClosedBy>,
    ) {
        self.note_attempt(id, |attempt| {
            attempt.duration = id.started.elapsed();
            attempt.grpc_status = grpc_status.or(attempt.grpc_status);
            attempt.error = attempt.error.take().or(error);
            attempt.closed_by = closed_by;
        });
    }

    /// The try under way, if there is one, has come to nothing.
    pub(crate) fn fail_attempt(&self, error: &Error) {
        self.note(|outcome| {
            if let Some(attempt) = outcome.attempts.last_mut()
                && attempt.error.is_none()
                && attempt.status.is_none()
            {
                attempt.error = Some(error.clone());
            }
        });
    }

    /// Why a try has come to nothing, if it has.
    pub(crate) fn attempt_failed(&self, id: AttemptId) -> Option<ErrorKind> {
        self.read(|outcome| Some(outcome.attempts.get(id.index)?.error.as_ref()?.kind)).flatten()
    }

    /// A try was given up before it was answered.
    pub(crate) fn end_unended(&self, id: AttemptId) {
        self.note_attempt(id, |attempt| {
            if attempt.duration.is_zero() && attempt.status.is_none() {
                attempt.duration = id.started.elapsed();
                attempt.closed_by = Some(ClosedBy::Proxy);
            }
        });
    }

    /// It is over; once.
    pub(crate) fn finish(&self, response_bytes: u64, grpc_status: Option<u32>, error: Option<Error>) {
        let Some(mut outcome) = self.outcome.borrow_mut().take() else { return };
        outcome.duration = self.started.elapsed();
        outcome.request_bytes = self.request_bytes.get();
        outcome.response_bytes = response_bytes;
        outcome.grpc_status = grpc_status.or(outcome.grpc_status);
        outcome.error = outcome.error.or(error);
        (self.sink)(Outcome::Request(outcome));
    }

    /// Has it end with this error, wherever it is.
    pub(crate) fn interrupt(&self, error: Error) {
        *self.interrupt.error.borrow_mut() = Some(error);
        if let Some(waker) = self.interrupt.waker.take() {
            waker.wake();
        }
    }

    /// Why it has been interrupted, if it has.
    pub(crate) fn interrupted(&self) -> Option<Error> {
        self.interrupt.error.borrow().clone()
    }

    /// Ready once it has been interrupted.
    pub(crate) fn poll_interrupted(&self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(error) = &*self.interrupt.error.borrow() {
            return Poll::Ready(error.clone());
        }
        let mut waker = self.interrupt.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.outcome.get_mut().is_none() {
            return;
        }
        let gone = Error::new(ErrorKind::ClientGone, "the caller went away before it was answered").after_send();
        self.finish(0, None, Some(gone));
    }
}
