//! Draining: one side signals that the end has come, the other finishes what it is doing.
//!
//! A daemon may hold several channels, one for each stage of its shutdown.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Makes a channel between the one who says when to drain and those who do.
pub fn channel() -> (Signal, Watch) {
    let watch = Watch { raised: CancellationToken::new(), tasks: TaskTracker::new() };
    (Signal(watch.clone()), watch)
}

/// Says when to drain, and waits until all is done. Dropping it signals nothing.
#[derive(Clone, Debug)]
pub struct Signal(Watch);

impl Signal {
    /// Raises the signal. It stays raised; raising it again is nothing.
    pub fn drain(&self) {
        self.0.tasks.close();
        self.0.raised.cancel();
    }

    /// Waits until the signal is raised and everything tracked has ended.
    pub async fn finished(&self) {
        self.0.tasks.wait().await;
    }

    /// Raises the signal and waits for what is tracked, but no longer than `deadline`. Says how many
    /// tasks were still running then.
    pub async fn drain_within(&self, deadline: Duration) -> usize {
        self.drain();
        match tokio::time::timeout(deadline, self.finished()).await {
            Ok(()) => 0,
            Err(_) => self.0.tasks.len(),
        }
    }

    /// How many tracked tasks and guards are left.
    pub fn remaining(&self) -> usize {
        self.0.tasks.len()
    }
}

/// Learns when to drain, and tells what is still running.
#[derive(Clone, Debug)]
pub struct Watch {
    raised: CancellationToken,
    tasks: TaskTracker,
}

/// While it lives, draining is not finished.
#[derive(Clone, Debug)]
pub struct Guard {
    _token: TaskTrackerToken,
}

impl Watch {
    /// Whether the signal has been raised.
    pub fn draining(&self) -> bool {
        self.raised.is_cancelled()
    }

    /// Waits until the signal is raised. (Whether all has ended is [`Signal::finished`].)
    pub async fn drained(&self) {
        self.raised.cancelled().await;
    }

    /// Makes the drain wait for `future`, for a caller that spawns it itself.
    pub fn track<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(future)
    }

    /// Spawns `future` on the current runtime and makes the drain wait for it.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(future)
    }

    /// Makes the drain wait until the guard is dropped.
    pub fn guard(&self) -> Guard {
        Guard { _token: self.tasks.token() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_learn_of_the_signal_once_and_for_all() {
        let (signal, watch) = channel();
        assert!(!watch.draining());
        let waiter = tokio::spawn({
            let watch = watch.clone();
            async move { watch.drained().await }
        });
        signal.drain();
        signal.drain();
        waiter.await.unwrap();
        assert!(watch.draining());
        watch.drained().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_ends_with_the_last_task_and_guard() {
        let (signal, watch) = channel();
        let guard = watch.guard();
        let task = tokio::spawn(watch.track(tokio::time::sleep(Duration::from_secs(3))));
        assert_eq!(signal.drain_within(Duration::from_secs(1)).await, 2);
        task.await.unwrap();
        assert_eq!(signal.drain_within(Duration::from_secs(1)).await, 1);
        drop(guard);
        assert_eq!(signal.drain_within(Duration::from_secs(1)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_finished_before_it_was_signalled() {
        let (signal, _watch) = channel();
        assert!(tokio::time::timeout(Duration::from_secs(60), signal.finished()).await.is_err());
        signal.drain();
        signal.finished().await;
    }

    #[tokio::test]
    async fn work_that_starts_during_the_drain_is_waited_for_too() {
        let (signal, watch) = channel();
        let first = watch.guard();
        signal.drain();
        let second = watch.guard();
        drop(first);
        assert_eq!(signal.remaining(), 1);
        drop(second);
        signal.finished().await;
    }
}
