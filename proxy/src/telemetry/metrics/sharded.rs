//! Metrics whose cells belong to one worker each, and are summed when they are read.
//!
//! A cell has one writer, so that it is updated by a plain load and store: no worker waits for
//! another's cache line. Labels are looked up in a map of the worker's own; only the first time that a
//! worker meets a set of labels it takes the lock.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus::{
    core::{Collector, Desc},
    proto::{
        Bucket, Counter as CounterProto, Histogram as HistogramProto, LabelPair, Metric, MetricFamily, MetricType,
    },
};

/// Most sets of labels of one family; what comes after is counted together, under this value of each
/// label.
const MAX_SERIES: usize = 2_000;
const OVERFLOW: &str = "_overflow";

/// What a family is made of.
pub(super) trait Cell: Default + Send + Sync + 'static {
    const TYPE: MetricType;

    /// Adds all of `other`.
    fn merge(&self, other: &Self);

    /// Tells its value.
    fn write(&self, metric: &mut Metric);
}

/// All series of one name. Kept by whoever collects, and by each worker's [`Local`].
#[derive(Debug)]
pub(super) struct Family<const N: usize, C> {
    desc: Desc,
    labels: [&'static str; N],
    series: Mutex<Series<N, C>>,
}

/// One worker's cells of a family.
#[derive(Debug)]
pub(super) struct Local<const N: usize, C> {
    family: Arc<Family<N, C>>,
    // By hash of the labels: looked up without owning them.
    cells: RefCell<HashMap<u64, Entries<N, C>, BuildHasherDefault<Identity>>>,
    overflow: RefCell<Option<Arc<C>>>,
}

type Series<const N: usize, C> = HashMap<[Box<str>; N], Vec<Arc<C>>>;
type Entries<const N: usize, C> = Vec<([Box<str>; N], Arc<C>)>;

impl<const N: usize, C: Cell> Family<N, C> {
    pub(super) fn new(name: &str, help: &str, labels: [&'static str; N]) -> Arc<Self> {
        let names = labels.map(str::to_owned).into();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, HashMap::new()).expect("names are valid");
        Arc::new(Self { desc, labels, series: Mutex::default() })
    }

    pub(super) fn local(self: &Arc<Self>) -> Local<N, C> {
        Local { family: self.clone(), cells: RefCell::default(), overflow: RefCell::default() }
    }

    /// A new cell for a worker; `None` if there are too many series to begin another.
    fn cell(&self, labels: &[Box<str>; N], may_overflow: bool) -> Option<Arc<C>> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if may_overflow && series.len() >= MAX_SERIES && !series.contains_key(labels) {
            return None;
        }
        let cell = Arc::new(C::default());
        series.entry(labels.clone()).or_default().push(cell.clone());
        Some(cell)
    }
}

impl<const N: usize, C: Cell> Local<N, C> {
    /// The cell with these labels.
    pub(super) fn with(&self, labels: [&str; N], update: impl FnOnce(&C)) {
        let hash = hash(&labels);
        let mut cells = self.cells.borrow_mut();
        let entries = cells.entry(hash).or_default();
        if let Some((_, cell)) = entries.iter().find(|(known, _)| known.iter().map(|label| &**label).eq(labels)) {
            return update(cell);
        }
        let owned = labels.map(Box::from);
        if self.overflow.borrow().is_none()
            && let Some(cell) = self.family.cell(&owned, true)
        {
            update(&cell);
            entries.push((owned, cell));
            return;
        }
        // From now on no lock is taken for what is not known yet.
        cells.remove(&hash);
        let mut overflow = self.overflow.borrow_mut();
        let cell = overflow.get_or_insert_with(|| {
            let labels = [(); N].map(|()| Box::from(OVERFLOW));
            self.family.cell(&labels, false).expect("may not overflow")
        });
        update(cell);
    }
}

/// As the registry wants it.
pub(super) struct Collected<const N: usize, C>(pub(super) Arc<Family<N, C>>);

impl<const N: usize, C: Cell> Collector for Collected<N, C> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics: Vec<Metric> = series
            .iter()
            .map(|(values, cells)| {
                let sum = C::default();
                cells.iter().for_each(|cell| sum.merge(cell));
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
    pub(super) fn observe(&self, duration: std::time::Duration) {
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
    use std::time::Duration;

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
}
