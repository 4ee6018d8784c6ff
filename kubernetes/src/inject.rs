//! Injection: the changes by which a pod, or whatever makes pods, gets a proxy, and those that take it off again.

mod containers;
mod probes;
#[cfg(test)]
mod tests;
mod undo;

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::undo::uninject;
use crate::{
    names::{CAPTURE_CONTAINER, HEALTH_PORT, PROXY_CONTAINER, PROXY_UID, STATE_VOLUME, STATUS, TOKEN_VOLUME},
    patch::{Change, Path},
    settings::{self, Inject, InvalidSetting, Settings},
};

/// What is the same for every proxy of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injector {
    /// Image of the proxy.
    pub image: String,
    /// Image of the init container that sets the rules of capture; absent: the proxy's.
    pub capture_image: Option<String>,
    /// `Always`, `IfNotPresent` or `Never`; absent: as Kubernetes decides.
    pub image_pull_policy: Option<String>,
    /// `host:port` of the control plane's mesh port.
    pub control_plane: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// The mesh's roots, PEM.
    pub trust_roots: String,
    /// Where proxies send spans (OTLP); absent: nowhere.
    pub tracing_endpoint: Option<String>,
    /// Something that nobody guesses, of characters that a path can have: only who knows it may have the proxy call a
    /// hook of the app, which does something, unlike a probe.
    pub hook_key: String,
}

/// What becomes of one pod or template of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Where it is in the object.
    pub at: Path,
    /// What it is part of: `Deployment shop/orders`.
    pub name: String,
    /// What is done with it.
    pub outcome: Outcome,
}

/// What is done with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It changes.
    Changed(Vec<Change>),
    /// It stays as it is.
    Left(Reason),
}

/// Why a pod stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has a proxy already, of this version.
    Injected(String),
    /// It says so.
    Disabled,
    /// Neither it nor its namespace asks for a proxy.
    NotAsked,
    /// It shares the node's network, whose connections must not be redirected.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It has no proxy to take off.
    NotInjected,
}

/// Why an object cannot be injected. Nothing of it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {why}")]
pub struct InjectError {
    /// `Deployment shop/orders`.
    pub object: String,
    /// What is wrong.
    pub why: Fault,
}

/// What is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An annotation or label.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// Something of a name of ours that is not ours.
    #[error("{0} is there already, and was not injected by Heddle: give it another name")]
    Taken(String),
    /// An annotation without what it tells of.
    #[error(
        "annotation {STATUS} says that the pod is injected, but it has no container {PROXY_CONTAINER}: remove the annotation"
    )]
    Stale,
    /// A port that the proxy listens on.
    #[error("container {container} has port {port}, on which the proxy listens: give it another one")]
    Port {
        /// Whose.
        container: String,
        /// Which.
        port: u64,
    },
    /// The proxy's own user.
    #[error(
        "{0} runs as user {PROXY_UID}, which is the proxy's: its connections would not be captured; let it run as another one"
    )]
    User(String),
    /// A probe of a port that nobody knows.
    #[error("container {container}, {probe}: there is no port {port:?} among the container's ports")]
    ProbePort {
        /// Whose.
        container: String,
        /// Which.
        probe: &'static str,
        /// What it names.
        port: String,
    },
    /// Something of another shape than Kubernetes has.
    #[error("{0} is not as it should be: {1}")]
    Shape(String, &'static str),
}

/// What an injected pod's annotation tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of Heddle that injected it.
    pub version: String,
    /// What was not there before, of `metadata`, `annotations`, `initContainers`, `volumes`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub made: BTreeSet<String>,
    /// What was there and null.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub null: BTreeSet<String>,
}

impl Injector {
    /// What becomes of each pod and template of an object; other kinds have none. `default` holds for pods that say
    /// nothing themselves.
    ///
    /// # Errors
    /// A pod that cannot be injected, and says nothing against it.
    pub fn inject(&self, object: &Value, default: Option<Inject>) -> Result<Vec<Pod>, InjectError> {
        each(object, |at| self.pod(object, at, default))
    }

    fn pod(&self, object: &Value, at: &Path, default: Option<Inject>) -> Result<Outcome, Fault> {
        let metadata = at.key("metadata").find(object).unwrap_or(&Value::Null);
        let spec = at.key("spec").find(object).filter(|spec| spec.is_object());
        let spec = spec.ok_or_else(|| Fault::Shape("the pod's spec".to_owned(), "write a mapping with containers"))?;
        let left = |reason| Ok(Outcome::Left(reason));
        // It says so itself, whatever else is wrong with it.
        let own = settings::inject(metadata)?;
        if own == Some(Inject::Disabled) {
            return left(Reason::Disabled);
        }
        if own.or(default) != Some(Inject::Enabled) {
            return left(Reason::NotAsked);
        }
        if is_true(&spec["hostNetwork"]) {
            return left(Reason::HostNetwork);
        }
        if spec.pointer("/os/name").and_then(Value::as_str) == Some("windows") {
            return left(Reason::Windows);
        }
        if let Some(status) = metadata.get("annotations").and_then(|annotations| annotations.get(STATUS)) {
            if undo::proxy(spec).is_none() {
                return Err(Fault::Stale);
            }
            let status: Status = status.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            return left(Reason::Injected(status.version));
        }
        let settings = Settings::of(metadata)?;
        check(spec)?;
        let (mut changes, originals) = probes::rewrite(spec, &at.key("spec"), &settings, &self.hook_key)?;
        let mut status = Status { version: env!("CARGO_PKG_VERSION").to_owned(), ..Status::default() };
        let spec_at = at.key("spec");
        let volumes = [containers::state_volume(), containers::token_volume()];
        changes.extend(put_first(spec, &spec_at, "volumes", &volumes, &mut status)?);
        let ours = [containers::capture(self, &settings), containers::proxy(self, &settings, &originals)];
        changes.extend(put_first(spec, &spec_at, "initContainers", &ours, &mut status)?);
        changes.push(tell(object, at, &mut status)?);
        Ok(Outcome::Changed(changes))
    }
}

/// What each pod and template of an object becomes.
fn each(object: &Value, what: impl Fn(&Path) -> Result<Outcome, Fault>) -> Result<Vec<Pod>, InjectError> {
    let pod = |(at, name): (Path, String)| {
        let outcome = what(&at).map_err(|why| InjectError { object: name.clone(), why })?;
        Ok(Pod { at, name, outcome })
    };
    templates(object, &Path::default()).into_iter().map(pod).collect()
}

/// Pods and pod templates in an object, with what they are part of.
fn templates(object: &Value, at: &Path) -> Vec<(Path, String)> {
    let text = |key| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = text("kind");
    let path = match (text("apiVersion"), kind) {
        ("v1", "List") => {
            let items = object.get("items").and_then(Value::as_array);
            let items = items.into_iter().flatten().enumerate();
            return items.flat_map(|(index, item)| templates(item, &at.key("items").index(index))).collect();
        }
        ("v1", "Pod") => at.clone(),
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch/v1", "Job") => {
            at.key("spec").key("template")
        }
        ("batch/v1", "CronJob") => at.key("spec").key("jobTemplate").key("spec").key("template"),
        _ => return Vec::new(),
    };
    let metadata = |key| object["metadata"].get(key).and_then(Value::as_str);
    let name = metadata("name").or_else(|| metadata("generateName")).unwrap_or("without a name");
    let name = match metadata("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    vec![(path, name)]
}

/// Whether a field is true. Manifests are YAML 1.1, where there are more words for it.
fn is_true(value: &Value) -> bool {
    let word = |text: &str| ["true", "yes", "on", "y"].iter().any(|word| text.eq_ignore_ascii_case(word));
    value.as_bool().unwrap_or_else(|| value.as_str().is_some_and(word))
}

/// Names, ports and the user of the proxy must be its own.
fn check(spec: &Value) -> Result<(), Fault> {
    let named = |list: &'static str| items(spec, list).map(|item| item.get("name").and_then(Value::as_str));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let taken = named(list).flatten().find(|name| [CAPTURE_CONTAINER, PROXY_CONTAINER].contains(name));
        if let Some(name) = taken {
            return Err(Fault::Taken(format!("container {name}")));
        }
    }
    if let Some(name) = named("volumes").flatten().find(|name| [STATE_VOLUME, TOKEN_VOLUME].contains(name)) {
        return Err(Fault::Taken(format!("volume {name}")));
    }
    let user = |of: &Value| of.pointer("/securityContext/runAsUser").and_then(Value::as_u64) == Some(PROXY_UID.into());
    if user(spec) {
        return Err(Fault::User("the pod".to_owned()));
    }
    for container in items(spec, "containers").chain(items(spec, "initContainers")) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if user(container) {
            return Err(Fault::User(format!("container {name}")));
        }
        let ports = items(container, "ports").filter_map(|port| port.get("containerPort").and_then(Value::as_u64));
        let own = [containers::ADMIN_PORT, containers::OUTBOUND_PORT, containers::INBOUND_PORT, HEALTH_PORT];
        if let Some(port) = ports.into_iter().find(|port| own.iter().any(|own| u64::from(*own) == *port)) {
            return Err(Fault::Port { container: name, port });
        }
    }
    Ok(())
}

/// Items of a list below a key; none where there is no list.
fn items<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A list below a key gets first items, and is made where there is none.
fn put_first(of: &Value, at: &Path, key: &str, new: &[Value], status: &mut Status) -> Result<Vec<Change>, Fault> {
    let value = || Value::Array(new.to_vec());
    Ok(match of.get(key) {
        None => {
            status.made.insert(key.to_owned());
            vec![Change::AddEntry { at: at.clone(), key: key.to_owned(), value: value() }]
        }
        Some(Value::Null) => {
            status.null.insert(key.to_owned());
            vec![Change::ReplaceEntry { at: at.clone(), key: key.to_owned(), new_key: key.to_owned(), value: value() }]
        }
        Some(Value::Array(_)) => {
            new.iter().rev().map(|item| Change::AddFirst { at: at.key(key), value: item.clone() }).collect()
        }
        Some(_) => return Err(Fault::Shape(at.key(key).to_string(), "write a list")),
    })
}

/// The annotation that tells of the injection. `status` gets what is made for it.
fn tell(object: &Value, at: &Path, status: &mut Status) -> Result<Change, Fault> {
    let metadata_at = at.key("metadata");
    let metadata = metadata_at.find(object).unwrap_or(&Value::Null);
    let annotations = metadata.get("annotations");
    for (key, value) in [("metadata", metadata_at.find(object)), ("annotations", annotations)] {
        match value {
            None => _ = status.made.insert(key.to_owned()),
            Some(Value::Null) => _ = status.null.insert(key.to_owned()),
            Some(Value::Object(_)) => {}
            Some(_) => return Err(Fault::Shape(metadata_at.to_string(), "metadata and its annotations are mappings")),
        }
    }
    let text = serde_json::to_string(status).unwrap_or_default();
    let told = json!({ STATUS: text });
    let put = |old: Option<&Value>, at: &Path, key: &str, value: Value| match old {
        None => Change::AddEntry { at: at.clone(), key: key.to_owned(), value },
        Some(_) => Change::ReplaceEntry { at: at.clone(), key: key.to_owned(), new_key: key.to_owned(), value },
    };
    Ok(match (metadata, annotations) {
        (Value::Null, _) => put(metadata_at.find(object), at, "metadata", json!({ "annotations": told })),
        (_, None | Some(Value::Null)) => put(annotations, &metadata_at, "annotations", told),
        _ => Change::AddEntry { at: metadata_at.key("annotations"), key: STATUS.to_owned(), value: text.into() },
    })
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Injected(version) => return write!(f, "has a proxy already, of Heddle {version}"),
            Self::Disabled => "says heddle.dev/inject: disabled",
            Self::NotAsked => "does not say heddle.dev/inject: enabled, nor does its namespace",
            Self::HostNetwork => "has hostNetwork: the node's connections must not be redirected",
            Self::Windows => "runs on Windows",
            Self::NotInjected => "has no proxy",
        })
    }
}
