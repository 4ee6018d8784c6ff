//! Transactions over several objects.

use std::sync::Arc;

use axum::response::Response;
use heddle_api::{
    document::push_index,
    problem::Fault,
    resource::{Name, ObjectKind},
    validate::{Invalid, object},
};
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::{
    Shapes,
    call::Call,
    objects::{ResultAnswer, with_status},
    refusal::{Refusal, Why},
    types::ObjectReference,
};
use crate::registry::{Action, Applied, Expected, Operation, RevisionNumber};

#[derive(Serialize)]
struct TransactionAnswer {
    revision: RevisionNumber,
    results: Vec<ResultAnswer>,
}

pub(super) async fn transact(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let api = Arc::clone(&call.api);
    // Off the async threads: it may hold tens of thousands of objects.
    let work = move || read(&api.shapes, &body);
    let failed = |_| Refusal::new(Why::Internal, "the transaction could not be read");
    let operations = tokio::task::spawn_blocking(work).await.map_err(failed)??;
    // Where faults of an operation stand in what was sent.
    let fields: Vec<_> = operations
        .iter()
        .map(|operation| if matches!(operation, Operation::Apply { .. }) { "apply" } else { "delete" })
        .collect();
    let applied = call.api.state.registry.apply(operations, &call.author(), call.flag("dryRun")).await;
    let place = |index: usize| format!("operations[{index}].{}", fields.get(index).copied().unwrap_or_default());
    answer(&call, applied.map_err(|error| Refusal::of_apply(error, place))?)
}

/// What a transaction did.
pub(super) fn answer(call: &Call, applied: Applied) -> Result<Response, Refusal> {
    let result = |result: crate::registry::OperationResult| ResultAnswer {
        action: result.action,
        object: if result.action == Action::Deleted { result.object } else { with_status(call, result.object) },
    };
    let results = applied.results.into_iter().map(result).collect();
    call.answer(StatusCode::OK, &TransactionAnswer { revision: applied.number, results })
}

/// Reads all operations; the faults of all of them are told together.
fn read(shapes: &Shapes, body: &Value) -> Result<Vec<Operation>, Refusal> {
    let mut faults = shapes.transaction.check(body);
    let mut is_structural = !faults.is_empty();
    let entries = body.get("operations").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut operations = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let mut path = "operations".to_owned();
        push_index(&mut path, index);
        match operation(shapes, entry) {
            Ok(operation) => operations.push(operation),
            Err(invalid) => {
                is_structural |= matches!(invalid, Invalid::Structure(_));
                faults.extend(invalid.into_faults().into_iter().map(|fault| fault.under(&path)));
            }
        }
    }
    if faults.is_empty() {
        return Ok(operations);
    }
    Err(Refusal::faults(if is_structural { Why::Malformed } else { Why::Invalid }, faults))
}

fn operation(shapes: &Shapes, entry: &Value) -> Result<Operation, Invalid> {
    let structure = |path: &str, message: &str| Invalid::Structure(vec![Fault::new(path, message)]);
    let faults = shapes.operation.check(entry);
    if !faults.is_empty() {
        return Err(Invalid::Structure(faults));
    }
    let expected = match entry.get("ifMatch").and_then(Value::as_str) {
        None => None,
        Some("*") => Some(Expected::Exists),
        Some("0") => Some(Expected::Absent),
        Some(text) => {
            let revision = text.parse().map_err(|_| structure("ifMatch", "is no resourceVersion, * or 0"))?;
            Some(Expected::Revision(revision))
        }
    };
    match (entry.get("apply"), entry.get("delete")) {
        (Some(document), None) => {
            let under = |fault: Fault| fault.under("apply");
            let object = object(document, None).map_err(|invalid| match invalid {
                Invalid::Structure(faults) => Invalid::Structure(faults.into_iter().map(under).collect()),
                Invalid::Meaning(faults) => Invalid::Meaning(faults.into_iter().map(under).collect()),
            })?;
            Ok(Operation::Apply { object, expected })
        }
        (None, Some(reference)) => {
            let (kind, name) = referred(reference)?;
            Ok(Operation::Delete { kind, name, expected })
        }
        _ => Err(structure("", "has either apply or delete")),
    }
}

fn referred(reference: &Value) -> Result<(ObjectKind, Name), Invalid> {
    let read = serde_json::from_value::<ObjectReference>(reference.clone());
    let fault = |path: &str, message: String| vec![Fault::new(path, message)];
    let reference = read.map_err(|error| Invalid::Structure(fault("delete", error.to_string())))?;
    let Some(kind) = ObjectKind::from_kind(&reference.kind) else {
        return Err(Invalid::Structure(fault("delete.kind", format!("{:?} is no kind", reference.kind))));
    };
    match (&reference.namespace, kind.is_namespaced()) {
        (None, true) => Err(Invalid::Meaning(fault("delete.namespace", "is missing".to_owned()))),
        (Some(_), false) => Err(Invalid::Meaning(fault("delete.namespace", format!("a {kind} has none")))),
        (namespace, _) => Ok((kind, Name::new(namespace.as_deref().unwrap_or_default(), &reference.name))),
    }
}
