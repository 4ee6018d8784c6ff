//! Metrics as the sidecars and the control plane report them, in the Prometheus text format.

use std::collections::BTreeMap;

/// One series and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Of a counter; other values are rounded.
    pub(crate) value: u64,
}

impl Sample {
    /// A label's value; empty where it has none.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text format; lines that are no samples are left out.
    pub(crate) fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(sample).collect() }
    }

    /// Adds what another process counted, as if it were one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.samples.extend(other.samples.iter().cloned());
    }

    /// The same with one more label on each.
    pub(crate) fn labelled(mut self, name: &str, value: &str) -> Self {
        for sample in &mut self.samples {
            sample.labels.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// What was counted since an earlier time.
    pub(crate) fn since(mut self, earlier: &Self) -> Self {
        for sample in &mut self.samples {
            let same = |other: &&Sample| other.name == sample.name && other.labels == sample.labels;
            let before = earlier.samples.iter().find(same).map_or(0, |other| other.value);
            sample.value = sample.value.saturating_sub(before);
        }
        self
    }

    /// All series of a metric.
    pub(crate) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// Sum of the series of a metric that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.of(name)
            .filter(|sample| labels.iter().all(|(label, value)| sample.label(label) == *value))
            .map(|sample| sample.value)
            .sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    // Saturates, which is all that is asked for of infinity.
    let value = value.round() as u64;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_text_format() {
        let metrics = Metrics::parse(
            "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"x\",c=\"say \\\"}{\\\"\"} 2\na_total{b=\"y\"} 1 1700000000\nb 3\nno sample\n",
        );
        assert_eq!(
            (metrics.sum("a_total", &[]), metrics.sum("a_total", &[("b", "x")]), metrics.sum("b", &[])),
            (3, 2, 3)
        );
        assert_eq!(metrics.of("a_total").next().unwrap().label("c"), "say \"}{\"");
        assert_eq!(metrics.sum("no", &[]), 0);
    }
}
