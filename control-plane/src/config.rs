//! Settings: what was typed ([`written`]) and what is meant ([`Config`]).
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Nothing
//! is guessed: an unknown or unreadable setting ends the start with what would be right.

pub mod written;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use heddle_api::resource;
use heddle_certs::TrustDomain;
use heddle_runtime::telemetry::Format;

use self::written::Written;
use crate::{kubernetes, webhook};

/// The meaning of all settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where keys and the store live.
    pub data_dir: PathBuf,
    /// REST API.
    pub api: SocketAddr,
    /// gRPC for proxies.
    pub mesh: SocketAddr,
    /// Health and metrics, plaintext.
    pub health: SocketAddr,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// How long SVIDs are valid.
    pub svid_ttl: Duration,
    /// Names by which clients know the control plane.
    pub names: Names,
    /// `host:port` of the mesh listener as proxies reach it; absent: as it is bound.
    pub advertise_mesh: Option<String>,
    /// Where the first start writes the command line's context; absent: there is no home folder.
    pub context_file: Option<PathBuf>,
    /// Folder with somebody else's authority.
    pub authority_dir: Option<PathBuf>,
    /// The Kubernetes cluster whose Services and Pods are part of the mesh; absent: none.
    pub kubernetes: Option<kubernetes::Access>,
    /// Domain of the DNS names of that cluster.
    pub cluster_domain: String,
    /// The webhook that injects pods; absent: none.
    pub webhook: Option<webhook::Settings>,
    /// How long a registered workload counts as alive without a word.
    pub lease: Duration,
    /// Log filter.
    pub log: String,
    /// Log lines for people or for programs.
    pub log_format: Format,
}

/// Subject alternative names of the control plane's certificate, besides its SPIFFE ID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("settings file {path}: cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no settings file.
    #[error("settings file {path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Field and line.
        reason: String,
    },
    /// A value that means nothing.
    #[error("setting {setting}: {value:?} is no {expected}")]
    Value {
        /// Which.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// For how long a certificate can be valid at most.
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(30 * 86_400);
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);

impl Config {
    /// What was written, completed and checked. `home` is the user's home folder.
    pub fn new(written: Written, home: Option<PathBuf>) -> Result<Self, ConfigError> {
        let Written {
            data_dir,
            api,
            mesh,
            health,
            trust_domain,
            svid_ttl,
            api_names,
            advertise_mesh,
            context_file,
            authority_dir,
            kubernetes,
            kubeconfig,
            cluster_domain,
            webhook,
            proxy_image,
            capture_image,
            image_pull_policy,
            tracing_endpoint,
            lease,
            log,
            log_format,
        } = written;
        let api = address("api", api, "127.0.0.1:9700")?;
        Ok(Self {
            data_dir: data_dir.unwrap_or_else(|| "heddle-data".into()),
            names: names(api_names, api.ip())?,
            api,
            mesh: address("mesh", mesh, "127.0.0.1:9701")?,
            health: address("health", health, "127.0.0.1:9702")?,
            trust_domain: parse_trust_domain(trust_domain)?,
            svid_ttl: duration("svidTtl", svid_ttl, "24h", SHORTEST_TTL..=LONGEST_TTL)?,
            advertise_mesh: advertise_mesh.map(host_port).transpose()?,
            context_file: context_file.or_else(|| Some(home?.join(".config/heddle/config.yaml"))),
            authority_dir,
            kubernetes: access(kubernetes, kubeconfig)?,
            cluster_domain: domain(cluster_domain)?,
            webhook: match webhook {
                Some(listen) => Some(webhook::Settings {
                    listen: address("webhook", Some(listen), "")?,
                    capture_image: capture_image
                        .or_else(|| proxy_image.is_none().then(|| heddle_kubernetes::names::CAPTURE_IMAGE.to_owned())),
                    proxy_image: proxy_image.unwrap_or_else(|| heddle_kubernetes::names::PROXY_IMAGE.to_owned()),
                    image_pull_policy: image_pull_policy.map(pull_policy).transpose()?,
                    tracing_endpoint,
                }),
                None => None,
            },
            lease: duration("lease", lease, "30s", SHORTEST_LEASE..=LONGEST_LEASE)?,
            log: log.unwrap_or_else(|| "info".to_owned()),
            log_format: format(log_format)?,
        })
    }
}

fn invalid(setting: &'static str, value: String, expected: &'static str) -> ConfigError {
    ConfigError::Value { setting, value, expected }
}

fn address(setting: &'static str, value: Option<String>, default: &str) -> Result<SocketAddr, ConfigError> {
    let value = value.unwrap_or_else(|| default.to_owned());
    let parsed = value.parse();
    parsed.map_err(|_| invalid(setting, value, "address to listen on; write one such as 127.0.0.1:9700 or [::]:9700"))
}

fn parse_trust_domain(value: Option<String>) -> Result<TrustDomain, ConfigError> {
    let value = value.unwrap_or_else(|| "heddle.local".to_owned());
    let parsed = TrustDomain::new(&value);
    parsed
        .map_err(|_| invalid("trustDomain", value, "trust domain; write lower-case letters, digits, `.`, `-` and `_`"))
}

fn duration(
    setting: &'static str,
    value: Option<String>,
    default: &str,
    range: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, ConfigError> {
    let value = value.unwrap_or_else(|| default.to_owned());
    match value.parse::<resource::Duration>() {
        Ok(duration) if range.contains(&duration.0) => Ok(duration.0),
        _ if setting == "lease" => Err(invalid(setting, value, "lease; write 1s to 24h, such as 30s")),
        _ => Err(invalid(setting, value, "lifetime of certificates; write 1s to 720h, such as 24h")),
    }
}

/// A kubeconfig is reason enough; what contradicts it is a slip.
fn access(inside: Option<bool>, kubeconfig: Option<PathBuf>) -> Result<Option<kubernetes::Access>, ConfigError> {
    match (inside, kubeconfig) {
        (Some(inside), Some(_)) => {
            Err(invalid("kubernetes", inside.to_string(), "setting beside kubeconfig; write one of the two"))
        }
        (None, Some(file)) => Ok(Some(kubernetes::Access::Kubeconfig(file))),
        (Some(true), None) => Ok(Some(kubernetes::Access::InCluster)),
        (Some(false) | None, None) => Ok(None),
    }
}

fn domain(value: Option<String>) -> Result<String, ConfigError> {
    let value = value.unwrap_or_else(|| "cluster.local".to_owned());
    if is_dns_name(&value) {
        return Ok(value.to_ascii_lowercase());
    }
    Err(invalid("clusterDomain", value, "DNS domain; write one such as cluster.local"))
}

fn names(values: Option<Vec<String>>, bound: IpAddr) -> Result<Names, ConfigError> {
    let default = || ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let mut names = Names::default();
    for value in values.unwrap_or_else(default) {
        if let Ok(ip) = value.parse() {
            names.ips.push(ip);
        } else if is_dns_name(&value) {
            names.dns.push(value.to_ascii_lowercase());
        } else {
            return Err(invalid("apiNames", value, "DNS name or IP address"));
        }
    }
    // Whoever calls the address that was asked for has named it.
    if !bound.is_unspecified() && !names.ips.contains(&bound) {
        names.ips.push(bound);
    }
    Ok(names)
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn pull_policy(value: String) -> Result<String, ConfigError> {
    if ["Always", "IfNotPresent", "Never"].contains(&&*value) {
        return Ok(value);
    }
    Err(invalid("imagePullPolicy", value, "policy; write Always, IfNotPresent or Never"))
}

fn host_port(value: String) -> Result<String, ConfigError> {
    let fits = value.parse::<SocketAddr>().is_ok()
        || value
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_dns_name(host) && port.parse().is_ok_and(|port: u16| port != 0));
    if fits { Ok(value) } else { Err(invalid("advertiseMesh", value, "host:port")) }
}

fn format(value: Option<String>) -> Result<Format, ConfigError> {
    match value.as_deref() {
        None | Some("text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some(other) => Err(invalid("logFormat", other.to_owned(), "log format; write text or json")),
    }
}

#[cfg(test)]
mod tests;
