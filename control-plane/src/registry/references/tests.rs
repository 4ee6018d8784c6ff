use heddle_api::validate;
use serde_json::{Value, json};

use super::{super::codec, *};

/// Builds views and checks changes of them.
struct Bench(View);

impl Bench {
    fn new() -> Self {
        let mut bench = Self(View::default());
        bench.commit(vec![
            put(
                "Service",
                "orders",
                json!({ "ports": [{ "port": 80, "protocol": "http" }, { "port": 81, "protocol": "grpc" }] }),
            ),
            put("Service", "db", json!({ "ports": [{ "port": 5432, "protocol": "tcp" }] })),
            put("Service", "any", json!({ "ports": [{ "port": 1 }] })),
        ]);
        bench
    }

    fn changes(&self, operations: &[Step]) -> (View, Vec<(usize, Change)>) {
        let mut next = self.0.clone();
        let mut changes = Vec::new();
        for (index, (kind, name, after)) in operations.iter().enumerate() {
            let before = self.0.object(*kind, name).cloned();
            next.with(*kind, name.clone(), after.clone());
            changes.push((index, Change { kind: *kind, name: name.clone(), before, after: after.clone() }));
        }
        (next, changes)
    }

    fn told(&self, operations: &[Step]) -> Vec<String> {
        let (view, changes) = self.changes(operations);
        check(&view, &changes).iter().map(|told| format!("{} {}", told.operation, told.fault)).collect()
    }

    #[track_caller]
    fn refuse(&self, operations: Vec<Step>, expected: &[(&str, &str)]) {
        let told = self.told(&operations);
        for (path, part) in expected {
            assert!(
                told.iter().any(|told| told.starts_with(path) && told.contains(part)),
                "no {path}: …{part}… among {told:#?}"
            );
        }
        assert_eq!(told.len(), expected.len(), "{told:#?}");
    }

    #[track_caller]
    fn commit(&mut self, operations: Vec<Step>) {
        assert_eq!(self.told(&operations), [""; 0]);
        self.0 = self.changes(&operations).0;
    }
}

type Step = (ObjectKind, Name, Option<AnyObject>);

#[track_caller]
fn put(kind: &str, name: &str, spec: Value) -> Step {
    put_in("shop", kind, name, spec)
}

#[track_caller]
fn put_in(namespace: &str, kind: &str, name: &str, spec: Value) -> Step {
    let mut metadata = json!({ "name": name, "namespace": namespace });
    if kind == "MeshConfig" {
        metadata = json!({ "name": "mesh" });
    }
    let document = json!({ "apiVersion": "heddle.dev/v1", "kind": kind, "metadata": metadata, "spec": spec });
    let object = validate::object(&document, None).unwrap();
    // What is stored reads back the same.
    let again = AnyObject::from_slice(object.kind(), &codec::encode_object(&object)).unwrap();
    assert_eq!(again, object);
    (object.kind(), object.name(), Some(object))
}

fn remove(kind: ObjectKind, name: &str) -> Step {
    (kind, Name::new("shop", name), None)
}

fn http(parent: Value, backend: Value) -> Value {
    json!({ "parentRefs": [parent], "rules": [{ "backendRefs": [backend] }] })
}

#[test]
fn references_lead_somewhere() {
    let bench = Bench::new();
    bench.refuse(
        vec![
            put("HTTPRoute", "a", http(json!({ "name": "nobody" }), json!({ "name": "nobody", "port": 80 }))),
            put("HTTPRoute", "b", http(json!({ "name": "orders", "port": 82 }), json!({ "name": "orders" }))),
            put(
                "HTTPRoute",
                "c",
                http(json!({ "name": "orders", "port": 80 }), json!({ "name": "orders", "port": 1 })),
            ),
            put("TrafficPolicy", "a", json!({ "targetRef": { "kind": "Service", "name": "nobody" } })),
            put(
                "AuthorizationPolicy",
                "a",
                json!({ "targetRef": { "kind": "Service", "name": "nobody" }, "action": "DENY", "rules": [{}] }),
            ),
            put(
                "Workload",
                "a",
                json!({ "address": "10.0.0.1", "serviceAccount": "x", "inboundPort": 1,
                "services": [{ "name": "nobody" }, { "name": "orders", "ports": [80, 9] }] }),
            ),
        ],
        &[
            ("0 spec.parentRefs[0].name", "no service shop/nobody"),
            ("0 spec.rules[0].backendRefs[0].name", "no service shop/nobody"),
            ("1 spec.parentRefs[0].port", "no port 82 (it has 80 (http), 81 (grpc))"),
            ("1 spec.rules[0].backendRefs[0].port", "several ports"),
            ("2 spec.rules[0].backendRefs[0].port", "no port 1"),
            ("3 spec.targetRef.name", "no service"),
            ("4 spec.targetRef.name", "no service"),
            ("5 spec.services[0].name", "no service"),
            ("5 spec.services[1].ports[1]", "no port 9"),
            ("5 spec.serviceAccount", "may not serve shop/orders, whose service accounts are orders"),
        ],
    );
    // The order within a transaction does not matter.
    let mut bench = bench;
    bench.commit(vec![
        put("HTTPRoute", "a", http(json!({ "name": "new" }), json!({ "name": "new" }))),
        put("Service", "new", json!({ "ports": [{ "port": 80 }] })),
    ]);
}

#[test]
fn protocols_fit() {
    let bench = Bench::new();
    let grpc =
        |parent: Value, backend: Value| json!({ "parentRefs": [parent], "rules": [{ "backendRefs": [backend] }] });
    bench.refuse(
        vec![
            put("HTTPRoute", "a", http(json!({ "name": "db" }), json!({ "name": "db" }))),
            put("HTTPRoute", "b", http(json!({ "name": "db", "port": 5432 }), json!({ "name": "any", "port": 1 }))),
            put("GRPCRoute", "c", grpc(json!({ "name": "orders" }), json!({ "name": "db", "port": 5432 }))),
            put("TCPRoute", "d", grpc(json!({ "name": "orders" }), json!({ "name": "orders", "port": 80 }))),
            put("TCPRoute", "e", grpc(json!({ "name": "db" }), json!({ "name": "any" }))),
            put("GRPCRoute", "f", grpc(json!({ "name": "any" }), json!({ "name": "orders", "port": 81 }))),
        ],
        &[
            ("0 spec.parentRefs[0]", "no port of service shop/db can follow an HTTPRoute"),
            ("0 spec.rules[0].backendRefs[0]", "port 5432 speaks tcp"),
            ("1 spec.parentRefs[0].port", "speaks tcp, which an HTTPRoute cannot carry"),
            ("2 spec.rules[0].backendRefs[0].port", "speaks tcp"),
            ("3 spec.parentRefs[0]", "no port"),
            ("3 spec.rules[0].backendRefs[0].port", "speaks http"),
            ("1 spec.rules[0]", "matches the same on port 5432"),
        ],
    );
}

#[test]
fn what_is_referred_to_stays() {
    let mut bench = Bench::new();
    bench.commit(vec![
        put("HTTPRoute", "a", http(json!({ "name": "any" }), json!({ "name": "orders", "port": 80 }))),
        put("TrafficPolicy", "t", json!({ "targetRef": { "kind": "Service", "name": "orders" } })),
        put("Workload", "w", json!({ "address": "10.0.0.1", "services": [{ "name": "orders", "ports": [80] }] })),
    ]);
    bench.refuse(
        vec![remove(ObjectKind::Service, "orders")],
        &[
            ("0 HTTPRoute shop/a would be left with a fault at spec.rules[0].backendRefs[0].name", "no service"),
            ("0 TrafficPolicy shop/t", ""),
            ("0 Workload shop/w", ""),
        ],
    );
    bench.refuse(
        vec![put("Service", "orders", json!({ "ports": [{ "port": 80, "protocol": "tcp" }] }))],
        &[("0 spec.ports: HTTPRoute shop/a", "speaks tcp")],
    );
    bench.refuse(
        vec![put("Service", "orders", json!({ "ports": [{ "port": 8080 }] }))],
        &[("0 spec.ports: HTTPRoute", "no port 80"), ("0 spec.ports: Workload", "no port 80")],
    );
    // All of it together goes, as does what still fits.
    bench.commit(vec![put("Service", "orders", json!({ "ports": [{ "port": 80 }], "hosts": ["orders.example.com"] }))]);
    bench.commit(vec![
        remove(ObjectKind::Service, "orders"),
        remove(ObjectKind::HttpRoute, "a"),
        remove(ObjectKind::TrafficPolicy, "t"),
        remove(ObjectKind::Workload, "w"),
    ]);
}

#[test]
fn hosts_belong_to_one_service() {
    let mut bench = Bench::new();
    let host = |host: &str| json!({ "ports": [{ "port": 80 }], "hosts": [host] });
    bench.commit(vec![put("Service", "a", host("a.example.com")), put("Service", "b", host("c.web"))]);
    bench.refuse(
        vec![
            put("Service", "x", host("a.example.com")),
            put("Service", "y", host("orders.shop")),
            put("Service", "z", host("pay.shop.mesh")),
            put_in("web", "Service", "c", json!({ "ports": [{ "port": 80 }] })),
        ],
        &[
            ("0 spec.hosts[0]", "a host of service shop/a already"),
            ("1 spec.hosts[0]", "the name of service shop/orders"),
            ("2 spec.hosts[0]", "the mesh's own suffix"),
            ("3 metadata.name", "a host of service shop/b already"),
        ],
    );
    bench.refuse(
        vec![put("MeshConfig", "mesh", json!({ "suffixes": ["mesh", "example.com"] }))],
        &[("0 spec.suffixes[1]", "service shop/a has the host")],
    );
    bench.commit(vec![
        put("Service", "a", host("a.example.com")),
        put(
            "Service",
            "orders",
            json!({
        "ports": [{ "port": 80 }, { "port": 81 }], "hosts": ["orders.shop"] }),
        ),
    ]);
}

#[test]
fn services_are_used_where_they_are_exported() {
    let mut bench = Bench::new();
    let exported = |to: Value| json!({ "ports": [{ "port": 80 }], "exportTo": to });
    bench.commit(vec![
        put_in("web", "Service", "open", exported(json!([]))),
        put_in("web", "Service", "shop-only", exported(json!(["shop"]))),
        put_in("web", "Service", "closed", exported(json!(["."]))),
    ]);
    let route = |service: &str| http(json!({ "name": "any" }), json!({ "name": service, "namespace": "web" }));
    bench.commit(vec![put("HTTPRoute", "a", route("open"))]);
    bench.commit(vec![put("HTTPRoute", "a", route("shop-only"))]);
    bench.refuse(
        vec![put("HTTPRoute", "a", route("closed"))],
        &[("0 spec.rules[0].backendRefs[0].namespace", "not exported")],
    );
    bench.refuse(
        vec![put_in("web", "Service", "shop-only", exported(json!(["."])))],
        &[("0 spec.ports: HTTPRoute shop/a", "not exported")],
    );
}

#[test]
fn policies_mean_something() {
    let mut bench = Bench::new();
    let traffic = |target: Option<&str>| {
        target.map_or(json!({}), |name| json!({ "targetRef": { "kind": "Service", "name": name } }))
    };
    bench.commit(vec![
        put("TrafficPolicy", "ns", traffic(None)),
        put("TrafficPolicy", "orders", traffic(Some("orders"))),
        put_in("web", "TrafficPolicy", "ns", traffic(None)),
    ]);
    bench.commit(vec![put("TrafficPolicy", "ns", json!({ "timeouts": { "request": "1s" } }))]);
    bench.refuse(
        vec![put("TrafficPolicy", "ns2", traffic(None)), put("TrafficPolicy", "o2", traffic(Some("orders")))],
        &[
            ("0 spec: TrafficPolicy shop/ns is attached to namespace \"shop\" already", ""),
            ("1 spec.targetRef: TrafficPolicy shop/orders", "service \"orders\" already"),
        ],
    );
    let policy = |service: &str, to: Value| {
        json!({
        "targetRef": { "kind": "Service", "name": service }, "action": "DENY", "rules": [{ "to": [to] }] })
    };
    bench.refuse(
        vec![
            put("AuthorizationPolicy", "a", policy("db", json!({ "paths": ["/admin/*"] }))),
            put("AuthorizationPolicy", "b", policy("db", json!({ "methods": ["GET"], "ports": [5432] }))),
            put("AuthorizationPolicy", "c", policy("orders", json!({ "ports": [82] }))),
            put("AuthorizationPolicy", "d", policy("db", json!({ "ports": [5432] }))),
        ],
        &[
            ("0 spec.rules[0].to[0]", "tcp only"),
            ("1 spec.rules[0].to[0].ports[0]", "speaks tcp"),
            ("2 spec.rules[0].to[0].ports[0]", "no port 82"),
        ],
    );
}

#[test]
fn rules_that_match_the_same_conflict() {
    let mut bench = Bench::new();
    let with = |parent: Value, hostnames: Value, matches: Value| {
        json!({
        "parentRefs": [parent], "hostnames": hostnames,
        "rules": [{ "matches": matches, "backendRefs": [{ "name": "any" }] }] })
    };
    let any_port = json!({ "name": "orders" });
    let port_80 = json!({ "name": "orders", "port": 80 });
    let port_81 = json!({ "name": "orders", "port": 81 });
    let api = json!([{ "path": { "value": "/api" }, "headers": [{ "name": "A", "value": "1" }, { "name": "b", "value": "2" }] }]);
    let same = json!([{ "path": { "value": "/api/" }, "headers": [{ "name": "B", "value": "2" }, { "name": "a", "value": "1" }] }]);
    bench.commit(vec![put("HTTPRoute", "first", with(port_80.clone(), json!([]), api.clone()))]);
    bench.refuse(
        vec![
            put("HTTPRoute", "second", with(any_port.clone(), json!([]), same.clone())),
            put("HTTPRoute", "third", with(port_81.clone(), json!([]), same.clone())),
        ],
        &[
            (
                "0 spec.rules[0].matches[0]: never decides: spec.rules[0].matches[0] of HTTPRoute shop/first",
                "port 80 of service shop/orders",
            ),
            ("1 spec.rules[0].matches[0]: never decides: spec.rules[0].matches[0] of HTTPRoute shop/second", "port 81"),
        ],
    );
    // Another port, host, method or value is another place.
    bench.commit(vec![
        put("HTTPRoute", "port", with(port_81.clone(), json!([]), same.clone())),
        put("HTTPRoute", "host", with(port_80.clone(), json!(["a.com", "*.a.com"]), same.clone())),
        put(
            "HTTPRoute",
            "method",
            with(port_80.clone(), json!([]), json!([{ "path": { "value": "/api" }, "method": "GET" }])),
        ),
        put(
            "HTTPRoute",
            "exact",
            with(port_80.clone(), json!([]), json!([{ "path": { "type": "Exact", "value": "/api" } }])),
        ),
    ]);
    bench.refuse(
        vec![put("HTTPRoute", "host2", with(any_port.clone(), json!(["*.a.com"]), same.clone()))],
        &[("0 spec.rules[0].matches[0]", "for host \"*.a.com\"")],
    );
    // A rule that replaces itself is no conflict, and any path is the prefix /.
    bench.commit(vec![put("HTTPRoute", "first", with(port_80.clone(), json!([]), api))]);
    bench.commit(vec![put("HTTPRoute", "any", with(port_80.clone(), json!([]), json!([])))]);
    bench.refuse(
        vec![put("HTTPRoute", "root", with(port_80, json!([]), json!([{ "path": { "value": "/" } }])))],
        &[("0 spec.rules[0].matches[0]", "spec.rules[0] of HTTPRoute shop/any")],
    );

    let grpc = |method: Value| {
        json!({
        "parentRefs": [{ "name": "orders", "port": 81 }],
        "rules": [{ "matches": [{ "method": method }], "backendRefs": [{ "name": "any" }] }] })
    };
    bench.commit(vec![
        put("GRPCRoute", "a", grpc(json!({ "service": "a.B", "method": "C" }))),
        put("GRPCRoute", "b", grpc(json!({ "service": "a.B" }))),
        put("GRPCRoute", "c", grpc(json!({ "method": "C" }))),
    ]);
    bench.refuse(
        vec![put("GRPCRoute", "d", grpc(json!({ "service": "a.B", "method": "C" })))],
        &[("0", "GRPCRoute shop/a")],
    );
    bench.refuse(
        vec![put(
            "HTTPRoute",
            "d",
            with(port_81, json!([]), json!([{ "path": { "type": "Exact", "value": "/a.B/C" } }])),
        )],
        &[("0", "GRPCRoute shop/a")],
    );

    let tcp = json!({ "parentRefs": [{ "name": "db" }], "rules": [{ "backendRefs": [{ "name": "db" }] }] });
    bench.commit(vec![put("TCPRoute", "a", tcp.clone())]);
    bench.refuse(vec![put("TCPRoute", "b", tcp)], &[("0 spec.rules[0]", "takes all connections on port 5432")]);
}

fn route(hosts: usize, matches: usize, wanted: &dyn Fn(usize) -> Value) -> Value {
    let hostnames: Vec<_> = (0..hosts).map(|index| format!("h{index}.example")).collect();
    let rules: Vec<_> = (0..matches.div_ceil(64))
        .map(|rule| {
            let matches: Vec<_> = (rule * 64..matches.min(rule * 64 + 64)).map(wanted).collect();
            json!({ "matches": matches, "backendRefs": [{ "name": "db2", "port": 80 }] })
        })
        .collect();
    json!({ "parentRefs": [{ "name": "db2" }], "hostnames": hostnames, "rules": rules })
}

#[test]
fn what_a_proxy_would_refuse_is_refused_with_the_routes_that_make_it() {
    let mut bench = Bench::new();
    bench.commit(vec![put("Service", "db2", json!({ "ports": [{ "port": 80, "protocol": "http" }] }))]);
    let exact = |name: &'static str| move |index: usize| json!({ "path": { "type": "Exact", "value": format!("/{name}{index}") } });
    for name in ["a", "b", "c", "d"] {
        bench.commit(vec![put("HTTPRoute", name, route(8, 128, &exact(name)))]);
    }
    bench.refuse(
        vec![put("HTTPRoute", "e", route(1, 1, &exact("e")))],
        &[("0 spec.rules", "port 80 of service shop/db2 would have 4097 rules")],
    );
    let told = bench.told(&[put("HTTPRoute", "e", route(1, 1, &exact("e")))]);
    assert!(told[0].contains("HTTPRoute shop/a 1024, HTTPRoute shop/b 1024"), "{told:?}");
    // Each port counts by itself.
    bench.commit(vec![put(
        "Service",
        "db2",
        json!({ "ports": [{ "port": 80, "protocol": "http" }, { "port": 81, "protocol": "http" }] }),
    )]);
    bench.commit(vec![remove(ObjectKind::HttpRoute, "a"), put("HTTPRoute", "e", route(1, 1, &exact("e")))]);
}

#[test]
fn expressions_and_bytes_count_for_each_host_and_port() {
    let mut bench = Bench::new();
    bench.commit(vec![put(
        "Service",
        "db2",
        json!({ "ports": [{ "port": 80, "protocol": "http" }, { "port": 81, "protocol": "http" }] }),
    )]);
    let expression = |index: usize| json!({ "path": { "type": "RegularExpression", "value": format!("/r{index}") } });
    bench.commit(vec![put("HTTPRoute", "a", route(10, 25, &expression))]);
    bench.refuse(
        vec![put("HTTPRoute", "a", route(11, 25, &expression))],
        &[("0 spec.rules", "would have 550 regular expressions")],
    );
    let long = |index: usize| json!({ "path": { "type": "Exact", "value": format!("/{index}{}", "x".repeat(1000)) } });
    bench.commit(vec![put("HTTPRoute", "a", route(8, 64, &long))]);
    let mut large = route(8, 128, &long);
    for rule in large["rules"].as_array_mut().unwrap() {
        let add: Vec<_> =
            (0..10).map(|index| json!({ "name": format!("x-{index}"), "value": "v".repeat(200) })).collect();
        rule["filters"] = json!([{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "add": add } }]);
    }
    bench.refuse(vec![put("HTTPRoute", "a", large)], &[("0 spec.rules", "the routes of service shop/db2 would take")]);
}

#[test]
fn policies_of_one_place_have_their_limit() {
    let mut bench = Bench::new();
    let policy = |name: &str, target: Option<&str>| {
        let rules: Vec<_> = (0..256).map(|_| json!({})).collect();
        let mut spec = json!({ "action": "ALLOW", "rules": rules });
        if let Some(target) = target {
            spec["targetRef"] = json!({ "kind": "Service", "name": target });
        }
        put("AuthorizationPolicy", name, spec)
    };
    for index in 0..5 {
        bench.commit(vec![policy(&format!("p{index}"), Some("orders")), policy(&format!("n{index}"), None)]);
    }
    bench.refuse(vec![policy("p5", Some("orders"))], &[("0 spec.rules", "service shop/orders would have 1536 rules")]);
    bench.refuse(vec![policy("n5", None)], &[("0 spec.rules", "namespace shop would have 1536 rules")]);
    bench.commit(vec![policy("p5", Some("any"))]);
}

#[test]
fn indices_follow_what_changes() {
    let mut bench = Bench::new();
    bench.commit(vec![
        put("HTTPRoute", "r", http(json!({ "name": "orders", "port": 80 }), json!({ "name": "any" }))),
        put("Service", "hosted", json!({ "ports": [{ "port": 80 }], "hosts": ["a.example", "b.example"] })),
    ]);
    let referrers = |bench: &Bench, service: &str| -> Vec<String> {
        bench.0.referrers(&Name::new("shop", service)).map(ToString::to_string).collect()
    };
    assert_eq!((referrers(&bench, "orders").len(), referrers(&bench, "any").len()), (1, 1));
    bench.commit(vec![
        put("HTTPRoute", "r", http(json!({ "name": "any" }), json!({ "name": "any" }))),
        put("Service", "hosted", json!({ "ports": [{ "port": 80 }], "hosts": ["b.example", "c.example"] })),
    ]);
    assert_eq!(referrers(&bench, "orders"), [""; 0]);
    assert_eq!(referrers(&bench, "any"), ["HTTPRoute shop/r"]);
    let hosts: Vec<_> = bench.0.extra_hosts().map(|(host, _)| host.to_owned()).collect();
    assert_eq!(hosts, ["b.example", "c.example"]);
    bench.commit(vec![remove(ObjectKind::HttpRoute, "r"), remove(ObjectKind::Service, "hosted")]);
    assert_eq!(referrers(&bench, "any"), [""; 0]);
    assert_eq!(bench.0.extra_hosts().count(), 0);
}

#[test]
fn denials_that_come_with_routes_stay_within_what_a_proxy_takes() {
    let mut bench = Bench::new();
    let deny = |count: usize| {
        let rules: Vec<_> = (0..count).map(|index| json!({ "to": [{ "paths": [format!("/{index}")] }] })).collect();
        json!({ "targetRef": { "kind": "Service", "name": "orders" }, "action": "DENY", "rules": rules })
    };
    let route =
        |to: &str| json!({ "parentRefs": [{ "name": "orders" }], "rules": [{ "backendRefs": [{ "name": to }] }] });
    bench.commit(vec![put("AuthorizationPolicy", "a", deny(200)), put("HTTPRoute", "split", route("any"))]);
    let message = "the DENY rules that hold for service shop/any because routes lead there from other services would have \
                   300 rules; at most 256 (rules: AuthorizationPolicy shop/a 200, AuthorizationPolicy shop/b 100)";
    bench.refuse(vec![put("AuthorizationPolicy", "b", deny(100))], &[("0 spec.rules", message)]);
    bench.commit(vec![put("AuthorizationPolicy", "b", deny(50))]);
    // Where no route leads anywhere else, as many are no matter.
    bench.commit(vec![(ObjectKind::HttpRoute, Name::new("shop", "split"), None)]);
    bench.commit(vec![put("AuthorizationPolicy", "b", deny(100))]);
    bench.refuse(vec![put("HTTPRoute", "split", route("any"))], &[("0 spec.rules", message)]);
}

#[test]
fn a_changed_service_brings_no_more_denials_than_a_proxy_takes() {
    let mut bench = Bench::new();
    let deny = |port: u16| {
        let rules: Vec<_> =
            (0..150).map(|index| json!({ "to": [{ "ports": [port], "paths": [format!("/{index}")] }] })).collect();
        json!({ "action": "DENY", "rules": rules })
    };
    let service = |ports: &[(u16, &str)]| {
        let ports: Vec<_> =
            ports.iter().map(|(port, protocol)| json!({ "port": port, "protocol": protocol })).collect();
        json!({ "ports": ports })
    };
    let told = "the DENY rules that hold for service shop/any because routes lead there from other services would have \
                300 rules; at most 256 (rules: AuthorizationPolicy shop/m 150, AuthorizationPolicy shop/n 150)";
    bench.commit(vec![
        put("Service", "plain", service(&[(80, "http")])),
        put("HTTPRoute", "split", http(json!({ "name": "plain" }), json!({ "name": "any" }))),
        put("AuthorizationPolicy", "m", deny(81)),
        put("AuthorizationPolicy", "n", deny(81)),
    ]);
    // The route attaches to no such port yet.
    bench.commit(vec![put("Service", "plain", service(&[(80, "http"), (81, "tcp")]))]);
    bench.refuse(vec![put("Service", "plain", service(&[(80, "http"), (81, "http")]))], &[("0 spec.ports", told)]);

    // What is denied at a port of the backend holds there anyway, until that is another port.
    bench.commit(vec![
        put("Service", "any", service(&[(80, "http")])),
        put("AuthorizationPolicy", "m", deny(80)),
        put("AuthorizationPolicy", "n", deny(80)),
    ]);
    bench.refuse(vec![put("Service", "any", service(&[(8080, "http")]))], &[("0 spec.ports", told)]);
}
