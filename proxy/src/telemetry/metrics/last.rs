//! Counting what is like the request before, as most are: its cells are at hand, and no label is written, hashed and
//! compared to find them.

use std::sync::Arc;

use heddle_certs::SpiffeId;
use http::{Method, StatusCode};

use super::{
    Cells,
    sharded::{Counter, Durations, Kept},
};
use crate::{
    outcome::{Attempt, Direction, RequestOutcome},
    snapshot::{ClusterName, HttpRule, ServiceName},
};

/// The last request that went well.
#[derive(Debug, Default)]
pub(super) struct Last {
    like: Option<Like>,
    /// Once two in a row were like each other.
    cells: Option<AtHand>,
}

/// What the labels are made of.
#[derive(Clone, Debug)]
struct Like {
    direction: Direction,
    service: Option<ServiceName>,
    cluster: Option<ClusterName>,
    rule: Option<Arc<HttpRule>>,
    peer: Option<SpiffeId>,
    method: Method,
    status: Option<StatusCode>,
}

#[derive(Debug)]
struct AtHand {
    durations: Kept<Durations>,
    /// Outbound only.
    attempts: Option<Kept<Counter>>,
    request_bytes: Kept<Counter>,
    response_bytes: Kept<Counter>,
}

/// Labels of a request that went well.
pub(super) struct Labels<'a> {
    pub(super) durations: [&'a str; 5],
    /// Outbound only.
    pub(super) attempts: Option<[&'a str; 2]>,
    pub(super) bytes: [&'a str; 2],
}

impl Last {
    /// Counts a request, if it is like the last.
    pub(super) fn count(&self, request: &RequestOutcome) -> bool {
        let (Some(like), Some(cells)) = (&self.like, &self.cells) else { return false };
        is_plain(request) && like.is_like(request) && cells.count(request).is_some()
    }

    /// After it was counted.
    pub(super) fn note(&mut self, request: &RequestOutcome, labels: &Labels<'_>, cells: &Cells) {
        if !is_plain(request) {
            return;
        }
        let again = self.like.as_ref().is_some_and(|like| like.is_like(request));
        self.cells = if again { AtHand::find(request.direction, labels, cells) } else { None };
        if !again {
            self.like = Some(Like::of(request));
        }
    }
}

impl Like {
    fn of(request: &RequestOutcome) -> Self {
        Self {
            direction: request.direction,
            service: request.service.clone(),
            cluster: request.cluster.clone(),
            rule: request.rule.clone(),
            peer: request.peer.clone(),
            method: request.method.clone(),
            status: request.status,
        }
    }

    fn is_like(&self, request: &RequestOutcome) -> bool {
        let same_rule = match (&self.rule, &request.rule) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_rule
            && self.direction == request.direction
            && self.status == request.status
            && self.method == request.method
            && self.service == request.service
            && self.cluster == request.cluster
            && self.peer == request.peer
    }
}

impl AtHand {
    fn find(direction: Direction, labels: &Labels<'_>, cells: &Cells) -> Option<Self> {
        let durations = if direction == Direction::Inbound { &cells.server } else { &cells.client };
        let attempts = match labels.attempts {
            Some(labels) => Some(cells.attempts.known(labels)?),
            None => None,
        };
        Some(Self {
            durations: durations.known(labels.durations)?,
            attempts,
            request_bytes: cells.request_bytes.known(labels.bytes)?,
            response_bytes: cells.response_bytes.known(labels.bytes)?,
        })
    }

    /// `None`: nothing was counted, as one of them has been retired.
    fn count(&self, request: &RequestOutcome) -> Option<()> {
        let attempts = match &self.attempts {
            Some(attempts) => Some(attempts.cell()?),
            None => None,
        };
        let (durations, received, sent) =
            (self.durations.cell()?, self.request_bytes.cell()?, self.response_bytes.cell()?);
        durations.observe(request.duration);
        if let Some(attempts) = attempts {
            attempts.add(1);
        }
        received.add(request.request_bytes);
        sent.add(request.response_bytes);
        Some(())
    }
}

/// Whether there is nothing to count but what [`AtHand`] has: it is no call of gRPC, was let in, and answered at the
/// first try over a connection that was there.
fn is_plain(request: &RequestOutcome) -> bool {
    let went_well = |attempt: &Attempt| {
        attempt.error.is_none() && attempt.connect.is_none() && !attempt.ejected && attempt.status == request.status
    };
    request.error.is_none()
        && !request.grpc
        && request.retry_refused.is_none()
        && request.authorization.as_ref().is_none_or(|verdict| verdict.allowed)
        && request.status.is_some()
        && (request.direction == Direction::Inbound || matches!(&request.attempts[..], [only] if went_well(only)))
}
