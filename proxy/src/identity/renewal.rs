//! When to ask for a certificate, and with which proof.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_certs::{Clock, Svid, TrustBundle, rotation, verify::Verifier};
use heddle_runtime::backoff::Jittered;
use tokio::{sync::watch, time::sleep};

use super::{Attestation, Identity, Issue, IssueError, Stored};
use crate::{config::Proof, state::StateDir};

/// The clock is looked at again after at most this: it may be stepped while we sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Between two certificates, at least.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
/// Between tries, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Between tries without any certificate, at most: nothing works until one succeeds.
const LONGEST_PAUSE_WITHOUT: Duration = Duration::from_secs(10);

/// The task that keeps the identity fresh.
pub(crate) struct Renewal<I> {
    /// Who asks.
    pub issuer: I,
    /// Where it goes.
    pub identity: Identity,
    /// Proves the identity at first.
    pub proof: Option<Proof>,
    /// Roots that came with the settings.
    pub anchors: TrustBundle,
    /// Where it is kept.
    pub state: Option<Arc<StateDir>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How it goes.
    pub report: watch::Sender<Report>,
}

/// How renewal goes, for metrics, the config dump and readiness.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// End of the certificate held.
    pub not_after: Option<SystemTime>,
    /// Certificates got since the start.
    pub issued: u64,
    /// Tries that failed since the start.
    pub failures: u64,
    /// Tries that failed since the last success.
    pub failing: u64,
    /// Why the last one failed.
    pub reason: Option<String>,
}

impl<I: Issue> Renewal<I> {
    /// Runs for good.
    pub(crate) async fn run(mut self) {
        // Only of what an earlier process left.
        let mut foreign = self.identity.svid().is_some_and(|svid| self.is_foreign(&svid));
        loop {
            let held = self.identity.svid();
            if let Some(svid) = &held {
                self.report.send_modify(|report| report.not_after = Some(svid.not_after()));
                // Without roots it is of no use; whoever ended before they were kept must not wait for its renewal.
                if !foreign && self.identity.bundle().is_some() {
                    self.until_due(svid).await;
                }
            }
            self.renew(held, foreign).await;
            foreign = false;
        }
    }

    /// Whether the roots in the settings know nothing of a certificate, which may thus be of a control plane that
    /// is no more.
    fn is_foreign(&self, svid: &Svid) -> bool {
        self.is_valid(svid) && Verifier::new(self.anchors.clone()).verify_svid(svid, self.clock.now()).is_err()
    }

    /// Sleeps until the certificate is to be renewed.
    async fn until_due(&self, svid: &Svid) {
        let due = rotation::renew_at(svid.not_before(), svid.not_after(), rand::random());
        // One that is due as soon as it is got, by a clock that is wrong, must not make a busy loop.
        sleep(LEAST_PAUSE).await;
        loop {
            let now = self.clock.now();
            // One that is in use and lies ahead, by a clock that was stepped back, is none to be renewed.
            if now >= due || !self.is_valid(svid) {
                return;
            }
            sleep(due.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP)).await;
        }
    }

    /// Tries until there is a new certificate. `doubtful`: what is held may be worth nothing, and the one who would
    /// have to say so does not even take it in the handshake; the token goes first, and then they take turns.
    async fn renew(&mut self, held: Option<Svid>, doubtful: bool) {
        let lifetime = held.as_ref().and_then(|svid| svid.not_after().duration_since(svid.not_before()).ok());
        let mut backoff = backoff(lifetime);
        // A proof that was refused is tried again only when there is no other.
        let mut held_refused = false;
        let mut held_next = !doubtful;
        loop {
            let valid = held.as_ref().is_some_and(|svid| self.is_valid(svid));
            let attestation = match (&held, &self.proof) {
                (Some(svid), _) if valid && !held_refused && held_next => Attestation::Held(svid.clone()),
                (_, Some(proof)) => Attestation::Token(proof.clone()),
                (Some(svid), None) if valid => Attestation::Held(svid.clone()),
                _ => {
                    self.failed("the certificate has expired, and the join file holds no token: make a new one with `heddle token create` and restart");
                    sleep(LONGEST_SLEEP).await;
                    continue;
                }
            };
            let by_token = matches!(attestation, Attestation::Token(_));
            held_next = !doubtful || by_token;
            if by_token && held.is_some() {
                let why = match (valid, held_refused) {
                    (false, _) => "it has expired",
                    (true, true) => "its renewal was refused",
                    (true, false) => "the roots in the settings do not vouch for it",
                };
                tracing::warn!(why, "the certificate cannot be renewed; trying the token");
            }
            let reason = match self.issuer.issue(attestation).await {
                Ok(issued) => match self.take(issued.svid, issued.bundle).await {
                    Ok(()) => return,
                    Err(reason) => reason,
                },
                Err(error) => {
                    if !by_token && matches!(error, IssueError::Refused(_)) {
                        held_refused = true;
                    } else if by_token {
                        // The control plane may have come to its senses about the other.
                        held_refused = false;
                    }
                    error.to_string()
                }
            };
            self.failed(&reason);
            sleep(backoff.next_delay()).await;
        }
    }

    fn is_valid(&self, svid: &Svid) -> bool {
        super::is_valid(svid, &*self.clock)
    }

    async fn take(&self, svid: Svid, bundle: TrustBundle) -> Result<(), String> {
        if !self.is_valid(&svid) {
            return Err("the new certificate is not valid now: is this host's clock right?".to_owned());
        }
        self.identity.set_svid(svid.clone(), Some(bundle)).map_err(|error| error.to_string())?;
        self.report.send_modify(|report| {
            report.not_after = Some(svid.not_after());
            report.issued += 1;
            report.failing = 0;
            report.reason = None;
        });
        tracing::info!(id = %svid.id(), "a new certificate is in use");
        self.save(svid).await;
        Ok(())
    }

    /// Only memory holds it if this fails: a restart then needs the control plane.
    async fn save(&self, svid: Svid) {
        let Some(state) = self.state.clone() else { return };
        let identity = self.identity.clone();
        let write = move || {
            Stored::save_svid(&state, &svid)?;
            identity.keep_bundle(&state)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = crate::control_plane::causes(&error), "the certificate is not kept")
            }
            Err(error) => tracing::warn!(%error, "the certificate is not kept"),
        }
    }

    fn failed(&self, reason: &str) {
        tracing::warn!(reason, "no new certificate");
        self.report.send_modify(|report| {
            report.failures += 1;
            report.failing += 1;
            report.reason = Some(reason.to_owned());
        });
    }
}

/// Scaled to the lifetime, so that short-lived certificates get as many tries as long-lived ones.
fn backoff(lifetime: Option<Duration>) -> Jittered {
    match lifetime {
        Some(lifetime) => {
            let base = (lifetime / 50).clamp(Duration::from_millis(50), Duration::from_secs(1));
            Jittered::new(base, (lifetime / 10).clamp(base, LONGEST_PAUSE))
        }
        None => Jittered::new(Duration::from_millis(500), LONGEST_PAUSE_WITHOUT),
    }
}
