//! One stream: reads what the proxy says, writes what it is to know.

use std::{sync::Arc, time::Duration};

use heddle_api::proto::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_certs::Clock;
use heddle_runtime::drain;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::hub::{Handle, Hub, Proxy};
use crate::{
    authority::Signer,
    identity::revoked,
    pace::{Bucket, Rate},
    peer::Peer,
    tokens::Revocations,
};

/// How long a new stream may take to say who it is.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Names in messages that count as one message.
const NAMES_PER_TOKEN: f64 = 16.0;
/// Messages a second that a proxy may send for long, and at once. Above that it is read more slowly.
const MESSAGES: Rate = Rate { burst: 500.0, per_second: 200.0 };

/// Changes that are told at once, and how often it is looked for further ones: those of a burst gather for
/// 25 ms.
const CHANGES: Rate = Rate { burst: 4.0, per_second: 40.0 };

/// Responses that are not answered, from which on further ones may be waiting for the answers.
const BACKLOG: usize = 8;

/// What may end a stream whose certificate is valid still.
pub(super) struct Trust {
    pub(super) signer: Arc<Signer>,
    pub(super) revocations: Revocations,
}

/// Talks until the proxy leaves, is replaced, or the control plane drains. Returns the status to end
/// the stream with, if any.
pub(super) async fn run(
    hub: Hub,
    Trust { signer, revocations }: Trust,
    peer: Peer,
    clock: Arc<dyn Clock>,
    mut inbound: Streaming<DeltaDiscoveryRequest>,
    outbound: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    drain: drain::Watch,
) {
    let served = async {
        let Some(handle) = open(&hub, &peer, &*clock, &mut inbound).await? else { return Ok(()) };
        talk(&handle, &peer, &*clock, &mut inbound, &outbound, &drain).await
    };
    let status = tokio::select! {
        ended = served => ended,
        () = revocations.revoked(&peer, &*clock) => Err(revoked(&peer)),
        status = signer.distrusts(&peer) => Err(status),
    };
    if let Err(status) = status {
        tracing::debug!(peer = %peer.address, %status, "discovery stream ended");
        // If the proxy does not read, it need not know.
        let _ = timeout(Duration::from_secs(1), outbound.send(Err(status))).await;
    }
}

/// Reads the first message, which says who asks.
async fn open(
    hub: &Hub,
    peer: &Peer,
    clock: &dyn Clock,
    inbound: &mut Streaming<DeltaDiscoveryRequest>,
) -> Result<Option<Handle>, Status> {
    let verified = peer.verified(clock.now())?;
    let first = timeout(FIRST_MESSAGE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the first message did not come in time"))?;
    let Some(first) = first? else {
        return Ok(None);
    };
    let Some(node) = &first.node else {
        return Err(Status::invalid_argument("the first message of a stream must carry a node"));
    };
    let proxy = Proxy {
        node: node.id.clone(),
        identity: verified.id.clone(),
        address: peer.address,
        version: node.user_agent_version.chars().take(64).collect(),
        since: clock.now(),
        certificate_expiry: verified.not_after,
    };
    let handle = hub.open(proxy)?;
    handle.handle(first).await?;
    Ok(Some(handle))
}

async fn talk(
    handle: &Handle,
    peer: &Peer,
    clock: &dyn Clock,
    inbound: &mut Streaming<DeltaDiscoveryRequest>,
    outbound: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    drain: &drain::Watch,
) -> Result<(), Status> {
    let not_after = peer.verified(clock.now())?.not_after;
    let left = not_after.duration_since(clock.now()).unwrap_or_default();
    let expiry = Instant::now() + left.min(Duration::from_secs(365 * 86_400));
    let mut pace = Bucket::new(MESSAGES, Instant::now());
    let mut may_have_more = true;
    let mut changes = Bucket::new(CHANGES, Instant::now());
    let mut gathering_until = None;
    // What was asked for is answered at once, however much it is.
    let (mut is_asked, mut has_told, mut unanswered) = (true, false, 0_usize);
    loop {
        tokio::select! {
            message = inbound.message(), if pace.ready_at(Instant::now()) <= Instant::now() => {
                let Some(message) = message? else { return Ok(()) };
                pace.take(Instant::now());
                let names = names(&message);
                pace.charge(names as f64 / NAMES_PER_TOKEN, Instant::now());
                // What is not told for want of answers was due before.
                let was_held_back = unanswered >= BACKLOG;
                unanswered = unanswered.saturating_sub(usize::from(!message.response_nonce.is_empty()));
                handle.handle(message).await?;
                if names > 0 || was_held_back {
                    (may_have_more, is_asked, gathering_until) = (true, true, None);
                } else if !may_have_more && gathering_until.is_none() {
                    gathering_until = Some(changes.ready_at(Instant::now()));
                }
            }
            () = sleep_until(pace.ready_at(Instant::now())), if pace.ready_at(Instant::now()) > Instant::now() => {}
            // Looked up only when it can be sent: a slow reader gets the latest.
            permit = outbound.reserve(), if may_have_more => {
                let Ok(permit) = permit else { return Ok(()) };
                match handle.next().await {
                    Some(response) => {
                        unanswered += 1;
                        // All that there is goes now: a kind that changes all the time must not hold up the others.
                        if !is_asked && !std::mem::replace(&mut has_told, true) {
                            changes.take(Instant::now());
                        }
                        permit.send(Ok(response));
                    }
                    None => (may_have_more, is_asked, has_told) = (false, false, false),
                }
            }
            () = handle.wake.notified(), if !may_have_more && gathering_until.is_none() => {
                gathering_until = Some(changes.ready_at(Instant::now()));
            }
            // A lone change goes at once. Those of a burst go together: each may be large.
            () = sleep_until(gathering_until.unwrap_or(expiry)), if gathering_until.is_some() => {
                (may_have_more, gathering_until) = (true, None);
            }
            () = handle.replaced.cancelled() => {
                return Err(Status::aborted("a newer stream of this proxy has taken over"));
            }
            () = sleep_until(expiry) => {
                return Err(Status::unauthenticated("the certificate of this connection has expired; connect with a new one"));
            }
            () = drain.drained() => return Err(Status::unavailable("the control plane is shutting down")),
        }
    }
}

/// How many names a message has, of all kinds: each costs a look-up, or more.
fn names(message: &DeltaDiscoveryRequest) -> usize {
    message.resource_names_subscribe.len()
        + message.resource_names_unsubscribe.len()
        + message.initial_resource_versions.len()
}
