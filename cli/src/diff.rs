//! Differences of objects, as people read them.

use similar::{ChangeTag, TextDiff};

use crate::{
    error::Error,
    object::Object,
    output::{self, Format, Paint},
};

/// What changes between two states of an object, as a unified diff of YAML; nothing if nothing does.
pub(crate) fn objects(old: Option<&Object>, new: Option<&Object>, paint: &Paint) -> Result<String, Error> {
    let yaml = |object: Option<&Object>| {
        object.map_or(Ok(String::new()), |object| output::render(&object.as_written(), Format::Yaml))
    };
    let name = |object: Option<&Object>| object.map_or_else(|| "/dev/null".to_owned(), Object::reference);
    Ok(unified(&yaml(old)?, &yaml(new)?, (&name(old), &name(new)), paint))
}

fn unified(old: &str, new: &str, (old_name, new_name): (&str, &str), paint: &Paint) -> String {
    if old == new {
        return String::new();
    }
    let diff = TextDiff::from_lines(old, new);
    let mut text = paint.strong(&format!("--- {old_name}\n+++ {new_name}")) + "\n";
    for hunk in diff.unified_diff().iter_hunks() {
        text.push_str(&paint.place(&hunk.header().to_string()));
        text.push('\n');
        for change in hunk.iter_changes() {
            let line = change.value().trim_end_matches('\n');
            match change.tag() {
                ChangeTag::Delete => text.push_str(&paint.bad(&format!("-{line}"))),
                ChangeTag::Insert => text.push_str(&paint.good(&format!("+{line}"))),
                ChangeTag::Equal => text.push_str(&format!(" {line}")),
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: u16, resource_version: &str) -> Object {
        Object(serde_json::json!({
            "apiVersion": "heddle.dev/v1", "kind": "Service",
            "metadata": {"name": "orders", "namespace": "shop", "resourceVersion": resource_version, "generation": 1},
            "spec": {"ports": [{"port": port}]}, "status": {"applied": 3}
        }))
    }

    #[test]
    fn shows_what_a_person_wrote_and_not_what_the_server_keeps() {
        let diff = objects(Some(&service(80, "1")), Some(&service(81, "9")), &Paint::plain()).unwrap();
        assert_eq!(
            diff,
            "--- Service shop/orders\n+++ Service shop/orders\n@@ -5,4 +5,4 @@\n   namespace: shop\n spec:\n   ports:\n-  - port: 80\n+  - port: 81\n"
        );
        assert_eq!(objects(Some(&service(80, "1")), Some(&service(80, "9")), &Paint::plain()).unwrap(), "");
    }

    #[test]
    fn made_and_deleted_objects_and_colours() {
        let made = objects(None, Some(&service(80, "1")), &Paint::plain()).unwrap();
        assert!(made.starts_with("--- /dev/null\n+++ Service shop/orders\n@@ -0,0 +1,8 @@\n+apiVersion"), "{made}");
        let deleted = objects(Some(&service(80, "1")), None, &Paint::colored()).unwrap();
        assert!(deleted.contains("\x1b[31m-kind: Service\x1b[0m\n"), "{deleted:?}");
    }
}
