//! JSON Schemas (2020-12) of all resource types, as they stand in the OpenAPI document and as
//! documents are checked against them.

pub mod examples;

use std::sync::LazyLock;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::resource::{
    API_VERSION, AuthorizationPolicySpec, GrpcRouteSpec, HttpRouteSpec, MESH_CONFIG_NAME, MeshConfigSpec, Metadata,
    ObjectKind, ObjectStatus, ServiceSpec, TcpRouteSpec, TrafficPolicySpec, WorkloadSpec,
};

/// Where schemas lie in the document that holds them.
pub const DEFINITIONS: &str = "/components/schemas";

/// Service account: DNS labels, separated by dots; at most [`SERVICE_ACCOUNT_LENGTH`] characters.
pub const SERVICE_ACCOUNT: &str = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// Most characters of a service account.
pub const SERVICE_ACCOUNT_LENGTH: u32 = 253;
/// DNS label, RFC 1123.
pub const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$";

/// Gathers schemas of types by name, in one place.
#[derive(Debug)]
pub struct Definitions {
    generator: SchemaGenerator,
    made: Map<String, Value>,
}

impl Default for Definitions {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = DEFINITIONS.into();
            settings.meta_schema = None;
        });
        Self { generator: settings.into_generator(), made: Map::new() }
    }
}

impl Definitions {
    /// The schema of a type, usually a reference to its definition.
    pub fn of<T: JsonSchema>(&mut self) -> Value {
        let mut schema = self.generator.subschema_for::<T>().to_value();
        tidy(&mut schema);
        schema
    }

    /// Adds a schema that is made by hand; returns a reference to it.
    pub fn add(&mut self, name: &str, schema: Value) -> Value {
        self.made.insert(name.to_owned(), schema);
        reference(name)
    }

    /// Adds the schemas of all kinds of objects, each under the name of its kind.
    pub fn add_kinds(&mut self) {
        for kind in ObjectKind::ALL {
            let spec = match kind {
                ObjectKind::MeshConfig => self.of::<MeshConfigSpec>(),
                ObjectKind::Service => self.of::<ServiceSpec>(),
                ObjectKind::Workload => self.of::<WorkloadSpec>(),
                ObjectKind::HttpRoute => self.of::<HttpRouteSpec>(),
                ObjectKind::GrpcRoute => self.of::<GrpcRouteSpec>(),
                ObjectKind::TcpRoute => self.of::<TcpRouteSpec>(),
                ObjectKind::TrafficPolicy => self.of::<TrafficPolicySpec>(),
                ObjectKind::AuthorizationPolicy => self.of::<AuthorizationPolicySpec>(),
            };
            let metadata = if kind.is_namespaced() { "Metadata" } else { "MeshMetadata" };
            let status = self.of::<ObjectStatus>();
            let schema = json!({
                "type": "object",
                "required": ["apiVersion", "kind", "metadata", "spec"],
                "properties": {
                    "apiVersion": { "type": "string", "enum": [API_VERSION] },
                    "kind": { "type": "string", "enum": [kind.as_str()] },
                    "metadata": reference(metadata),
                    "spec": spec,
                    "status": status,
                },
                "additionalProperties": false,
                "examples": [examples::object(*kind)],
            });
            self.add(kind.as_str(), schema);
        }
    }

    /// All definitions by name.
    pub fn finish(mut self) -> Map<String, Value> {
        // Asked for last, for it is changed by hand here.
        self.of::<Metadata>();
        let mut all = self.generator.take_definitions(true);
        for schema in all.values_mut() {
            tidy(schema);
        }
        if let Some(metadata) = all.get("Metadata").cloned() {
            all.insert("MeshMetadata".to_owned(), mesh_metadata(metadata.clone()));
            all.insert("Metadata".to_owned(), namespaced_metadata(metadata));
        }
        all.append(&mut self.made);
        all
    }
}

fn namespaced_metadata(mut schema: Value) -> Value {
    schema["required"] = json!(["name", "namespace"]);
    for field in ["name", "namespace"] {
        schema["properties"][field]["pattern"] = json!(DNS_LABEL);
    }
    schema
}

fn mesh_metadata(mut schema: Value) -> Value {
    schema["properties"]["name"] = json!({ "type": "string", "enum": [MESH_CONFIG_NAME] });
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.remove("namespace");
    }
    schema
}

/// A reference to a definition.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#{DEFINITIONS}/{name}") })
}

/// The definitions of all kinds and what they use.
pub(crate) static KINDS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let mut definitions = Definitions::default();
    definitions.add_kinds();
    definitions.finish()
});

/// Makes schemas plainer, and as strict as the API is: a field that may be left out may not be null;
/// choices are one list; numbers have the bounds of their type.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(tidy),
        Value::Object(map) => {
            map.values_mut().for_each(tidy);
            if map.get("default").is_some_and(Value::is_null) {
                map.remove("default");
            }
            drop_null(map);
            merge_choices(map);
            bound_numbers(map);
        }
        _ => {}
    }
}

fn drop_null(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|one| one != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            map.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(choices)) = map.get_mut("anyOf") else { return };
    choices.retain(|choice| *choice != json!({ "type": "null" }));
    if choices.len() == 1
        && let Value::Object(only) = choices.remove(0)
    {
        map.remove("anyOf");
        for (key, value) in only {
            map.entry(key).or_insert(value);
        }
    }
}

/// `oneOf` constants, each with its own description, becomes one `enum`.
fn merge_choices(map: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = map.get("oneOf") else { return };
    let constants: Option<Vec<_>> = choices.iter().map(|choice| choice.get("const").cloned()).collect();
    let Some(constants) = constants else { return };
    let mut description = map.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    for choice in choices {
        if let (Some(Value::String(name)), Some(Value::String(text))) = (choice.get("const"), choice.get("description"))
        {
            description.push_str(&format!("\n\n- `{name}`: {text}"));
        }
    }
    map.remove("oneOf");
    map.insert("type".to_owned(), json!("string"));
    map.insert("enum".to_owned(), Value::Array(constants));
    map.insert("description".to_owned(), json!(description.trim()));
}

fn bound_numbers(map: &mut Map<String, Value>) {
    let Some(format) = map.get("format").and_then(Value::as_str) else { return };
    let maximum = match format {
        "uint8" => u64::from(u8::MAX),
        "uint16" => u64::from(u16::MAX),
        "uint32" => u64::from(u32::MAX),
        "uint64" => u64::MAX,
        _ => return,
    };
    map.remove("format");
    map.entry("minimum").or_insert(json!(0));
    map.entry("maximum").or_insert(json!(maximum));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_plain_and_closed() {
        let text = serde_json::to_string(&*KINDS).unwrap();
        assert!(!text.contains("\"null\""), "nothing may be null");
        assert!(!text.contains("uint"), "formats that only schemars knows");
        assert!(!text.contains("oneOf"), "choices are enums");
        for (name, schema) in KINDS.iter() {
            if schema["type"] == "object" && schema.get("properties").is_some() {
                assert_eq!(schema["additionalProperties"], json!(false), "{name}");
            }
        }
        assert_eq!(KINDS["ServicePortSpec"]["properties"]["port"]["minimum"], json!(1));
        assert_eq!(KINDS["ServicePortSpec"]["properties"]["port"]["maximum"], json!(65535));
        assert_eq!(KINDS["PathMatchType"]["enum"], json!(["PathPrefix", "Exact", "RegularExpression"]));
        assert!(KINDS["MeshMetadata"]["properties"].get("namespace").is_none());
    }
}
