//! How many retries all requests to a cluster may cause.
//!
//! Each request deposits a share of a token, each retry costs a whole one; beside that, a few tokens a second
//! come for free, so that a cluster with few requests may retry at all. Deposits of the last ten
//! seconds count. Retries can so never multiply the load on a cluster that is in trouble: a limit on
//! retries per request alone would.

use std::cell::RefCell;

use tokio::time::{Duration, Instant};

/// Deposits are kept in this many slots ...
const SLOTS: usize = 10;
/// ... of this length.
const SLOT: Duration = Duration::from_secs(1);
/// A token, in the unit of account.
const TOKEN: u64 = 1_000_000;

/// A retry budget: a share of recent requests plus a few a second. Single-threaded.
#[derive(Debug)]
pub struct Budget {
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    percent: u32,
    min_per_second: u32,
    /// Deposits less withdrawals of each of the last slots.
    slots: [u64; SLOTS],
    /// The slot that is being filled.
    current: usize,
    /// When it began.
    since: Instant,
    /// Of the free ones: at most those of one second.
    reserve: u64,
    refilled: Instant,
}

impl Budget {
    /// Without deposits yet.
    pub fn new(percent: u32, min_per_second: u32, now: Instant) -> Self {
        let state = State {
            percent,
            min_per_second,
            slots: [0; SLOTS],
            current: 0,
            since: now,
            reserve: u64::from(min_per_second) * TOKEN,
            refilled: now,
        };
        Self { state: RefCell::new(state) }
    }

    /// Takes a changed policy; deposits stay.
    pub fn set(&self, percent: u32, min_per_second: u32) {
        let mut state = self.state.borrow_mut();
        state.percent = percent;
        state.min_per_second = min_per_second;
        state.reserve = state.reserve.min(u64::from(min_per_second) * TOKEN);
    }

    /// A request (not a retry) was made.
    pub fn deposit(&self, now: Instant) {
        let mut state = self.state.borrow_mut();
        state.advance(now);
        let (current, percent) = (state.current, state.percent);
        state.slots[current] += u64::from(percent) * TOKEN / 100;
    }

    /// Pays for a retry, if there is enough.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut state = self.state.borrow_mut();
        state.advance(now);
        if state.reserve >= TOKEN {
            state.reserve -= TOKEN;
            return true;
        }
        if state.slots.iter().sum::<u64>() < TOKEN {
            return false;
        }
        // The oldest deposits are spent first.
        let mut due = TOKEN;
        for age in 1..=SLOTS {
            let index = (state.current + age) % SLOTS;
            let paid = state.slots[index].min(due);
            state.slots[index] -= paid;
            due -= paid;
        }
        true
    }
}

impl State {
    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_millis() / SLOT.as_millis();
        if passed > 0 {
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            for _ in 0..SLOTS.min(passed as usize) {
                self.current = (self.current + 1) % SLOTS;
                self.slots[self.current] = 0;
            }
            self.since += SLOT * passed;
        }
        let limit = u64::from(self.min_per_second) * TOKEN;
        // One unit a microsecond for each token a second.
        let earned = now.saturating_duration_since(self.refilled).as_micros() * u128::from(self.min_per_second);
        if earned > 0 {
            self.reserve = limit.min(self.reserve.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX)));
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(budget: &Budget, now: Instant) -> u32 {
        let mut n = 0;
        while budget.withdraw(now) {
            n += 1;
        }
        n
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_requests_plus_a_few() {
        let now = Instant::now();
        let budget = Budget::new(20, 10, now);
        (0..1000).for_each(|_| budget.deposit(now));
        assert_eq!(spend(&budget, now), 200 + 10);
        assert_eq!(spend(&budget, now), 0);
        assert_eq!(spend(&budget, now + Duration::from_millis(500)), 5);
        assert_eq!(spend(&budget, now + Duration::from_secs(100)), 10, "free ones do not pile up");
    }

    #[tokio::test(start_paused = true)]
    async fn deposits_expire() {
        let now = Instant::now();
        let budget = Budget::new(20, 0, now);
        (0..100).for_each(|_| budget.deposit(now));
        assert_eq!(spend(&budget, now + Duration::from_millis(9_999)), 20);
        (0..100).for_each(|_| budget.deposit(now + Duration::from_millis(9_999)));
        assert_eq!(spend(&budget, now + Duration::from_millis(19_999)), 0);
        assert_eq!(spend(&budget, now + Duration::from_secs(100_000_000)), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn load_never_grows_by_more_than_the_share() {
        // An outage: every request fails and wants three retries.
        let mut now = Instant::now();
        let budget = Budget::new(20, 10, now);
        let (mut requests, mut retries) = (0, 0);
        for _ in 0..60_000 {
            now += Duration::from_millis(1);
            budget.deposit(now);
            requests += 1;
            retries += (0..3).filter(|_| budget.withdraw(now)).count();
        }
        let allowed = requests / 5 + 60 * 10 + 10;
        assert!(retries <= allowed && retries > allowed * 9 / 10, "{retries} of {allowed}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_and_little() {
        let mut now = Instant::now();
        let none = Budget::new(0, 0, now);
        none.deposit(now);
        assert!(!none.withdraw(now));
        // One token a second, asked for every millisecond.
        let budget = Budget::new(0, 1, now);
        let mut got = 0;
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            got += u32::from(budget.withdraw(now));
        }
        assert!((10..=11).contains(&got), "{got}");
        budget.set(100, 0);
        budget.deposit(now);
        assert_eq!(spend(&budget, now), 1);
    }
}
