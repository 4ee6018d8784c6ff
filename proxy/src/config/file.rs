//! What was typed: a file, flags over it, environment variables between the two. All of it becomes
//! one tree of text, so that a flag is checked by the same rules as the key it overrides.

use std::{collections::BTreeMap, fs, io::Read as _, path::PathBuf};

use clap::Parser;
use serde_json::{Map, Value, json};

use super::{
    Config,
    error::{ConfigError, Fault},
    meaning,
    read::Faults,
};

/// Largest settings or join file.
const MAX_FILE: u64 = 1 << 20;

/// The proxy beside one workload: mutual TLS, policy, retries, circuit breaking, traces.
///
/// Every setting is a key of the settings file too; a flag wins over its variable, a variable over
/// the file.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "heddle-proxy", version)]
#[allow(rustdoc::broken_intra_doc_links, reason = "brackets of the help text")]
pub struct Flags {
    /// Settings file, YAML or JSON.
    #[arg(long, value_name = "FILE", env = "HEDDLE_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Service that the workload serves: NAME or NAME.NAMESPACE; again for more.
    #[arg(long = "service", value_name = "NAME", env = "HEDDLE_PROXY_SERVICE", value_delimiter = ',')]
    pub services: Vec<String>,
    /// Where the application serves it: [PORT:]APP_PORT or PORT:ADDRESS; again for more. Of the one --service.
    #[arg(long = "port", value_name = "[PORT:]APP", env = "HEDDLE_PROXY_PORT", value_delimiter = ',')]
    pub ports: Vec<String>,
    /// Name of this instance, unique in its namespace.
    #[arg(long, value_name = "NAME", env = "HEDDLE_PROXY_WORKLOAD")]
    pub workload: Option<String>,
    /// Join file, made by `heddle token create`.
    #[arg(long, value_name = "FILE", env = "HEDDLE_PROXY_JOIN")]
    pub join: Option<String>,
    /// In Kubernetes, instead of a join file: HOST:PORT of the control plane's mesh port.
    #[arg(long, value_name = "HOST:PORT", env = "HEDDLE_PROXY_CONTROL_PLANE")]
    pub control_plane: Option<String>,
    /// And the token that is projected into the pod with audience heddle.dev.
    #[arg(long, value_name = "FILE", env = "HEDDLE_PROXY_SERVICE_ACCOUNT_TOKEN")]
    pub service_account_token: Option<String>,
    /// And the mesh's trust domain [default: heddle.local].
    #[arg(long, value_name = "NAME", env = "HEDDLE_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// And the mesh's roots, PEM.
    #[arg(long, value_name = "PEM", env = "HEDDLE_TRUST_ROOTS", hide_env_values = true, allow_hyphen_values = true)]
    pub trust_roots: Option<String>,
    /// Folder for key, certificate and last good configuration.
    #[arg(long, value_name = "DIR", env = "HEDDLE_PROXY_STATE_DIR")]
    pub state_dir: Option<String>,
    /// Where peer proxies, and connections redirected on their way to the application, are accepted
    /// [default: 0.0.0.0:15006,[::]:15006].
    #[arg(long, value_name = "ADDRESS,..", env = "HEDDLE_PROXY_INBOUND")]
    pub inbound: Option<String>,
    /// Address to register instead: IP:PORT, IP or :PORT.
    #[arg(long, value_name = "ADDRESS", env = "HEDDLE_PROXY_ADVERTISE")]
    pub advertise: Option<String>,
    /// Where connections of the application are redirected to [default: 127.0.0.1:15001,[::1]:15001].
    #[arg(long, value_name = "ADDRESS,..|off", env = "HEDDLE_PROXY_CAPTURED")]
    pub captured: Option<String>,
    /// HTTP proxy port of the application [default: 127.0.0.1:15002].
    #[arg(long, value_name = "ADDRESS|off", env = "HEDDLE_PROXY_HTTP_PROXY")]
    pub http_proxy: Option<String>,
    /// Local port that leads to a service: NAME[:PORT]=LOCAL_PORT; again for more.
    #[arg(long = "upstream", value_name = "NAME=PORT", env = "HEDDLE_PROXY_UPSTREAM", value_delimiter = ',')]
    pub upstreams: Vec<String>,
    /// Admin listener, loopback only [default: 127.0.0.1:15000].
    #[arg(long, value_name = "ADDRESS|off", env = "HEDDLE_PROXY_ADMIN")]
    pub admin: Option<String>,
    /// Listener of health and metrics [default: 0.0.0.0:15020].
    #[arg(long, value_name = "ADDRESS", env = "HEDDLE_PROXY_HEALTH")]
    pub health: Option<String>,
    /// Label of the workload: KEY=VALUE; again for more.
    #[arg(long = "label", value_name = "KEY=VALUE", env = "HEDDLE_PROXY_LABELS", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Availability zone.
    #[arg(long, value_name = "ZONE", env = "HEDDLE_PROXY_ZONE")]
    pub zone: Option<String>,
    /// Threads that carry traffic, or auto: as many as the CPUs that affinity and cgroup give it [default: 1].
    #[arg(long, value_name = "N", env = "HEDDLE_PROXY_WORKERS")]
    pub workers: Option<String>,
    /// OTLP endpoint for spans.
    #[arg(long, value_name = "URL", env = "HEDDLE_PROXY_TRACING_ENDPOINT")]
    pub tracing_endpoint: Option<String>,
    /// What it speaks: grpc or http [default: grpc].
    #[arg(long, value_name = "PROTOCOL", env = "HEDDLE_PROXY_TRACING_PROTOCOL")]
    pub tracing_protocol: Option<String>,
    /// Share of new traces that are sampled, 0 to 1 [default: as the mesh says].
    #[arg(long, value_name = "SHARE", env = "HEDDLE_PROXY_SAMPLING_RATIO")]
    pub sampling_ratio: Option<String>,
    /// Time to shut down in [default: 30s].
    #[arg(long, value_name = "DURATION", env = "HEDDLE_PROXY_DRAIN_DEADLINE")]
    pub drain_deadline: Option<String>,
    /// What is logged, such as `info` or `info,heddle_proxy=debug`.
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG")]
    pub log: Option<String>,
    /// How: text or json [default: text].
    #[arg(long, value_name = "FORMAT", env = "HEDDLE_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// A line for each request, on or off [default: as the mesh says].
    #[arg(long, value_name = "on|off", env = "HEDDLE_PROXY_ACCESS_LOG")]
    pub access_log: Option<String>,
    /// What the health listener asks the application at /probe/NAME, as the injector writes it.
    #[arg(long, value_name = "JSON", env = "HEDDLE_PROBES", hide = true)]
    pub probes: Option<String>,
    /// Any other key of the settings file: PATH=VALUE, such as limits.maxConnections=500; again for more.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Shut down, as SIGTERM does, when this process ends; it must be the one that starts this one.
    #[arg(long, value_name = "PID")]
    pub parent: Option<i32>,
}

/// Reads the file that the flags name, lays the flags over it and finds out what is meant.
///
/// # Errors
/// Every fault there is, each with its path.
pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
    let mut faults = Vec::new();
    let mut tree = match &flags.config {
        Some(file) => read_tree(file).unwrap_or_else(|message| {
            faults.push(Fault { path: "--config".to_owned(), message });
            Value::Object(Map::new())
        }),
        None => Value::Object(Map::new()),
    };
    let mut typed = BTreeMap::new();
    lay_over(flags, &mut tree, &mut typed, &mut faults);
    let gathered = Faults::new(typed);
    let config = meaning::config(tree, &gathered);
    faults.extend(gathered.into_found());
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(ConfigError { faults }),
    }
}

/// Reads a YAML (and so JSON) file whose keys are not repeated.
fn read_tree(file: &std::path::Path) -> Result<Value, String> {
    let text = read_text(file)?;
    // By way of YAML's own value: unlike a JSON map it refuses a key that is written twice.
    let value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&text).map_err(|error| format!("{} is no YAML or JSON: {error}", file.display()))?;
    let value = serde_json::to_value(value).map_err(|error| format!("{}: {error}", file.display()))?;
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(value),
        _ => Err(format!("{} holds no mapping of keys to values", file.display())),
    }
}

/// Reads a small file.
pub(super) fn read_text(file: &std::path::Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    // Read and not asked for its size: a device or a pipe has none.
    let mut bytes = Vec::new();
    fs::File::open(file).map_err(cannot)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{} has more than {MAX_FILE} bytes", file.display()));
    }
    String::from_utf8(bytes).map_err(|error| format!("{} is no text in UTF-8: {error}", file.display()))
}

/// Writes each flag to the path of its key.
fn lay_over(flags: &Flags, tree: &mut Value, typed: &mut BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    let mut set = |path: &str, flag: &str, value: Value| match put(tree, path, value) {
        Ok(()) => _ = typed.insert(path.to_owned(), flag.to_owned()),
        Err(message) => faults.push(Fault { path: format!("{path} ({flag})"), message }),
    };
    let mut wrong = Vec::new();
    let singles = [
        ("workload", "--workload", &flags.workload),
        ("join", "--join", &flags.join),
        ("kubernetes.controlPlane", "--control-plane", &flags.control_plane),
        ("kubernetes.serviceAccountToken", "--service-account-token", &flags.service_account_token),
        ("kubernetes.trustDomain", "--trust-domain", &flags.trust_domain),
        ("kubernetes.trustRoots", "--trust-roots", &flags.trust_roots),
        ("stateDir", "--state-dir", &flags.state_dir),
        ("inbound.listen", "--inbound", &flags.inbound),
        ("inbound.advertise", "--advertise", &flags.advertise),
        ("outbound.captured", "--captured", &flags.captured),
        ("outbound.httpProxy", "--http-proxy", &flags.http_proxy),
        ("admin", "--admin", &flags.admin),
        ("health", "--health", &flags.health),
        ("zone", "--zone", &flags.zone),
        ("workers", "--workers", &flags.workers),
        ("tracing.endpoint", "--tracing-endpoint", &flags.tracing_endpoint),
        ("tracing.protocol", "--tracing-protocol", &flags.tracing_protocol),
        ("tracing.samplingRatio", "--sampling-ratio", &flags.sampling_ratio),
        ("drain.deadline", "--drain-deadline", &flags.drain_deadline),
        ("log.filter", "--log", &flags.log),
        ("log.format", "--log-format", &flags.log_format),
        ("log.access", "--access-log", &flags.access_log),
        ("probes", "--probes", &flags.probes),
    ];
    for (path, flag, value) in singles {
        if let Some(value) = value {
            set(path, flag, Value::String(value.clone()));
        }
    }
    if !flags.services.is_empty() {
        let mut services: Vec<Value> = flags.services.iter().map(|name| json!({ "name": name })).collect();
        if let ([service], false) = (services.as_mut_slice(), flags.ports.is_empty()) {
            service["ports"] = flags.ports.iter().map(|port| served_port(port)).collect();
        } else if !flags.ports.is_empty() {
            wrong.push(("--port", "with more than one --service, write the ports into the settings file".to_owned()));
        }
        set("services", "--service, --port", Value::Array(services));
    } else if !flags.ports.is_empty() {
        set("services[0].ports", "--port", flags.ports.iter().map(|port| served_port(port)).collect());
    }
    if !flags.upstreams.is_empty() {
        let mut upstreams = Vec::new();
        for text in &flags.upstreams {
            match text.split_once('=') {
                Some((name, listen)) => upstreams.push(json!({ "name": name, "listen": listen })),
                None => wrong.push(("--upstream", format!("{text:?} is not right: write NAME[:PORT]=LOCAL_PORT"))),
            }
        }
        set("outbound.upstreams", "--upstream", Value::Array(upstreams));
    }
    for text in &flags.labels {
        match text.split_once('=') {
            // Straight into the map: a label's key may hold dots, which a path would split.
            Some((key, value)) => match tree_labels(tree) {
                Some(labels) => _ = labels.insert(key.to_owned(), Value::String(value.to_owned())),
                None => wrong.push(("--label", "`labels` of the settings file is no mapping".to_owned())),
            },
            None => wrong.push(("--label", format!("{text:?} is not right: write KEY=VALUE"))),
        }
    }
    for text in &flags.set {
        match text.split_once('=') {
            Some((path, value)) => match put(tree, path, Value::String(value.to_owned())) {
                Ok(()) => _ = typed.insert(path.to_owned(), "--set".to_owned()),
                Err(message) => faults.push(Fault { path: format!("{path} (--set)"), message }),
            },
            None => wrong.push(("--set", format!("{text:?} is not right: write PATH=VALUE"))),
        }
    }
    faults.extend(wrong.into_iter().map(|(path, message)| Fault { path: path.to_owned(), message }));
}

/// `[PORT:]APP`, where APP is a port of 127.0.0.1 or an address.
fn served_port(text: &str) -> Value {
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once(':') {
        Some((port, app)) if is_port(port) => json!({ "port": port, "app": app }),
        _ => json!({ "app": text }),
    }
}

fn tree_labels(tree: &mut Value) -> Option<&mut Map<String, Value>> {
    let labels = tree.as_object_mut()?.entry("labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    labels.as_object_mut()
}

/// Sets the value at a path of keys and `[index]`es, making mappings on the way.
fn put(tree: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let mut at = tree;
    for key in path.split('.') {
        let (key, index) = match key.strip_suffix(']').and_then(|key| key.split_once('[')) {
            Some((key, index)) => {
                (key, Some(index.parse::<usize>().map_err(|_| format!("{index:?} is no index of a list"))?))
            }
            None => (key, None),
        };
        if at.is_null() {
            *at = json!({});
        }
        let map = at.as_object_mut().ok_or_else(|| format!("what is above {key:?} is no mapping"))?;
        at = map.entry(key).or_insert(Value::Null);
        if let Some(index) = index {
            at = at
                .as_array_mut()
                .and_then(|list| list.get_mut(index))
                .ok_or_else(|| format!("there is no {key}[{index}]; write it into the settings file or as a flag"))?;
        }
    }
    *at = value;
    Ok(())
}
