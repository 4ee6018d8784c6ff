//! When a sidecar that died is started again.

use std::time::Duration;

use tokio::time::Instant;

/// Before the first restart, and before one of a sidecar that has run for a while.
const FIRST: Duration = Duration::from_millis(500);
/// Before one of a sidecar that dies again and again.
const LONGEST: Duration = Duration::from_secs(30);
/// One that has run for so long did not die of its start.
const STEADY: Duration = Duration::from_secs(60);

/// When the sidecar started last, and how long it was waited for.
#[derive(Debug)]
pub(super) struct Restarts {
    started: Instant,
    pause: Duration,
}

impl Restarts {
    /// It has just started for the first time.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, pause: FIRST }
    }

    /// It ended: how long to wait before the next start.
    pub(super) fn ended(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.started) >= STEADY {
            self.pause = FIRST;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        self.started = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_dies_again_and_again_is_started_ever_more_rarely() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let pause = restarts.ended(now);
            pauses.push(pause.as_millis());
            now += pause + Duration::from_millis(10);
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(restarts.ended(now + STEADY), FIRST, "it had run well");
    }
}
