//! Structure: the schema's findings in plain words.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use jsonschema::{
    Draft, Validator,
    error::{TypeKind, ValidationError, ValidationErrorKind},
    paths::LocationSegment,
};
use serde_json::{Map, Value, json};

use super::common::{Suggest, list};
use crate::{
    document::{push_index, push_key},
    problem::Fault,
    resource::{AnyObject, ObjectKind},
    schema::{self, DNS_LABEL},
};

/// Longest value that is quoted in a message, characters.
const QUOTED: usize = 60;

impl Finding {
    /// Whether another fault may be there only because of this one.
    pub(super) fn covers(&self, other: &Fault) -> bool {
        let (one, other) = (&self.fault.path, &other.path);
        if self.is_readable { one == other } else { one.starts_with(other.as_str()) || other.starts_with(one.as_str()) }
    }
}

/// The form of a kind of document: a schema, ready to check documents against.
#[derive(Debug)]
pub struct Shape {
    definitions: Arc<Map<String, Value>>,
    schema: Value,
    validator: Validator,
}

static KINDS: LazyLock<HashMap<ObjectKind, Shape>> = LazyLock::new(|| {
    let definitions = Arc::new(schema::KINDS.clone());
    let shape = |kind: &ObjectKind| Shape::new(Arc::clone(&definitions), schema::reference(kind.as_str()));
    ObjectKind::ALL.iter().map(|kind| (*kind, shape(kind))).collect()
});

/// Everything in which a document has not the form of its kind, by path.
pub(super) fn check(kind: ObjectKind, document: &Value) -> Vec<Finding> {
    KINDS[&kind].find(document)
}

/// A fault of structure.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) fault: Fault,
    /// Whether what stands there has the right type, so that the rest can be checked beside it.
    is_readable: bool,
}

impl Shape {
    /// The form that a schema says; it may refer to definitions.
    ///
    /// # Panics
    /// If it is no schema: schemas are made by this program.
    pub fn new(definitions: Arc<Map<String, Value>>, schema: Value) -> Self {
        let mut root = schema.clone();
        root["components"] = json!({ "schemas": *definitions });
        let validator = jsonschema::options().with_draft(Draft::Draft202012).build(&root);
        Self { definitions, schema, validator: validator.expect("schemas made by this program are schemas") }
    }

    /// Everything in which a document has not this form, by path.
    pub fn check(&self, document: &Value) -> Vec<Fault> {
        self.find(document).into_iter().map(|finding| finding.fault).collect()
    }

    fn find(&self, document: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        for error in self.validator.iter_errors(document) {
            let is_readable = matches!(
                error.kind(),
                ValidationErrorKind::Pattern { .. }
                    | ValidationErrorKind::MinItems { .. }
                    | ValidationErrorKind::MinLength { .. }
                    | ValidationErrorKind::MaxLength { .. }
            );
            let mut faults = Vec::new();
            self.explain(&error, &mut faults);
            findings.extend(faults.into_iter().map(|fault| Finding { fault, is_readable }));
        }
        findings.sort();
        findings.dedup();
        findings
    }

    fn explain(&self, error: &ValidationError<'_>, faults: &mut Vec<Fault>) {
        let steps: Vec<_> = error.instance_path().into_iter().collect();
        let path = path_of(&steps);
        let found = error.instance();
        let here = |key: &str| {
            let mut path = path.clone();
            push_key(&mut path, key);
            path
        };
        let message = match error.kind() {
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                faults.push(Fault::new(here(name), self.missing(&steps, name)));
                return;
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = self.fields(&steps);
                for name in unexpected {
                    let hint = Suggest::for_word(name, known.iter().map(String::as_str));
                    let known = list(known.iter().map(String::as_str));
                    faults.push(Fault::new(here(name), format!("there is no such field{hint} (there are {known})")));
                }
                return;
            }
            ValidationErrorKind::Type { kind } => format!("is {}; {} is wanted", describe(found), wanted(kind)),
            ValidationErrorKind::Enum { options } => {
                let options: Vec<_> = options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                // A wrong type is told by the type.
                let Some(text) = found.as_str() else { return };
                if let [only] = options[..] {
                    format!("is {}; it must be {only:?}", describe(found))
                } else {
                    let hint = Suggest::for_word(text, options.iter().copied());
                    format!("{} is none of {}{hint}", describe(found), list(options.iter().copied()))
                }
            }
            ValidationErrorKind::Minimum { limit } => format!("is {}; at least {limit} is wanted", describe(found)),
            ValidationErrorKind::Maximum { limit } => format!("is {}; at most {limit} is wanted", describe(found)),
            ValidationErrorKind::MinItems { limit } => match found.as_array().map_or(0, Vec::len) {
                0 => format!(
                    "is empty; at least {limit} {} wanted",
                    if *limit == 1 { "entry is" } else { "entries are" }
                ),
                count => format!("has {count} entries; at least {limit} are wanted"),
            },
            ValidationErrorKind::MaxItems { limit } => {
                format!("has {} entries; at most {limit} are wanted", found.as_array().map_or(0, Vec::len))
            }
            ValidationErrorKind::MinLength { limit } => format!("is too short; at least {limit} characters are wanted"),
            ValidationErrorKind::MaxLength { limit } => format!("is too long; at most {limit} characters are wanted"),
            ValidationErrorKind::Pattern { pattern } => pattern_fault(pattern, &describe(found)),
            other => format!("{} ({})", error.masked_with("the value"), other.keyword()),
        };
        faults.push(Fault::new(path, message));
    }

    fn missing(&self, steps: &[LocationSegment<'_>], name: &str) -> String {
        let schema = self.schema_at(steps).map(|schema| self.resolve(&schema["properties"][name]));
        match schema.and_then(wanted_by) {
            Some(wanted) => format!("is missing; {wanted} is wanted"),
            None => "is missing".to_owned(),
        }
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
        name.and_then(|name| self.definitions.get(name)).unwrap_or(schema)
    }

    /// The schema of a place in a document.
    fn schema_at(&self, steps: &[LocationSegment<'_>]) -> Option<&Value> {
        let mut schema = self.resolve(&self.schema);
        for step in steps {
            schema = self.resolve(match step {
                LocationSegment::Property(key) => {
                    let property = schema.get("properties").and_then(|properties| properties.get(key.as_ref()));
                    property.or(schema.get("additionalProperties"))?
                }
                LocationSegment::Index(_) => schema.get("items")?,
            });
        }
        Some(schema)
    }

    /// Which fields an object at this place may have.
    fn fields(&self, steps: &[LocationSegment<'_>]) -> Vec<String> {
        let properties = self.schema_at(steps).and_then(|schema| schema["properties"].as_object());
        properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
    }
}

/// Why text that does not match the pattern of its schema is not good, in plain words.
pub fn form_fault(pattern: &str, text: &str) -> String {
    pattern_fault(pattern, &format!("{text:?}"))
}

fn pattern_fault(pattern: &str, found: &str) -> String {
    if pattern == DNS_LABEL {
        return format!("{found} is no DNS label: 1 to 63 of a-z, 0-9 and -, without - at either end");
    }
    if pattern.contains("(h|m|s|ms)") {
        return format!("{found} is no duration; write one such as 10s, 250ms or 1h30m (at most five digits a unit)");
    }
    format!("{found} does not match {pattern}")
}

fn wanted_by(schema: &Value) -> Option<String> {
    if let Some(options) = schema["enum"].as_array() {
        return Some(match &options[..] {
            [only] => only.to_string(),
            _ => format!("one of {}", list(options.iter().filter_map(Value::as_str))),
        });
    }
    Some(type_name(schema["type"].as_str()?).to_owned())
}

fn wanted(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => type_name(one.as_str()).to_owned(),
        TypeKind::Multiple(many) => many.iter().map(|one| type_name(one.as_str())).collect::<Vec<_>>().join(" or "),
    }
}

fn type_name(name: &str) -> &'static str {
    match name {
        "array" => "a list",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "object" => "an object",
        "string" => "text",
        _ => "nothing",
    }
}

/// A value as people would name it; text and numbers are quoted, if they are short.
pub(super) fn describe(value: &Value) -> String {
    let short = |text: String| match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    match value {
        Value::Null => "null (leave the field out instead)".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => short(format!("{text:?}")),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn path_of(steps: &[LocationSegment<'_>]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            LocationSegment::Property(key) => push_key(&mut path, key),
            LocationSegment::Index(index) => push_index(&mut path, *index),
        }
    }
    path
}

/// The document without the fields that cannot be read. Entries of lists stay, so that paths do.
pub(super) fn prune(document: &Value, findings: &[Finding]) -> Value {
    let mut pruned = document.clone();
    for finding in findings.iter().filter(|finding| !finding.is_readable) {
        remove(&mut pruned, &finding.fault.path, String::new());
    }
    pruned
}

/// Removes the field at a path, if it is there.
fn remove(value: &mut Value, path: &str, at: String) {
    let inside = |at: &str| path.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    match value {
        Value::Object(map) => {
            let place = |key: &str| {
                let mut place = at.clone();
                push_key(&mut place, key);
                place
            };
            let Some(key) = map.keys().find(|key| inside(&place(key))).cloned() else { return };
            let place = place(&key);
            if place == path {
                map.remove(&key);
            } else if let Some(inner) = map.get_mut(&key) {
                remove(inner, path, place);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter_mut().enumerate() {
                let mut place = at.clone();
                push_index(&mut place, index);
                if place != path && inside(&place) {
                    return remove(inner, path, place);
                }
            }
        }
        _ => {}
    }
}

/// The first reason why a document that passed its schema cannot be read.
pub(super) fn explain_type_error(kind: ObjectKind, document: &Value) -> Fault {
    let text = document.to_string();
    let mut json = serde_json::Deserializer::from_str(&text);
    let outcome = match kind {
        ObjectKind::MeshConfig => tracked::<crate::resource::MeshConfigSpec>(&mut json),
        ObjectKind::Service => tracked::<crate::resource::ServiceSpec>(&mut json),
        ObjectKind::Workload => tracked::<crate::resource::WorkloadSpec>(&mut json),
        ObjectKind::HttpRoute => tracked::<crate::resource::HttpRouteSpec>(&mut json),
        ObjectKind::GrpcRoute => tracked::<crate::resource::GrpcRouteSpec>(&mut json),
        ObjectKind::TcpRoute => tracked::<crate::resource::TcpRouteSpec>(&mut json),
        ObjectKind::TrafficPolicy => tracked::<crate::resource::TrafficPolicySpec>(&mut json),
        ObjectKind::AuthorizationPolicy => tracked::<crate::resource::AuthorizationPolicySpec>(&mut json),
    };
    outcome.err().unwrap_or_else(|| Fault::new("", "cannot be read"))
}

type Json<'a> = serde_json::Deserializer<serde_json::de::StrRead<'a>>;

fn tracked<S: crate::resource::Kind>(json: &mut Json<'_>) -> Result<AnyObject, Fault> {
    serde_path_to_error::deserialize::<_, crate::resource::Object<S>>(json)
        .map(|object| S::into_any(object.into()))
        .map_err(|error| Fault::new(error.path().to_string(), error.inner().to_string()))
}
