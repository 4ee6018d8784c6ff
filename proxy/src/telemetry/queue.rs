//! Bounded queues that never make their writers wait.
//!
//! From the workers comes what happened, through one [`Shard`] each: a worker shares its own with the one reader
//! only, who empties it in one move. The reader is woken when a shard is no longer empty, and lets some time
//! pass before it looks, so that a busy proxy wakes it 20 times a second and not once for each request.
//! Beyond that, [`Queue`]s lead to what writes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::IntCounter;
use tokio::sync::{Notify, mpsc, oneshot};

/// How long the reader waits for more.
const LINGER: Duration = Duration::from_millis(50);

/// The reader's end of all shards.
#[derive(Debug)]
pub(super) struct Hub<T> {
    shards: Mutex<Vec<Arc<Mutex<Vec<T>>>>>,
    /// Of each shard.
    capacity: usize,
    filled: Notify,
    flush: Mutex<Vec<oneshot::Sender<()>>>,
    asked: Notify,
}

/// One worker's end.
#[derive(Debug)]
pub(super) struct Shard<T> {
    items: Arc<Mutex<Vec<T>>>,
    hub: Arc<Hub<T>>,
}

impl<T> Hub<T> {
    /// Of shards with this capacity.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: Mutex::default(),
            capacity,
            filled: Notify::new(),
            flush: Mutex::default(),
            asked: Notify::new(),
        })
    }

    pub(super) fn shard(self: &Arc<Self>) -> Shard<T> {
        let items = Arc::<Mutex<Vec<T>>>::default();
        lock(&self.shards).push(items.clone());
        Shard { items, hub: self.clone() }
    }

    /// Hands over what comes, for good.
    pub(super) async fn read(&self, mut handle: impl FnMut(T)) {
        loop {
            tokio::select! {
                () = self.asked.notified() => {}
                () = async {
                    self.filled.notified().await;
                    tokio::time::sleep(LINGER).await;
                } => {}
            }
            let waiting = std::mem::take(&mut *lock(&self.flush));
            let shards = lock(&self.shards).clone();
            for shard in shards {
                let items = std::mem::take(&mut *lock(&shard));
                items.into_iter().for_each(&mut handle);
                tokio::task::yield_now().await;
            }
            for done in waiting {
                // An error means that nobody waits any more.
                let _ = done.send(());
            }
        }
    }

    /// Waits until all that was pushed before is handled.
    pub(super) async fn flush(&self) {
        let (done, handled) = oneshot::channel();
        lock(&self.flush).push(done);
        self.asked.notify_one();
        // An error means that the reader has ended: there is nothing to wait for.
        let _ = handled.await;
    }
}

impl<T> Shard<T> {
    /// Adds an item, or gives it back if there is no room.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut items = lock(&self.items);
        if items.len() >= self.hub.capacity {
            return Err(item);
        }
        items.push(item);
        if items.len() == 1 {
            self.hub.filled.notify_one();
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to one who writes.
#[derive(Debug)]
pub(super) struct Queue<T> {
    items: mpsc::Sender<Item<T>>,
    dropped: IntCounter,
}

/// What the one who writes gets.
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

    #[tokio::test(start_paused = true)]
    async fn the_reader_gets_all_that_fitted() {
        let hub = Hub::new(10);
        let shards = [hub.shard(), hub.shard()];
        for shard in &shards {
            let refused = (0..15).filter(|number| shard.push(*number).is_err()).count();
            assert_eq!(refused, 5, "each shard has a limit of its own");
        }
        let got = Arc::<Mutex<Vec<i32>>>::default();
        let reader = {
            let (hub, got) = (hub.clone(), got.clone());
            tokio::spawn(async move { hub.read(|item| got.lock().unwrap().push(item)).await })
        };
        hub.flush().await;
        let all: Vec<i32> = (0..10).chain(0..10).collect();
        assert_eq!(std::mem::take(&mut *got.lock().unwrap()), all);
        // There is room again, and the reader is woken without being asked.
        shards[0].push(7).unwrap();
        shards[0].push(8).unwrap();
        tokio::time::sleep(LINGER * 3).await;
        assert_eq!(*got.lock().unwrap(), [7, 8]);
        reader.abort();
    }
}
