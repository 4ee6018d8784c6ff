//! The text format of OpenMetrics 1.0, which crate `prometheus` does not write.

use std::fmt::{self, Write as _};

use prometheus::proto::{Metric, MetricFamily, MetricType};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes families as they are gathered, by name.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::new();
    for family in families {
        write_family(&mut out, family).expect("writing to a string");
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let kind = family.get_field_type();
    // The name of a counter's family is without the suffix that its samples have.
    let name = match kind {
        MetricType::COUNTER => family.name().strip_suffix("_total").unwrap_or(family.name()),
        _ => family.name(),
    };
    let type_name = match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "unknown",
    };
    writeln!(out, "# TYPE {name} {type_name}")?;
    if name.ends_with("_seconds") {
        writeln!(out, "# UNIT {name} seconds")?;
    } else if name.ends_with("_bytes") {
        writeln!(out, "# UNIT {name} bytes")?;
    }
    writeln!(out, "# HELP {name} {}", escape(family.help()))?;
    for metric in family.get_metric() {
        match kind {
            MetricType::COUNTER => sample(out, name, "_total", metric, None, metric.get_counter().get_value())?,
            MetricType::GAUGE => sample(out, name, "", metric, None, metric.get_gauge().get_value())?,
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                for bucket in histogram.get_bucket() {
                    let le = number(bucket.upper_bound());
                    sample(out, name, "_bucket", metric, Some(&le), as_f64(bucket.cumulative_count()))?;
                }
                let count = as_f64(histogram.get_sample_count());
                sample(out, name, "_bucket", metric, Some("+Inf"), count)?;
                sample(out, name, "_sum", metric, None, histogram.get_sample_sum())?;
                sample(out, name, "_count", metric, None, count)?;
            }
            // Nothing here makes any.
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }
    Ok(())
}

fn sample(out: &mut String, name: &str, suffix: &str, metric: &Metric, le: Option<&str>, value: f64) -> fmt::Result {
    write!(out, "{name}{suffix}")?;
    let mut separator = '{';
    let pairs = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
    for (name, value) in pairs.chain(le.map(|le| ("le", le))) {
        write!(out, "{separator}{name}=\"{}\"", escape(value))?;
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    writeln!(out, " {}", number(value))
}

/// Bounds are floats, also whole ones.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    if value.is_nan() {
        return "NaN".into();
    }
    format!("{value:?}")
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[expect(clippy::cast_precision_loss, reason = "as everywhere in Prometheus")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn each_type_is_written_as_the_specification_says() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("c_total", "A \"counter\"."), &["l"]).unwrap();
        counter.with_label_values(&["a\"\\\n"]).inc_by(3);
        let gauge = IntGauge::new("g_bytes", "A gauge.").unwrap();
        gauge.set(-5);
        let opts = HistogramOpts::new("h_seconds", "A histogram.").buckets(vec![0.5, 1.0]);
        let histogram = HistogramVec::new(opts, &["l"]).unwrap();
        histogram.with_label_values(&["x"]).observe(0.7);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        assert_eq!(
            encode(&registry.gather()),
            r#"# TYPE c counter
# HELP c A \"counter\".
c_total{l="a\"\\\n"} 3.0
# TYPE g_bytes gauge
# UNIT g_bytes bytes
# HELP g_bytes A gauge.
g_bytes -5.0
# TYPE h_seconds histogram
# UNIT h_seconds seconds
# HELP h_seconds A histogram.
h_seconds_bucket{l="x",le="0.5"} 0.0
h_seconds_bucket{l="x",le="1.0"} 1.0
h_seconds_bucket{l="x",le="+Inf"} 1.0
h_seconds_sum{l="x"} 0.7
h_seconds_count{l="x"} 1.0
# EOF
"#
        );
    }
}
