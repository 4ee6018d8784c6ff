//! When to renew a certificate: a pure function of time and validity.

use std::time::{Duration, SystemTime};

/// What to do about a certificate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Valid, and not yet time to renew.
    Valid,
    /// Valid, and time to renew.
    Renew,
    /// No longer valid: must not be used.
    Expired,
    /// Not valid yet: must not be used. Most often one of the clocks is wrong.
    NotYetValid,
}

/// When to renew: at 2/3 of the lifetime, give or take 1/15 of it, so that certificates that were
/// issued together are not renewed together. `jitter` is uniform in `0..1`.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 };
    not_before + lifetime.mul_f64(0.6 + jitter * (2.0 / 15.0))
}

/// The state of a certificate at `now`. Both ends of the validity are inclusive (RFC 5280 section
/// 4.1.2.5).
pub fn state(now: SystemTime, not_before: SystemTime, not_after: SystemTime, renew_at: SystemTime) -> State {
    if now < not_before {
        State::NotYetValid
    } else if now > not_after {
        State::Expired
    } else if now >= renew_at {
        State::Renew
    } else {
        State::Valid
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn renews_around_two_thirds() {
        assert_eq!(renew_at(at(1000), at(1300), 0.0), at(1180));
        assert_eq!(renew_at(at(1000), at(1300), 0.5), at(1200));
        assert_eq!(renew_at(at(1000), at(1300), 1.0), at(1220));
    }

    #[test]
    fn nonsense_jitter_and_validity_stay_within_the_lifetime() {
        for jitter in [-1.0, 2.0, f64::NAN, f64::INFINITY] {
            let at_ = renew_at(at(1000), at(1300), jitter);
            assert!(at_ >= at(1180) && at_ <= at(1220), "{jitter}");
        }
        assert_eq!(renew_at(at(1000), at(900), 0.5), at(1000));
    }

    #[test]
    fn states_at_their_edges() {
        let state = |now| state(at(now), at(1000), at(1300), at(1200));
        assert_eq!(state(999), State::NotYetValid);
        assert_eq!(state(1000), State::Valid);
        assert_eq!(state(1199), State::Valid);
        assert_eq!(state(1200), State::Renew);
        assert_eq!(state(1300), State::Renew);
        assert_eq!(state(1301), State::Expired);
    }
}
