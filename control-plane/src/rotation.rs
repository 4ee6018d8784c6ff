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
    config::LONGEST_TTL,
    discovery::Hub,
    follow::rfc3339,
    registry::Registry,
};

/// Proxies that are named.
const MAX_NAMED: usize = 20;
/// The least time that proxies get to connect again after a start: they try at least every 10 s.
const SHORTEST_SETTLING: Duration = Duration::from_secs(30);
/// How long a step may take to be written. What is signed meanwhile is of before.
const WRITING: Duration = Duration::from_secs(5);

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
        let settled = Instant::now() + lease.max(SHORTEST_SETTLING);
        Self { signer, certificate, hub, registry, svid_ttl, clock, settled, turn: Mutex::default() }
    }

    /// Of each proxy that is registered or connected, by name and identity: one that is away has whatever it had, and a
    /// name that one identity registered says nothing about a stream of another.
    fn progress(&self) -> BTreeMap<(String, String), Progress> {
        let view = self.registry.view();
        let away = Progress { applied: false, certificate_end: None };
        let registered = view.registrations(None, None);
        let mut proxies: BTreeMap<_, _> = registered
            .map(|registration| ((registration.name.to_string(), registration.identity.clone()), away))
            .collect();
        for (proxy, applied) in self.hub.roots_applied() {
            let progress = Progress { applied, certificate_end: Some(proxy.certificate_expiry) };
            proxies.insert((proxy.node, proxy.identity.to_string()), progress);
        }
        proxies
    }

    /// While no step is under way.
    fn look(&self) -> RootStatus {
        // As of before what proxies say: they cannot be further than the roots that are told with it.
        let roots = self.signer.roots();
        status(&roots, &self.progress(), self.clock.now())
    }

    /// When the last SVID of before a step that is taken now ends.
    fn earlier_svids_end(&self) -> SystemTime {
        let now = self.clock.now();
        // Of an earlier process with another setting some may live longer; what claims to for longer still is forged.
        let held = self.progress().into_values().filter_map(|progress| progress.certificate_end).max();
        let held = held.map_or(now, |held| held.min(now + LONGEST_TTL));
        held.max(now + self.svid_ttl + WRITING)
    }
}

impl RootKeeper for Rotation {
    fn status(&self) -> RootStatus {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.look()
    }

    fn step(&self, step: RootStep, force: bool) -> Result<RootStatus, RootRefusal> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let settling = self.settled.saturating_duration_since(Instant::now());
        if let Some(why) = not_ready(step, &self.look(), settling).filter(|_| !force) {
            return Err(RootRefusal::Conflict(why));
        }
        let taken = match step {
            RootStep::Prepare => self.signer.prepare_root(self.earlier_svids_end()),
            RootStep::Activate => self.signer.activate_root(self.earlier_svids_end()),
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
        Ok(self.look())
    }
}

/// Why a step must wait, if it must. `settling`: how long proxies may take yet to be back after a start.
fn not_ready(step: RootStep, status: &RootStatus, settling: Duration) -> Option<String> {
    let mut why = Vec::new();
    if !settling.is_zero() {
        why.push(format!(
            "the control plane has just started, and proxies that only call others may not be back before {} s from now",
            settling.as_secs() + 1
        ));
    }
    let (behind, old) = (status.behind_count, status.old_certificates_count);
    let (away, forced) = match (step, status.phase) {
        (RootStep::Activate, RootPhase::Prepared) => {
            if behind > 0 {
                let names = named(&status.behind, behind);
                why.push(format!("{behind} of {} proxies have not applied the new root yet: {names}", status.proxies));
            }
            (
                "proxies that have been away since `prepare` may not know the new root, and their certificates may be \
                 valid until",
                "a proxy that is away then and has not applied the new root can never connect to the control plane \
                 again, and needs a new join file",
            )
        }
        (RootStep::Retire, RootPhase::Activated) => {
            if old > 0 {
                let names = named(&status.old_certificates, old);
                why.push(format!(
                    "{old} of {} proxies may hold a certificate of the old root still, which they renew at two thirds of \
                     its life: {names}",
                    status.proxies
                ));
            }
            (
                "certificates of the old root, of proxies that are away too, may be valid until",
                "a proxy with such a certificate is refused by the control plane and by the others then, and needs a \
                 new join file",
            )
        }
        // It says itself whose turn it is.
        _ => return None,
    };
    if let Some(until) = &status.waits_until {
        why.push(format!("{away} {until}"));
    }
    (!why.is_empty()).then(|| format!("{}; wait until then, or force it: {forced}", why.join("; ")))
}

fn status(roots: &Roots, proxies: &BTreeMap<(String, String), Progress>, now: SystemTime) -> RootStatus {
    let earlier_end = roots.earlier_svids_end.filter(|end| *end > now);
    let old_end = earlier_end.filter(|_| roots.phase == Phase::Activated);
    let names = |which: &dyn Fn(&Progress) -> bool| -> (u32, Vec<String>) {
        let all = || proxies.iter().filter(|(_, progress)| which(progress));
        (
            u32::try_from(all().count()).unwrap_or(u32::MAX),
            all().map(|((name, _), _)| name.clone()).take(MAX_NAMED).collect(),
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
        waits_until: earlier_end.map(rfc3339),
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
            earlier_svids_end: Some(at(1000)),
            pem: String::new(),
        };
        let proxy = |applied, end: Option<u64>| Progress { applied, certificate_end: end.map(at) };
        let named = |name: &str| (name.to_owned(), "spiffe://td/ns/a/sa/a".to_owned());
        let mut proxies = BTreeMap::from([
            (named("a/away"), proxy(false, None)),
            (named("a/new"), proxy(true, Some(1001))),
            (named("a/old"), proxy(true, Some(1000))),
        ]);
        let told = status(&roots, &proxies, at(500));
        assert_eq!((told.proxies, told.behind_count, told.behind), (3, 1, vec!["a/away".to_owned()]));
        assert_eq!(told.old_certificates, ["a/away", "a/old"]);
        assert_eq!(told.old_certificates_until.as_deref(), Some("1970-01-01T00:16:40Z"));
        let later = status(&roots, &proxies, at(1000));
        assert_eq!((later.old_certificates_count, later.old_certificates_until), (0, None));
        proxies.extend((0..100).map(|number| (named(&format!("b/{number}")), proxy(false, None))));
        let many = status(&roots, &proxies, at(500));
        assert_eq!((many.behind_count, many.behind.len()), (101, MAX_NAMED));
        assert!(super::named(&many.behind, many.behind_count).ends_with(" and 81 more"));
    }

    #[test]
    fn a_step_waits_for_those_who_are_away_and_says_for_how_long() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut roots = Roots {
            phase: Phase::Prepared,
            epoch: 2,
            roots: Vec::new(),
            earlier_svids_end: Some(at(1000)),
            pem: String::new(),
        };
        let told = |roots: &Roots, now| status(roots, &BTreeMap::new(), at(now));
        let why = |step, status: &RootStatus, settling| not_ready(step, status, Duration::from_secs(settling));
        // Nobody is here: whoever is away may have a certificate until then.
        let prepared = told(&roots, 999);
        assert_eq!(
            (prepared.waits_until.as_deref(), &prepared.old_certificates_until),
            (Some("1970-01-01T00:16:40Z"), &None)
        );
        let said = why(RootStep::Activate, &prepared, 0).unwrap();
        assert!(said.contains("until 1970-01-01T00:16:40Z") && said.contains("new join file"), "{said}");
        assert_eq!(why(RootStep::Activate, &told(&roots, 1000), 0), None);
        let said = why(RootStep::Activate, &told(&roots, 1000), 7).unwrap();
        assert!(said.contains("has just started") && said.contains("8 s"), "{said}");
        // Not its turn, or taken already: there is nothing to wait for.
        assert_eq!(why(RootStep::Retire, &prepared, 7), None);
        roots.phase = Phase::Activated;
        assert_eq!(why(RootStep::Activate, &told(&roots, 999), 7), None);
        let said = why(RootStep::Retire, &told(&roots, 999), 0).unwrap();
        assert!(said.contains("until 1970-01-01T00:16:40Z") && said.contains("new join file"), "{said}");
        assert_eq!(why(RootStep::Retire, &told(&roots, 1000), 0), None);
    }
}
