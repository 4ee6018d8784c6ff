//! The two containers and two volumes that a pod gets.

use serde_json::{Map, Value, json};

use super::Injector;
use crate::{
    names::{
        CAPTURE_CONTAINER, HEALTH_PORT, PROXY_CONTAINER, PROXY_UID, STATE_DIR, STATE_VOLUME, TOKEN_AUDIENCE, TOKEN_DIR,
        TOKEN_VOLUME,
    },
    settings::{self, Settings},
};

pub(super) const ADMIN_PORT: u16 = 15000;
pub(super) const OUTBOUND_PORT: u16 = 15001;
pub(super) const INBOUND_PORT: u16 = 15006;
/// DNS must not wait for a proxy.
const DNS_PORT: u16 = 53;
/// Variable of the proxy with the app's probes.
pub(super) const PROBES: &str = "HEDDLE_PROBES";
/// Kubernetes renews the token when four fifths of this have passed.
const TOKEN_SECONDS: u32 = 3600;

/// Sets the rules that redirect the pod's connections, and ends. It alone may: `NET_ADMIN`, and root, without which
/// the kernel gives an executed program no capability.
pub(super) fn capture(injector: &Injector, settings: &Settings) -> Value {
    let mut args = vec![
        "capture".to_owned(),
        format!("--uid={PROXY_UID}"),
        format!("--skip-inbound-ports={}", settings.skip_inbound_ports.after(HEALTH_PORT)),
        format!("--skip-outbound-ports={}", settings.skip_outbound_ports.after(DNS_PORT)),
    ];
    if !settings.skip_outbound_subnets.is_empty() {
        let subnets: Vec<_> = settings.skip_outbound_subnets.iter().map(ToString::to_string).collect();
        args.push(format!("--skip-subnets={}", subnets.join(",")));
    }
    let image = settings.image.as_ref().or(injector.capture_image.as_ref()).unwrap_or(&injector.image);
    let container = json!({
        "name": CAPTURE_CONTAINER,
        "image": image,
        "args": args,
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    with_policy(container, injector)
}

/// The proxy: started before the app, ended after it.
pub(super) fn proxy(injector: &Injector, settings: &Settings, probes: &Map<String, Value>) -> Value {
    let probe = |path: &str, more: Value| {
        let mut probe = json!({ "httpGet": { "path": path, "port": HEALTH_PORT } });
        merge(&mut probe, more);
        probe
    };
    let container = json!({
        "name": PROXY_CONTAINER,
        "image": settings.image.as_ref().unwrap_or(&injector.image),
        "restartPolicy": "Always",
        "env": environment(injector, settings, probes),
        "ports": [
            { "name": "heddle-inbound", "containerPort": INBOUND_PORT },
            { "name": "heddle-health", "containerPort": HEALTH_PORT },
        ],
        // The app is not started before this, so it is asked often.
        "startupProbe": probe("/startup", json!({ "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 120 })),
        "readinessProbe": probe("/ready", json!({ "periodSeconds": 5, "timeoutSeconds": 5 })),
        "livenessProbe": probe("/live", json!({ "periodSeconds": 10, "timeoutSeconds": 5 })),
        "resources": settings::resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": STATE_VOLUME, "mountPath": STATE_DIR },
            { "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true },
        ],
    });
    with_policy(container, injector)
}

/// How the proxy learns what it is told: variables of `heddle-proxy`.
fn environment(injector: &Injector, settings: &Settings, probes: &Map<String, Value>) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let text = |name: &str, value: &str| json!({ "name": name, "value": value });
    let mut all = vec![
        field("HEDDLE_PROXY_WORKLOAD", "metadata.name"),
        field("HEDDLE_PROXY_ADVERTISE", "status.podIP"),
        field("HEDDLE_PROXY_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
        text("HEDDLE_PROXY_CONTROL_PLANE", &injector.control_plane),
        text("HEDDLE_TRUST_DOMAIN", &injector.trust_domain),
        text("HEDDLE_TRUST_ROOTS", &injector.trust_roots),
        text("HEDDLE_PROXY_SERVICE_ACCOUNT_TOKEN", &format!("{TOKEN_DIR}/token")),
        // Made by the proxy, for itself alone: the volume's own folder is everybody's.
        text("HEDDLE_PROXY_STATE_DIR", &format!("{STATE_DIR}/state")),
        text("HEDDLE_PROXY_HTTP_PROXY", "off"),
    ];
    let mut optional = |name: &str, value: Option<&str>| all.extend(value.map(|value| text(name, value)));
    optional("HEDDLE_PROXY_TRACING_ENDPOINT", injector.tracing_endpoint.as_deref());
    optional("HEDDLE_LOG", settings.log_level.as_deref());
    optional("HEDDLE_PROXY_DRAIN_DEADLINE", settings.drain_deadline.as_deref());
    optional("HEDDLE_PROXY_ACCESS_LOG", settings.access_log.map(|on| if on { "on" } else { "off" }));
    if !probes.is_empty() {
        let probes = serde_json::to_string(probes).unwrap_or_default();
        // `$(NAME)` would be replaced in a variable's value; written twice, the dollar is itself.
        optional(PROBES, Some(&probes.replace('$', "$$")));
    }
    all
}

/// In memory: it goes with the pod, and no disk ever holds the key.
pub(super) fn state_volume() -> Value {
    json!({ "name": STATE_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } })
}

/// Says who the pod is, to the control plane alone.
pub(super) fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": {
            "sources": [{
                "serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": "token",
                },
            }],
        },
    })
}

fn with_policy(mut container: Value, injector: &Injector) -> Value {
    if let Some(policy) = &injector.image_pull_policy {
        merge(&mut container, json!({ "imagePullPolicy": policy }));
    }
    container
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}
