//! Services, EndpointSlices and Pods of the Kubernetes API: what the mesh needs of them is kept, everything else is
//! skipped while it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_api::resource::{Name, PortProtocol};
use heddle_kubernetes::names;
use serde::Deserialize;

/// On a Service: its ports, by number or name, that clients without a sidecar may call; `*` is all.
pub const PERMISSIVE_ANNOTATION: &str = "heddle.dev/permissive-ports";

/// A kind of object that is followed.
pub(super) trait Followed: Sized + Send + 'static {
    /// As the API server sends it.
    type Wire: serde::de::DeserializeOwned + Clone + Send + 'static;
    /// In messages and metrics.
    const RESOURCE: &'static str;
    /// Of all namespaces.
    const PATH: &'static str;

    /// What is kept; `None`: the mesh has no use for it.
    fn read(wire: Self::Wire) -> Option<Self>;

    /// Its metadata.
    fn metadata(wire: &Self::Wire) -> &Metadata;
}

/// Metadata of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    pub(super) resource_version: String,
    creation_timestamp: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerReference {
    kind: String,
    name: String,
    #[serde(default)]
    controller: Option<bool>,
}

impl Metadata {
    pub(super) fn name(&self) -> Name {
        Name::new(&self.namespace, &self.name)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// A Service that has an address or instances of its own, and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) created: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// None of a headless one.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Whether its own addresses are IPv6 in the first place.
    pub(super) prefers_ipv6: bool,
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// Empty: it is the only one.
    pub(super) name: Arc<str>,
    pub(super) port: u16,
    /// Absent: a name that each pod gives another meaning.
    pub(super) target: Option<u16>,
    pub(super) protocol: Option<PortProtocol>,
    pub(super) permissive: bool,
}

/// Some endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) service: Name,
    /// TCP ports by name.
    pub(super) ports: Vec<(Arc<str>, u16)>,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    /// Name and, if it is told, UID.
    pub(super) pod: Option<(Name, Arc<str>)>,
    pub(super) hostname: Option<Arc<str>>,
    pub(super) zone: Arc<str>,
    pub(super) ready: bool,
    /// Whether it takes requests, though it is about to end.
    pub(super) serving_last: bool,
}

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: Arc<str>,
    pub(super) ips: Vec<IpAddr>,
    /// Whether its addresses are those of its node.
    pub(super) host_network: bool,
    /// Of a pod without a proxy the rest is not kept.
    pub(super) meshed: Option<Meshed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meshed {
    pub(super) account: Arc<str>,
    pub(super) labels: Arc<BTreeMap<String, String>>,
    pub(super) owner: Arc<str>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireService {
    metadata: Metadata,
    #[serde(default)]
    spec: WireServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireServiceSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    ports: Option<Vec<WireServicePort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireServicePort {
    name: Option<String>,
    port: u16,
    protocol: Option<String>,
    app_protocol: Option<String>,
    target_port: Option<IntOrString>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(u16),
    String(String),
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireSlice {
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<WireEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<WireSlicePort>>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireSlicePort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<WireConditions>,
    hostname: Option<String>,
    zone: Option<String>,
    target_ref: Option<WireTarget>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireTarget {
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct WirePod {
    metadata: Metadata,
    #[serde(default)]
    spec: WirePodSpec,
    #[serde(default)]
    status: WirePodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePodSpec {
    service_account_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<WireContainer>>,
    init_containers: Option<Vec<WireContainer>>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireContainer {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<WirePodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct WirePodIp {
    ip: Option<String>,
}

impl Followed for Service {
    type Wire = WireService;
    const RESOURCE: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";

    fn read(WireService { metadata, spec }: WireService) -> Option<Self> {
        if spec.r#type.as_deref() == Some("ExternalName") {
            // A host outside, for the cluster's DNS to name.
            return None;
        }
        let permissive: BTreeSet<&str> =
            metadata.annotation(PERMISSIVE_ANNOTATION).unwrap_or_default().split(',').map(str::trim).collect();
        let ports: Vec<_> = (spec.ports.into_iter().flatten())
            .filter(|port| is_tcp(port.protocol.as_deref()) && port.port != 0)
            .map(|port| {
                let name = port.name.unwrap_or_default();
                let listed = |text: &str| permissive.contains(text);
                ServicePort {
                    permissive: listed("*") || listed(&port.port.to_string()) || (!name.is_empty() && listed(&name)),
                    name: name.into(),
                    port: port.port,
                    target: match port.target_port {
                        None => Some(port.port),
                        Some(IntOrString::Int(0)) => Some(port.port),
                        Some(IntOrString::Int(target)) => Some(target),
                        Some(IntOrString::String(name)) => name.parse().ok(),
                    },
                    protocol: port.app_protocol.as_deref().and_then(app_protocol),
                }
            })
            .collect();
        if ports.is_empty() {
            return None;
        }
        let listed = spec.cluster_ips.filter(|ips| !ips.is_empty()).or(spec.cluster_ip.map(|ip| vec![ip]));
        // Of a headless one it is "None".
        let cluster_ips: Vec<IpAddr> = listed.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
        let family = spec.ip_families.as_ref().and_then(|families| families.first());
        let prefers_ipv6 = match family {
            Some(family) => family == "IPv6",
            None => cluster_ips.first().is_some_and(IpAddr::is_ipv6),
        };
        let labels = metadata.labels.unwrap_or_default();
        Some(Self { created: metadata.creation_timestamp, labels, cluster_ips, prefers_ipv6, ports })
    }

    fn metadata(wire: &WireService) -> &Metadata {
        &wire.metadata
    }
}

impl Followed for Slice {
    type Wire = WireSlice;
    const RESOURCE: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn read(WireSlice { metadata, endpoints, ports }: WireSlice) -> Option<Self> {
        let service = metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        let service = Name::new(&metadata.namespace, service);
        let ports: Vec<_> = (ports.into_iter().flatten())
            .filter(|port| is_tcp(port.protocol.as_deref()))
            .filter_map(|port| Some((port.name.unwrap_or_default().into(), port.port.filter(|port| *port != 0)?)))
            .collect();
        let read = |endpoint: WireEndpoint| {
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
                let namespace = target.namespace.as_deref().unwrap_or(&metadata.namespace);
                Some((Name::new(namespace, target.name.as_deref()?), target.uid.unwrap_or_default().into()))
            });
            Some(Endpoint {
                // Where there are several they are the same endpoint.
                ip: endpoint.addresses.first()?.parse().ok()?,
                pod,
                hostname: endpoint.hostname.map(Arc::from),
                zone: endpoint.zone.unwrap_or_default().into(),
                ready,
                serving_last: conditions.terminating.unwrap_or(false) && conditions.serving.unwrap_or(ready),
            })
        };
        // FQDN slices have no addresses.
        let endpoints = endpoints.into_iter().flatten().filter_map(read).collect();
        Some(Self { service, ports, endpoints })
    }

    fn metadata(wire: &WireSlice) -> &Metadata {
        &wire.metadata
    }
}

impl Followed for Pod {
    type Wire = WirePod;
    const RESOURCE: &'static str = "pods";
    const PATH: &'static str = "/api/v1/pods";

    fn read(WirePod { metadata, spec, status }: WirePod) -> Option<Self> {
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            // Its address may be another's already.
            return None;
        }
        let containers = spec.containers.into_iter().flatten().chain(spec.init_containers.into_iter().flatten());
        let is_meshed = metadata.annotation(names::STATUS).is_some()
            || containers.into_iter().any(|container| container.name == names::PROXY_CONTAINER);
        let ips: Vec<IpAddr> = match status.pod_ips {
            Some(ips) => ips.into_iter().filter_map(|ip| ip.ip?.parse().ok()).collect(),
            None => status.pod_ip.and_then(|ip| ip.parse().ok()).into_iter().collect(),
        };
        let owners = metadata.owner_references.into_iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        let meshed = is_meshed.then(|| Meshed {
            account: spec.service_account_name.filter(|name| !name.is_empty()).unwrap_or("default".to_owned()).into(),
            labels: Arc::new(metadata.labels.unwrap_or_default()),
            owner: owner.map(|owner| format!("{}.{}", owner.kind, owner.name)).unwrap_or_default().into(),
        });
        Some(Self { uid: metadata.uid.into(), ips, host_network: spec.host_network.unwrap_or(false), meshed })
    }

    fn metadata(wire: &WirePod) -> &Metadata {
        &wire.metadata
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

/// What `appProtocol` says. What is not known here is told from the first bytes; so is a port without one, whatever
/// its name: that a port is called `http` declares nothing.
fn app_protocol(text: &str) -> Option<PortProtocol> {
    let text = text.to_ascii_lowercase();
    Some(match text.as_str() {
        "http" => PortProtocol::Http,
        "kubernetes.io/h2c" | "h2c" | "http2" => PortProtocol::Http2,
        "kubernetes.io/ws" | "ws" => PortProtocol::Http1,
        "grpc" | "kubernetes.io/grpc" => PortProtocol::Grpc,
        "tcp" | "tls" | "https" | "wss" | "kubernetes.io/wss" | "mysql" | "postgresql" | "postgres" | "redis"
        | "mongo" | "mongodb" | "amqp" | "amqps" | "kafka" | "ldap" | "ldaps" | "smtp" | "ssh" => PortProtocol::Tcp,
        _ => return None,
    })
}
