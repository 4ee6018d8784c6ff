//! `heddle explain`: the fields of a kind, from the schemas that the API's own document is made of.

use heddle_api::schema::Definitions;
use serde_json::{Map, Value};

use crate::{
    error::{Error, exit},
    kind::Kind,
    output::{self, Format},
};

/// Shows what a kind or one of its fields is for.
pub(crate) fn explain(what: &str) -> Result<u8, Error> {
    let mut definitions = Definitions::default();
    definitions.add_kinds();
    output::print(&text(&definitions.finish(), what)?)?;
    Ok(exit::OK)
}

fn text(definitions: &Map<String, Value>, what: &str) -> Result<String, Error> {
    let mut parts = what.split('.').map(|part| part.split('[').next().unwrap_or_default());
    let kind = Kind::typed(parts.next().unwrap_or_default())?;
    let top = definitions.get(kind.name).cloned().unwrap_or_default();
    let mut schema = top.clone();
    let mut path = kind.name.to_owned();
    for part in parts.filter(|part| !part.is_empty()) {
        let inner = fields_of(definitions, &schema);
        let field = inner.as_ref().and_then(|fields| fields.get(part)).cloned();
        schema = field.ok_or_else(|| {
            let known: Vec<_> =
                inner.into_iter().flat_map(|fields| fields.keys().cloned().collect::<Vec<_>>()).collect();
            let known = if known.is_empty() {
                "it has no fields".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            };
            Error::Usage(format!("{path} has no field {part:?}; {known}"))
        })?;
        path.push_str(&format!(".{part}"));
    }
    let mut out = format!("{path}  {}\n", kind_of(definitions, &schema));
    out.push_str(&indented(&about(definitions, &schema), 2));
    if let Some(fields) = fields_of(definitions, &schema) {
        let required = resolved(definitions, innermost(definitions, &schema))["required"].clone();
        out.push_str("\nFields:\n");
        for (name, field) in &fields {
            let needed = required.as_array().is_some_and(|all| all.iter().any(|one| one == name));
            let needed = if needed { ", required" } else { "" };
            out.push_str(&format!("  {name}  {}{needed}\n", kind_of(definitions, field)));
            out.push_str(&indented(&about(definitions, field), 6));
        }
    }
    if path == kind.name
        && let Some(example) = top["examples"].get(0)
    {
        out.push_str(&format!("\nExample:\n{}", indented(&output::render(example, Format::Yaml)?, 2)));
    }
    Ok(out)
}

/// What a reference stands for; what is said beside it holds, too.
fn resolved<'a>(definitions: &'a Map<String, Value>, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    match name.and_then(|name| definitions.get(name)) {
        Some(found) => resolved(definitions, found),
        None => schema,
    }
}

/// Of a list its items, of a map its values, in the end.
fn innermost<'a>(definitions: &'a Map<String, Value>, schema: &'a Value) -> &'a Value {
    let found = resolved(definitions, schema);
    match (found.get("items"), found.get("additionalProperties")) {
        (Some(items), _) => innermost(definitions, items),
        (None, Some(values @ Value::Object(_))) => innermost(definitions, values),
        _ => found,
    }
}

fn fields_of(definitions: &Map<String, Value>, schema: &Value) -> Option<Map<String, Value>> {
    innermost(definitions, schema).get("properties").and_then(Value::as_object).cloned()
}

/// `list of object`, `1 to 65535`, `deny | allow`.
fn kind_of(definitions: &Map<String, Value>, schema: &Value) -> String {
    let found = resolved(definitions, schema);
    if let Some(choices) = found["enum"].as_array() {
        return choices.iter().map(|one| one.as_str().unwrap_or("?")).collect::<Vec<_>>().join(" | ");
    }
    match found["type"].as_str() {
        Some("array") => format!("list of {}", kind_of(definitions, &found["items"])),
        Some("object") => match found.get("additionalProperties") {
            Some(values @ Value::Object(_)) => format!("map to {}", kind_of(definitions, values)),
            _ => "object".to_owned(),
        },
        Some(number @ ("integer" | "number")) => {
            let bound = |name: &str| found.get(name).filter(|bound| bound.is_number()).map(ToString::to_string);
            match (bound("minimum"), bound("maximum")) {
                (Some(from), Some(to)) => format!("{number} from {from} to {to}"),
                _ => number.to_owned(),
            }
        }
        Some(other) => other.to_owned(),
        None => "any value".to_owned(),
    }
}

/// Description and default.
fn about(definitions: &Map<String, Value>, schema: &Value) -> String {
    let found = resolved(definitions, schema);
    let said = |name: &str| schema.get(name).or_else(|| found.get(name));
    let mut text = said("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    match said("default") {
        // Its own fields have defaults of their own.
        Some(Value::Object(_)) | None => {}
        Some(default) => text
            .push_str(&format!("\nDefault: {}", default.as_str().map_or_else(|| default.to_string(), str::to_owned))),
    }
    text
}

fn indented(text: &str, by: usize) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{:by$}{line}\n", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(what: &str) -> Result<String, String> {
        let mut definitions = Definitions::default();
        definitions.add_kinds();
        text(&definitions.finish(), what).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_of_the_mesh_can_be_read() {
        let text = explained("meshconfig.spec").unwrap();
        for line in ["defaultAuthorization  deny | allow\n", "      Default: deny\n", "      Default: [\"mesh\"]\n"] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let text = explained("mesh.spec.telemetry").unwrap();
        assert!(text.contains("Default: 0.01\n") && text.contains("Default: false\n"), "{text}");
    }

    #[test]
    fn lists_are_gone_through_and_what_is_missing_is_told() {
        let text = explained("hr.spec.rules[0].matches").unwrap();
        assert!(text.starts_with("HTTPRoute.spec.rules.matches  list of object\n"), "{text}");
        assert!(text.contains("\n  path  object\n"), "{text}");
        let error = explained("svc.spec.prots").unwrap_err();
        assert!(error.contains("Service.spec has no field \"prots\"") && error.contains("ports"), "{error}");
        assert!(explained("svc.kind.x").unwrap_err().contains("no fields"));
        assert!(explained("pods").is_err());
    }

    #[test]
    fn every_field_of_every_kind_says_what_it_is() {
        fn walk(definitions: &Map<String, Value>, path: &str, schema: &Value, depth: usize) {
            for (name, field) in fields_of(definitions, schema).into_iter().flatten() {
                let path = format!("{path}.{name}");
                assert!(!about(definitions, &field).is_empty(), "{path} has no description");
                if depth < 6 {
                    walk(definitions, &path, &field, depth + 1);
                }
            }
        }
        let mut definitions = Definitions::default();
        definitions.add_kinds();
        let definitions = definitions.finish();
        for kind in Kind::all() {
            let text = explained(kind.name).unwrap();
            assert!(text.contains("\nExample:\n  apiVersion: heddle.dev/v1\n"), "{text}");
            walk(&definitions, kind.name, &definitions[kind.name]["properties"]["spec"], 0);
        }
    }
}
