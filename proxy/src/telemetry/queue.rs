//! A bounded queue that never makes its writers wait.

use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};

/// The writers' end.
#[derive(Debug)]
pub(super) struct Queue<T> {
    items: mpsc::Sender<Item<T>>,
    dropped: IntCounter,
}

/// What the reader gets.
pub(super) enum Item<T> {
    /// Something to write.
    Value(T),
    /// Answer when all before it is written.
    Flush(oneshot::Sender<()>),
}

impl<T> Queue<T> {
    /// Of this capacity; `dropped` counts what did not fit.
    pub(super) fn new(capacity: usize, dropped: IntCounter) -> (Self, mpsc::Receiver<Item<T>>) {
        let (items, receiver) = mpsc::channel(capacity);
        (Self { items, dropped }, receiver)
    }

    /// Adds what `make` makes, if there is room.
    pub(super) fn push(&self, make: impl FnOnce() -> T) {
        match self.items.try_reserve() {
            Ok(slot) => slot.send(Item::Value(make())),
            Err(_) => self.dropped.inc(),
        }
    }

    /// Waits until all that was added before is written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.items.send(Item::Flush(done)).await.is_ok() {
            // An error means that the reader has ended: there is nothing to wait for.
            let _ = written.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let dropped = IntCounter::new("dropped", "of a test").unwrap();
        let (queue, mut items) = Queue::new(2, dropped.clone());
        for number in 0..5 {
            queue.push(|| number);
        }
        assert_eq!(dropped.get(), 3);
        assert!(matches!(items.recv().await, Some(Item::Value(0))));
        assert!(matches!(items.recv().await, Some(Item::Value(1))));
        let reader = tokio::spawn(async move {
            let Some(Item::Flush(done)) = items.recv().await else { panic!("a flush") };
            done.send(()).unwrap();
        });
        queue.flush().await;
        reader.await.unwrap();
        // With the reader gone nothing waits.
        queue.flush().await;
    }
}
