//! An example of each kind, for readers of the OpenAPI document. Together they hold together.

use serde_json::{Value, json};

use crate::resource::{API_VERSION, MESH_CONFIG_NAME, ObjectKind};

/// The namespace of the examples.
pub const NAMESPACE: &str = "shop";
/// The name of the examples.
pub const NAME: &str = "orders";

/// An example of a kind.
pub fn object(kind: ObjectKind) -> Value {
    let metadata = if kind.is_namespaced() {
        json!({ "name": NAME, "namespace": NAMESPACE })
    } else {
        json!({ "name": MESH_CONFIG_NAME })
    };
    json!({ "apiVersion": API_VERSION, "kind": kind.as_str(), "metadata": metadata, "spec": spec(kind) })
}

fn spec(kind: ObjectKind) -> Value {
    match kind {
        ObjectKind::MeshConfig => json!({ "defaultAuthorization": "deny", "suffixes": ["mesh"], "egress": "allow" }),
        ObjectKind::Service => json!({
            "ports": [
                { "port": 80, "name": "http", "protocol": "http", "targetPort": 8080 },
                { "port": 9090, "name": "grpc", "protocol": "grpc" },
                { "port": 5432, "name": "db", "protocol": "tcp" },
            ],
            "serviceAccounts": ["orders", "orders-v2"],
            "hosts": ["orders.example.com"],
        }),
        ObjectKind::Workload => json!({
            "address": "10.0.0.7",
            "inboundPort": 15006,
            "serviceAccount": "orders",
            "services": [{ "name": NAME, "ports": [80] }],
            "zone": "eu-1a",
        }),
        ObjectKind::HttpRoute => json!({
            "parentRefs": [{ "name": NAME, "port": 80 }],
            "rules": [
                {
                    "name": "canary",
                    "matches": [{ "path": { "type": "PathPrefix", "value": "/v2" }, "method": "GET" }],
                    "backendRefs": [{ "name": NAME, "port": 80, "weight": 10 }],
                    "timeouts": { "request": "10s" },
                },
                { "backendRefs": [{ "name": NAME, "port": 80 }] },
            ],
        }),
        ObjectKind::GrpcRoute => json!({
            "parentRefs": [{ "name": NAME, "port": 9090 }],
            "rules": [{
                "matches": [{ "method": { "service": "shop.v1.Orders", "method": "Place" } }],
                "backendRefs": [{ "name": NAME, "port": 9090 }],
            }],
        }),
        ObjectKind::TcpRoute => json!({
            "parentRefs": [{ "name": NAME, "port": 5432 }],
            "rules": [{ "backendRefs": [{ "name": NAME, "port": 5432 }] }],
        }),
        ObjectKind::TrafficPolicy => json!({
            "targetRef": { "kind": "Service", "name": NAME },
            "balancing": "peakEwma",
            "timeouts": { "request": "15s", "perTry": "5s" },
            "retries": { "attempts": 2, "on": ["connect-failure", "reset"], "statuses": [503] },
        }),
        ObjectKind::AuthorizationPolicy => json!({
            "targetRef": { "kind": "Service", "name": NAME },
            "action": "ALLOW",
            "rules": [{
                "name": "storefront",
                "from": [{ "identities": ["shop/storefront"] }],
                "to": [{ "methods": ["GET", "POST"], "paths": ["/orders/*"] }],
            }],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_good() {
        for kind in ObjectKind::ALL {
            let read = crate::validate::object(&object(*kind), Some(*kind));
            assert!(read.is_ok(), "{kind}: {:?}", read.unwrap_err().faults());
        }
    }
}
