//! What the control plane counts. Every metric is declared here.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The control plane's metrics. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Proxies with a discovery stream.
    pub connected_proxies: IntGauge,
    /// Responses sent to proxies, by type.
    pub pushes: IntCounterVec,
    /// Answers of proxies, by type and `ack` or `nack`.
    pub answers: IntCounterVec,
    /// Subscriptions refused: nonsense, or too many.
    pub refused_subscriptions: IntCounter,
    /// Time to put a response together, with compiling what was not compiled yet.
    pub compile_seconds: Histogram,
    /// Revision of the store that proxies are told of.
    pub revision: IntGauge,
    /// Writes to the store that failed.
    pub store_errors: IntCounter,
    /// Authorities that could not be taken up or renewed.
    pub authority_errors: IntCounter,
    /// SVIDs signed, by how they were asked for.
    pub certificates: IntCounterVec,
    /// Requests for SVIDs refused, by reason.
    pub certificates_refused: IntCounterVec,
    /// Registered workloads with a lease.
    pub leases: IntGauge,
    /// Leases that ended without being renewed.
    pub leases_expired: IntCounter,
    /// When certificates end, in seconds since 1970, by whose.
    pub certificate_expiry: IntGaugeVec,
    /// Connections refused or dropped before a request, by listener and reason.
    pub connections_refused: IntCounterVec,
    /// Open connections, by listener.
    pub connections: IntGaugeVec,
    /// What is known of the Kubernetes cluster, by resource.
    pub kubernetes_objects: IntGaugeVec,
    /// Lists and watches of the Kubernetes API that failed, by resource.
    pub kubernetes_failures: IntCounterVec,
    /// Pods that Kubernetes asked about, by what became of them.
    pub admissions: IntCounterVec,
}

impl Metrics {
    /// All metrics in a registry of their own, with those of the process.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        heddle_runtime::process::register(&registry)?;
        heddle_runtime::telemetry::register(&registry)?;
        let name = |name: &str| format!("heddle_control_plane_{name}");
        let gauge = |short: &str, help: &str| register(&registry, IntGauge::new(name(short), help)?);
        let counter = |short: &str, help: &str| register(&registry, IntCounter::new(name(short), help)?);
        let counters = |short: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name(short), help), labels)?)
        };
        let gauges = |short: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name(short), help), labels)?)
        };
        let buckets = vec![0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5];
        let compile =
            HistogramOpts::new(name("compile_seconds"), "Time to put a discovery response together").buckets(buckets);
        Ok(Self {
            connected_proxies: gauge("connected_proxies", "Proxies with a discovery stream")?,
            pushes: counters("pushes_total", "Discovery responses sent", &["type"])?,
            answers: counters("answers_total", "Answers of proxies to discovery responses", &["type", "answer"])?,
            refused_subscriptions: counter("refused_subscriptions_total", "Names that a proxy may not subscribe to")?,
            compile_seconds: register(&registry, Histogram::with_opts(compile)?)?,
            revision: gauge("store_revision", "Revision of the store that proxies are told of")?,
            store_errors: counter("store_errors_total", "Writes to the store that failed")?,
            authority_errors: counter("authority_errors_total", "Attempts to replace the authority that failed")?,
            certificates: counters("certificates_issued_total", "SVIDs signed", &["attestation"])?,
            certificates_refused: counters("certificates_refused_total", "Requests for SVIDs refused", &["reason"])?,
            leases: gauge("leases", "Registered workloads")?,
            leases_expired: counter("leases_expired_total", "Leases that ended without being renewed")?,
            certificate_expiry: gauges(
                "certificate_expiry_timestamp_seconds",
                "When certificates end",
                &["certificate"],
            )?,
            connections_refused: counters(
                "connections_refused_total",
                "Connections dropped before a request",
                &["listener", "reason"],
            )?,
            connections: gauges("connections", "Open connections", &["listener"])?,
            kubernetes_objects: gauges(
                "kubernetes_objects",
                "Kubernetes Services, and pods with a proxy, that are known",
                &["resource"],
            )?,
            kubernetes_failures: counters(
                "kubernetes_failures_total",
                "Lists and watches of the Kubernetes API that failed",
                &["resource"],
            )?,
            admissions: counters("admissions_total", "Admission reviews of pods, by what became of them", &["result"])?,
            registry,
        })
    }

    /// The registry, for those who have metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All of them, in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: M) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
