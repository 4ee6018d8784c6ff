//! `heddle describe`.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    args::DescribeArgs,
    commands::Session,
    error::{Error, exit},
    get::names_of,
    kind::Kind,
    object::{Object, reference},
    output::{self, Format, Paint},
    table, time,
};

/// Policies without a target in this namespace hold for the mesh.
const MESH_NAMESPACE: &str = "heddle";

/// Shows one object with everything around it.
pub(crate) async fn describe(session: &Session, args: &DescribeArgs) -> Result<u8, Error> {
    let names: Vec<String> = args.name.iter().cloned().collect();
    let (kinds, mut names) = names_of(&args.kind, &names)?;
    let kind = match (kinds.as_slice(), names.len()) {
        ([kind], 1) => *kind,
        ([kind], 0) if !kind.namespaced => {
            names.push(heddle_api::resource::MESH_CONFIG_NAME.to_owned());
            *kind
        }
        _ => return Err(Error::Usage("describe takes one KIND and one NAME".to_owned())),
    };
    let object = session.client.get(kind, session.namespace(&args.namespace), &names[0]).await?;
    let others = others(session, &object).await?;
    output::print(&render(&object, &others, &session.paint, Timestamp::now())?)?;
    Ok(exit::OK)
}

/// Those that may be related, and no more: a mesh can have tens of thousands of others.
async fn others(session: &Session, object: &Object) -> Result<Vec<Object>, Error> {
    let mut others = Vec::new();
    for reference in references(object) {
        if let Some(kind) = Kind::named(&reference.kind) {
            others.extend(session.client.find(kind, &reference.namespace, &reference.name).await?);
        }
    }
    // Only services are referred to.
    let Some(namespace) = object.namespace().filter(|_| object.kind() == "Service") else {
        return Ok(others);
    };
    let service = format!("{namespace}/{}", object.name());
    for kind in ["Workload", "HTTPRoute", "GRPCRoute", "TCPRoute", "TrafficPolicy", "AuthorizationPolicy"] {
        others.extend(session.client.referring(Kind::typed(kind)?, &service).await?);
    }
    Ok(others)
}

fn render(object: &Object, others: &[Object], paint: &Paint, now: Timestamp) -> Result<String, Error> {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let name = if name.is_empty() { String::new() } else { format!("{name}:") };
        text.push_str(&format!("{} {value}\n", paint.strong(&format!("{name:<12}"))));
    };
    line("Kind", object.kind().to_owned());
    line("Name", object.name().to_owned());
    if let Some(namespace) = object.namespace() {
        line("Namespace", namespace.to_owned());
    }
    for (name, field) in [("Labels", "labels"), ("Annotations", "annotations")] {
        let pairs = object.0.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        for (index, (key, value)) in pairs.into_iter().flatten().enumerate() {
            line(if index == 0 { name } else { "" }, format!("{key}={}", value.as_str().unwrap_or("?")))
        }
    }
    let created = object.text("/metadata/creationTimestamp");
    line("Created", format!("{} ({} ago)", created.unwrap_or("-"), time::age(created, now)));
    let generation = object.number("/metadata/generation").map_or_else(|| "-".to_owned(), |n| n.to_string());
    line("Generation", format!("{generation}, resource version {}", object.resource_version().unwrap_or("-")));
    let spec = object.0.get("spec").cloned().unwrap_or(Value::Null);
    text.push_str(&section("Spec", &output::render(&spec, Format::Yaml)?, paint));
    text.push_str(&section("Proxies", &proxies(object), paint));
    let conditions = findings(object);
    if !conditions.is_empty() {
        text.push_str(&section("Findings", &conditions, paint));
    }
    let related = related(object, others);
    if !related.is_empty() {
        text.push_str(&section("Related", &related, paint));
    }
    Ok(text)
}

fn section(name: &str, body: &str, paint: &Paint) -> String {
    let body: String = body.lines().map(|line| format!("  {line}\n")).collect();
    format!("{}\n{body}", paint.strong(&format!("{name}:")))
}

/// Who applied it, who did not, and why not.
fn proxies(object: &Object) -> String {
    if object.0.get("status").is_none_or(Value::is_null) {
        return "the control plane has not counted them".to_owned();
    }
    let applied = object.number("/status/applied").unwrap_or(0);
    let pending = object.number("/status/pending").unwrap_or(0);
    let rejected = object.list("/status/rejected");
    let mut text = format!("{applied} applied, {pending} pending, {} rejected", table::rejections(object));
    if object.number("/status/observedGeneration") < object.number("/metadata/generation") {
        text.push_str(" (of an earlier generation)");
    }
    for entry in rejected {
        text.push_str(&format!("\nrejected by {}: {}", field(entry, "proxy"), field(entry, "reason")));
    }
    let more = table::rejections(object) - rejected.len() as u64;
    if more > 0 {
        text.push_str(&format!("\nand by {more} more"));
    }
    text
}

fn findings(object: &Object) -> String {
    object
        .list("/status/conditions")
        .iter()
        .map(|condition| format!("{}: {}\n", field(condition, "type"), field(condition, "message")))
        .collect()
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("?")
}

/// One object's reference to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reference {
    /// How the one that refers sees the other, e.g. `backend`.
    role: &'static str,
    kind: String,
    namespace: String,
    name: String,
}

impl Reference {
    fn hits(&self, object: &Object) -> bool {
        self.kind == object.kind() && Some(self.namespace.as_str()) == object.namespace() && self.name == object.name()
    }
}

/// What an object refers to.
fn references(object: &Object) -> Vec<Reference> {
    let own = object.namespace().unwrap_or("");
    let to = |role: &'static str, value: &Value| Reference {
        role,
        kind: value.get("kind").and_then(Value::as_str).unwrap_or("Service").to_owned(),
        namespace: value.get("namespace").and_then(Value::as_str).unwrap_or(own).to_owned(),
        name: field(value, "name").to_owned(),
    };
    let mut found = Vec::new();
    found.extend(object.list("/spec/parentRefs").iter().map(|value| to("parent", value)));
    for rule in object.list("/spec/rules") {
        let backends = rule.get("backendRefs").and_then(Value::as_array);
        found.extend(backends.into_iter().flatten().map(|value| to("backend", value)));
    }
    found.extend(object.0.pointer("/spec/targetRef").map(|value| to("target", value)));
    if object.kind() == "Workload" {
        found.extend(object.list("/spec/services").iter().map(|value| to("serves", value)));
    }
    found.sort();
    found.dedup();
    found
}

/// A policy without a target holds for its namespace, or in `heddle` for the mesh.
fn covers(policy: &Object, object: &Object) -> bool {
    policy.kind() == "AuthorizationPolicy"
        && object.kind() == "Service"
        && policy.0.pointer("/spec/targetRef").is_none()
        && (policy.namespace() == object.namespace() || policy.namespace() == Some(MESH_NAMESPACE))
}

/// One line per object that this one refers to, or that refers to it.
fn related(object: &Object, others: &[Object]) -> String {
    let mut lines = Vec::new();
    for reference in references(object) {
        let target = others.iter().find(|other| reference.hits(other));
        let note = match target {
            Some(target) => format!("proxies {}", table::proxies(target)),
            None => "does not exist".to_owned(),
        };
        let name = self::reference(&reference.kind, Some(&reference.namespace), &reference.name);
        lines.push(format!("{:<10} {name} ({note})", reference.role));
    }
    for other in others {
        let mut roles: Vec<_> =
            references(other).into_iter().filter(|reference| reference.hits(object)).map(|one| one.role).collect();
        if covers(other, object) {
            roles.push("target");
        }
        for role in roles {
            let role = match role {
                "parent" => "routed by",
                "backend" => "backend of",
                "serves" => "served by",
                _ => "policy",
            };
            let note = match other.text("/spec/action") {
                Some(action) => format!(" ({action})"),
                None => String::new(),
            };
            lines.push(format!("{role:<10} {}{note}", other.reference()));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Object {
        Object(json!({"kind": kind, "metadata": {"namespace": namespace, "name": name, "labels": {"a": "b", "c": "d"},
            "generation": 2, "resourceVersion": "17", "creationTimestamp": "2026-08-01T11:00:00Z"}, "spec": spec}))
    }

    #[test]
    fn status_findings_and_related_objects() {
        let mut route = object(
            "HTTPRoute",
            "shop",
            "split",
            json!({"parentRefs": [{"name": "orders"}], "rules": [
                {"backendRefs": [{"name": "orders"}, {"name": "orders", "namespace": "canary"}]}, {"backendRefs": [{"name": "orders"}]}]}),
        );
        route.0["status"] = json!({"observedGeneration": 1, "applied": 2, "pending": 1, "rejectedCount": 25,
            "rejected": [{"proxy": "shop/web-1", "reason": "regex too large"}],
            "conditions": [{"type": "BackendNotFound", "message": "canary/orders"}]});
        let mut orders = object("Service", "shop", "orders", json!({"ports": [{"port": 80}]}));
        orders.0["status"] = json!({"observedGeneration": 2, "applied": 3, "pending": 0});
        let others = [
            orders.clone(),
            route.clone(),
            object(
                "AuthorizationPolicy",
                "shop",
                "web",
                json!({"action": "ALLOW", "targetRef": {"kind": "Service", "name": "orders"}}),
            ),
            object("AuthorizationPolicy", "heddle", "all", json!({"action": "DENY"})),
            object("AuthorizationPolicy", "other", "all", json!({"action": "DENY"})),
            object("Workload", "shop", "orders-1", json!({"services": [{"name": "orders"}]})),
        ];
        let now = "2026-08-01T12:00:00Z".parse().unwrap();
        let text = render(&route, &others, &Paint::plain(), now).unwrap();
        for expected in [
            "Labels:      a=b\n             c=d\n",
            "Created:     2026-08-01T11:00:00Z (60m ago)\nGeneration:  2, resource version 17\n",
            "Proxies:\n  2 applied, 1 pending, 25 rejected (of an earlier generation)\n  rejected by shop/web-1: regex too large\n  and by 24 more\n",
            "Findings:\n  BackendNotFound: canary/orders\n",
            "Related:\n  backend    Service canary/orders (does not exist)\n  backend    Service shop/orders (proxies 3/3)\n  parent     Service shop/orders (proxies 3/3)\n",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
        assert_eq!(
            related(&orders, &others),
            "backend of HTTPRoute shop/split\nrouted by  HTTPRoute shop/split\npolicy     AuthorizationPolicy shop/web (ALLOW)\n\
             policy     AuthorizationPolicy heddle/all (DENY)\nserved by  Workload shop/orders-1"
        );
    }
}
