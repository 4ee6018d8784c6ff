//! What can be chosen about an installation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names;

/// Settings of an installation; what is not written is the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Values {
    /// Where the control plane lives.
    pub namespace: String,
    /// Where images come from.
    pub images: Images,
    /// Trust domain of the mesh; cannot be changed once it is installed.
    pub trust_domain: String,
    /// Lifetime of workloads' certificates, such as 24h.
    pub svid_ttl: String,
    /// The cluster's own DNS suffix.
    pub cluster_domain: String,
    /// What the control plane logs.
    pub log: String,
    /// Address that the control plane listens on: `0.0.0.0`, or `[::]` where nodes have IPv6.
    pub listen: String,
    /// What the control plane keeps: the mesh's keys and objects.
    pub storage: Storage,
    /// What the control plane needs and may use.
    pub resources: Resources,
    /// The webhook that injects proxies.
    pub webhook: Webhook,
    /// OTLP endpoint that proxies send spans to, such as `http://jaeger.observability:4317`; absent: none.
    pub tracing_endpoint: Option<String>,
    /// Nodes that the control plane may run on, by their labels.
    pub node_selector: BTreeMap<String, String>,
    /// Further flags of the control plane.
    pub arguments: Vec<String>,
}

/// Where images come from: `<prefix>/heddle-control-plane:<tag>` and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Images {
    /// Registry and folder.
    pub prefix: String,
    /// Version.
    pub tag: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Secrets of the control plane's namespace with which its image is pulled.
    pub pull_secrets: Vec<String>,
}

/// The control plane's volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Storage {
    /// How much to ask for.
    pub size: String,
    /// Storage class; absent: the cluster's default, or a volume without class.
    pub class: Option<String>,
}

/// What the control plane needs and may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// CPU that it needs.
    pub cpu: String,
    /// Memory that it needs.
    pub memory: String,
    /// Memory that it may use.
    pub memory_limit: String,
}

/// The webhook that injects proxies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    /// Whether there is one; without it, proxies come by `heddle inject` alone.
    pub enabled: bool,
    /// What becomes of pods while the control plane does not answer: `Ignore` lets them start without a proxy, `Fail`
    /// does not let them start.
    pub failure_policy: String,
    /// How long the API server waits for it, 1 to 30 s.
    pub timeout_seconds: u8,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {value:?} is not right: {right}")]
pub struct InvalidValue {
    /// Which.
    pub path: &'static str,
    /// What it is.
    pub value: String,
    /// What would be right.
    pub right: &'static str,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            namespace: names::NAMESPACE.to_owned(),
            images: Images::default(),
            trust_domain: "heddle.local".to_owned(),
            svid_ttl: "24h".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            log: "info".to_owned(),
            listen: "0.0.0.0".to_owned(),
            storage: Storage::default(),
            resources: Resources::default(),
            webhook: Webhook::default(),
            tracing_endpoint: None,
            node_selector: BTreeMap::new(),
            arguments: Vec::new(),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            prefix: "localhost".to_owned(),
            tag: env!("CARGO_PKG_VERSION").to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            pull_secrets: Vec::new(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: "1Gi".to_owned(), class: None }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: "50m".to_owned(), memory: "64Mi".to_owned(), memory_limit: "512Mi".to_owned() }
    }
}

impl Default for Webhook {
    fn default() -> Self {
        Self { enabled: true, failure_policy: "Ignore".to_owned(), timeout_seconds: 10 }
    }
}

impl Values {
    /// Every value that cannot be used. The control plane checks what is its own to check.
    ///
    /// # Errors
    /// All faults.
    pub fn check(&self) -> Result<(), Vec<InvalidValue>> {
        let mut faults = Vec::new();
        let mut require = |fits: bool, path, value: &str, right| {
            if !fits {
                faults.push(InvalidValue { path, value: value.to_owned(), right });
            }
        };
        let label = |text: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
        };
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        require(label(&self.namespace), "namespace", &self.namespace, "write the name of a namespace");
        require(
            self.namespace != "kube-system",
            "namespace",
            &self.namespace,
            "write a namespace of Heddle's own: removing Heddle removes it",
        );
        let images = &self.images;
        require(
            plain(&images.prefix),
            "images.prefix",
            &images.prefix,
            "write a registry, such as registry.example/heddle",
        );
        require(plain(&images.tag), "images.tag", &images.tag, "write a version");
        let policies = ["Always", "IfNotPresent", "Never"];
        let right = "write Always, IfNotPresent or Never";
        require(policies.contains(&&*images.pull_policy), "images.pullPolicy", &images.pull_policy, right);
        let failure = &self.webhook.failure_policy;
        require(["Ignore", "Fail"].contains(&&**failure), "webhook.failurePolicy", failure, "write Ignore or Fail");
        let timeout = self.webhook.timeout_seconds;
        require((1..=30).contains(&timeout), "webhook.timeoutSeconds", &timeout.to_string(), "write 1 to 30");
        let domain = &self.cluster_domain;
        require(domain.split('.').all(label), "clusterDomain", domain, "write a DNS name, such as cluster.local");
        let listen = self.listen.trim_start_matches('[').trim_end_matches(']');
        require(listen.parse::<std::net::IpAddr>().is_ok(), "listen", &self.listen, "write 0.0.0.0 or [::]");
        for (path, quantity) in [
            ("storage.size", &self.storage.size),
            ("resources.cpu", &self.resources.cpu),
            ("resources.memory", &self.resources.memory),
            ("resources.memoryLimit", &self.resources.memory_limit),
        ] {
            let fits = quantity.starts_with(|c: char| c.is_ascii_digit()) && plain(quantity);
            require(fits, path, quantity, "write a quantity, such as 100m or 64Mi");
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Reference of one of Heddle's images.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.images.prefix, self.images.tag)
    }
}
