//! Tasks that the control plane cannot do without.

use heddle_runtime::{drain, health::Health};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, store::WriteHealth};

/// Spawns what must not end before the drain; if it does, by a panic as well, `broken` is raised.
pub(super) fn needed(
    drain: &drain::Watch,
    broken: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let (broken, draining) = (broken.clone().drop_guard(), drain.clone());
    drain.spawn(async move {
        task.await;
        if draining.draining() {
            broken.disarm();
        }
    });
}

/// Tells probes and metrics how writing to the store goes, until drained.
pub(super) async fn report_writes(
    mut writes: Receiver<WriteHealth>,
    health: Health,
    metrics: Metrics,
    drain: drain::Watch,
) {
    loop {
        let WriteHealth { writable, failures } = *writes.borrow_and_update();
        health.set("store-writes", writable);
        metrics.store_errors.inc_by(failures.saturating_sub(metrics.store_errors.get()));
        tokio::select! {
            changed = writes.changed() => if changed.is_err() { return },
            () = drain.drained() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use heddle_runtime::health::Probe;

    use super::*;

    #[tokio::test]
    async fn a_needed_task_that_ends_is_noticed_also_by_a_panic() {
        for panics in [true, false] {
            let (_stop, watch) = drain::channel();
            let broken = CancellationToken::new();
            needed(&watch, &broken, async move { assert!(!panics, "of this test") });
            tokio::time::timeout(Duration::from_secs(10), broken.cancelled()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_drain_breaks_nothing() {
        let (stop, watch) = drain::channel();
        let broken = CancellationToken::new();
        needed(&watch, &broken, {
            let watch = watch.clone();
            async move { watch.drained().await }
        });
        stop.drain();
        stop.finished().await;
        assert!(!broken.is_cancelled());
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_written_is_not_ready() {
        let (stop, watch) = drain::channel();
        let (health, metrics) = (Health::new(&[("store-writes", Probe::Ready)]), Metrics::new().unwrap());
        let (writes, told) = tokio::sync::watch::channel(WriteHealth { writable: true, failures: 0 });
        watch.spawn(report_writes(told, health.clone(), metrics.clone(), watch.clone()));
        for (writable, failures) in [(false, 1), (true, 1), (false, 3)] {
            writes.send_replace(WriteHealth { writable, failures });
            tokio::time::timeout(Duration::from_secs(10), async {
                while (health.is_ready(), metrics.store_errors.get()) != (writable, failures) {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
        }
        stop.drain();
        stop.finished().await;
    }
}
