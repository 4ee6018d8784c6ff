//! Taking off exactly what was put on.

use serde_json::{Map, Value};

use super::{Fault, InjectError, Outcome, Pod, Reason, Status, containers, each, items, probes};
use crate::{
    names::{CAPTURE_CONTAINER, ORIGINAL, PROXY_CONTAINER, STATE_VOLUME, STATUS, TOKEN_VOLUME},
    patch::{Change, Path},
};

/// What each pod and template of an object becomes without its proxy.
///
/// # Errors
/// A pod whose annotation cannot be read.
pub fn uninject(object: &Value) -> Result<Vec<Pod>, InjectError> {
    each(object, |at| pod(object, at))
}

/// The proxy's container.
pub(super) fn proxy(spec: &Value) -> Option<&Value> {
    items(spec, "initContainers").find(|container| name(container) == Some(PROXY_CONTAINER))
}

fn name(of: &Value) -> Option<&str> {
    of.get("name").and_then(Value::as_str)
}

fn pod(object: &Value, at: &Path) -> Result<Outcome, Fault> {
    let metadata_at = at.key("metadata");
    let annotations_at = metadata_at.key("annotations");
    let annotations = annotations_at.find(object).and_then(Value::as_object);
    let Some((annotations, status)) = annotations.and_then(|all| Some((all, all.get(STATUS)?))) else {
        return Ok(Outcome::Left(Reason::NotInjected));
    };
    let status = status.as_str().and_then(|text| serde_json::from_str::<Status>(text).ok());
    let status = status.ok_or_else(|| Fault::Shape(format!("annotation {STATUS}"), "it is not as Heddle wrote it"))?;
    let spec_at = at.key("spec");
    let spec = spec_at.find(object).unwrap_or(&Value::Null);
    let originals = proxy(spec).map(originals).transpose()?.unwrap_or_default();
    let ours = |key: &str| *key == *STATUS || *key == *ORIGINAL;

    let mut changes = Vec::new();
    let mut remove = |at: &Path, key: &str| changes.push(Change::RemoveEntry { at: at.clone(), key: key.to_owned() });
    let alone = annotations.keys().all(|key| ours(key));
    let metadata_alone = metadata_at.find(object).and_then(Value::as_object).is_some_and(|all| all.len() == 1);
    if alone && metadata_alone && status.made.contains("metadata") {
        remove(at, "metadata");
    } else if alone && status.made.contains("annotations") && !status.null.contains("metadata") {
        remove(&metadata_at, "annotations");
    } else if let Some((at, key)) = nulled(&status, alone, metadata_alone, at, &metadata_at) {
        changes.push(null(at, key));
    } else {
        annotations.keys().filter(|key| ours(key)).for_each(|key| remove(&annotations_at, key));
    }
    changes.extend(take_off(spec, &spec_at, "initContainers", [CAPTURE_CONTAINER, PROXY_CONTAINER], &status));
    changes.extend(take_off(spec, &spec_at, "volumes", [STATE_VOLUME, TOKEN_VOLUME], &status));
    changes.extend(restore(spec, &spec_at, originals));
    Ok(Outcome::Changed(changes))
}

/// What was null before the annotation was written, if that is all there is in it.
fn nulled<'a>(
    status: &Status,
    alone: bool,
    metadata_alone: bool,
    at: &'a Path,
    metadata_at: &'a Path,
) -> Option<(&'a Path, &'static str)> {
    if alone && metadata_alone && status.null.contains("metadata") {
        Some((at, "metadata"))
    } else if alone && status.null.contains("annotations") {
        Some((metadata_at, "annotations"))
    } else {
        None
    }
}

fn null(at: &Path, key: &str) -> Change {
    Change::ReplaceEntry { at: at.clone(), key: key.to_owned(), new_key: key.to_owned(), value: Value::Null }
}

/// A list loses the items of these names, and goes itself if it was made for them.
fn take_off(spec: &Value, at: &Path, key: &str, names: [&str; 2], status: &Status) -> Vec<Change> {
    let is_ours = |item: &Value| name(item).is_some_and(|name| names.contains(&name));
    let all: Vec<&Value> = items(spec, key).collect();
    if !all.is_empty() && all.iter().all(|item| is_ours(item)) {
        if status.made.contains(key) {
            return vec![Change::RemoveEntry { at: at.clone(), key: key.to_owned() }];
        }
        if status.null.contains(key) {
            return vec![null(at, key)];
        }
    }
    let ours = all.iter().enumerate().filter(|(_, item)| is_ours(item)).map(|(index, _)| index);
    // Each has lost those before it by then.
    ours.enumerate().map(|(gone, index)| Change::RemoveItem { at: at.key(key), index: index - gone }).collect()
}

/// The app's probes as they were.
fn originals(proxy: &Value) -> Result<Map<String, Value>, Fault> {
    let variable = items(proxy, "env").find(|variable| name(variable) == Some(containers::PROBES));
    let Some(text) = variable.and_then(|variable| variable.get("value")).and_then(Value::as_str) else {
        return Ok(Map::new());
    };
    serde_json::from_str(&text.replace("$$", "$"))
        .map_err(|_| Fault::Shape(format!("variable {}", containers::PROBES), "it is not as Heddle wrote it"))
}

/// Gives the probes back. Lists have lost our containers by then.
fn restore(spec: &Value, at: &Path, mut originals: Map<String, Value>) -> Vec<Change> {
    let mut changes = Vec::new();
    for list in ["initContainers", "containers"] {
        let kept = items(spec, list).filter(|container| !is_our_container(container));
        for (index, container) in kept.enumerate() {
            let container_at = at.key(list).index(index);
            let name = name(container).unwrap_or_default();
            for (path, kind) in probes::PROBES {
                let own = format!("{name}/{kind}");
                let told = originals.keys().find(|told| **told == own || told.starts_with(&format!("{own}/"))).cloned();
                let Some((told, Value::Object(original))) = told.and_then(|told| originals.remove_entry(&told)) else {
                    continue;
                };
                let probe = path.iter().try_fold(container, |value, key| value.get(key));
                let rewritten = probe.and_then(|probe| probe.pointer("/httpGet/path")).and_then(Value::as_str);
                // One that somebody has written since then stays.
                if rewritten != Some(&format!("/probe/{told}")) {
                    continue;
                }
                let at = path.iter().fold(container_at.clone(), |at, key| at.key(key));
                let action = original.into_iter().find(|(key, _)| key != "port" && key != "timeoutSeconds");
                let change = action.map(|(action, value)| Change::ReplaceEntry {
                    at,
                    key: "httpGet".to_owned(),
                    new_key: action,
                    value,
                });
                changes.extend(change);
            }
        }
    }
    changes
}

fn is_our_container(container: &Value) -> bool {
    name(container).is_some_and(|name| [CAPTURE_CONTAINER, PROXY_CONTAINER].contains(&name))
}
