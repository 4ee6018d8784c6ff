//! Probes of the app: kubelet has no certificate, so what it asks would meet the proxy and be refused, or, for TCP,
//! accepted whatever the app does. Instead it asks the proxy's health port, and the proxy asks the app.

use serde_json::{Map, Value, json};

use super::{Fault, items};
use crate::{
    names::HEALTH_PORT,
    patch::{Change, Path},
    settings::{Settings, is_captured},
};

/// Where a container has probes, the name that each has in the path, and how kubelet calls it.
pub(super) const PROBES: [(&[&str], &str); 5] = [
    (&["livenessProbe"], "liveness"),
    (&["readinessProbe"], "readiness"),
    (&["startupProbe"], "startup"),
    (&["lifecycle", "postStart"], "post-start"),
    (&["lifecycle", "preStop"], "pre-stop"),
];
/// What the proxy can do in kubelet's place.
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// What Kubernetes takes where a probe names no timeout.
const DEFAULT_TIMEOUT: u64 = 1;

/// The changes, and the originals by what follows `/probe/` in the path: `container/kind`, of a hook with its key.
pub(super) fn rewrite(
    spec: &Value,
    at: &Path,
    settings: &Settings,
    hook_key: &str,
) -> Result<(Vec<Change>, Map<String, Value>), Fault> {
    let mut changes = Vec::new();
    let mut originals = Map::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, list).enumerate() {
            let container_at = at.key(list).index(index);
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            for (path, kind) in PROBES {
                let at = path.iter().fold(container_at.clone(), |at, key| at.key(key));
                let probe = path.iter().try_fold(container, |value, key| value.get(key));
                let Some(probe) = probe else { continue };
                let Some((action, original)) = original(container, name, probe, kind, settings)? else { continue };
                let told = if is_hook(kind) { format!("{name}/{kind}/{hook_key}") } else { format!("{name}/{kind}") };
                changes.push(Change::ReplaceEntry {
                    at,
                    key: action.to_owned(),
                    new_key: "httpGet".to_owned(),
                    value: json!({ "path": format!("/probe/{told}"), "port": HEALTH_PORT }),
                });
                originals.insert(told, original);
            }
        }
    }
    Ok((changes, originals))
}

/// What the proxy is told of a probe that it takes over: the action as it was written, the port as a number, and
/// seconds to wait.
fn original(
    container: &Value,
    name: &str,
    probe: &Value,
    kind: &'static str,
    settings: &Settings,
) -> Result<Option<(&'static str, Value)>, Fault> {
    let found = ACTIONS.iter().find_map(|action| Some((*action, probe.get(action).filter(|value| !value.is_null())?)));
    let Some((action, asked)) = found else { return Ok(None) };
    // Another host is asked as ever: nothing of it passes this pod.
    if asked.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let unknown = |port: &Value| Fault::ProbePort {
        container: name.to_owned(),
        probe: kind,
        port: port.as_str().map_or_else(|| port.to_string(), str::to_owned),
    };
    let port = asked.get("port").unwrap_or(&Value::Null);
    let port = number(container, port).ok_or_else(|| unknown(port))?;
    if !is_captured(settings, port) {
        return Ok(None);
    }
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
    let timeout = timeout.unwrap_or(if is_hook(kind) { HOOK_TIMEOUT } else { DEFAULT_TIMEOUT });
    Ok(Some((action, json!({ action: asked, "port": port, "timeoutSeconds": timeout }))))
}

/// What does something, instead of asking how the app is.
fn is_hook(kind: &str) -> bool {
    ["post-start", "pre-stop"].contains(&kind)
}

/// Kubelet waits for a hook as long as the pod may take to end.
const HOOK_TIMEOUT: u64 = 30;

/// A port's number, where it is given by name too.
fn number(container: &Value, port: &Value) -> Option<u16> {
    if let Some(number) = port.as_u64() {
        return u16::try_from(number).ok().filter(|port| *port != 0);
    }
    let name = port.as_str()?;
    let named = items(container, "ports").find(|port| port.get("name").and_then(Value::as_str) == Some(name));
    let number = named.and_then(|port| port.get("containerPort")).and_then(Value::as_u64);
    number.and_then(|port| u16::try_from(port).ok()).or_else(|| name.parse().ok()).filter(|port| *port != 0)
}
