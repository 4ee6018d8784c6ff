//! Metrics whose cells belong to one worker each, and are summed when they are read.
//!
//! A cell has one writer, so that it is updated by a plain load and store: no worker waits for
//! another's cache line. Labels are looked up in a map of the worker's own; only the first time that a
//! worker meets a set of labels it takes the lock.
//!
//! A series that has not changed for an hour is dropped: peers and services come and go. Should it be needed again,
//! it begins anew, which to Prometheus is a counter that was reset. Its cells are retired first, so that workers make
//! new ones, and dropped at the next sweep, if nothing was counted at the last moment: no count is lost.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus::{
    core::{Collector, Desc},
    proto::{
        Bucket, Counter as CounterProto, Histogram as HistogramProto, LabelPair, Metric, MetricFamily, MetricType,
    },
};
use tokio::time::{Duration, Instant};

/// Most sets of labels of one family; what comes after is counted together, under this value of each
/// label.
const MAX_SERIES: usize = 2_000;
const OVERFLOW: &str = "_overflow";

/// A series that has not changed for so long is dropped.
const FORGET: Duration = Duration::from_secs(3600);
/// How often such are looked for, by whoever collects.
const SWEEP: Duration = Duration::from_secs(60);

/// What a family is made of.
pub(super) trait Cell: Default + Send + Sync + 'static {
    const TYPE: MetricType;

    /// Adds all of `other`.
    fn merge(&self, other: &Self);

    /// A number that changes whenever something is counted.
    fn count(&self) -> u64;

    /// Tells its value.
    fn write(&self, metric: &mut Metric);
}

/// All series of one name. Kept by whoever collects, and by each worker's [`Local`].
#[derive(Debug)]
pub(super) struct Family<const N: usize, C> {
    desc: Desc,
    labels: [&'static str; N],
    series: Mutex<Series<N, C>>,
    /// Sweeps so far that retired cells.
    sweeps: AtomicU64,
}

/// One worker's cells of a family.
#[derive(Debug)]
pub(super) struct Local<const N: usize, C> {
    family: Arc<Family<N, C>>,
    // By hash of the labels: looked up without owning them.
    cells: RefCell<HashMap<u64, Entries<N, C>, BuildHasherDefault<Identity>>>,
    overflow: RefCell<Option<Arc<Slot<C>>>>,
    /// The sweeps that `cells` and `overflow` know of.
    swept: std::cell::Cell<u64>,
}

#[derive(Debug)]
struct Series<const N: usize, C> {
    all: HashMap<[Box<str>; N], One<C>>,
    swept: Instant,
}

/// One series.
#[derive(Debug)]
struct One<C> {
    slots: Vec<Arc<Slot<C>>>,
    count: u64,
    /// When that was first seen.
    since: Instant,
}

/// A worker's cell.
#[derive(Debug, Default)]
struct Slot<C> {
    cell: C,
    /// Not to be used any more.
    retired: AtomicBool,
}

/// A worker's cell, to be used again without being looked up.
#[derive(Debug)]
pub(super) struct Kept<C>(Arc<Slot<C>>);

type Entries<const N: usize, C> = Vec<([Box<str>; N], Arc<Slot<C>>)>;

impl<const N: usize, C: Cell> Family<N, C> {
    pub(super) fn new(name: &str, help: &str, labels: [&'static str; N]) -> Arc<Self> {
        let names = labels.map(str::to_owned).into();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, HashMap::new()).expect("names are valid");
        let series = Mutex::new(Series { all: HashMap::new(), swept: Instant::now() });
        Arc::new(Self { desc, labels, series, sweeps: AtomicU64::new(0) })
    }

    pub(super) fn local(self: &Arc<Self>) -> Local<N, C> {
        Local {
            family: self.clone(),
            cells: RefCell::default(),
            overflow: RefCell::default(),
            swept: std::cell::Cell::new(self.sweeps.load(Relaxed)),
        }
    }

    /// A new cell for a worker; `None` if there are too many series to begin another.
    fn slot(&self, labels: &[Box<str>; N], may_overflow: bool) -> Option<Arc<Slot<C>>> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if may_overflow && series.all.len() >= MAX_SERIES && !series.all.contains_key(labels) {
            return None;
        }
        let slot = Arc::new(Slot::default());
        let new = || One { slots: Vec::new(), count: 0, since: Instant::now() };
        let one = series.all.entry(labels.clone()).or_insert_with(new);
        one.slots.push(slot.clone());
        one.since = Instant::now();
        Some(slot)
    }
}

impl<const N: usize, C: Cell> Series<N, C> {
    /// Drops what has not changed for long; says whether cells were retired.
    fn sweep(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept) < SWEEP {
            return false;
        }
        self.swept = now;
        let mut retired = false;
        self.all.retain(|_, one| {
            let count = one.slots.iter().fold(0_u64, |sum, slot| sum.wrapping_add(slot.cell.count()));
            if std::mem::replace(&mut one.count, count) != count {
                one.since = now;
            } else {
                one.fold_retired();
            }
            if now.saturating_duration_since(one.since) < FORGET {
                return true;
            }
            let fresh = one.slots.iter().filter(|slot| !slot.retired.swap(true, Relaxed)).count();
            retired |= fresh > 0;
            // Once more: a worker may just be counting.
            fresh > 0
        });
        retired
    }
}

impl<C: Cell> One<C> {
    /// Cells that were retired for a while, of a series that is in use again, become one.
    fn fold_retired(&mut self) {
        if self.slots.iter().filter(|slot| slot.retired.load(Relaxed)).count() < 2 {
            return;
        }
        let sum = Slot { cell: C::default(), retired: AtomicBool::new(true) };
        self.slots.retain(|slot| {
            let retired = slot.retired.load(Relaxed);
            if retired {
                sum.cell.merge(&slot.cell);
            }
            !retired
        });
        self.slots.push(Arc::new(sum));
    }
}

impl<C> Kept<C> {
    /// The cell, as long as it is not retired.
    pub(super) fn cell(&self) -> Option<&C> {
        (!self.0.retired.load(Relaxed)).then_some(&self.0.cell)
    }
}

impl<const N: usize, C: Cell> Local<N, C> {
    /// The cell with these labels, if there is one of its own.
    pub(super) fn known(&self, labels: [&str; N]) -> Option<Kept<C>> {
        let cells = self.cells.borrow();
        let entries = cells.get(&hash(&labels))?;
        let is_it = |(known, _): &&([Box<str>; N], _)| known.iter().map(|label| &**label).eq(labels);
        entries.iter().filter(is_it).map(|(_, slot)| Kept(slot.clone())).find(|kept| kept.cell().is_some())
    }

    /// The cell with these labels.
    pub(super) fn with(&self, labels: [&str; N], update: impl FnOnce(&C)) {
        let hash = hash(&labels);
        let mut cells = self.cells.borrow_mut();
        let entries = cells.entry(hash).or_default();
        let is_it = |(known, slot): &&([Box<str>; N], Arc<Slot<C>>)| {
            known.iter().map(|label| &**label).eq(labels) && !slot.retired.load(Relaxed)
        };
        if let Some((_, slot)) = entries.iter().find(is_it) {
            return update(&slot.cell);
        }
        self.forget_retired(&mut cells);
        let owned = labels.map(Box::from);
        if self.overflow.borrow().is_none()
            && let Some(slot) = self.family.slot(&owned, true)
        {
            update(&slot.cell);
            cells.entry(hash).or_default().push((owned, slot));
            return;
        }
        // From now on no lock is taken for what is not known yet, until there is room again.
        if cells.get(&hash).is_some_and(Vec::is_empty) {
            cells.remove(&hash);
        }
        let mut overflow = self.overflow.borrow_mut();
        let slot = overflow.get_or_insert_with(|| {
            let labels = [(); N].map(|()| Box::from(OVERFLOW));
            self.family.slot(&labels, false).expect("may not overflow")
        });
        update(&slot.cell);
    }

    /// Cells that were retired are forgotten, and there may be room for more.
    fn forget_retired(&self, cells: &mut HashMap<u64, Entries<N, C>, BuildHasherDefault<Identity>>) {
        let sweeps = self.family.sweeps.load(Relaxed);
        if self.swept.replace(sweeps) == sweeps {
            return;
        }
        cells.retain(|_, entries| {
            entries.retain(|(_, slot)| !slot.retired.load(Relaxed));
            !entries.is_empty()
        });
        self.overflow.take();
    }
}

/// As the registry wants it.
pub(super) struct Collected<const N: usize, C>(pub(super) Arc<Family<N, C>>);

impl<const N: usize, C: Cell> Collector for Collected<N, C> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        if series.sweep(Instant::now()) {
            self.0.sweeps.fetch_add(1, Relaxed);
        }
        let metrics: Vec<Metric> = series
            .all
            .iter()
            .map(|(values, one)| {
                let sum = C::default();
                one.slots.iter().for_each(|slot| sum.merge(&slot.cell));
                let pairs = self.0.labels.iter().zip(values).map(|(name, value)| {
                    let mut pair = LabelPair::default();
                    pair.set_name((*name).to_owned());
                    pair.set_value(value.to_string());
                    pair
                });
                let mut metric = Metric::default();
                metric.set_label(pairs.collect());
                sum.write(&mut metric);
                metric
            })
            .collect();
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(C::TYPE);
        family.set_metric(metrics);
        vec![family]
    }
}

/// A count with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
}

impl Cell for Counter {
    const TYPE: MetricType = MetricType::COUNTER;

    fn merge(&self, other: &Self) {
        self.add(other.0.load(Relaxed));
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn write(&self, metric: &mut Metric) {
        let mut counter = CounterProto::default();
        counter.set_value(as_f64(self.0.load(Relaxed)));
        metric.set_counter(counter);
    }
}

/// Bounds of durations in seconds, as the semantic conventions of OpenTelemetry advise.
pub(super) const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A histogram of durations with one writer.
#[derive(Debug, Default)]
pub(super) struct Durations {
    buckets: [Counter; BOUNDS.len() + 1],
    nanos: Counter,
}

impl Durations {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[index].add(1);
        self.nanos.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Cell for Durations {
    const TYPE: MetricType = MetricType::HISTOGRAM;

    fn merge(&self, other: &Self) {
        self.buckets.iter().zip(&other.buckets).for_each(|(sum, cell)| sum.merge(cell));
        self.nanos.merge(&other.nanos);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.wrapping_add(bucket.count()))
    }

    fn write(&self, metric: &mut Metric) {
        let mut count = 0;
        let buckets = BOUNDS.iter().zip(&self.buckets).map(|(bound, cell)| {
            count += cell.0.load(Relaxed);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = HistogramProto::default();
        histogram.set_bucket(buckets.collect());
        count += self.buckets[BOUNDS.len()].0.load(Relaxed);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(as_f64(self.nanos.0.load(Relaxed)) / 1e9);
        metric.set_histogram(histogram);
    }
}

#[expect(clippy::cast_precision_loss, reason = "as everywhere in Prometheus")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

/// FNV-1a, eight bytes at a time where it can. Labels are no client's to choose, so that nobody can make
/// collisions; and these would only cost time.
fn hash<const N: usize>(labels: &[&str; N]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(PRIME).rotate_left(23);
    for label in labels {
        let (words, rest) = label.as_bytes().as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(u64::from_le_bytes(last));
        mix(label.len() as u64);
    }
    hash
}

/// What is a hash already.
#[derive(Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, Registry, TextEncoder};

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut out = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cells_of_all_workers_are_summed() {
        let registry = Registry::new();
        let family = Family::<2, Counter>::new("things_total", "Things.", ["a", "b"]);
        registry.register(Box::new(Collected(family.clone()))).unwrap();
        assert_eq!(text(&registry), "", "a family without series is not there");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let family = family.clone();
                std::thread::spawn(move || {
                    let local = family.local();
                    for n in 0..30_000 {
                        local.with([["x", "yy", "z\"z"][n % 3], "b"], |cell| cell.add(2));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let text = text(&registry);
        for label in ["x", "yy", "z\\\"z"] {
            assert!(text.contains(&format!("things_total{{a=\"{label}\",b=\"b\"}} 80000\n")), "{text}");
        }
        assert!(text.contains("# TYPE things_total counter"));
    }

    #[test]
    fn histograms_are_cumulative() {
        let registry = Registry::new();
        let family = Family::<1, Durations>::new("took_seconds", "How long.", ["a"]);
        registry.register(Box::new(Collected(family.clone()))).unwrap();
        let (one, two) = (family.local(), family.local());
        for millis in [1, 5, 6, 10_000, 10_001] {
            one.with(["x"], |cell| cell.observe(Duration::from_millis(millis)));
        }
        two.with(["x"], |cell| cell.observe(Duration::from_millis(7_000)));
        let text = text(&registry);
        for line in [
            "took_seconds_bucket{a=\"x\",le=\"0.005\"} 2",
            "took_seconds_bucket{a=\"x\",le=\"0.01\"} 3",
            "took_seconds_bucket{a=\"x\",le=\"5\"} 3",
            "took_seconds_bucket{a=\"x\",le=\"7.5\"} 4",
            "took_seconds_bucket{a=\"x\",le=\"10\"} 5",
            "took_seconds_bucket{a=\"x\",le=\"+Inf\"} 6",
            "took_seconds_sum{a=\"x\"} 27.013",
            "took_seconds_count{a=\"x\"} 6",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
    }

    #[test]
    fn series_are_capped() {
        let registry = Registry::new();
        let family = Family::<1, Counter>::new("many_total", "Many.", ["a"]);
        registry.register(Box::new(Collected(family.clone()))).unwrap();
        let (one, two) = (family.local(), family.local());
        for n in 0..MAX_SERIES + 500 {
            one.with([&n.to_string()], |cell| cell.add(1));
            two.with([&n.to_string()], |cell| cell.add(1));
        }
        one.with(["7"], |cell| cell.add(1));
        let text = text(&registry);
        assert!(text.lines().count() <= MAX_SERIES + 3);
        assert!(text.contains("many_total{a=\"7\"} 3\n"), "what is known goes on");
        assert!(text.contains("many_total{a=\"_overflow\"} 1000\n"), "and nothing is lost");
        assert!(one.cells.borrow().len() <= MAX_SERIES);
    }

    #[tokio::test(start_paused = true)]
    async fn series_that_do_not_change_make_room() {
        let registry = Registry::new();
        let family = Family::<1, Counter>::new("peers_total", "Peers.", ["a"]);
        registry.register(Box::new(Collected(family.clone()))).unwrap();
        let (one, two) = (family.local(), family.local());
        for n in 0..MAX_SERIES {
            one.with([&n.to_string()], |cell| cell.add(1));
        }
        two.with(["7"], |cell| cell.add(1));
        one.with(["new"], |cell| cell.add(1));
        assert!(text(&registry).contains("peers_total{a=\"_overflow\"} 1\n"));
        for _ in 0..70 {
            tokio::time::advance(SWEEP).await;
            one.with(["0"], |cell| cell.add(1));
            text(&registry);
        }
        let left = text(&registry);
        assert!(left.contains("peers_total{a=\"0\"} 71\n"), "what changes goes on: {left}");
        assert_eq!(left.lines().filter(|line| !line.starts_with('#')).count(), 1, "{left}");
        // There is room again, and what comes back begins anew.
        for name in ["new", "7"] {
            one.with([name], |cell| cell.add(1));
            two.with([name], |cell| cell.add(1));
            assert!(text(&registry).contains(&format!("peers_total{{a=\"{name}\"}} 2\n")));
        }
        for local in [&one, &two] {
            assert!(local.cells.borrow().len() <= 3, "workers have let go of them, too");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_counted_at_the_last_moment_is_not_lost() {
        let family = Family::<1, Counter>::new("peers_total", "Peers.", ["a"]);
        let registry = Registry::new();
        registry.register(Box::new(Collected(family.clone()))).unwrap();
        let local = family.local();
        local.with(["x"], |cell| cell.add(1));
        text(&registry);
        tokio::time::advance(SWEEP).await;
        text(&registry);
        tokio::time::advance(FORGET).await;
        let (_, about_to_count) = local.cells.borrow().values().next().unwrap()[0].clone();
        assert!(text(&registry).contains("peers_total{a=\"x\"} 1\n"), "retired, not dropped");
        about_to_count.cell.add(1);
        local.with(["x"], |cell| cell.add(1));
        tokio::time::advance(SWEEP).await;
        assert!(text(&registry).contains("peers_total{a=\"x\"} 3\n"));
        tokio::time::advance(FORGET).await;
        text(&registry);
        tokio::time::advance(SWEEP).await;
        assert_eq!(text(&registry), "");
    }
}
