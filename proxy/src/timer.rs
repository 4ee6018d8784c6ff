//! Timers for what mostly ends long before its time.
//!
//! One of tokio's is made, entered into the runtime's wheel, taken out and freed. For the deadline of each request that is
//! a noticeable part of all that is done for it. So these are kept as they are, for whoever needs one next: one that
//! fires for somebody before, which is too early, is set anew then.

use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Timers that are kept, at most: each keeps the memory of the task that waited for it last.
const KEPT: usize = 128;

/// Timers of one worker, to be used again. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Timers(Rc<RefCell<Vec<Pin<Box<Sleep>>>>>);

/// Ready at a certain time.
#[derive(Debug)]
pub(crate) struct Timer {
    until: Instant,
    /// None before anybody waits. It fires at that time, or earlier.
    sleep: Option<Pin<Box<Sleep>>>,
    timers: Timers,
}

impl Timers {
    /// A timer for that time.
    pub(crate) fn until(&self, until: Instant) -> Timer {
        Timer { until, sleep: None, timers: self.clone() }
    }

    fn take(&self, until: Instant) -> Pin<Box<Sleep>> {
        let Some(mut sleep) = self.0.borrow_mut().pop() else { return Box::pin(sleep_until(until)) };
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        sleep
    }
}

impl Timer {
    /// When it is ready.
    pub(crate) fn deadline(&self) -> Instant {
        self.until
    }

    /// Whether it is ready, as far as somebody has waited for it; mostly told without a look at a clock.
    pub(crate) fn is_elapsed(&self) -> bool {
        self.sleep.as_ref().is_some_and(|sleep| sleep.is_elapsed()) && self.until <= Instant::now()
    }

    /// Ready from that time on.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| self.timers.take(self.until));
        loop {
            ready!(sleep.as_mut().poll(cx));
            if self.until <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(self.until);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut kept = self.timers.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(sleep);
        }
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("kept", &self.0.borrow().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, advance};
    use tokio_test::{assert_pending, assert_ready, task::spawn};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_was_used_before_is_ready_at_its_own_time() {
        let timers = Timers::default();
        for (before, now) in [(10, 20), (20, 10)] {
            let start = Instant::now();
            let at = |seconds| timers.until(start + Duration::from_secs(seconds));
            assert_pending!(spawn(()).enter(|cx, _| at(before).poll(cx)));
            assert_eq!(timers.0.borrow().len(), 1);
            let mut task = spawn(at(now));
            assert_pending!(task.enter(|cx, mut timer| timer.poll(cx)));
            assert_eq!(timers.0.borrow().len(), 0, "it was taken");
            advance(Duration::from_secs(now.min(before))).await;
            if before < now {
                assert!(task.is_woken(), "for somebody before");
                assert!(!task.is_elapsed());
                assert_pending!(task.enter(|cx, mut timer| timer.poll(cx)));
                advance(Duration::from_secs(now - before) - Duration::from_millis(1)).await;
                assert!(!task.is_woken());
                advance(Duration::from_millis(2)).await;
            }
            assert!(task.is_woken() && task.is_elapsed());
            assert_ready!(task.enter(|cx, mut timer| timer.poll(cx)));
        }
    }
}
