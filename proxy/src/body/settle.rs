//! What is settled when a response is over.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName};
use http_body::Frame;

use super::BodyError;
use crate::{
    cluster::{balance::Picked, limit::Permit},
    connect::Lease,
    exchange::{AttemptId, Exchange},
    outcome::{ClosedBy, Error, ErrorKind},
    serve::Busy,
    timer::Timer,
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Held while a response is on its way, and settled at its end.
#[derive(Default)]
pub(crate) struct Settle {
    /// The connection that it comes over; goes back to its pool after a whole response.
    pub(crate) lease: Option<Lease>,
    /// The endpoint that it comes from.
    pub(crate) picked: Option<Rc<Picked>>,
    /// The place that it takes within the cluster's limit.
    pub(crate) permit: Option<Permit>,
    /// When it must be over.
    pub(crate) deadline: Option<(Timer, ErrorKind)>,
    /// The try that it answers.
    pub(crate) attempt: Option<(Rc<Exchange>, AttemptId)>,
    /// The request that it answers; set once no other response will.
    pub(crate) exchange: Option<Rc<Exchange>>,
    /// The caller's connection, which is not idle meanwhile.
    pub(crate) busy: Option<Busy>,
    bytes: u64,
    grpc_status: Option<u32>,
}

impl Settle {
    /// A frame passes.
    pub(super) fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(busy) = &self.busy {
            busy.gives();
        }
        if let Some(data) = frame.data_ref() {
            self.bytes += data.remaining() as u64;
        } else if let Some(trailers) = frame.trailers_ref() {
            self.grpc_status = grpc_status(trailers);
        }
    }

    /// Whether the response must be given up, as far as is known without waiting: what is always there to be
    /// passed on would never be waited for. Costs no look at a clock.
    pub(super) fn given_up(&self) -> Option<Error> {
        match &self.deadline {
            Some((timer, kind)) if timer.is_elapsed() => Some(not_in_time(*kind)),
            _ => self.exchange.as_ref()?.interrupted(),
        }
    }

    /// Ready when the response must be given up: time is over, or policy has changed.
    pub(super) fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(busy) = &self.busy {
            busy.waits();
        }
        if let Some((timer, kind)) = &mut self.deadline
            && timer.poll(cx).is_ready()
        {
            return Poll::Ready(not_in_time(*kind));
        }
        match &self.exchange {
            Some(exchange) => exchange.poll_interrupted(cx),
            None => Poll::Pending,
        }
    }

    /// The response has passed in full.
    pub(crate) fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.settle(None, None);
    }

    /// The response broke off.
    pub(super) fn fail(&mut self, error: &BodyError) {
        match error {
            BodyError::Broken(_) => {
                let error = Error::new(ErrorKind::UpstreamReset, "the response broke off").after_send();
                self.settle(Some(error), Some(ClosedBy::Upstream));
            }
            BodyError::GivenUp(error) => self.settle(Some(error.clone()), Some(ClosedBy::Proxy)),
            BodyError::Superseded => self.settle(None, None),
        }
    }

    /// Bytes that passed by another way than as a body.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Puts it on record, once.
    pub(crate) fn settle(&mut self, error: Option<Error>, closed_by: Option<ClosedBy>) {
        self.lease = None;
        self.picked = None;
        self.permit = None;
        self.deadline = None;
        self.busy = None;
        if let Some((exchange, id)) = self.attempt.take() {
            exchange.end_attempt(id, self.grpc_status, error.clone(), closed_by);
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(self.bytes, self.grpc_status, error);
        }
    }
}

fn not_in_time(kind: ErrorKind) -> Error {
    Error::new(kind, "the response was not complete in time").after_send()
}

impl Drop for Settle {
    fn drop(&mut self) {
        // Of what was completed nothing is left. The rest was given up by who received it: the caller,
        // or (then there is no exchange here yet) another try.
        let gone = self.exchange.is_some().then(|| {
            Error::new(ErrorKind::ClientGone, "the caller went away before the response was complete").after_send()
        });
        let closed_by = gone.is_some().then_some(ClosedBy::Downstream);
        self.settle(gone, closed_by);
    }
}

/// What gRPC says of a call, in trailers or in the headers of a response without messages.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
