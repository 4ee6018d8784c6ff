//! The export of spans over OTLP, in batches.

use std::time::Duration;

use anyhow::{Context as _, bail};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    Protocol as OtlpProtocol, RetryPolicy, SpanExporter as Exporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource as OtelResource,
    trace::{SpanData, SpanExporter as _},
};
use prometheus::IntCounter;
use tokio::{sync::mpsc, time::Instant};

use crate::telemetry::{Protocol, Resource, TracingConfig, queue::Item};

/// Of one export.
const BATCH: usize = 512;
/// A batch that is not full waits so long for more, unless `OTEL_BSP_SCHEDULE_DELAY` says otherwise.
const LINGER: Duration = Duration::from_secs(1);
/// Of one export, with its retries, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between complaints about a collector.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Which traces are sampled, as far as the proxy's own settings say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::telemetry) struct Sampling {
    /// Share of new traces.
    pub(in crate::telemetry) ratio: Option<f64>,
    /// Whether what a caller decided stands.
    pub(in crate::telemetry) heeds_caller: bool,
}

/// What is counted of the export.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct Counts {
    /// Spans that the collector took.
    pub(in crate::telemetry) exported: IntCounter,
    /// Spans that the queue had no room for, or that no collector took.
    pub(in crate::telemetry) dropped: IntCounter,
}

/// Reads a variable of the environment; tests have an environment of their own.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Sampling {
    /// From the settings, or `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub(super) fn of(config: &TracingConfig, variable: Variables<'_>) -> Self {
        let parent_based = |ratio| Self { ratio, heeds_caller: true };
        if config.sampling_ratio.is_some() {
            return parent_based(config.sampling_ratio);
        }
        let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return parent_based(None) };
        let argument = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|ratio| ratio.parse::<f64>().ok());
        let ratio = match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => argument.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or(1.0),
            _ => {
                tracing::warn!(%sampler, "OTEL_TRACES_SAMPLER names a sampler that is not known; the mesh decides");
                return parent_based(None);
            }
        };
        Self { ratio: Some(ratio), heeds_caller: sampler.starts_with("parentbased_") }
    }
}

/// Whether spans go anywhere.
pub(super) fn is_wanted(config: &TracingConfig, variable: Variables<'_>) -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return false;
    }
    config.endpoint.is_some()
        || variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some()
        || variable("OTEL_EXPORTER_OTLP_ENDPOINT").is_some()
}

/// With what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, which wins.
pub(super) fn attributes(resource: &Resource, variable: Variables<'_>) -> OtelResource {
    let own = [
        ("service.name", &resource.service),
        ("service.namespace", &resource.namespace),
        ("service.instance.id", &resource.instance),
    ];
    let said = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let said = said.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, value)| {
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
        KeyValue::new(key.trim().to_owned(), value)
    });
    OtelResource::builder_empty()
        .with_attributes(
            own.into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| KeyValue::new(key, value.clone())),
        )
        .with_attributes(said)
        .with_attributes(variable("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name)))
        .build()
}

/// The exporter of `opentelemetry-otlp`, which also reads `OTEL_EXPORTER_OTLP_*`, retries what may be
/// retried and honours `Retry-After`.
///
/// # Errors
/// Settings that cannot be used.
pub(super) fn exporter(config: &TracingConfig, variable: Variables<'_>) -> Result<Exporter, anyhow::Error> {
    let either = |name: &str| {
        variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    let protocol = match (config.protocol, either("PROTOCOL").as_deref()) {
        (Some(protocol), _) => protocol,
        (None, None | Some("grpc")) => Protocol::Grpc,
        (None, Some("http/protobuf")) => Protocol::Http,
        (None, Some(other)) => {
            bail!("OTEL_EXPORTER_OTLP_PROTOCOL is {other:?}; spans are sent as \"grpc\" or \"http/protobuf\"")
        }
    };
    let roots = match either("CERTIFICATE") {
        Some(path) => Some(std::fs::read(&path).with_context(|| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {path}"))?),
        None => None,
    };
    let timeout = timeout(variable);
    // Until the export as a whole has timed out: a collector that starts anew is back by then.
    let retries = RetryPolicy::recommended().with_max_retries(8).with_max_delay(Duration::from_secs(2));
    let endpoint = config.endpoint.as_deref();
    Ok(match protocol {
        Protocol::Grpc => {
            let mut tls = ClientTlsConfig::new();
            tls = match roots {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_enabled_roots(),
            };
            let mut builder = Exporter::builder().with_tonic().with_timeout(timeout).with_retry_policy(retries);
            if is_https(endpoint, &either) {
                builder = builder.with_tls_config(tls);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            builder.build()?
        }
        Protocol::Http => {
            let mut builder = Exporter::builder()
                .with_http()
                .with_http_client(http_client(timeout, roots.as_deref())?)
                .with_protocol(OtlpProtocol::HttpBinary)
                .with_timeout(timeout)
                .with_retry_policy(retries);
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(traces_url(endpoint));
            }
            builder.build()?
        }
    })
}

pub(super) fn timeout(variable: Variables<'_>) -> Duration {
    let millis = variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"));
    millis.and_then(|millis| millis.parse().ok()).map_or(TIMEOUT, Duration::from_millis)
}

pub(super) fn linger(variable: Variables<'_>) -> Duration {
    variable("OTEL_BSP_SCHEDULE_DELAY").and_then(|millis| millis.parse().ok()).map_or(LINGER, Duration::from_millis)
}

fn is_https(endpoint: Option<&str>, either: &dyn Fn(&str) -> Option<String>) -> bool {
    let endpoint = endpoint.map(str::to_owned).or_else(|| either("ENDPOINT")).unwrap_or_default();
    endpoint.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn http_client(timeout: Duration, roots: Option<&[u8]>) -> Result<reqwest::Client, anyhow::Error> {
    // Collectors are no part of the mesh: what they speak is for the provider's defaults to say. An error
    // means that there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .timeout(timeout)
        // The proxy that the environment names is, as a rule, this very one.
        .no_proxy();
    if let Some(pem) = roots {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    Ok(builder.build()?)
}

/// A collector's base URL is completed as one from the environment is.
fn traces_url(endpoint: &str) -> String {
    let path = endpoint.parse::<http::Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
    if path.is_empty() || path == "/" {
        format!("{}/v1/traces", endpoint.trim_end_matches('/'))
    } else {
        endpoint.to_owned()
    }
}

/// Exports batches until the last writer is gone.
pub(super) async fn run(
    exporter: Exporter,
    mut items: mpsc::Receiver<Item<SpanData>>,
    (linger, timeout): (Duration, Duration),
    counts: Counts,
) {
    let mut batch = Vec::new();
    let mut complained: Option<Instant> = None;
    let mut due: Option<Instant> = None;
    loop {
        let item = match due {
            None => Some(items.recv().await),
            Some(due) => tokio::time::timeout_at(due, items.recv()).await.ok(),
        };
        let flushed = match item {
            Some(None) => break,
            Some(Some(Item::Value(span))) => {
                batch.push(span);
                due.get_or_insert_with(|| Instant::now() + linger);
                if batch.len() < BATCH {
                    continue;
                }
                None
            }
            Some(Some(Item::Flush(done))) => Some(done),
            None => None,
        };
        export(&exporter, std::mem::take(&mut batch), timeout, &counts, &mut complained).await;
        due = None;
        if let Some(done) = flushed {
            // An error means that nobody waits any more.
            let _ = done.send(());
        }
    }
    export(&exporter, batch, timeout, &counts, &mut complained).await;
}

async fn export(
    exporter: &Exporter,
    batch: Vec<SpanData>,
    timeout: Duration,
    counts: &Counts,
    complained: &mut Option<Instant>,
) {
    if batch.is_empty() {
        return;
    }
    let count = batch.len() as u64;
    // The exporter stops trying after its timeout; one try that hangs then may take as long again.
    let result = tokio::time::timeout(timeout * 2, exporter.export(batch)).await;
    let error = match result {
        Ok(Ok(())) => return counts.exported.inc_by(count),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} ms", (timeout * 2).as_millis()),
    };
    counts.dropped.inc_by(count);
    if complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
        *complained = Some(Instant::now());
        tracing::warn!(spans = count, %error, "the collector did not take spans; they are dropped");
    }
}
