//! What the components report about themselves, and whether it bears out what the demo claims.

mod claims;
mod show;
mod traces;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use serde_json::Value;
use tokio::time::Instant;

pub(super) use self::traces::Traces;
use super::{
    collector::Collector,
    customers::Bought,
    mesh::Mesh,
    metrics::Metrics,
    process::shorten,
    script::{ORDERS, Seen},
};
use crate::books::Books;

/// Requests that came in at a sidecar, by who called and what was answered.
const SERVED: &str = "http_server_request_duration_seconds_count";
/// Requests of a sidecar's app, by cluster and route.
const CALLED: &str = "http_client_request_duration_seconds_count";
/// How long spans may take to reach the collector.
const SPANS_PATIENCE: Duration = Duration::from_secs(15);

/// All of it, taken at one time.
pub(super) struct Evidence {
    /// Of each sidecar, by workload; of orders with what the one that crashed had counted.
    metrics: BTreeMap<String, Metrics>,
    /// What each sidecar believes, by workload.
    dumps: BTreeMap<String, Value>,
    /// `heddle status`.
    proxies: Vec<Value>,
    control_plane: Metrics,
    books: Books,
    /// None where the traces went to another collector.
    traces: Option<Traces>,
}

impl Evidence {
    pub(super) async fn gather(mesh: &Mesh, collector: Option<&Collector>, seen: &Seen) -> anyhow::Result<Self> {
        let books = Books::read(&mesh.databases()).await?;
        let traces = collector.map(|collector| Traces::new(collector.spans()));
        let mut metrics = BTreeMap::new();
        let mut dumps = BTreeMap::new();
        for (name, member) in &mesh.members {
            metrics.insert(name.clone(), mesh.metrics(name).await?);
            let dump = mesh.get(member.sidecar.admin, "/config_dump").await?;
            dumps.insert(name.clone(), serde_json::from_str(&dump).context("the config dump is no JSON")?);
        }
        if let Some(orders) = metrics.get_mut(ORDERS.name) {
            orders.add(&seen.before_crash);
        }
        let proxies = mesh.heddle_json(&["status"]).await?;
        let proxies = proxies.as_array().cloned().context("`heddle status` lists no proxies")?;
        let control_plane = Metrics::parse(&mesh.get(mesh.api.health, "/metrics").await?);
        Ok(Self { metrics, dumps, proxies, control_plane, books, traces })
    }

    fn of(&self, workload: &str) -> Metrics {
        self.metrics.get(workload).cloned().unwrap_or_default()
    }

    /// Who called whom how often, as the called sidecars counted it; what they refused is left out.
    fn hops(&self) -> BTreeMap<(String, String), u64> {
        let mut hops = BTreeMap::new();
        for metrics in self.metrics.values() {
            for sample in metrics.of(SERVED).filter(|sample| sample.label("http_response_status_code") != "403") {
                let hop = (sample.label("peer").to_owned(), sample.label("service").to_owned());
                *hops.entry(hop).or_default() += sample.value;
            }
        }
        hops
    }
}

/// Waits until the traces of these orders are whole, as long as that is likely.
pub(super) async fn whole_traces(collector: &Collector, bought: &[Bought]) -> Traces {
    let deadline = Instant::now() + SPANS_PATIENCE;
    loop {
        let traces = Traces::new(collector.spans());
        if traces.faults(bought).is_empty() || Instant::now() > deadline {
            return traces;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The ends of all logs, where they hold a warning or an error.
pub(super) fn last_words(logs: &Path) -> String {
    let mut text = String::new();
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    for file in files {
        let log = std::fs::read(file.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let bad: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        for line in &bad[bad.len().saturating_sub(5)..] {
            text += &format!("{}: {}\n", file.file_name().display(), shorten(line));
        }
    }
    text
}
