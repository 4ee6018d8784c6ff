//! What is applied to a cluster so that Heddle lives in it: objects as a function of [`Values`].
//!
//! Every object has a name of its own and one owner of each field, so that applying it again, or what a newer version
//! prints, changes what differs and nothing else. What the control plane itself writes (the webhook's `caBundle`) is in
//! none of them.

#[cfg(test)]
mod tests;
mod values;

use serde_json::{Value, json};

pub use self::values::{Images, InvalidValue, Resources, Storage, Values, Webhook};
use crate::names::{CONTROL_PLANE, INJECT, MESH_PORT, WEBHOOK_CONFIGURATION, WEBHOOK_PATH, WEBHOOK_PORT};

/// Port of the control plane's API.
pub const API_PORT: u16 = 9700;
/// Port of the control plane's health and metrics.
pub const CONTROL_PLANE_HEALTH_PORT: u16 = 9702;
/// User that the control plane runs as.
pub const CONTROL_PLANE_UID: u32 = 2103;
/// Where the control plane's volume is, in its container.
const DATA: &str = "/var/lib/heddle";
/// Labels of everything that is installed.
const PART_OF: &str = "app.kubernetes.io/part-of";

/// Everything that is installed, in the order in which it can be applied.
pub fn manifests(values: &Values) -> Vec<Value> {
    let mut objects = vec![
        namespace(values),
        service_account(values),
        cluster_role(values),
        cluster_role_binding(values),
        service(values),
        volume_claim(values),
        deployment(values),
        disruption_budget(values),
    ];
    if values.webhook.enabled {
        objects.push(webhook_configuration(values));
    }
    for object in &mut objects {
        object["metadata"]["labels"][PART_OF] = "heddle".into();
        object["metadata"]["labels"]["app.kubernetes.io/version"] = env!("CARGO_PKG_VERSION").into();
    }
    objects
}

/// What is to be removed, by kind and name, in the order in which it should be: first what pods wait for as they
/// start. The namespace takes along what is in it, the mesh's keys and objects too.
pub fn removals(values: &Values) -> Vec<Value> {
    let object =
        |api: &str, kind: &str, name: &str| json!({ "apiVersion": api, "kind": kind, "metadata": { "name": name } });
    vec![
        object("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", WEBHOOK_CONFIGURATION),
        object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", CONTROL_PLANE),
        object("rbac.authorization.k8s.io/v1", "ClusterRole", CONTROL_PLANE),
        object("v1", "Namespace", &values.namespace),
    ]
}

fn named(values: &Values) -> Value {
    json!({ "name": CONTROL_PLANE, "namespace": values.namespace })
}

fn selector() -> Value {
    json!({ "app.kubernetes.io/name": CONTROL_PLANE })
}

fn namespace(values: &Values) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": values.namespace,
            "labels": {
                INJECT: "disabled",
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    })
}

fn service_account(values: &Values) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": named(values),
        // Its pod says that it needs the token.
        "automountServiceAccountToken": false,
    })
}

fn cluster_role(values: &Values) -> Value {
    let mut rules = vec![
        // Discovery.
        json!({ "apiGroups": [""], "resources": ["services", "pods"], "verbs": ["list", "watch"] }),
        json!({ "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] }),
        // Whose a pod's token is.
        json!({ "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] }),
    ];
    if values.webhook.enabled {
        // Its certificate authority, in this one object.
        rules.push(json!({
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [WEBHOOK_CONFIGURATION],
            "verbs": ["get", "patch"],
        }));
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": CONTROL_PLANE },
        "rules": rules,
    })
}

fn cluster_role_binding(values: &Values) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": CONTROL_PLANE },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CONTROL_PLANE },
        "subjects": [{ "kind": "ServiceAccount", "name": CONTROL_PLANE, "namespace": values.namespace }],
    })
}

/// Ports of the control plane, by their names.
fn ports(values: &Values) -> impl Iterator<Item = (&'static str, u16)> {
    let always = [("api", API_PORT), ("mesh", MESH_PORT), ("health", CONTROL_PLANE_HEALTH_PORT)];
    always.into_iter().chain(values.webhook.enabled.then_some(("webhook", WEBHOOK_PORT)))
}

fn service(values: &Values) -> Value {
    let ports = ports(values).map(|(name, port)| json!({ "name": name, "port": port, "targetPort": name }));
    let ports: Vec<_> = ports.collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": named(values),
        "spec": { "selector": selector(), "ports": ports },
    })
}

fn volume_claim(values: &Values) -> Value {
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": named(values),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": values.storage.size } },
        },
    });
    if let Some(class) = &values.storage.class {
        claim["spec"]["storageClassName"] = class.as_str().into();
    }
    claim
}

fn deployment(values: &Values) -> Value {
    let mut pod = json!({
        "serviceAccountName": CONTROL_PLANE,
        "automountServiceAccountToken": true,
        "nodeSelector": values.node_selector,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": CONTROL_PLANE_UID,
            "runAsGroup": CONTROL_PLANE_UID,
            "fsGroup": CONTROL_PLANE_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationGracePeriodSeconds": 30,
        "containers": [container(values)],
        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": CONTROL_PLANE } }],
    });
    if !values.images.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = values.images.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": named(values),
        "spec": {
            "replicas": 1,
            // The store is one process's: the new pod starts when the old one is gone. Proxies go on meanwhile.
            "strategy": { "type": "Recreate" },
            "selector": { "matchLabels": selector() },
            "template": { "metadata": { "labels": selector() }, "spec": pod },
        },
    })
}

fn container(values: &Values) -> Value {
    let ports: Vec<_> = ports(values).map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
    let probe = |path: &str, period: u8, failures: u8| {
        let get = json!({ "path": path, "port": "health" });
        json!({ "httpGet": get, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5 })
    };
    json!({
        "name": CONTROL_PLANE,
        "image": values.image(CONTROL_PLANE),
        "imagePullPolicy": values.images.pull_policy,
        "args": arguments(values),
        // Variables, so that they hold for what is run by `kubectl exec`, too. Below the mount, whose owner and mode are
        // the volume's.
        "env": [
            { "name": "HEDDLE_DATA_DIR", "value": format!("{DATA}/data") },
            { "name": "HEDDLE_CONFIG", "value": format!("{DATA}/context/config.yaml") },
        ],
        "ports": ports,
        "startupProbe": probe("/startup", 1, 60),
        "readinessProbe": probe("/ready", 2, 2),
        "livenessProbe": probe("/live", 10, 3),
        "resources": {
            "requests": { "cpu": values.resources.cpu, "memory": values.resources.memory },
            "limits": { "memory": values.resources.memory_limit },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [{ "name": "data", "mountPath": DATA }],
    })
}

fn arguments(values: &Values) -> Vec<String> {
    let service = format!("{CONTROL_PLANE}.{}.svc", values.namespace);
    let mut arguments = vec!["--kubernetes".to_owned()];
    arguments.extend(ports(values).map(|(name, port)| format!("--{name}={}:{port}", values.listen)));
    let full = format!("{service}.{}", values.cluster_domain);
    // The last three are for whoever forwards the port.
    let names = [CONTROL_PLANE, &service, &full, "localhost", "127.0.0.1", "::1"];
    arguments.push(format!("--api-name={}", names.join(",")));
    arguments.push(format!("--advertise-mesh={service}:{MESH_PORT}"));
    arguments.push(format!("--trust-domain={}", values.trust_domain));
    arguments.push(format!("--svid-ttl={}", values.svid_ttl));
    arguments.push(format!("--log={}", values.log));
    if values.webhook.enabled {
        arguments.push(format!("--proxy-image={}", values.image("heddle-proxy")));
        arguments.push(format!("--capture-image={}", values.image("heddle-capture")));
        arguments.push(format!("--image-pull-policy={}", values.images.pull_policy));
        arguments.extend(values.tracing_endpoint.iter().map(|endpoint| format!("--tracing-endpoint={endpoint}")));
    }
    arguments.extend(values.arguments.iter().cloned());
    arguments
}

fn disruption_budget(values: &Values) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": named(values),
        // One replica, which a drained node must be able to give up.
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector() } },
    })
}

/// A pod is sent when its namespace is enabled and it does not say otherwise itself, or when it says so itself.
fn webhook_configuration(values: &Values) -> Value {
    let expression =
        |key: &str, operator: &str, values: &[&str]| json!({ "key": key, "operator": operator, "values": values });
    let elsewhere =
        || expression("kubernetes.io/metadata.name", "NotIn", &["kube-system", "kube-node-lease", &values.namespace]);
    let webhook = |name: &str, namespaces: Value, pods: Value| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {
                    "name": CONTROL_PLANE,
                    "namespace": values.namespace,
                    "path": WEBHOOK_PATH,
                    "port": WEBHOOK_PORT,
                },
            },
            "failurePolicy": values.webhook.failure_policy,
            "timeoutSeconds": values.webhook.timeout_seconds,
            "matchPolicy": "Equivalent",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            "namespaceSelector": { "matchExpressions": [namespaces, elsewhere()] },
            "objectSelector": { "matchExpressions": [pods] },
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": WEBHOOK_CONFIGURATION },
        "webhooks": [
            webhook(
                "namespace.inject.heddle.dev",
                expression(INJECT, "In", &["enabled"]),
                expression(INJECT, "NotIn", &["disabled"]),
            ),
            webhook(
                "pod.inject.heddle.dev",
                expression(INJECT, "NotIn", &["enabled"]),
                expression(INJECT, "In", &["enabled"]),
            ),
        ],
    })
}
