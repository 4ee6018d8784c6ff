//! From objects to what proxies are told: pure functions of the [`Mesh`].
//!
//! Each resource is compiled when a proxy first asks for it, encoded once, and shared by all its
//! subscribers. Its version is a hash of its content, so it is the same after a restart.

pub(crate) mod conditions;
mod endpoints;
mod filters;
mod inbound;
pub(crate) mod inherited;
mod routes;
mod service;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;
mod workload;

use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use heddle_api::{
    proto::{discovery as proto, type_url},
    resource::{EgressMode, MESH_CONFIG_NAME, Metadata},
};
use heddle_certs::TrustBundle;
use jiff::Timestamp;
use prost::Message;

use crate::{mesh::Mesh, tokens::hex};
use heddle_api::resource::Name;

pub(crate) use self::endpoints::{declared_app_ports, may_serve, registered_app_ports};

/// A kind of discovery resource, in the order in which a stream sends them: endpoints go before the
/// routes that lead to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// Roots of the trust domain.
    TrustBundle,
    /// Settings of the mesh.
    MeshConfig,
    /// What a workload serves.
    Workload,
    /// Instances of a service.
    Endpoints,
    /// A service with its routes.
    Service,
    /// Who may call a service.
    InboundPolicy,
}

impl ResourceKind {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::TrustBundle, Self::MeshConfig, Self::Workload, Self::Endpoints, Self::Service, Self::InboundPolicy];

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::TrustBundle => type_url::TRUST_BUNDLE,
            Self::MeshConfig => type_url::MESH_CONFIG,
            Self::Workload => type_url::WORKLOAD,
            Self::Endpoints => type_url::ENDPOINTS,
            Self::Service => type_url::SERVICE,
            Self::InboundPolicy => type_url::INBOUND_POLICY,
        }
    }

    /// The kind with this type URL.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// For metrics and reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::TrustBundle => "TrustBundle",
            Self::MeshConfig => "MeshConfig",
            Self::Workload => "Workload",
            Self::Endpoints => "Endpoints",
            Self::Service => "Service",
            Self::InboundPolicy => "InboundPolicy",
        }
    }
}

/// A discovery resource, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Hash of its content.
    pub version: Arc<str>,
    /// The protobuf message.
    pub body: Bytes,
}

impl Compiled {
    fn new(message: &impl Message) -> Self {
        let body = message.encode_to_vec();
        let digest = digest::digest(&digest::SHA256, &body);
        let version = hex(&digest.as_ref()[..8]);
        Self { version: version.into(), body: body.into() }
    }
}

/// Compiles a resource; `None`: there is none of this name.
pub fn compile(mesh: &Mesh, bundle: &TrustBundle, kind: ResourceKind, name: &str) -> Option<Compiled> {
    Some(match kind {
        ResourceKind::TrustBundle => {
            (name == bundle.trust_domain().as_str()).then(|| Compiled::new(&trust_bundle(bundle)))?
        }
        ResourceKind::MeshConfig => (name == MESH_CONFIG_NAME).then(|| Compiled::new(&mesh_config(mesh)))?,
        ResourceKind::Workload => Compiled::new(&workload::compile(mesh, &Name::parse(name)?)?),
        ResourceKind::Endpoints => Compiled::new(&endpoints::compile(mesh, &Name::parse(name)?)?),
        ResourceKind::Service => Compiled::new(&service::compile(mesh, &Name::parse(name)?)?),
        ResourceKind::InboundPolicy => Compiled::new(&inbound::compile(mesh, &Name::parse(name)?)?),
    })
}

fn trust_bundle(bundle: &TrustBundle) -> proto::TrustBundle {
    proto::TrustBundle {
        trust_domain: bundle.trust_domain().to_string(),
        epoch: bundle.epoch(),
        roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
    }
}

fn mesh_config(mesh: &Mesh) -> proto::MeshConfig {
    let settings = mesh.settings();
    proto::MeshConfig {
        trust_domain: mesh.trust_domain().to_string(),
        suffixes: mesh.suffixes().iter().map(|suffix| suffix.to_ascii_lowercase()).collect(),
        cidrs: settings.cidrs,
        egress_allow: settings.egress == EgressMode::Allow,
        telemetry: Some(proto::Telemetry {
            sampling_ratio: settings.telemetry.sampling_ratio,
            access_log: settings.telemetry.access_log,
        }),
        namespaces: mesh.namespaces().map(str::to_owned).collect(),
    }
}

/// When an object was made, for "the oldest wins"; one without a time is the youngest.
pub(crate) fn age(metadata: &Metadata) -> Timestamp {
    metadata.creation_timestamp.as_deref().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MAX)
}

/// Objects of one kind from the oldest to the youngest, then by name.
pub(crate) fn oldest_first<'a, S: 'a>(
    objects: impl Iterator<Item = &'a Arc<heddle_api::resource::Object<S>>>,
) -> Vec<&'a heddle_api::resource::Object<S>> {
    let mut objects: Vec<_> = objects.map(Arc::as_ref).collect();
    objects.sort_by_cached_key(|object| (age(&object.metadata), Name::of(&object.metadata)));
    objects
}
