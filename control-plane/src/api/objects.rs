//! Objects: get, list, put, patch, delete.

use std::sync::Arc;

use axum::response::Response;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use heddle_api::{
    problem::Fault,
    resource::{API_VERSION, AnyObject, Name, ObjectKind},
    validate::{self, Invalid},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    call::{Call, bad_param},
    refusal::{Refusal, Why},
    selector::Selector,
    types::{ListMetadata, list_name},
    watch,
};
use crate::{
    registry::{Action, Applied, ApplyError, Expected, Operation, OperationResult, View},
    store::Revision,
};

/// Objects on a page, unless asked otherwise.
pub(super) const PAGE: usize = 1000;
/// How often a patch is merged anew when others replace the object at the same time.
const PATCH_TRIES: usize = 64;
/// Most objects on a page.
pub(super) const MAX_PAGE: usize = 5000;

/// An object of a view, registered workloads and what comes from Kubernetes among them.
pub(super) fn find(view: &View, kind: ObjectKind, name: &Name) -> Option<AnyObject> {
    let registered = || {
        let registration = (kind == ObjectKind::Workload).then(|| view.registration(name)).flatten();
        registration.map(|registration| registration.to_workload().into())
    };
    view.object(kind, name).cloned().or_else(registered).or_else(|| view.kubernetes_object(kind, name))
}

fn not_found(kind: ObjectKind, name: &Name) -> Refusal {
    Refusal::new(Why::NotFound, format!("there is no {kind} {name}"))
}

/// With what became of it.
pub(super) fn with_status(call: &Call, mut object: AnyObject) -> AnyObject {
    let status = call.api.state.status.status(&object);
    object.set_status(Some(status));
    object
}

pub(super) async fn get(call: Call) -> Result<Response, Refusal> {
    let (kind, name) = (call.kind(), call.name());
    let object = find(&call.api.state.registry.view(), kind, &name).ok_or_else(|| not_found(kind, &name))?;
    call.answer_object(StatusCode::OK, &with_status(&call, object))
}

/// Where a page ended.
#[derive(Serialize, Deserialize)]
struct Token {
    /// As of when.
    revision: Revision,
    /// The list that it belongs to: kind, namespace and selector.
    list: String,
    /// What the last object was.
    part: Part,
    /// Its namespace.
    namespace: String,
    /// Its name.
    name: String,
}

/// The parts of a list, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Part {
    Declared,
    Registered,
    Kubernetes,
}

impl Token {
    fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("a token is JSON: it has no maps"))
    }

    fn decode(text: &str, list: &str) -> Result<Self, Refusal> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let token: Option<Self> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let token = token.ok_or_else(|| bad_param("continue", "is not from a page's metadata.continue"))?;
        if token.list != list {
            return Err(bad_param("continue", "is from another list, or from one with another selector"));
        }
        Ok(token)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    api_version: &'a str,
    kind: String,
    metadata: ListMetadata,
    items: Vec<AnyObject>,
}

pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    let kind = call.kind();
    let text = call.param("labelSelector").unwrap_or_default();
    let selector: Selector = text.parse().map_err(|message| bad_param("labelSelector", message))?;
    if call.flag("watch") {
        return watch::watch(call, selector).await;
    }
    if call.param("resourceVersion").is_some() {
        return Err(bad_param("resourceVersion", "belongs to watch=true"));
    }
    let limit = call.param("limit").and_then(|text| text.parse().ok()).unwrap_or(PAGE);
    let namespace = Some(call.part("namespace")).filter(|namespace| !namespace.is_empty());
    let service = call.param("references").and_then(Name::parse);
    let of = call.param("references").unwrap_or_default();
    let list = format!("{}/{}/{of}/{text}", kind.plural(), namespace.unwrap_or_default());
    let token = call.param("continue").map(|text| Token::decode(text, &list)).transpose()?;
    let registry = &call.api.state.registry;
    let view = match &token {
        Some(token) => registry.view_at(token.revision)?,
        None => registry.view(),
    };
    let mut items: Vec<(AnyObject, Part)> = Vec::new();
    let mut found = from_view(&view, kind, namespace, service.as_ref(), token.as_ref())
        .filter(|(object, _)| selector.matches(&object.metadata().labels));
    items.extend(found.by_ref().take(limit));
    let next = found.next().is_some().then(|| items.last()).flatten().map(|(last, part)| {
        let name = last.name();
        let (namespace, name) = (name.namespace.to_string(), name.name.to_string());
        Token { revision: view.revision(), list, part: *part, namespace, name }.encode()
    });
    drop(found);
    if next.is_some() {
        // For the next page.
        registry.keep(&view);
    }
    let answer = List {
        api_version: API_VERSION,
        kind: list_name(kind),
        metadata: ListMetadata { resource_version: view.revision().to_string(), next },
        items: items.into_iter().map(|(object, _)| with_status(&call, object)).collect(),
    };
    call.answer(StatusCode::OK, &answer)
}

/// Declared objects, then registered workloads, then what comes from Kubernetes, each by name; after where the last page
/// ended. With a service, only what refers to it.
fn from_view<'a>(
    view: &'a Arc<View>,
    kind: ObjectKind,
    namespace: Option<&'a str>,
    service: Option<&Name>,
    token: Option<&Token>,
) -> impl Iterator<Item = (AnyObject, Part)> + 'a {
    // Whether a part is to be told still, and after which name.
    let left = |part: Part| match token {
        Some(token) if token.part > part => None,
        Some(token) if token.part == part => Some(Some(Name::new(&token.namespace, &token.name))),
        _ => Some(None),
    };
    let served = service.map(Name::to_string);
    let declared: Box<dyn Iterator<Item = &AnyObject> + 'a> = match (left(Part::Declared), service) {
        (None, _) => Box::new(std::iter::empty()),
        (Some(after), None) => Box::new(view.list_any(kind, namespace, after)),
        (Some(after), Some(service)) => {
            let names = view.referring(kind, service).into_iter();
            let names = names.filter(move |name| after.as_ref().is_none_or(|after| name > after));
            let names = names.filter(move |name| namespace.is_none_or(|namespace| *name.namespace == *namespace));
            Box::new(names.filter_map(move |name| view.object(kind, &name)))
        }
    };
    let registered = left(Part::Registered).filter(|_| kind == ObjectKind::Workload);
    let registered = registered.map(|after| view.registrations(namespace, after));
    let kubernetes = left(Part::Kubernetes).map(|after| view.kubernetes_objects(kind, namespace, after));
    // What is declared stands for all else of its name, and what is registered for a pod.
    let is_alone = move |name: &Name| view.object(kind, name).is_none();
    let by_registered = served.clone();
    let registered = registered.into_iter().flatten().filter(move |registration| {
        let serves = |served: &String| registration.services.contains_key(served);
        is_alone(&registration.name) && by_registered.as_ref().is_none_or(serves)
    });
    let kubernetes = kubernetes.into_iter().flatten().filter(move |object| {
        let name = object.name();
        let is_registered = kind == ObjectKind::Workload && view.registration(&name).is_some();
        let serves = |served: &String| match object {
            AnyObject::Workload(workload) => {
                workload.spec.services.iter().any(|one| name.sibling(&one.name).to_string() == *served)
            }
            // A Service refers to none.
            _ => false,
        };
        is_alone(&name) && !is_registered && served.as_ref().is_none_or(serves)
    });
    let declared = declared.map(|object| (object.clone(), Part::Declared));
    let registered = registered.map(|registration| (registration.to_workload().into(), Part::Registered));
    declared.chain(registered).chain(kubernetes.map(|object| (object, Part::Kubernetes)))
}

pub(super) async fn put(mut call: Call) -> Result<Response, Refusal> {
    let body = call.body();
    let expected = call.expected()?;
    let (kind, name) = (call.kind(), call.name());
    // Off the async threads: hundreds of expressions may have to be compiled.
    let work = tokio::task::spawn_blocking(move || read(kind, &name, &body, Why::Malformed));
    let object = work.await.map_err(|_| Refusal::new(Why::Internal, "the object could not be read"))??;
    let result = apply(&call, Operation::Apply { object, expected }).await?;
    let status = if result.action == Action::Created { StatusCode::CREATED } else { StatusCode::OK };
    call.answer_object(status, &with_status(&call, result.object))
}

/// A document as the object that the path names. If it has not the form of its kind: `malformed`, as
/// it is not the document itself that was sent with a patch.
fn read(kind: ObjectKind, wanted: &Name, document: &Value, malformed: Why) -> Result<AnyObject, Refusal> {
    let object = validate::object(document, Some(kind)).map_err(|invalid| match invalid {
        Invalid::Structure(faults) => Refusal::faults(malformed, faults),
        Invalid::Meaning(faults) => Refusal::faults(Why::Invalid, faults),
    })?;
    let found = object.name();
    let mut faults = Vec::new();
    let parts = [("name", &wanted.name, &found.name), ("namespace", &wanted.namespace, &found.namespace)];
    for (field, wanted, found) in parts {
        if wanted != found {
            let message = format!("is {found:?}, but the path says {wanted:?}");
            faults.push(Fault::new(format!("metadata.{field}"), message));
        }
    }
    if faults.is_empty() { Ok(object) } else { Err(Refusal::faults(Why::Invalid, faults)) }
}

async fn apply(call: &Call, operation: Operation) -> Result<OperationResult, Refusal> {
    let applied = call.api.state.registry.apply(vec![operation], &call.author(), call.flag("dryRun")).await;
    only_result(applied?)
}

fn only_result(mut applied: Applied) -> Result<OperationResult, Refusal> {
    applied.results.pop().ok_or_else(|| Refusal::new(Why::Internal, "there is no result"))
}

pub(super) async fn patch(mut call: Call) -> Result<Response, Refusal> {
    let patch = call.body();
    if !patch.is_object() {
        return Err(Refusal::faults(Why::Malformed, vec![Fault::new("", "a merge patch of an object is an object")]));
    }
    let expected = call.expected()?;
    let patch = Arc::new(patch);
    let _turn = call.api.patching.of(&(call.kind(), call.name())).await;
    let mut tries = 0;
    let applied = loop {
        let view = call.api.state.registry.view();
        let before = patched(&view, call.kind(), &call.name())?.clone();
        // Merged and checked before others are kept from writing, and off the async threads; what is written
        // must then be a change of what it was merged with.
        let condition = match expected {
            None | Some(Expected::Exists) => {
                let version = before.metadata().resource_version.as_deref();
                version.and_then(|version| version.parse().ok()).map(Expected::Revision)
            }
            expected => expected,
        };
        let (kind, name, patch) = (call.kind(), call.name(), Arc::clone(&patch));
        let work = tokio::task::spawn_blocking(move || {
            let mut document = serde_json::to_value(&before).expect("an object is JSON: its maps have text keys");
            merge(&mut document, &patch);
            read(kind, &name, &document, Why::Invalid)
        });
        let object = work.await.map_err(|_| Refusal::new(Why::Internal, "the object could not be read"))??;
        let operation = Operation::Apply { object, expected: condition };
        let registry = &call.api.state.registry;
        match registry.apply(vec![operation], &call.author(), call.flag("dryRun")).await {
            Err(ApplyError::PreconditionFailed { .. }) if condition != expected => {
                tries += 1;
                if tries == PATCH_TRIES {
                    break Err(ApplyError::Contended);
                }
            }
            applied => break applied,
        }
    };
    let result = only_result(applied?)?;
    call.answer_object(StatusCode::OK, &with_status(&call, result.object))
}

/// What is to be patched.
fn patched<'a>(view: &'a View, kind: ObjectKind, name: &Name) -> Result<&'a AnyObject, Refusal> {
    view.object(kind, name).ok_or_else(|| {
        if kind == ObjectKind::Workload && view.registration(name).is_some() {
            return Refusal::from(ApplyError::Registered(name.clone()));
        }
        if view.is_in_kubernetes(kind, name) {
            return Refusal::from(ApplyError::Kubernetes(kind, name.clone()));
        }
        not_found(kind, name)
    })
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in fields {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// What an operation did, as it is answered.
#[derive(Serialize)]
pub(super) struct ResultAnswer {
    pub(super) action: Action,
    pub(super) object: AnyObject,
}

pub(super) async fn delete(call: Call) -> Result<Response, Refusal> {
    let expected = call.expected()?;
    let result = apply(&call, Operation::Delete { kind: call.kind(), name: call.name(), expected }).await?;
    call.answer(StatusCode::OK, &ResultAnswer { action: result.action, object: result.object })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_as_rfc_7396_says() {
        // The examples of its appendix A.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} + {patch}");
        }
    }
}
