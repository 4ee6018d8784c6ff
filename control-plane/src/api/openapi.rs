//! The OpenAPI 3.1 document, from the table of operations.

use std::collections::BTreeSet;

use heddle_api::{problem::MEDIA_TYPE, schema::reference};
use http::Method;
use serde_json::{Map, Value, json};

use super::{
    media,
    operation::{ALWAYS, Operation, Param, WITH_BODY, path_param},
    refusal::Why,
};

/// The document for these operations and definitions.
pub(super) fn document(operations: &[Operation], definitions: &Map<String, Value>) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path.clone()).or_insert_with(|| path_item(&operation.path));
        path[operation.method.as_str().to_ascii_lowercase()] = describe(operation);
    }
    paths.insert("/openapi.json".to_owned(), json!({
        "get": {
            "operationId": "getOpenApi",
            "summary": "This document",
            "tags": ["Meta"],
            "security": [],
            "responses": {
                "200": { "description": "OpenAPI 3.1.", "content": { "application/json": { "schema": { "type": "object" } } } },
            },
        },
    }));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Heddle control plane",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Services, routes and policies of a mesh, as declarative objects.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "An API token: heddle_…" },
            },
        },
    })
}

fn path_item(path: &str) -> Value {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<_> =
        names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": path_param(name) })).collect();
    if parameters.is_empty() { json!({}) } else { json!({ "parameters": parameters }) }
}

fn describe(operation: &Operation) -> Value {
    let param = |param: &Param, place: &str| json!({ "name": param.name, "in": place, "description": param.description, "schema": (param.schema)() });
    let query = operation.query.iter().map(|one| param(one, "query"));
    let headers = operation.headers.iter().map(|one| param(one, "header"));
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": format!("Needs the role {}.", operation.role.as_str()),
        "tags": [operation.tag],
        "responses": responses(operation),
    });
    let parameters: Vec<_> = query.chain(headers).collect();
    if !parameters.is_empty() {
        described["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = &operation.body {
        let types: &[&str] = if operation.method == Method::PATCH {
            &[media::MERGE_PATCH]
        } else {
            &["application/json", "application/yaml"]
        };
        described["requestBody"] = json!({ "required": true, "content": content(types, &body.schema) });
    }
    described
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|name| ((*name).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>().into()
}

fn responses(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for (status, description, schema) in &operation.answers {
        let mut response = json!({ "description": description });
        if let Some(schema) = schema {
            response["content"] = content(&["application/json", "application/yaml"], schema);
            if operation.watchable {
                response["content"][media::LINES] = json!({ "schema": reference("WatchEvent") });
            }
        }
        for (id, parameters) in &operation.links {
            let parameters: Map<_, _> =
                parameters.iter().map(|(name, from)| ((*name).to_owned(), json!(from))).collect();
            response["links"][id] = json!({ "operationId": id, "parameters": parameters });
        }
        responses.insert(status.as_str().to_owned(), response);
    }
    // From beneath this API, so without a problem.
    for (status, description) in [("414", "The URI is too long"), ("431", "The headers are too large")] {
        responses.insert(status.to_owned(), json!({ "description": description }));
    }
    let body: &[Why] = if operation.body.is_some() { WITH_BODY } else { &[] };
    let mut told = BTreeSet::new();
    for why in ALWAYS.iter().chain(body).chain(operation.refusals) {
        if told.insert(why.status()) {
            responses.insert(
                why.status().as_str().to_owned(),
                json!({
                    "description": why.title(),
                    "content": { MEDIA_TYPE: { "schema": reference("Problem") } },
                }),
            );
        }
    }
    Value::Object(responses)
}
