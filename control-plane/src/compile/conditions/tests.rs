use super::*;
use crate::mesh::tests::mesh;

const SHOP: &str = "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80}], serviceAccounts: [orders, 'not/one']}
---
kind: Service
metadata: {name: orders-v1}
spec: {ports: [{port: 80}], exportTo: ['.']}
---
kind: Service
metadata: {name: payments}
spec: {ports: [{port: 80}, {port: 81}], exportTo: ['.', web]}
---
kind: HTTPRoute
metadata: {name: split}
spec:
  parentRefs: [{name: orders}, {name: gone}]
  rules:
  - backendRefs: [{name: orders-v1}, {name: nobody}, {name: payments}]
  - backendRefs: [{name: orders-v1}, {name: payments, port: 82}]
---
kind: TCPRoute
metadata: {name: opaque}
spec: {parentRefs: [{name: payments}], rules: [{backendRefs: [{name: orders-v1}]}]}
---
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {targetRef: {kind: Service, name: orders}, action: DENY, rules: [{to: [{methods: [PUT]}]}]}
---
kind: AuthorizationPolicy
metadata: {name: allow}
spec: {targetRef: {kind: Service, name: orders}, action: ALLOW, rules: [{}]}
---
kind: AuthorizationPolicy
metadata: {name: lost}
spec: {targetRef: {kind: Service, name: gone}, action: DENY, rules: [{}]}
";

fn found(kind: ObjectKind, name: &str) -> Vec<String> {
    let found = of(&mesh(SHOP), kind, &Name::new("shop", name));
    found.into_iter().map(|condition| format!("{}: {}", condition.r#type, condition.message)).collect()
}

#[test]
fn a_route_tells_where_it_cannot_lead() {
    assert_eq!(
        found(ObjectKind::HttpRoute, "split"),
        [
            "ParentNotFound: service shop/gone does not exist",
            "BackendNotExported: service shop/orders-v1 is not exported to all namespaces, where callers of shop/orders may \
             be: they get 503 if the route leads there",
            "BackendNotFound: service shop/nobody does not exist: requests that go there are answered with 500",
            "BackendPortNotFound: service shop/payments has several ports and the route names none: requests that go there \
             are answered with 500",
            "BackendNotExported: service shop/payments is not exported to all namespaces, where callers of shop/orders may \
             be: they get 503 if the route leads there",
            "BackendPortNotFound: service shop/payments has no port 82: requests that go there are answered with 500",
        ]
    );
    assert_eq!(
        found(ObjectKind::TcpRoute, "opaque"),
        [
            "BackendNotExported: service shop/orders-v1 is not exported to web, where callers of shop/payments may be: they get \
          503 if the route leads there"
        ]
    );
}

#[test]
fn a_policy_tells_for_what_else_it_holds() {
    assert_eq!(
        found(ObjectKind::AuthorizationPolicy, "deny"),
        ["HoldsForBackends: its rules hold for shop/orders-v1 too, for routes lead there"]
    );
    assert_eq!(
        found(ObjectKind::AuthorizationPolicy, "allow"),
        [
            "NotForBackends: routes lead from shop/orders to shop/nobody, shop/orders-v1, shop/payments: who is let in there is \
          for the policies of these to say"
        ]
    );
    assert_eq!(found(ObjectKind::AuthorizationPolicy, "lost"), ["TargetNotFound: service shop/gone does not exist"]);
}

#[test]
fn a_service_tells_what_it_inherits_and_who_cannot_serve_it() {
    assert_eq!(
        found(ObjectKind::Service, "orders-v1"),
        [
            "InheritsDenials: DENY rules of AuthorizationPolicy shop/deny hold here too, for routes lead here from shop/orders"
        ]
    );
    let accounts = found(ObjectKind::Service, "orders");
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    assert!(accounts[0].starts_with("ServiceAccountInvalid: no workload can have the service account \"not/one\""));
}

#[test]
fn long_lists_are_cut() {
    assert_eq!(list(0..10), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9");
    assert_eq!(list(0..12), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
}
