//! Names that several proxies call themselves by.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use heddle_api::resource::Name;
use tokio::time::Instant;

/// Within this time, or two leases if these are longer, ...
const WINDOW: Duration = Duration::from_secs(60);
/// ... one proxy does not move so often: it starts again once or twice. Two that take turns do.
const MOVES: usize = 4;

/// When workloads moved to another address.
#[derive(Debug)]
pub(super) struct Contested {
    window: Duration,
    moves: HashMap<Name, VecDeque<Instant>>,
}

impl Contested {
    /// None has moved yet. Proxies are heard of about three times in a `lease`.
    pub(super) fn new(lease: Duration) -> Self {
        Self { window: WINDOW.max(lease * 2), moves: HashMap::new() }
    }

    /// A workload of this name registered at another address than before. Says whether it is contested since now.
    pub(super) fn moved(&mut self, name: &Name, now: Instant) -> bool {
        let was = self.is_contested(name, now);
        let moves = self.moves.entry(name.clone()).or_default();
        moves.push_back(now);
        while moves.len() > MOVES {
            moves.pop_front();
        }
        !was && self.is_contested(name, now)
    }

    /// Whether several proxies seem to take turns under this name.
    pub(super) fn is_contested(&self, name: &Name, now: Instant) -> bool {
        let recent =
            |moves: &VecDeque<Instant>| moves.iter().filter(|at| now.duration_since(**at) < self.window).count();
        self.moves.get(name).is_some_and(|moves| recent(moves) >= MOVES)
    }

    /// Forgets what is long ago.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.moves.retain(|_, moves| moves.back().is_some_and(|last| now.duration_since(*last) < self.window));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_none_and_turns_are() {
        let (name, other) = (Name::new("shop", "w1"), Name::new("shop", "w2"));
        let mut contested = Contested::new(Duration::from_secs(30));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Once a minute, for ever: somebody who debugs.
        assert!((0..20).all(|number| !contested.moved(&name, at(number * 60))));
        let told: Vec<_> = (2000..2010).map(|second| contested.moved(&name, at(second))).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 1, "once: {told:?}");
        assert!(contested.is_contested(&name, at(2010)) && !contested.is_contested(&other, at(2010)));
        assert!(!contested.is_contested(&name, at(2100)), "one of them is gone");
        contested.sweep(at(2100));
        assert!(contested.moves.is_empty());
    }

    #[test]
    fn turns_are_seen_however_long_leases_are() {
        let name = Name::new("shop", "w1");
        let lease = Duration::from_secs(600);
        let mut contested = Contested::new(lease);
        let start = Instant::now();
        let told: Vec<_> = (0..20).map(|turn| contested.moved(&name, start + lease / 3 * turn)).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 1, "once: {told:?}");
        assert!(contested.is_contested(&name, start + lease / 3 * 20));
        assert!(!contested.is_contested(&name, start + lease / 3 * 20 + lease * 2));
    }
}
