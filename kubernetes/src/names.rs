//! Names that Heddle has in a cluster. They are part of its interface: annotations, containers, volumes.

/// What every annotation and label of Heddle begins with.
pub const PREFIX: &str = "heddle.dev/";
/// `enabled` or `disabled`: a label or annotation of a namespace or pod; the pod's wins.
pub const INJECT: &str = "heddle.dev/inject";
/// Annotation of an injected pod: what was done to it, as JSON.
pub const STATUS: &str = "heddle.dev/status";
/// Annotation that `heddle inject` leaves in a file: the text of what it replaced, for `heddle uninject`.
pub const ORIGINAL: &str = "heddle.dev/original";
/// Init container that redirects the pod's connections to its proxy; the only one with `NET_ADMIN`.
pub const CAPTURE_CONTAINER: &str = "heddle-capture";
/// The proxy: a native sidecar.
pub const PROXY_CONTAINER: &str = "heddle-proxy";
/// Volume in memory: the proxy's key, certificate and last good resources.
pub const STATE_VOLUME: &str = "heddle-state";
/// Volume with the service account's token for Heddle's audience.
pub const TOKEN_VOLUME: &str = "heddle-token";
/// Folder in which the proxy finds its token.
pub const TOKEN_DIR: &str = "/var/run/secrets/heddle.dev";
/// Audience of the token.
pub const TOKEN_AUDIENCE: &str = "heddle.dev";
/// Folder in which the proxy keeps its state.
pub const STATE_DIR: &str = "/var/lib/heddle";
/// User and group that the proxy runs as; what it dials is not captured.
pub const PROXY_UID: u32 = 2102;
/// Health, metrics and the app's probes.
pub const HEALTH_PORT: u16 = 15020;
/// Namespace that Heddle is installed in, unless told otherwise.
pub const NAMESPACE: &str = "heddle-system";
/// The control plane's Service in it.
pub const CONTROL_PLANE: &str = "heddle-control-plane";
/// Port of the control plane that proxies call.
pub const MESH_PORT: u16 = 9701;
/// The webhook's configuration, and the ClusterRole that goes with it and its binding.
pub const WEBHOOK_CONFIGURATION: &str = "heddle-inject";
/// Path at which pods are sent to the control plane.
pub const WEBHOOK_PATH: &str = "/inject";
/// Path for pods of namespaces whose Pod Security level refuses injected pods.
pub const WEBHOOK_STRICT_PATH: &str = "/inject/strict";
/// Port of the control plane that the API server sends pods to.
pub const WEBHOOK_PORT: u16 = 9703;
/// Where proxies of a mesh that is installed as usual find it.
pub const CONTROL_PLANE_ADDRESS: &str = "heddle-control-plane.heddle-system.svc:9701";
/// Image of the proxy of this version, as `images/build.sh` names it.
pub const PROXY_IMAGE: &str = concat!("localhost/heddle-proxy:", env!("CARGO_PKG_VERSION"));
/// Image of the init container that goes with it.
pub const CAPTURE_IMAGE: &str = concat!("localhost/heddle-capture:", env!("CARGO_PKG_VERSION"));
