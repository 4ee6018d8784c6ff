//! How often somebody may ask.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many at once, and so many a second for long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// At once.
    pub(crate) burst: f64,
    /// A second.
    pub(crate) per_second: f64,
}

/// A token bucket. Starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, at: now }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }

    /// Takes tokens on credit: until they are paid back, there is none.
    pub(crate) fn charge(&mut self, tokens: f64, now: Instant) {
        self.fill(now);
        self.tokens -= tokens;
    }

    /// When there will be a token; not later than `now` if there is one.
    pub(crate) fn ready_at(&self, now: Instant) -> Instant {
        let mut later = *self;
        later.fill(now);
        if later.tokens >= 1.0 {
            return now;
        }
        now + Duration::from_secs_f64((1.0 - later.tokens) / later.rate.per_second)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate.per_second).min(self.rate.burst);
        self.at = self.at.max(now);
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.rate.burst
    }
}

/// A bucket for each of many.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    rate: Rate,
    /// Above this, buckets that are full again are forgotten; and if none is, newcomers are refused.
    most: usize,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Hash + Eq> Limiter<K> {
    /// Nobody has asked yet.
    pub(crate) fn new(rate: Rate, most: usize) -> Self {
        Self { rate, most, buckets: Mutex::default() }
    }

    /// Whether this one may ask now.
    pub(crate) fn allows(&self, key: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.most && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= self.most {
                return false;
            }
        }
        buckets.entry(key).or_insert_with(|| Bucket::new(self.rate, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 2.0, per_second: 10.0 };

    #[test]
    fn a_bucket_empties_and_fills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        assert_eq!(bucket.ready_at(start), start + Duration::from_millis(100));
        assert!(!bucket.take(start + Duration::from_millis(50)));
        assert!(bucket.take(start + Duration::from_millis(101)));
        let later = start + Duration::from_secs(60);
        assert!(bucket.take(later) && bucket.take(later) && !bucket.take(later), "never above the burst");
    }

    #[test]
    fn each_has_a_bucket_and_there_are_not_too_many() {
        let limiter = Limiter::new(RATE, 2);
        let start = Instant::now();
        assert!(limiter.allows("a", start) && limiter.allows("a", start) && !limiter.allows("a", start));
        assert!(limiter.allows("b", start));
        assert!(!limiter.allows("c", start), "no room, and nobody to forget");
        assert!(limiter.allows("c", start + Duration::from_secs(1)), "the others have calmed down");
    }
}
