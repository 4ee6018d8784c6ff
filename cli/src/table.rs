//! Tables for people: what each kind shows in one line.

use std::fmt;

use comfy_table::{ColumnConstraint, Width, presets};
use jiff::Timestamp;
use serde_json::Value;

use crate::{kind::Kind, object::Object, time};

/// Rows in aligned columns, without lines.
pub(crate) struct Table {
    inner: comfy_table::Table,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING).set_header(headings);
        for column in inner.column_iter_mut() {
            column.set_padding((0, 3));
        }
        Self { inner }
    }

    /// Adds a row. Control characters in names and messages must not reach the terminal.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.inner.add_row(cells.into_iter().map(clean));
    }

    /// A later row by itself, in the columns that the table has so far.
    pub(crate) fn line(&self, cells: Vec<String>) -> String {
        let widths = self.inner.column_max_content_widths();
        let mut line = comfy_table::Table::new();
        line.load_preset(presets::NOTHING).add_row(cells.into_iter().map(clean));
        for (index, column) in line.column_iter_mut().enumerate() {
            column.set_padding((0, 3));
            if let Some(&width) = widths.get(index) {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 3)));
            }
        }
        trimmed(&line)
    }
}

fn clean(cell: impl Into<String>) -> String {
    cell.into().replace(char::is_control, " ")
}

fn trimmed(table: &comfy_table::Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&trimmed(&self.inner))
    }
}

/// Where a workload carries whether it takes traffic, which its proxy tells and the object does not.
pub(crate) const READY: &str = "/ready";

/// The headings of a kind's table.
pub(crate) fn headings(kind: Kind, namespaces: bool) -> Vec<&'static str> {
    let own: &[&str] = match kind.name {
        "MeshConfig" => &["DEFAULT", "EGRESS", "SUFFIXES", "SAMPLING"],
        "Service" => &["PORTS", "ACCOUNTS", "SOURCE"],
        "Workload" => &["ADDRESS", "SERVICES", "READY", "ZONE", "SOURCE"],
        "HTTPRoute" | "GRPCRoute" => &["PARENTS", "HOSTNAMES", "RULES"],
        "TCPRoute" => &["PARENTS", "BACKENDS"],
        "TrafficPolicy" => &["TARGET", "SETS"],
        "AuthorizationPolicy" => &["ACTION", "TARGET", "RULES"],
        _ => &[],
    };
    let mut headings = Vec::new();
    if namespaces && kind.namespaced {
        headings.push("NAMESPACE");
    }
    headings.push("NAME");
    headings.extend(own);
    if kind.name != "Workload" {
        headings.push("PROXIES");
    }
    headings.push("AGE");
    headings
}

/// An object's cells under [`headings`].
pub(crate) fn cells(kind: Kind, namespaces: bool, prefix: &str, object: &Object, now: Timestamp) -> Vec<String> {
    let mut cells = Vec::new();
    if namespaces && kind.namespaced {
        cells.push(object.namespace().unwrap_or("-").to_owned());
    }
    cells.push(format!("{prefix}{}", object.name()));
    cells.extend(own(kind, object));
    if kind.name != "Workload" {
        cells.push(proxies(object));
    }
    cells.push(time::age(object.text("/metadata/creationTimestamp"), now));
    cells
}

/// The [`source`] of what was applied.
pub(crate) const DECLARED: &str = "declared";

/// Who says that there is this service or workload.
pub(crate) fn source(object: &Object) -> &'static str {
    let is = |label: &str| object.text(label) == Some("true");
    if is("/metadata/labels/heddle.dev~1kubernetes") {
        "kubernetes"
    } else if is("/metadata/labels/heddle.dev~1registered") {
        "registered"
    } else {
        DECLARED
    }
}

fn own(kind: Kind, object: &Object) -> Vec<String> {
    let text = |pointer: &str| object.text(pointer).unwrap_or("-").to_owned();
    let count = |pointer: &str| object.list(pointer).len().to_string();
    match kind.name {
        "MeshConfig" => vec![
            object.text("/spec/defaultAuthorization").unwrap_or("deny").to_owned(),
            object.text("/spec/egress").unwrap_or("deny").to_owned(),
            joined(object.list("/spec/suffixes"), Value::as_str),
            object.0.pointer("/spec/telemetry/samplingRatio").map_or_else(|| "-".to_owned(), Value::to_string),
        ],
        "Service" => {
            let accounts = match object.list("/spec/serviceAccounts") {
                [] => object.name().to_owned(),
                accounts => joined(accounts, Value::as_str),
            };
            vec![joined_with(object.list("/spec/ports"), port), accounts, source(object).to_owned()]
        }
        "Workload" => {
            let inbound = object.number("/spec/inboundPort");
            vec![
                inbound.map_or_else(|| text("/spec/address"), |port| format!("{}:{port}", text("/spec/address"))),
                joined(object.list("/spec/services"), |service| service.get("name")?.as_str()),
                match object.0.pointer(READY).and_then(Value::as_bool) {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "-",
                }
                .to_owned(),
                text("/spec/zone"),
                source(object).to_owned(),
            ]
        }
        "HTTPRoute" | "GRPCRoute" => vec![
            joined_with(object.list("/spec/parentRefs"), target),
            match object.list("/spec/hostnames") {
                [] => "*".to_owned(),
                hostnames => joined(hostnames, Value::as_str),
            },
            count("/spec/rules"),
        ],
        "TCPRoute" => vec![
            joined_with(object.list("/spec/parentRefs"), target),
            joined_with(object.list("/spec/rules/0/backendRefs"), target),
        ],
        "TrafficPolicy" => {
            let sets = object.0.pointer("/spec").and_then(Value::as_object);
            let sets: Vec<_> =
                sets.into_iter().flat_map(|spec| spec.keys()).filter(|key| *key != "targetRef").cloned().collect();
            vec![object.0.pointer("/spec/targetRef").map_or_else(|| "-".to_owned(), target), sets.join(",")]
        }
        "AuthorizationPolicy" => {
            let target = match object.0.pointer("/spec/targetRef") {
                Some(reference) => target(reference),
                None if object.namespace() == Some("heddle") => "the mesh".to_owned(),
                None => "its namespace".to_owned(),
            };
            vec![text("/spec/action"), target, count("/spec/rules")]
        }
        _ => Vec::new(),
    }
}

/// `3/4`, with how many rejected it, of the proxies that it concerns.
pub(crate) fn proxies(object: &Object) -> String {
    if object.0.get("status").is_none_or(Value::is_null) {
        return "-".to_owned();
    }
    let applied = object.number("/status/applied").unwrap_or(0);
    let rejected = rejections(object);
    let all = applied + object.number("/status/pending").unwrap_or(0) + rejected;
    match rejected {
        0 => format!("{applied}/{all}"),
        count => format!("{applied}/{all} ({count} rejected)"),
    }
}

/// How many proxies rejected an object; some of them are listed.
pub(crate) fn rejections(object: &Object) -> u64 {
    let listed = object.list("/status/rejected").len() as u64;
    object.number("/status/rejectedCount").unwrap_or(0).max(listed)
}

/// `80/http>8080`.
fn port(port: &Value) -> String {
    let number = |name: &str| port.get(name).and_then(Value::as_u64);
    let mut text = number("port").map_or_else(|| "?".to_owned(), |port| port.to_string());
    if let Some(protocol) = port.get("protocol").and_then(Value::as_str) {
        text.push_str(&format!("/{protocol}"));
    }
    if let Some(target) = number("targetPort").filter(|target| Some(*target) != number("port")) {
        text.push_str(&format!(">{target}"));
    }
    if port.get("mtls").and_then(Value::as_str) == Some("permissive") {
        text.push_str(" (permissive)");
    }
    text
}

/// `payments.other:80 (10)`: name, and namespace, port and weight where they are said.
pub(crate) fn target(reference: &Value) -> String {
    let mut text = reference.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
    if let Some(namespace) = reference.get("namespace").and_then(Value::as_str) {
        text.push_str(&format!(".{namespace}"));
    }
    if let Some(port) = reference.get("port").and_then(Value::as_u64) {
        text.push_str(&format!(":{port}"));
    }
    if let Some(weight) = reference.get("weight").and_then(Value::as_u64) {
        text.push_str(&format!(" ({weight})"));
    }
    text
}

fn joined<'a>(values: &'a [Value], text: impl Fn(&'a Value) -> Option<&'a str>) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(|value| text(value).unwrap_or("?")).collect::<Vec<_>>().join(",")
}

fn joined_with(values: &[Value], text: impl Fn(&Value) -> String) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(kind: &str, object: Value) -> String {
        let now = "2026-08-01T12:00:00Z".parse().unwrap();
        let kind = Kind::named(kind).unwrap();
        let cells = cells(kind, true, "", &Object(object), now);
        assert_eq!(cells.len(), headings(kind, true).len());
        cells.join(" | ")
    }

    #[test]
    fn each_kind_in_one_line() {
        let metadata = json!({"name": "x", "namespace": "shop", "creationTimestamp": "2026-08-01T11:00:00Z"});
        let status =
            json!({"observedGeneration": 1, "applied": 2, "pending": 1, "rejected": [{"proxy": "p", "reason": "r"}]});
        let object = |spec: Value| json!({"metadata": metadata, "spec": spec, "status": status});
        assert_eq!(
            row(
                "Service",
                object(
                    json!({"ports": [{"port": 80, "protocol": "http", "targetPort": 8080}, {"port": 9, "mtls": "permissive"}]})
                )
            ),
            "shop | x | 80/http>8080,9 (permissive) | x | declared | 2/4 (1 rejected) | 60m"
        );
        assert_eq!(
            row("HTTPRoute", object(json!({"parentRefs": [{"name": "x", "port": 80}], "rules": [{}, {}]}))),
            "shop | x | x:80 | * | 2 | 2/4 (1 rejected) | 60m"
        );
        assert_eq!(
            row(
                "TCPRoute",
                object(
                    json!({"parentRefs": [{"name": "x"}], "rules": [{"backendRefs": [{"name": "y", "weight": 9}]}]})
                )
            ),
            "shop | x | x | y (9) | 2/4 (1 rejected) | 60m"
        );
        assert_eq!(
            row(
                "TrafficPolicy",
                object(json!({"targetRef": {"kind": "Service", "name": "y"}, "retry": {}, "timeouts": {}}))
            ),
            "shop | x | y | retry,timeouts | 2/4 (1 rejected) | 60m"
        );
        assert_eq!(
            row("AuthorizationPolicy", object(json!({"action": "ALLOW", "rules": [{}]}))),
            "shop | x | ALLOW | its namespace | 1 | 2/4 (1 rejected) | 60m"
        );
        assert_eq!(
            row(
                "Workload",
                object(
                    json!({"address": "10.0.0.1", "inboundPort": 15006, "services": [{"name": "a"}, {"name": "b"}]})
                )
            ),
            "shop | x | 10.0.0.1:15006 | a,b | - | - | declared | 60m"
        );
        let mesh =
            json!({"metadata": {"name": "mesh"}, "spec": {"suffixes": ["mesh"], "telemetry": {"samplingRatio": 0.01}}});
        assert_eq!(row("MeshConfig", mesh), "mesh | deny | deny | mesh | 0.01 | - | -");
        // Fields that are missing or of another type show as such and break nothing.
        for kind in Kind::all() {
            row(kind.name, json!({"metadata": 3, "spec": "?"}));
        }
    }

    #[test]
    fn columns_are_aligned_and_later_lines_too() {
        let mut table = Table::new(&["NAME", "AGE"]);
        table.row(["a-long-name", "5s"]);
        table.row(["b\x1b[31m\n", "6s"]);
        assert_eq!(table.to_string(), "NAME          AGE\na-long-name   5s\nb [31m        6s\n");
        assert_eq!(table.line(vec!["c".into(), "7s".into(), "deleted".into()]), "c             7s    deleted\n");
    }
}
