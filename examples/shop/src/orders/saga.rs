//! An order as a saga: reserve the goods, charge the card, confirm the sale. When a step fails, what
//! was done is undone, last first.
//!
//! One rule carries all: a step is called under the order's name, its result is written down, and only
//! then the next is called. Who crashes in between calls the same step again under the same name,
//! which the callee takes for the same call. A step whose outcome is not known is undone like one that
//! was done.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, broadcast};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    NewOrder, OrderState,
    store::{Error, Event, Placed, Progress, Store, Work},
    suppliers::{Outcome, Suppliers},
};
use crate::propagate::TraceHeaders;

/// How often a step is called before it counts as failed.
const MAX_CALLS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Calls in flight, of all orders.
const MAX_STEPS: usize = 64;
/// Events that a reader of the feed may lag behind.
const FEED_LENGTH: usize = 4096;

/// Runs the sagas of all orders.
#[derive(Clone, Debug)]
pub(crate) struct Saga {
    store: Store,
    suppliers: Suppliers,
    events: broadcast::Sender<Event>,
    running: TaskTracker,
    steps: Arc<Semaphore>,
    stop: CancellationToken,
}

/// What to do after a call.
enum Next {
    Record(Progress),
    CallAgain(String),
}

impl Saga {
    pub(crate) fn new(store: Store, suppliers: Suppliers, stop: CancellationToken) -> Self {
        Self {
            store,
            suppliers,
            events: broadcast::channel(FEED_LENGTH).0,
            running: TaskTracker::new(),
            steps: Arc::new(Semaphore::new(MAX_STEPS)),
            stop,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Everything that happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Writes an order down and starts its saga.
    pub(crate) async fn place(&self, key: String, wanted: NewOrder, trace: &TraceHeaders) -> Result<Placed, Error> {
        let (placed, event) = self.store.place(key, wanted, trace.to_text()).await?;
        if let Some(event) = event {
            self.publish(event);
            self.start(placed.order.id.clone());
        }
        Ok(placed)
    }

    /// Goes on with every saga that an earlier run of this service left unfinished.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        let unfinished = self.store.unfinished().await?;
        if !unfinished.is_empty() {
            tracing::info!(orders = unfinished.len(), "going on with unfinished orders");
        }
        for id in unfinished {
            self.start(id);
        }
        Ok(())
    }

    /// Waits until the steps in flight when `stop` was cancelled are written down.
    pub(crate) async fn stopped(&self) {
        self.running.close();
        self.running.wait().await;
    }

    fn publish(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    fn start(&self, id: String) {
        let saga = self.clone();
        self.running.spawn(async move {
            if let Err(error) = saga.run(&id).await {
                tracing::error!(order = id, error = %error, "this order stands still until the next start");
            }
        });
    }

    async fn run(&self, id: &str) -> Result<(), Error> {
        let mut calls = 0;
        loop {
            let order = self.store.work(id.to_owned()).await?;
            if order.state.is_final() || self.stop.is_cancelled() {
                return Ok(());
            }
            calls += 1;
            let next = match self.steps.acquire().await {
                Ok(_permit) => self.step(&order, calls >= MAX_CALLS).await,
                Err(_closed) => return Ok(()),
            };
            match next {
                Next::Record(progress) => {
                    let event = self.store.advance(id.to_owned(), progress).await?;
                    tracing::info!(order = id, event = event.event, reason = event.reason, "order");
                    self.publish(event);
                    calls = 0;
                }
                Next::CallAgain(reason) => {
                    tracing::warn!(order = id, state = ?order.state, calls, reason, "will call again");
                    let pause = FIRST_PAUSE.saturating_mul(1 << (calls - 1).min(10)).min(LONGEST_PAUSE);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    /// Makes the one call that an order needs next.
    async fn step(&self, order: &Work, last_call: bool) -> Next {
        let suppliers = &self.suppliers;
        match order.state {
            OrderState::Placed => match suppliers.reserve(order).await {
                Outcome::Done(total_cents) => Next::Record(Progress::Reserved { total_cents }),
                Outcome::Refused(reason) => Next::Record(Progress::Failed { reason, undo: 0 }),
                Outcome::Unknown(reason) => again_or_undo(reason, last_call, 1),
            },
            OrderState::Reserved => match suppliers.charge(order).await {
                Outcome::Done(charge) => Next::Record(Progress::Charged { version: charge.version }),
                Outcome::Refused(reason) => Next::Record(Progress::Failed { reason, undo: 1 }),
                Outcome::Unknown(reason) => again_or_undo(reason, last_call, 2),
            },
            OrderState::Charged => match suppliers.confirm(order).await {
                Outcome::Done(()) => Next::Record(Progress::Confirmed),
                Outcome::Refused(reason) => Next::Record(Progress::Failed { reason, undo: 2 }),
                Outcome::Unknown(reason) => again_or_undo(reason, last_call, 2),
            },
            // What must be undone is tried for as long as it takes.
            OrderState::Cancelling => match order.undo {
                0 => Next::Record(Progress::Cancelled),
                1 => undone(suppliers.release(order).await, Progress::Released),
                _ => undone(suppliers.refund(order).await, Progress::Refunded),
            },
            // Not reached: final orders are not stepped.
            OrderState::Confirmed | OrderState::Cancelled => Next::CallAgain("the order is at its end".to_owned()),
        }
    }
}

fn again_or_undo(reason: String, last_call: bool, undo: u32) -> Next {
    if last_call { Next::Record(Progress::Failed { reason, undo }) } else { Next::CallAgain(reason) }
}

fn undone(outcome: Outcome<()>, progress: Progress) -> Next {
    match outcome {
        Outcome::Done(()) => Next::Record(progress),
        Outcome::Refused(reason) | Outcome::Unknown(reason) => Next::CallAgain(reason),
    }
}
