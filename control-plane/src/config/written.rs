//! Settings as they are written: flags, environment, file.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use super::ConfigError;

/// Heddle's control plane: API, certificates and discovery for the proxies of a mesh.
#[derive(Debug, Default, Parser)]
#[command(name = "heddle-control-plane", version)]
pub struct Flags {
    /// Settings file (YAML); its keys are the flags in camel case, e.g. dataDir
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONTROL_PLANE_CONFIG")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    written: Written,
}

/// All settings, from one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Written {
    /// Folder for keys and the store, made if it is not there [default: ./heddle-data]
    #[arg(long, value_name = "FOLDER", env = "HEDDLE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the REST API listens (TLS) [default: 127.0.0.1:9700]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_API")]
    pub api: Option<String>,
    /// Where proxies connect to (gRPC over TLS) [default: 127.0.0.1:9701]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_MESH")]
    pub mesh: Option<String>,
    /// Where /live, /ready and /metrics are served (plaintext) [default: 127.0.0.1:9702]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_HEALTH")]
    pub health: Option<String>,
    /// Trust domain of the mesh; cannot be changed once the authority is made [default: heddle.local]
    #[arg(long, value_name = "NAME", env = "HEDDLE_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// Lifetime of workloads' certificates [default: 24h]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_SVID_TTL")]
    pub svid_ttl: Option<String>,
    /// Name or address in the control plane's certificate; may be repeated [default: localhost,127.0.0.1,::1]
    #[arg(long = "api-name", value_name = "NAME", env = "HEDDLE_API_NAMES", value_delimiter = ',')]
    pub api_names: Option<Vec<String>>,
    /// How proxies reach the mesh listener, for join files [default: as it listens]
    #[arg(long, value_name = "HOST:PORT", env = "HEDDLE_ADVERTISE_MESH")]
    pub advertise_mesh: Option<String>,
    /// Where the first start writes the admin's context [default: ~/.config/heddle/config.yaml]
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONFIG")]
    pub context_file: Option<PathBuf>,
    /// Folder with an authority from elsewhere: roots.pem, issuer.pem, issuer.key
    #[arg(long, value_name = "FOLDER", env = "HEDDLE_AUTHORITY_DIR")]
    pub authority_dir: Option<PathBuf>,
    /// Discover the Services and Pods of the Kubernetes cluster in which this runs, by its pod's service account
    #[arg(long, env = "HEDDLE_KUBERNETES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub kubernetes: Option<bool>,
    /// As --kubernetes, from outside of the cluster: by the current context of this kubeconfig
    #[arg(long, value_name = "FILE", env = "HEDDLE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Domain of the DNS names of the cluster, which end in `.svc.` and this [default: cluster.local]
    #[arg(long, value_name = "NAME", env = "HEDDLE_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Where the API server of Kubernetes sends pods that are to get a proxy (TLS) [default: nowhere]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_WEBHOOK")]
    pub webhook: Option<String>,
    /// Image of the proxies that pods get [default: heddle-proxy of this version]
    #[arg(long, value_name = "IMAGE", env = "HEDDLE_PROXY_IMAGE")]
    pub proxy_image: Option<String>,
    /// Image of the init container that sets the rules of capture [default: the one that goes with the default of the other, else that]
    #[arg(long, value_name = "IMAGE", env = "HEDDLE_CAPTURE_IMAGE")]
    pub capture_image: Option<String>,
    /// When these are pulled: Always, IfNotPresent or Never [default: as Kubernetes decides]
    #[arg(long, value_name = "POLICY", env = "HEDDLE_IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<String>,
    /// Where proxies that pods get send spans (OTLP) [default: nowhere]
    #[arg(long, value_name = "URL", env = "HEDDLE_TRACING_ENDPOINT")]
    pub tracing_endpoint: Option<String>,
    /// How long a registered workload counts as alive without a word [default: 30s]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_LEASE")]
    pub lease: Option<String>,
    /// What to log, e.g. info or info,heddle_control_plane=debug [default: info]
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG")]
    pub log: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "HEDDLE_LOG_FORMAT")]
    pub log_format: Option<String>,
}

impl Flags {
    /// The flags and environment over the file that they name.
    pub fn merge(self) -> Result<Written, ConfigError> {
        match &self.config {
            Some(path) => Ok(self.written.over(read(path)?)),
            None => Ok(self.written),
        }
    }
}

impl Written {
    fn over(self, below: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(below.data_dir),
            api: self.api.or(below.api),
            mesh: self.mesh.or(below.mesh),
            health: self.health.or(below.health),
            trust_domain: self.trust_domain.or(below.trust_domain),
            svid_ttl: self.svid_ttl.or(below.svid_ttl),
            api_names: self.api_names.or(below.api_names),
            advertise_mesh: self.advertise_mesh.or(below.advertise_mesh),
            context_file: self.context_file.or(below.context_file),
            authority_dir: self.authority_dir.or(below.authority_dir),
            kubernetes: self.kubernetes.or(below.kubernetes),
            kubeconfig: self.kubeconfig.or(below.kubeconfig),
            cluster_domain: self.cluster_domain.or(below.cluster_domain),
            webhook: self.webhook.or(below.webhook),
            proxy_image: self.proxy_image.or(below.proxy_image),
            capture_image: self.capture_image.or(below.capture_image),
            image_pull_policy: self.image_pull_policy.or(below.image_pull_policy),
            tracing_endpoint: self.tracing_endpoint.or(below.tracing_endpoint),
            lease: self.lease.or(below.lease),
            log: self.log.or(below.log),
            log_format: self.log_format.or(below.log_format),
        }
    }
}

fn read(path: &Path) -> Result<Written, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.trim().is_empty() {
        return Ok(Written::default());
    }
    serde_yaml_ng::from_str(&text)
        .map_err(|error| ConfigError::File { path: path.to_owned(), reason: error.to_string() })
}
