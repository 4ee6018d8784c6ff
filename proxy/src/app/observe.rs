//! Turns the state of certificates and of the stream into readiness and metrics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_runtime::health::{Health, Probe};
use prometheus::{Gauge, IntCounter, IntGauge, Registry};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

use super::control::Shared;
use crate::{
    discovery::Status,
    identity::Report,
    lifecycle::{Lifecycle, Stage},
};

pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const POLICY: &str = "policy";
pub(super) const SERVING: &str = "not draining";
pub(super) const TASKS: &str = "control tasks";

/// How often time itself may change something.
const TICK: Duration = Duration::from_secs(1);
/// Part of a certificate's lifetime after which a renewal that has not succeeded is an alarm: it is
/// begun at two thirds.
const OVERDUE: f64 = 0.8;

pub(super) fn health() -> Health {
    Health::new(&[(CERTIFICATE, Probe::Ready), (POLICY, Probe::Ready), (SERVING, Probe::Ready), (TASKS, Probe::Live)])
}

struct Metrics {
    expiry: Gauge,
    overdue: IntGauge,
    issued: IntCounter,
    failures: IntCounter,
    connected: IntGauge,
    age: Gauge,
    rejected: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            expiry: Gauge::new(
                "heddle_certificate_expiry_timestamp_seconds",
                "When this proxy's certificate expires, in seconds since 1970; 0 without one.",
            )?,
            overdue: IntGauge::new(
                "heddle_certificate_renewal_overdue",
                "1 while the certificate has not been renewed though four fifths of its lifetime have passed.",
            )?,
            issued: IntCounter::new("heddle_certificate_renewals_total", "Certificates got since the start.")?,
            failures: IntCounter::new(
                "heddle_certificate_renewal_failures_total",
                "Failed tries to get a certificate.",
            )?,
            connected: IntGauge::new(
                "heddle_control_plane_connected",
                "1 while the discovery stream from the control plane is up.",
            )?,
            age: Gauge::new(
                "heddle_config_staleness_seconds",
                "For how long the discovery stream has been down: the configuration may be as old as this.",
            )?,
            rejected: IntCounter::new(
                "heddle_config_rejected_total",
                "Resources from the control plane that could not be used.",
            )?,
        };
        for collector in [&metrics.expiry, &metrics.age] {
            registry.register(Box::new(collector.clone()))?;
        }
        for collector in [&metrics.overdue, &metrics.connected] {
            registry.register(Box::new(collector.clone()))?;
        }
        for collector in [&metrics.issued, &metrics.failures, &metrics.rejected] {
            registry.register(Box::new(collector.clone()))?;
        }
        Ok(metrics)
    }
}

/// Runs for good.
pub(super) async fn run(
    shared: &Shared,
    health: Health,
    life: Lifecycle,
    mut report: watch::Receiver<Report>,
    mut status: watch::Receiver<Status>,
) {
    let metrics = match Metrics::register(shared.telemetry.registry()) {
        Ok(metrics) => Some(metrics),
        Err(error) => {
            tracing::error!(%error, "metrics of the control side are missing");
            None
        }
    };
    let mut snapshots = shared.discovery.changed();
    let mut credentials = shared.identity.changed();
    let mut tick = interval(TICK);
    let mut last_up = Instant::now();
    loop {
        let snapshot = shared.discovery.snapshot();
        health.set(CERTIFICATE, shared.identity.current().is_some());
        let has_all = |served: &Vec<_>| served.iter().all(|service| snapshot.inbound.contains_key(service));
        let served = snapshot.served.as_ref().is_some_and(has_all);
        health.set(POLICY, served && snapshot.mesh.is_some());
        health.set(SERVING, life.stage() == Stage::Serving);
        if let Some(mesh) = &snapshot.mesh {
            shared.telemetry.set_access_log(shared.config.log.access.unwrap_or(mesh.access_log));
            shared.telemetry.set_sampling_ratio(mesh.sampling_ratio);
        }
        if let Some(metrics) = &metrics {
            let report = report.borrow_and_update().clone();
            let status = status.borrow_and_update().clone();
            let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            metrics.expiry.set(report.not_after.map_or(0.0, seconds));
            metrics.overdue.set(is_overdue(shared).into());
            raise(&metrics.issued, report.issued);
            raise(&metrics.failures, report.failures);
            metrics.connected.set(status.connected.into());
            if status.connected {
                last_up = Instant::now();
            }
            metrics.age.set(last_up.elapsed().as_secs_f64());
            raise(&metrics.rejected, status.rejected);
        }
        // Each of these ends only with the process.
        tokio::select! {
            _ = snapshots.changed() => {}
            _ = credentials.changed() => {}
            _ = report.changed() => {}
            _ = status.changed() => {}
            () = life.reached(next(life.stage())) => {}
            _ = tick.tick() => {}
        }
    }
}

/// The stage after this one.
fn next(stage: Stage) -> Stage {
    match stage {
        Stage::Serving => Stage::Leaving,
        Stage::Leaving => Stage::Refusing,
        Stage::Refusing | Stage::Closing => Stage::Closing,
    }
}

fn is_overdue(shared: &Shared) -> bool {
    let Some(svid) = shared.identity.svid() else { return false };
    let lifetime = svid.not_after().duration_since(svid.not_before()).unwrap_or_default();
    shared.clock.now() > svid.not_before() + lifetime.mul_f64(OVERDUE)
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
