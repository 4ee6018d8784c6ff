//! Pod Security: namespaces whose level forbids what capture needs.

use serde_json::Value;

/// Label of a namespace with the level that its pods must meet.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Of a Namespace object: its name, and why injected pods are refused in it; `None`: they are not.
pub fn namespace(object: &Value) -> Option<(String, String)> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    if (text("apiVersion"), text("kind")) != (Some("v1"), Some("Namespace")) {
        return None;
    }
    let name = object["metadata"]["name"].as_str()?;
    Some((name.to_owned(), refusal(name, object["metadata"].get("labels")?)?))
}

/// Why a namespace with these labels refuses injected pods; `None`: it does not.
pub fn refusal(name: &str, labels: &Value) -> Option<String> {
    let level = labels.get(ENFORCE)?.as_str().filter(|level| ["baseline", "restricted"].contains(level))?;
    Some(format!(
        "namespace {name} has {ENFORCE}: {level}, which refuses injected pods: their init container heddle-capture \
         needs NET_ADMIN, which only the level privileged allows. Set that level for the namespace, or \
         heddle.dev/inject: disabled"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_level_privileged_allows_capture() {
        let of = |labels: Value| {
            namespace(
                &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a", "labels": labels } }),
            )
        };
        for level in ["baseline", "restricted"] {
            let (name, why) = of(json!({ ENFORCE: level })).unwrap();
            assert_eq!(name, "a");
            assert!(why.contains(&format!("enforce: {level}")) && why.contains("NET_ADMIN"), "{why}");
        }
        assert_eq!(of(json!({ ENFORCE: "privileged" })), None);
        assert_eq!(of(json!({ "pod-security.kubernetes.io/warn": "restricted" })), None);
        assert_eq!(namespace(&json!({ "apiVersion": "v1", "kind": "Pod" })), None);
    }
}
