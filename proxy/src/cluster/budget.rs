//! How many retries all requests to a cluster may cause.
//!
//! Each request deposits a share of a token, each retry costs a whole one; beside that, a few tokens a second
//! come for free, so that a cluster with few requests may retry at all. Deposits of the last ten
//! seconds count. Retries can so never multiply the load on a cluster that is in trouble: a limit on
//! retries per request alone would.
//!
//! All workers of a proxy pay into one account and from it.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

/// Deposits are kept in this many slots of a second each.
const SLOTS: u32 = 10;
/// A token, in the unit of account: a percent of one.
const TOKEN: u32 = 100;
const SECOND: u64 = 1_000_000_000;

/// A retry budget: a share of recent requests plus a few a second. Single-threaded.
#[derive(Debug)]
pub struct Budget {
    percent: Cell<u32>,
    min_per_second: Cell<u32>,
    account: Arc<Account>,
}

/// What all workers have deposited.
#[derive(Debug)]
pub struct Account {
    opened: Instant,
    /// Deposits less withdrawals; each with the second that it is of.
    slots: [AtomicU64; SLOTS as usize],
    /// Of the free tokens, as in the generic cell rate algorithm: when those that were taken will all have come
    /// again, in nanoseconds since it was opened.
    free: AtomicU64,
}

/// What a slot holds.
#[derive(Clone, Copy)]
struct Slot {
    second: u32,
    deposits: u32,
}

impl Budget {
    /// Without deposits yet, and of no other worker.
    pub fn new(percent: u32, min_per_second: u32, now: Instant) -> Self {
        Self::of(percent, min_per_second, Arc::new(Account::new(now)))
    }

    /// With what others have deposited.
    pub fn of(percent: u32, min_per_second: u32, account: Arc<Account>) -> Self {
        Self { percent: Cell::new(percent), min_per_second: Cell::new(min_per_second), account }
    }

    /// Takes a changed policy; deposits stay.
    pub fn set(&self, percent: u32, min_per_second: u32) {
        self.percent.set(percent);
        self.min_per_second.set(min_per_second);
    }

    /// A request (not a retry) was made.
    pub fn deposit(&self, now: Instant) {
        let (second, percent) = (self.account.second(now), self.percent.get());
        if percent == 0 {
            return;
        }
        self.account.change(second, |slot| {
            // A clock that is a little behind that of another worker counts as its.
            let of_now = slot.second >= second;
            let (second, before) = if of_now { (slot.second, slot.deposits) } else { (second, 0) };
            Some(Slot { second, deposits: before.saturating_add(percent) })
        });
    }

    /// Pays for a retry, if there is enough.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.account.take_free(self.min_per_second.get(), now) || self.account.pay(now)
    }
}

impl Account {
    /// Without deposits.
    pub fn new(now: Instant) -> Self {
        Self { opened: now, slots: Default::default(), free: AtomicU64::new(0) }
    }

    /// Since it was opened. The first is not 0, which is that of empty slots.
    fn second(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.opened).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX - SLOTS).saturating_add(SLOTS)
    }

    /// Replaces what the slot of a second holds, unless there is nothing to replace it with. True: it did.
    fn change(&self, second: u32, change: impl Fn(Slot) -> Option<Slot>) -> bool {
        self.slots[(second % SLOTS) as usize]
            .fetch_update(Relaxed, Relaxed, |packed| change(Slot::unpack(packed)).map(Slot::pack))
            .is_ok()
    }

    /// One of the free tokens: at most those of one second come together.
    fn take_free(&self, per_second: u32, now: Instant) -> bool {
        if per_second == 0 {
            return false;
        }
        let now = u64::try_from(now.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX / 2);
        let every = SECOND / u64::from(per_second);
        let early = SECOND - every;
        let take = |free: u64| (free <= now.saturating_add(early)).then(|| free.max(now).saturating_add(every));
        self.free.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    fn pay(&self, now: Instant) -> bool {
        let second = self.second(now);
        let current = |slot: Slot| slot.second.saturating_add(SLOTS) > second;
        let held = self.slots.iter().map(|slot| Slot::unpack(slot.load(Relaxed))).filter(|slot| current(*slot));
        if held.map(|slot| u64::from(slot.deposits)).sum::<u64>() < u64::from(TOKEN) {
            return false;
        }
        // The oldest deposits are spent first.
        let mut due = TOKEN;
        for age in (0..SLOTS).rev() {
            let paid = Cell::new(0);
            let has_paid = self.change(second - age, |slot| {
                paid.set(slot.deposits.min(due));
                (current(slot) && paid.get() > 0).then(|| Slot { deposits: slot.deposits - paid.get(), ..slot })
            });
            if has_paid {
                due -= paid.get();
            }
        }
        // Less, if another worker was faster.
        due == 0
    }
}

impl Slot {
    fn unpack(packed: u64) -> Self {
        let [second, deposits] =
            [packed >> 32, packed & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(0));
        Self { second, deposits }
    }

    fn pack(self) -> u64 {
        u64::from(self.second) << 32 | u64::from(self.deposits)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Duration;

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
    async fn workers_pay_from_one_account() {
        let now = Instant::now();
        let account = Arc::new(Account::new(now));
        let worker = || {
            let account = account.clone();
            std::thread::spawn(move || {
                let budget = Budget::of(20, 10, account);
                (0..1000).for_each(|_| budget.deposit(now));
                spend(&budget, now)
            })
        };
        let workers: Vec<_> = (0..4).map(|_| worker()).collect();
        let spent: u32 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        let left = spend(&Budget::of(20, 10, account), now);
        // Two who pay at once may both come to too little, for which the rest of a token is lost.
        assert!(spent + left >= 780, "{spent} and {left}");
        assert!(spent + left <= 4 * 200 + 10);
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
