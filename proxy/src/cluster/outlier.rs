//! When an endpoint is ejected, and when it may come back.
//!
//! An endpoint that fails so many times in a row as the policy says is left out of balancing for a
//! while. Then one request at a time may probe it: if it succeeds, the endpoint is back as if nothing had been;
//! if it fails, the endpoint is out for twice as long. [`super::balance`] keeps one of these for each
//! endpoint, and sees to it that not too many are out at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::snapshot::OutlierDetection;

/// Where all endpoints are out, one of them may be probed after this long already: an instance that
/// restarted at once must not be waited for while nobody else serves.
const EARLY_PROBE: Duration = Duration::from_secs(1);

/// What is known of one endpoint's failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlier {
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    In { failures: u32 },
    Out(Ejection),
    Probing(Ejection),
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    since: Instant,
    until: Instant,
    /// How often in a row, this one included.
    times: u32,
}

impl Default for State {
    fn default() -> Self {
        Self::In { failures: 0 }
    }
}

impl Outlier {
    /// Whether it is left out of balancing, also while it is probed.
    pub fn is_out(&self) -> bool {
        !matches!(self.state, State::In { .. })
    }

    /// Failures in a row, while it is not out.
    pub fn failures(&self) -> u32 {
        match self.state {
            State::In { failures } => failures,
            State::Out(_) | State::Probing(_) => 0,
        }
    }

    /// When a probe may be made; `None` while one is under way, or if it is not out. `last_resort`:
    /// nobody else serves.
    pub fn probe_at(&self, last_resort: bool) -> Option<Instant> {
        match self.state {
            State::Out(ejection) if last_resort => Some(ejection.until.min(ejection.since + EARLY_PROBE)),
            State::Out(ejection) => Some(ejection.until),
            State::In { .. } | State::Probing(_) => None,
        }
    }

    /// The next request is the probe; others stay away.
    pub fn begin_probe(&mut self) {
        if let State::Out(ejection) = self.state {
            self.state = State::Probing(ejection);
        }
    }

    /// The probe ended without telling anything: another may be made.
    pub fn cancel_probe(&mut self) {
        if let State::Probing(ejection) = self.state {
            self.state = State::Out(ejection);
        }
    }

    /// A request succeeded. True: it was the probe, and the endpoint is back.
    pub fn succeed(&mut self, probe: bool) -> bool {
        match self.state {
            State::In { .. } => self.state = State::default(),
            State::Probing(_) if probe => {
                self.state = State::default();
                return true;
            }
            // Begun before the ejection: late news.
            State::Out(_) | State::Probing(_) => {}
        }
        false
    }

    /// A request failed. `may_eject`: whether one more may be out. For how long it is ejected now, if it
    /// is.
    pub fn fail(&mut self, probe: bool, may_eject: bool, policy: &OutlierDetection, now: Instant) -> Option<Duration> {
        let times = match &mut self.state {
            State::In { failures } => {
                *failures = failures.saturating_add(1);
                if policy.consecutive_failures == 0 || *failures < policy.consecutive_failures || !may_eject {
                    return None;
                }
                1
            }
            State::Probing(ejection) if probe => ejection.times.saturating_add(1),
            State::Out(_) | State::Probing(_) => return None,
        };
        let factor = 2_u32.saturating_pow(times - 1);
        let out = policy.base_ejection.saturating_mul(factor).min(policy.max_ejection.max(policy.base_ejection));
        self.state = State::Out(Ejection { since: now, until: now + out, times });
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: OutlierDetection = OutlierDetection {
        consecutive_failures: 3,
        base_ejection: Duration::from_secs(10),
        max_ejection: Duration::from_secs(60),
        max_ejected_percent: 50,
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_eject() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        for _ in 0..100 {
            assert_eq!(outlier.fail(false, true, &POLICY, now), None);
            assert_eq!(outlier.fail(false, true, &POLICY, now), None);
            assert!(!outlier.succeed(false));
        }
        outlier.fail(false, true, &POLICY, now);
        outlier.fail(false, true, &POLICY, now);
        assert_eq!(outlier.fail(false, true, &POLICY, now), Some(seconds(10)));
        assert!(outlier.is_out());
        assert_eq!(outlier.probe_at(false), Some(now + seconds(10)));
        assert_eq!(outlier.probe_at(true), Some(now + seconds(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn each_failed_probe_doubles_up_to_the_cap_and_success_forgives() {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        (0..3).for_each(|_| _ = outlier.fail(false, true, &POLICY, now));
        for expected in [20, 40, 60, 60, 60] {
            now = outlier.probe_at(false).unwrap();
            outlier.begin_probe();
            assert!(outlier.is_out());
            assert_eq!(outlier.probe_at(true), None, "one probe at a time");
            assert_eq!(outlier.fail(true, true, &POLICY, now), Some(seconds(expected)));
        }
        outlier.begin_probe();
        assert!(outlier.succeed(true));
        assert!(!outlier.is_out());
        (0..2).for_each(|_| _ = outlier.fail(false, true, &POLICY, now));
        assert_eq!(outlier.fail(false, true, &POLICY, now), Some(seconds(10)), "from the start");
        // Many ejections later the arithmetic still holds.
        for _ in 0..100 {
            outlier.begin_probe();
            assert!(outlier.fail(true, true, &POLICY, now) <= Some(seconds(60)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn late_news_and_cancelled_probes_change_nothing() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        (0..3).for_each(|_| _ = outlier.fail(false, true, &POLICY, now));
        assert!(!outlier.succeed(false));
        assert_eq!(outlier.fail(false, true, &POLICY, now), None);
        outlier.begin_probe();
        assert!(!outlier.succeed(false), "not the probe");
        assert_eq!(outlier.fail(false, true, &POLICY, now), None);
        assert!(outlier.is_out());
        outlier.cancel_probe();
        assert_eq!(outlier.probe_at(false), Some(now + seconds(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn not_ejected_when_off_or_too_many_are_out() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        (0..10).for_each(|_| assert_eq!(outlier.fail(false, false, &POLICY, now), None));
        assert_eq!(outlier.fail(false, true, &POLICY, now), Some(seconds(10)), "there is room again");
        let off = OutlierDetection { consecutive_failures: 0, ..POLICY };
        let mut outlier = Outlier::default();
        (0..10).for_each(|_| assert_eq!(outlier.fail(false, true, &off, now), None));
    }
}
