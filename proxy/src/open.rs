//! What is open on a worker, for when something that it depends on changes.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use tokio::task::yield_now;

/// Looked at in one go, before others on this thread have their turn.
const BATCH: usize = 256;

/// Connections that are open, and some that no longer are.
pub(crate) struct Open<T> {
    all: RefCell<Vec<Weak<T>>>,
    /// Those that were ended since the log told of it.
    ended: Cell<u64>,
    /// How many were looked at, ever.
    #[cfg(test)]
    pub(crate) looks: Cell<usize>,
}

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self {
            all: RefCell::default(),
            ended: Cell::default(),
            #[cfg(test)]
            looks: Cell::default(),
        }
    }
}

impl<T> Open<T> {
    pub(crate) fn add(&self, one: &Rc<T>) {
        let mut all = self.all.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
            // Not again before as many have come.
            let live = all.len();
            all.reserve(live.max(4));
        }
        all.push(Rc::downgrade(one));
    }

    /// Those of now.
    pub(crate) fn all(&self) -> Vec<Weak<T>> {
        self.all.borrow().clone()
    }

    /// Counts one that is no longer allowed. The access log has each of them.
    pub(crate) fn count_ended(&self) {
        self.ended.update(|ended| ended + 1);
    }

    /// Logs how many were ended since the last call: one line for all, as a rule may end thousands.
    pub(crate) fn tell_ended(&self, direction: &str) {
        let ended = self.ended.take();
        if ended > 0 {
            tracing::info!(ended, direction, "open connections were no longer allowed");
        }
    }

    /// Has a look at each of those of now, in batches.
    pub(crate) async fn each(&self, mut look: impl FnMut(&T)) {
        for (index, one) in self.all().into_iter().enumerate() {
            if index % BATCH == BATCH - 1 {
                yield_now().await;
            }
            if let Some(one) = one.upgrade() {
                #[cfg(test)]
                self.looks.update(|looks| looks + 1);
                look(&one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_closed_is_let_go_and_others_have_their_turn_in_between() {
        let open = Open::default();
        let kept: Vec<_> = (0..600).map(Rc::new).collect();
        for number in 0..20_000 {
            open.add(&Rc::new(number));
        }
        kept.iter().for_each(|one| open.add(one));
        assert!(open.all().len() < 5_000, "{}", open.all().len());
        let mut seen = 0;
        let looking = open.each(|_| seen += 1);
        let mut looking = tokio_test::task::spawn(looking);
        let mut turns = 1;
        while looking.poll().is_pending() {
            turns += 1;
        }
        drop(looking);
        assert_eq!(seen, 600);
        assert!(turns >= 3, "{turns}");
    }
}
