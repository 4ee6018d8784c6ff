use heddle_certs::SpiffeId;

use super::*;
use crate::{
    compile::tests::bundle,
    mesh::{
        Registered,
        tests::{mesh, objects},
    },
};

const ORDERS: &str = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}";

fn hub() -> Hub {
    let hub = Hub::new(mesh(ORDERS), bundle(), Metrics::new().unwrap());
    hub.change(1, |_| Affected::default());
    hub
}

fn proxy(account: &str, node: &str) -> Proxy {
    Proxy {
        node: node.to_owned(),
        identity: identity(account),
        address: "10.0.0.1:4000".parse().unwrap(),
        version: String::new(),
        since: SystemTime::now(),
        certificate_expiry: SystemTime::now(),
    }
}

fn identity(account: &str) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/{account}").parse().unwrap()
}

/// Takes everything in, as a proxy does.
fn acknowledge(handle: &Handle) {
    while let Some(response) = handle.next() {
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        handle.handle(answer).unwrap();
    }
}

fn subscribe(handle: &Handle, name: &str) {
    let request = DeltaDiscoveryRequest {
        type_url: ResourceKind::Service.type_url().to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    handle.handle(request).unwrap();
}

#[test]
fn nobody_has_applied_what_nobody_was_told_of() {
    let hub = hub();
    let handle = hub.open(proxy("web", "shop/web-1")).unwrap();
    subscribe(&handle, "shop/orders");
    acknowledge(&handle);
    let counts = |generation, revision| {
        let status = hub.object_status(ObjectKind::Service, &Name::new("shop", "orders"), generation, revision);
        (status.observed_generation, status.applied, status.pending)
    };
    assert_eq!(counts(4, 1), (4, 1, 0));
    // The registry is at revision 2, and the mesh not yet.
    assert_eq!(counts(5, 2), (4, 0, 1), "it holds what was there before");
    hub.change(2, |mesh| mesh.put(objects(&ORDERS.replace("80", "81")).remove(0)));
    assert_eq!(counts(5, 2), (5, 0, 1));
    acknowledge(&handle);
    assert_eq!(counts(5, 2), (5, 1, 0));
}

#[test]
fn a_stream_has_no_name_that_another_identity_has_registered() {
    let hub = hub();
    let registered = Registered {
        name: Name::new("shop", "orders-1"),
        identity: identity("orders"),
        address: "10.0.0.1:15006".parse().unwrap(),
        services: vec![(Name::new("shop", "orders"), Vec::new())],
        zone: String::new(),
        ready: true,
    };
    hub.change(2, |mesh| mesh.register(Arc::new(registered)));
    let refused = hub.open(proxy("web", "shop/orders-1")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    hub.open(proxy("orders", "shop/orders-1")).unwrap();
    hub.open(proxy("web", "shop/web-1")).unwrap();
}
