//! The protobuf contract between proxies and the control plane, generated from `api/proto`.
//!
//! Each message is documented in its `.proto` file. Generated types stop at the edges: the proxy's
//! `discovery` turns them into a snapshot, the control plane's compiler makes them.

#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]

/// `google.protobuf.Any`, with a value that can be shared: cloning it copies nothing.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: prost::bytes::Bytes,
}

/// The delta aggregated discovery service (wire-compatible with `envoy.service.discovery.v3`).
pub mod ads {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// The resources that discovery carries.
pub mod discovery {
    tonic::include_proto!("heddle.discovery.v1");
}

/// Identity: from a CSR to an SVID.
pub mod identity {
    tonic::include_proto!("heddle.identity.v1");
}

/// Registration of workloads.
pub mod registration {
    tonic::include_proto!("heddle.registration.v1");
}

/// Type URLs of the discovery resources.
pub mod type_url {
    pub const SERVICE: &str = "type.googleapis.com/heddle.discovery.v1.Service";
    pub const ENDPOINTS: &str = "type.googleapis.com/heddle.discovery.v1.Endpoints";
    pub const INBOUND_POLICY: &str = "type.googleapis.com/heddle.discovery.v1.InboundPolicy";
    pub const TRUST_BUNDLE: &str = "type.googleapis.com/heddle.discovery.v1.TrustBundle";
    pub const MESH_CONFIG: &str = "type.googleapis.com/heddle.discovery.v1.MeshConfig";
    pub const WORKLOAD: &str = "type.googleapis.com/heddle.discovery.v1.Workload";
    /// Not subscribed to: part of a NACK.
    pub const REJECTION: &str = "type.googleapis.com/heddle.discovery.v1.Rejection";
}
