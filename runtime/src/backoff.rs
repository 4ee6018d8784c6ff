//! Delays between attempts.

use std::time::Duration;

use rand::Rng;

/// Delays with full jitter: each is uniform between zero and a bound that starts at `base` and
/// doubles up to `max`, so that those who failed together do not come back together.
///
/// An iterator that never ends; make a new one (or [`reset`](Self::reset) it) after a success.
#[derive(Clone, Debug)]
pub struct Jittered {
    base: Duration,
    max: Duration,
    bound: Duration,
}

impl Jittered {
    /// Delays of at most `base` at first and at most `max` ever.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, bound: base.min(max) }
    }

    /// Starts over from `base`.
    pub fn reset(&mut self) {
        self.bound = self.base.min(self.max);
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(rand::rng().random::<f64>());
        self.bound = self.bound.saturating_mul(2).min(self.max);
        delay
    }
}

impl Iterator for Jittered {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_delay())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_maximum_and_start_over() {
        let mut backoff = Jittered::new(Duration::from_millis(100), Duration::from_millis(350));
        for _ in 0..3 {
            for bound in [100, 200, 350, 350] {
                assert_eq!(backoff.bound, Duration::from_millis(bound));
                assert!(backoff.next_delay() <= Duration::from_millis(bound));
            }
            backoff.reset();
        }
    }

    #[test]
    fn delays_spread_over_the_whole_range() {
        let bound = Duration::from_secs(1);
        let delays: Vec<_> = (0..200).map(|_| Jittered::new(bound, bound).next_delay()).collect();
        assert!(delays.iter().any(|d| *d < bound / 4) && delays.iter().any(|d| *d > bound * 3 / 4));
    }

    #[test]
    fn a_maximum_below_the_base_wins() {
        let mut backoff = Jittered::new(Duration::from_secs(9), Duration::from_millis(1));
        assert!(backoff.by_ref().take(20).all(|d| d <= Duration::from_millis(1)));
    }
}
