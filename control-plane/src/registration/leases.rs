//! Leases of registered workloads: who is alive. Pure; kept in memory only.
//!
//! What is not renewed in time ends, but nobody is blamed for an outage of the control plane: one that
//! starts gives everyone a full lease, and so does one that did not get to look for a while.

use std::{collections::HashMap, time::Duration};

use heddle_api::resource::Name;
use tokio::time::Instant;

/// All leases.
#[derive(Debug)]
pub(super) struct Leases {
    length: Duration,
    leases: HashMap<Name, Lease>,
    last_look: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ends: Instant,
    ready: bool,
}

impl Leases {
    /// No leases yet; each will have this length.
    pub(super) fn new(length: Duration) -> Self {
        Self { length, leases: HashMap::new(), last_look: None }
    }

    /// How long a lease is.
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.leases.len()
    }

    /// Begins a lease, or renews one. Returns whether its readiness changed.
    pub(super) fn grant(&mut self, name: &Name, ready: bool, now: Instant) -> bool {
        let lease = Lease { ends: now + self.length, ready };
        self.leases.insert(name.clone(), lease).is_none_or(|before| before.ready != ready)
    }

    /// Begins a lease for somebody known from before who has not called since, if there is none.
    pub(super) fn grant_unheard(&mut self, name: &Name, ready: bool, now: Instant) {
        let ends = now + self.length;
        self.leases.entry(name.clone()).or_insert(Lease { ends, ready });
    }

    /// Renews a lease that has not ended; `None` if there is none, else whether readiness changed.
    pub(super) fn renew(&mut self, name: &Name, ready: bool, now: Instant) -> Option<bool> {
        let lease = self.leases.get_mut(name)?;
        let changed = lease.ready != ready;
        *lease = Lease { ends: now + self.length, ready };
        Some(changed)
    }

    /// Whether a workload takes traffic, as it said last.
    pub(super) fn is_ready(&self, name: &Name) -> bool {
        self.leases.get(name).is_none_or(|lease| lease.ready)
    }

    /// Whether there is a lease.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.leases.contains_key(name)
    }

    /// Ends a lease.
    pub(super) fn end(&mut self, name: &Name) {
        self.leases.remove(name);
    }

    /// Takes out the leases that have ended, with what was said last of readiness. To be called every `interval`; when it was not, nobody
    /// could renew in that time either, and all leases are longer by as much.
    pub(super) fn expire(&mut self, now: Instant, interval: Duration) -> Vec<(Name, bool)> {
        if let Some(last) = self.last_look.replace(now) {
            let away = now.saturating_duration_since(last).saturating_sub(interval);
            if away > interval {
                self.leases.values_mut().for_each(|lease| lease.ends += away);
            }
        }
        let ended = self.leases.iter().filter(|(_, lease)| lease.ends <= now);
        let ended: Vec<_> = ended.map(|(name, lease)| (name.clone(), lease.ready)).collect();
        for (name, _) in &ended {
            self.leases.remove(name);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(30);
    const LOOK: Duration = Duration::from_secs(1);

    fn looked_at(leases: &mut Leases, from: Instant, seconds: std::ops::RangeInclusive<u64>) -> Vec<(u64, Name)> {
        seconds
            .flat_map(|second| {
                let ended = leases.expire(from + Duration::from_secs(second), LOOK);
                ended.into_iter().map(move |(name, _)| (second, name))
            })
            .collect()
    }

    #[test]
    fn a_lease_ends_unless_it_is_renewed() {
        let start = Instant::now();
        let (one, two) = (Name::new("shop", "one"), Name::new("shop", "two"));
        let mut leases = Leases::new(LENGTH);
        leases.grant(&one, true, start);
        leases.grant(&two, true, start);
        assert_eq!(looked_at(&mut leases, start, 1..=10), []);
        assert_eq!(leases.renew(&two, true, start + Duration::from_secs(10)), Some(false));
        assert_eq!(looked_at(&mut leases, start, 11..=50), [(30, one.clone()), (40, two)]);
        assert_eq!(leases.renew(&one, true, start), None, "what has ended is not renewed");
        assert_eq!(leases.count(), 0);
    }

    #[test]
    fn readiness_is_remembered_and_changes_are_told() {
        let start = Instant::now();
        let name = Name::new("shop", "one");
        let mut leases = Leases::new(LENGTH);
        assert!(leases.is_ready(&name), "nobody unheard of is taken out of traffic");
        leases.grant_unheard(&name, true, start);
        assert!(leases.is_ready(&name));
        assert_eq!(leases.renew(&name, false, start), Some(true));
        assert_eq!(leases.renew(&name, false, start), Some(false));
        leases.grant_unheard(&name, true, start);
        assert!(!leases.is_ready(&name), "what is known is not overwritten");
        // Its registration cannot be removed: it is no more ready for that.
        let ended = leases.expire(start + LENGTH, LOOK);
        assert_eq!(ended, [(name.clone(), false)]);
        leases.grant_unheard(&name, ended[0].1, start + LENGTH);
        assert!(!leases.is_ready(&name));
    }

    #[test]
    fn a_control_plane_that_stood_still_removes_nobody() {
        let start = Instant::now();
        let name = Name::new("shop", "one");
        let mut leases = Leases::new(LENGTH);
        leases.grant(&name, true, start);
        assert_eq!(looked_at(&mut leases, start, 0..=20), []);
        // Suspended for an hour: 10 seconds are left, as before.
        let back = start + Duration::from_secs(3620);
        assert_eq!(leases.expire(back, LOOK), []);
        assert_eq!(looked_at(&mut leases, back, 1..=8), []);
        assert_eq!(looked_at(&mut leases, back, 9..=12).len(), 1);
    }
}
