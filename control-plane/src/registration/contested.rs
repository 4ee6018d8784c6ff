//! Names that several proxies call themselves by.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use heddle_api::resource::Name;
use tokio::time::Instant;

/// Within this time ...
const WINDOW: Duration = Duration::from_secs(60);
/// ... one proxy does not move so often: it starts again once or twice. Two that take turns do.
const MOVES: usize = 4;

/// When workloads moved to another address.
#[derive(Debug, Default)]
pub(super) struct Contested(HashMap<Name, VecDeque<Instant>>);

impl Contested {
    /// A workload of this name registered at another address than before. Says whether it is contested since now.
    pub(super) fn moved(&mut self, name: &Name, now: Instant) -> bool {
        let was = self.is_contested(name, now);
        let moves = self.0.entry(name.clone()).or_default();
        moves.push_back(now);
        while moves.len() > MOVES {
            moves.pop_front();
        }
        !was && self.is_contested(name, now)
    }

    /// Whether several proxies seem to take turns under this name.
    pub(super) fn is_contested(&self, name: &Name, now: Instant) -> bool {
        let recent = |moves: &VecDeque<Instant>| moves.iter().filter(|at| now.duration_since(**at) < WINDOW).count();
        self.0.get(name).is_some_and(|moves| recent(moves) >= MOVES)
    }

    /// Forgets what is long ago.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, moves| moves.back().is_some_and(|last| now.duration_since(*last) < WINDOW));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_none_and_turns_are() {
        let (name, other) = (Name::new("shop", "w1"), Name::new("shop", "w2"));
        let mut contested = Contested::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Once a minute, for ever: somebody who debugs.
        assert!((0..20).all(|number| !contested.moved(&name, at(number * 60))));
        let told: Vec<_> = (2000..2010).map(|second| contested.moved(&name, at(second))).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 1, "once: {told:?}");
        assert!(contested.is_contested(&name, at(2010)) && !contested.is_contested(&other, at(2010)));
        assert!(!contested.is_contested(&name, at(2100)), "one of them is gone");
        contested.sweep(at(2100));
        assert!(contested.0.is_empty());
    }
}
