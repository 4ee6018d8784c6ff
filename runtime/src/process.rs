//! Metrics about the process itself, under the names that Prometheus clients give them.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Gauge, Opts, Registry,
    core::{Collector, Desc},
    proto::{Counter, Metric, MetricFamily, MetricType},
};
use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// Adds `process_*` metrics to a registry: processor time, memory, file descriptors, threads, start.
///
/// To be called when the process starts: that is the start time it tells.
pub fn register(registry: &Registry) -> prometheus::Result<()> {
    registry.register(Box::new(Process::new()?))
}

// The collector in crate `prometheus` counts processor time in whole seconds, which is too coarse to
// tell what a request costs.
struct Process {
    cpu_seconds: Desc,
    gauges: [Gauge; 5],
    start_time: Gauge,
}

type Reader = fn() -> Option<u64>;

const GAUGES: [(&str, &str, Reader); 5] = [
    ("process_resident_memory_bytes", "Resident memory.", || memory_pages(1)),
    ("process_virtual_memory_bytes", "Virtual memory.", || memory_pages(0)),
    ("process_open_fds", "Open file descriptors.", open_fds),
    ("process_max_fds", "Limit of open file descriptors.", || getrlimit(Resource::Nofile).current),
    ("process_threads", "Threads.", || Some(fs::read_dir("/proc/self/task").ok()?.count() as u64)),
];
const CPU_SECONDS: (&str, &str) = ("process_cpu_seconds_total", "User and system processor time spent.");

impl Process {
    fn new() -> prometheus::Result<Self> {
        let gauges = [
            Gauge::new(GAUGES[0].0, GAUGES[0].1)?,
            Gauge::new(GAUGES[1].0, GAUGES[1].1)?,
            Gauge::new(GAUGES[2].0, GAUGES[2].1)?,
            Gauge::new(GAUGES[3].0, GAUGES[3].1)?,
            Gauge::new(GAUGES[4].0, GAUGES[4].1)?,
        ];
        let start_time = Gauge::with_opts(Opts::new(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970.",
        ))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        start_time.set(now.as_secs_f64());
        let cpu_seconds = Desc::new(CPU_SECONDS.0.into(), CPU_SECONDS.1.into(), Vec::new(), Default::default())?;
        Ok(Self { cpu_seconds, gauges, start_time })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = self.gauges.iter().chain([&self.start_time]).flat_map(Collector::desc);
        gauges.chain([&self.cpu_seconds]).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (gauge, (.., read)) in self.gauges.iter().zip(GAUGES) {
            if let Some(value) = read() {
                gauge.set(value as f64);
            }
        }
        let gauges = self.gauges.iter().chain([&self.start_time]).flat_map(Collector::collect);
        gauges.chain([cpu_family()]).collect()
    }
}

fn cpu_family() -> MetricFamily {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let mut counter = Counter::default();
    counter.set_value(spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    let mut family = MetricFamily::default();
    family.set_name(CPU_SECONDS.0.into());
    family.set_help(CPU_SECONDS.1.into());
    family.set_field_type(MetricType::COUNTER);
    family.set_metric(vec![metric]);
    family
}

fn memory_pages(field: usize) -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(field)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_fds() -> Option<u64> {
    // One of them is the directory being read.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}
