//! Replacing the root of a mesh that is at work: the authority takes a step, and everybody is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use heddle_certs::Clock;
use tokio::time::Instant;

use crate::{
    api::{RootInfo, RootKeeper, RootPhase, RootRefusal, RootStatus, RootStep},
    authority::{Phase, RootError, Roots, Signer},
    certificate::Certificate,
    discovery::Hub,
    follow::rfc3339,
    registry::Registry,
};

/// Proxies that are named.
const MAX_NAMED: usize = 20;

/// Takes the steps, one after the other.
#[derive(Debug)]
pub struct Rotation {
    signer: Arc<Signer>,
    certificate: Arc<Certificate>,
    hub: Hub,
    registry: Arc<Registry>,
    svid_ttl: Duration,
    clock: Arc<dyn Clock>,
    /// From when on every proxy that is alive has had the time to connect again.
    settled: Instant,
    turn: Mutex<()>,
}

/// How far a proxy is.
#[derive(Clone, Copy)]
struct Progress {
    /// It has applied the roots of now.
    applied: bool,
    /// When its certificate ends, if that is known.
    certificate_end: Option<SystemTime>,
}

impl Rotation {
    /// Of this authority, for these proxies. `svid_ttl`: how long their certificates are valid; `lease`: after which
    /// time one that says nothing counts as gone.
    pub fn new(
        signer: Arc<Signer>,
        certificate: Arc<Certificate>,
        hub: Hub,
        registry: Arc<Registry>,
        svid_ttl: Duration,
        lease: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let settled = Instant::now() + lease;
        Self { signer, certificate, hub, registry, svid_ttl, clock, settled, turn: Mutex::default() }
    }

    /// Of each proxy that is registered or connected: one that is away has whatever it had.
    fn progress(&self) -> BTreeMap<String, Progress> {
        let view = self.registry.view();
        let away = Progress { applied: false, certificate_end: None };
        let mut proxies: BTreeMap<String, Progress> =
            view.registrations(None, None).map(|registration| (registration.name.to_string(), away)).collect();
        for (proxy, applied) in self.hub.roots_applied() {
            proxies.insert(proxy.node, Progress { applied, certificate_end: Some(proxy.certificate_expiry) });
        }
        proxies
    }
}

impl RootKeeper for Rotation {
    fn status(&self) -> RootStatus {
        // As of before what proxies say: they cannot be further than the roots that are told with it.
        let roots = self.signer.roots();
        status(&roots, &self.progress(), self.clock.now())
    }

    fn step(&self, step: RootStep, force: bool) -> Result<RootStatus, RootRefusal> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.status();
        let not_ready = match (step, before.phase) {
            _ if force => None,
            (RootStep::Activate, RootPhase::Prepared) if before.behind_count > 0 => Some(format!(
                "{} of {} proxies have not applied the new root yet: {}; wait for them, or force it: whoever has \
                 not, refuses the others",
                before.behind_count,
                before.proxies,
                named(&before.behind, before.behind_count)
            )),
            (RootStep::Retire, RootPhase::Activated) if before.old_certificates_count > 0 => Some(format!(
                "{} of {} proxies may hold a certificate of the old root still: {}; they renew it at two thirds of \
                 its life, wait for them, or force it: whoever has not, is refused by the others",
                before.old_certificates_count,
                before.proxies,
                named(&before.old_certificates, before.old_certificates_count)
            )),
            (RootStep::Activate | RootStep::Retire, _) if Instant::now() < self.settled => Some(format!(
                "the control plane has just started, and proxies that only call others may not be back yet; \
                 try again in {} s, or force it",
                (self.settled - Instant::now()).as_secs() + 1
            )),
            _ => None,
        };
        if let Some(why) = not_ready {
            return Err(RootRefusal::Conflict(why));
        }
        let taken = match step {
            RootStep::Prepare => self.signer.prepare_root(),
            RootStep::Activate => {
                // Of an earlier process with another setting some may live longer.
                let held = self.progress().into_values().filter_map(|progress| progress.certificate_end).max();
                let end = self.clock.now() + self.svid_ttl;
                self.signer.activate_root(held.map_or(end, |held| held.max(end)))
            }
            RootStep::Retire => self.signer.retire_roots(),
        };
        taken.map_err(|error| match error {
            RootError::External | RootError::Turn(_) => RootRefusal::Conflict(error.to_string()),
            RootError::Authority(_) | RootError::Folder(_) => {
                let error: &dyn std::error::Error = &error;
                RootRefusal::Failed(format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default()))
            }
        })?;
        // It is on disk; a crash from here on is made good by the next start, which tells everybody, too.
        self.certificate.renew();
        self.hub.set_bundle(self.signer.bundle());
        Ok(self.status())
    }
}

fn status(roots: &Roots, proxies: &BTreeMap<String, Progress>, now: SystemTime) -> RootStatus {
    let old_end = roots.old_svids_end.filter(|end| *end > now);
    let names = |which: &dyn Fn(&Progress) -> bool| -> (u32, Vec<String>) {
        let all = || proxies.iter().filter(|(_, progress)| which(progress));
        (
            u32::try_from(all().count()).unwrap_or(u32::MAX),
            all().map(|(name, _)| name.clone()).take(MAX_NAMED).collect(),
        )
    };
    let (behind_count, behind) = names(&|progress| !progress.applied);
    // What was signed since lives longer than all that was signed before.
    let is_old = |progress: &Progress| old_end.is_some_and(|old| progress.certificate_end.is_none_or(|end| end <= old));
    let (old_certificates_count, old_certificates) = names(&is_old);
    RootStatus {
        phase: match roots.phase {
            Phase::Steady => RootPhase::Steady,
            Phase::Prepared => RootPhase::Prepared,
            Phase::Activated => RootPhase::Activated,
        },
        epoch: roots.epoch,
        roots: roots
            .roots
            .iter()
            .map(|root| RootInfo { fingerprint: root.fingerprint.clone(), signs: root.signs })
            .collect(),
        trust_anchors: roots.pem.clone(),
        proxies: u32::try_from(proxies.len()).unwrap_or(u32::MAX),
        behind_count,
        behind,
        old_certificates_count,
        old_certificates,
        old_certificates_until: old_end.map(rfc3339),
    }
}

fn named(names: &[String], count: u32) -> String {
    let more = (count as usize).saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn who_is_behind_and_who_has_an_old_certificate() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let roots = Roots {
            phase: Phase::Activated,
            epoch: 2,
            roots: Vec::new(),
            old_svids_end: Some(at(1000)),
            pem: String::new(),
        };
        let proxy = |applied, end: Option<u64>| Progress { applied, certificate_end: end.map(at) };
        let mut proxies = BTreeMap::from([
            ("a/away".to_owned(), proxy(false, None)),
            ("a/new".to_owned(), proxy(true, Some(1001))),
            ("a/old".to_owned(), proxy(true, Some(1000))),
        ]);
        let told = status(&roots, &proxies, at(500));
        assert_eq!((told.proxies, told.behind_count, told.behind), (3, 1, vec!["a/away".to_owned()]));
        assert_eq!(told.old_certificates, ["a/away", "a/old"]);
        assert_eq!(told.old_certificates_until.as_deref(), Some("1970-01-01T00:16:40Z"));
        let later = status(&roots, &proxies, at(1000));
        assert_eq!((later.old_certificates_count, later.old_certificates_until), (0, None));
        proxies.extend((0..100).map(|number| (format!("b/{number}"), proxy(false, None))));
        let many = status(&roots, &proxies, at(500));
        assert_eq!((many.behind_count, many.behind.len()), (101, MAX_NAMED));
        assert!(named(&many.behind, many.behind_count).ends_with(" and 81 more"));
    }
}
