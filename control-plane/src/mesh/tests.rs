use serde::Deserialize;

use super::*;

/// Objects of a YAML stream in short form: `apiVersion` and the namespace `shop` are filled in.
pub(crate) fn objects(yaml: &str) -> Vec<AnyObject> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| serde_json::Value::deserialize(document).unwrap())
        .filter(|value| !value.is_null())
        .map(|mut value| {
            value["apiVersion"] = "heddle.dev/v1".into();
            let kind = ObjectKind::from_kind(value["kind"].as_str().unwrap()).unwrap();
            if kind.is_namespaced() && value["metadata"]["namespace"].is_null() {
                value["metadata"]["namespace"] = "shop".into();
            }
            AnyObject::from_value(kind, value).unwrap_or_else(|error| panic!("{error}: {yaml}"))
        })
        .collect()
}

/// A mesh of trust domain `td` with these objects.
pub(crate) fn mesh(yaml: &str) -> Mesh {
    let mut mesh = Mesh::new(TrustDomain::new("td").unwrap());
    for object in objects(yaml) {
        mesh.put(object);
    }
    mesh
}

pub(crate) fn registered(name: &str, account: &str, address: &str, services: &[&str]) -> Arc<Registered> {
    Arc::new(Registered {
        name: Name::new("shop", name),
        identity: format!("spiffe://td/ns/shop/sa/{account}").parse().unwrap(),
        address: address.parse().unwrap(),
        services: services.iter().map(|service| (Name::parse(service).unwrap(), Vec::new())).collect(),
        app_ports: BTreeMap::new(),
        zone: String::new(),
        ready: true,
    })
}

const SHOP: &str = "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80}], hosts: [Orders.Example.com]}
---
kind: Service
metadata: {name: payments}
spec: {ports: [{port: 80}, {port: 81}]}
---
kind: Service
metadata: {name: vault, namespace: secure}
spec: {ports: [{port: 443}], exportTo: ['.', shop]}
---
kind: HTTPRoute
metadata: {name: canary}
spec: {parentRefs: [{name: orders}], rules: [{backendRefs: [{name: payments, port: 80}, {name: vault, namespace: secure}]}]}
---
kind: Workload
metadata: {name: w1}
spec: {address: 10.0.0.1, inboundPort: 15006, serviceAccount: orders, services: [{name: orders}]}
";

fn services<const N: usize>(names: [&str; N]) -> BTreeSet<Scope> {
    names.into_iter().map(|name| Scope::Service(Name::parse(name).unwrap())).collect()
}

fn hosts<const N: usize>(names: [&str; N]) -> Hosts {
    Hosts::Some(names.into_iter().map(Arc::from).collect())
}

fn one(yaml: &str) -> AnyObject {
    objects(yaml).remove(0)
}

#[test]
fn a_service_touches_itself_its_names_and_the_routes_that_lead_to_it() {
    let mut mesh = mesh(SHOP);
    let expected = Affected {
        services: services(["shop/payments", "shop/orders"]),
        endpoints: services(["shop/payments"]),
        inbound: services(["shop/payments"]),
        hosts: hosts(["payments.shop", "payments.shop.mesh"]),
        mesh_config: false,
        workloads: BTreeSet::new(),
    };
    let changed = one("{kind: Service, metadata: {name: payments}, spec: {ports: [{port: 80}]}}");
    assert_eq!(mesh.put(changed), expected);
    assert_eq!(mesh.remove(ObjectKind::Service, &Name::new("shop", "payments")), expected);
    let again = one("{kind: Service, metadata: {name: payments}, spec: {ports: [{port: 80}], hosts: [pay.example]}}");
    let more = hosts(["pay.example", "payments.shop", "payments.shop.mesh"]);
    assert_eq!(mesh.put(again), Affected { hosts: more, ..expected });
}

#[test]
fn a_workload_touches_the_endpoints_of_what_it_served_and_serves() {
    let mut mesh = mesh(SHOP);
    let moved = one("{kind: Workload, metadata: {name: w1}, spec: {address: 10.0.0.1, services: [{name: payments}]}}");
    let at = hosts(["10.0.0.1"]);
    let expected =
        Affected { endpoints: services(["shop/orders", "shop/payments"]), hosts: at.clone(), ..Affected::default() };
    assert_eq!(mesh.put(moved), expected);
    let expected = Affected { endpoints: services(["shop/payments"]), hosts: at, ..Affected::default() };
    assert_eq!(mesh.remove(ObjectKind::Workload, &Name::new("shop", "w1")), expected);
}

#[test]
fn a_registration_touches_endpoints_also_of_the_declared_workload_that_it_hides() {
    let mut mesh = mesh(SHOP);
    let (endpoints, at) = (services(["shop/orders", "shop/payments"]), hosts(["10.0.0.1"]));
    let expected = Affected { endpoints, hosts: at, ..Affected::default() };
    assert_eq!(mesh.register(registered("w1", "orders", "10.0.0.1:1", &["shop/payments"])), expected);
    assert_eq!(mesh.declared_workloads(&Name::new("shop", "orders")).count(), 0);
    assert_eq!(mesh.deregister(&Name::new("shop", "w1")), expected);
    assert_eq!(mesh.declared_workloads(&Name::new("shop", "orders")).count(), 1);
    assert_eq!(mesh.deregister(&Name::new("shop", "w1")), Affected::default());
}

#[test]
fn a_route_touches_its_parents_before_and_after() {
    let mut mesh = mesh(SHOP);
    let moved = "{kind: HTTPRoute, metadata: {name: canary}, spec: {parentRefs: [{name: payments}], rules: [{backendRefs: [{name: orders}]}]}}";
    let expected = Affected { services: services(["shop/orders", "shop/payments"]), ..Affected::default() };
    assert_eq!(mesh.put(one(moved)), expected);
    let touched =
        mesh.put(one("{kind: Service, metadata: {name: vault, namespace: secure}, spec: {ports: [{port: 1}]}}"));
    assert_eq!(touched.services, services(["secure/vault"]), "no route leads there any more");
    let expected = Affected { services: services(["shop/payments"]), ..Affected::default() };
    assert_eq!(mesh.remove(ObjectKind::HttpRoute, &Name::new("shop", "canary")), expected);
}

#[test]
fn policies_touch_what_they_are_attached_to() {
    let mut mesh = mesh(SHOP);
    let shop = Scope::Namespace("shop".into());
    let traffic = |mesh: &mut Mesh, text: &str| mesh.put(one(&format!("{{kind: TrafficPolicy, metadata: {text}}}")));
    let touched = |scope: &Scope| Affected { services: BTreeSet::from([scope.clone()]), ..Affected::default() };
    assert_eq!(traffic(&mut mesh, "{name: t}, spec: {}"), touched(&shop));
    let first_there = Affected { mesh_config: true, ..touched(&Scope::Mesh) };
    assert_eq!(traffic(&mut mesh, "{name: t, namespace: heddle}, spec: {}"), first_there);
    let own = "{name: t}, spec: {targetRef: {kind: Service, name: orders}}";
    let both = BTreeSet::from([shop.clone(), Scope::Service(Name::new("shop", "orders"))]);
    assert_eq!(traffic(&mut mesh, own), Affected { services: both, ..Affected::default() });

    let policy = |text: &str| one(&format!("{{kind: AuthorizationPolicy, metadata: {text}}}"));
    let touched = |scope: Scope| Affected { inbound: BTreeSet::from([scope]), ..Affected::default() };
    assert_eq!(mesh.put(policy("{name: a}, spec: {action: DENY, rules: []}")), touched(shop));
    assert_eq!(mesh.put(policy("{name: a, namespace: heddle}, spec: {action: DENY, rules: []}")), touched(Scope::Mesh));
    assert_eq!(mesh.remove(ObjectKind::AuthorizationPolicy, &Name::new("heddle", "a")), touched(Scope::Mesh));
}

#[test]
fn settings_touch_everything_only_if_they_must() {
    let mut mesh = mesh(SHOP);
    let put = |mesh: &mut Mesh, spec: &str| {
        mesh.put(one(&format!("{{kind: MeshConfig, metadata: {{name: mesh}}, spec: {spec}}}")))
    };
    let everything = Affected {
        services: BTreeSet::from([Scope::Mesh]),
        inbound: BTreeSet::from([Scope::Mesh]),
        hosts: Hosts::All,
        mesh_config: true,
        ..Affected::default()
    };
    assert_eq!(put(&mut mesh, "{}"), everything);
    assert_eq!(put(&mut mesh, "{egress: allow}"), Affected { mesh_config: true, ..Affected::default() });
    assert_eq!(put(&mut mesh, "{egress: allow, suffixes: [svc]}"), everything);
    assert_eq!(put(&mut mesh, "{suffixes: [svc], defaultAuthorization: allow}"), everything);
    assert_eq!(mesh.remove(ObjectKind::MeshConfig, &Name::new("", "mesh")), everything);
}

#[test]
fn the_first_and_the_last_object_of_a_namespace_touch_the_settings() {
    let mut mesh = mesh(SHOP);
    let far = |name: &str, port: u16| {
        one(&format!(
            "{{kind: Service, metadata: {{name: {name}, namespace: far}}, spec: {{ports: [{{port: {port}}}]}}}}"
        ))
    };
    assert!(mesh.put(far("a", 80)).mesh_config);
    assert!(mesh.namespaces().eq(["far", "secure", "shop"]));
    assert!(!mesh.put(far("a", 81)).mesh_config, "it was known");
    assert!(!mesh.put(far("b", 80)).mesh_config);
    assert!(!mesh.remove(ObjectKind::Service, &Name::new("far", "a")).mesh_config, "there is another");
    assert!(!mesh.remove(ObjectKind::Service, &Name::new("far", "a")).mesh_config, "it is not there");
    assert!(mesh.remove(ObjectKind::Service, &Name::new("far", "b")).mesh_config);
    assert!(mesh.namespaces().eq(["secure", "shop"]));
}

#[test]
fn dialled_names_resolve_to_services() {
    let mesh = mesh(&format!(
        "{SHOP}---\n{}---\n{}",
        "{kind: Service, metadata: {name: late, creationTimestamp: '2026-02-01T00:00:00Z'}, spec: {ports: [{port: 80}], hosts: [shared.example, orders.shop]}}\n",
        "{kind: Service, metadata: {name: early, namespace: zoo, creationTimestamp: '2026-01-01T00:00:00.5Z'}, spec: {ports: [{port: 80}], hosts: [shared.example]}}\n",
    ));
    for (alias, viewer, expected) in [
        ("orders.shop:80", "zoo", Some("shop/orders")),
        ("ORDERS.shop.:80", "zoo", Some("shop/orders")),
        ("orders.shop.mesh:80", "zoo", Some("shop/orders")),
        ("orders.example.com:80", "zoo", Some("shop/orders")),
        ("orders.shop:81", "zoo", None),
        ("orders:80", "shop", None),
        ("orders.shop.other:80", "zoo", None),
        ("orders.zoo:80", "zoo", None),
        ("vault.secure:443", "shop", Some("secure/vault")),
        ("vault.secure:443", "secure", Some("secure/vault")),
        ("vault.secure:443", "zoo", None),
        ("shared.example:80", "zoo", Some("zoo/early")),
        ("mesh:80", "zoo", None),
        (".mesh:80", "zoo", None),
    ] {
        let resolved = parse_alias(alias).and_then(|(host, port)| mesh.resolve(&host, port, viewer));
        assert_eq!(resolved.map(|name| name.to_string()).as_deref(), expected, "{alias} for {viewer}");
    }
}

#[test]
fn an_address_is_an_instances_own_or_one_that_a_service_claims() {
    let mut mesh = mesh(
        "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80, targetPort: 8080}], addresses: [10.99.0.1, 'fd99::1']}
---
kind: Service
metadata: {name: hidden}
spec: {ports: [{port: 81, targetPort: 8081}], exportTo: ['.']}
---
kind: Service
metadata: {name: thief, namespace: zoo}
spec: {ports: [{port: 8080}, {port: 9}], addresses: [10.0.0.2]}
---
kind: Workload
metadata: {name: declared}
spec: {address: 10.0.0.1, services: [{name: orders}, {name: hidden}]}
",
    );
    let mut own = (*registered("r1", "orders", "[fd00::2]:15006", &["shop/orders"])).clone();
    own.app_ports = [(Name::new("shop", "orders"), [(80, 9000)].into())].into();
    mesh.register(own.into());
    mesh.register(registered("r2", "orders", "10.0.0.2:15006", &["shop/orders"]));
    mesh.register(registered("r3", "stranger", "10.0.0.3:15006", &["shop/orders"]));
    let check = |mesh: &Mesh, cases: &[(&str, &str, Option<&str>)]| {
        for (alias, viewer, expected) in cases {
            let resolved = parse_alias(alias).and_then(|(host, port)| mesh.resolve(&host, port, viewer));
            assert_eq!(resolved.map(|name| name.to_string()).as_deref(), *expected, "{alias} for {viewer}");
        }
    };
    check(
        &mesh,
        &[
            ("10.99.0.1:80", "zoo", Some("shop/orders")),
            ("[FD99:0::1]:80", "zoo", Some("shop/orders")),
            // A virtual address has the service's ports, an instance the app's.
            ("10.99.0.1:8080", "zoo", None),
            ("10.0.0.1:8080", "zoo", Some("shop/orders")),
            ("10.0.0.1:80", "zoo", None),
            ("[::ffff:10.0.0.1]:8080", "zoo", Some("shop/orders")),
            ("10.0.0.1:8081", "shop", Some("shop/hidden")),
            ("10.0.0.1:8081", "zoo", None),
            ("[fd00::2]:9000", "zoo", Some("shop/orders")),
            ("[fd00::2]:8080", "zoo", None),
            // An instance's address is not another's to claim, but for ports that nobody serves there.
            ("10.0.0.2:8080", "zoo", Some("shop/orders")),
            ("10.0.0.2:9", "zoo", Some("zoo/thief")),
            // Nor does one serve whom the service does not list.
            ("10.0.0.3:8080", "zoo", None),
            // The proxy's own port is not the app's.
            ("10.0.0.2:15006", "zoo", None),
        ],
    );
    let gone = mesh.deregister(&Name::new("shop", "r1"));
    assert_eq!(gone.hosts, hosts(["fd00::2"]));
    let changed = mesh.put(one("{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}"));
    let touched = ["10.0.0.1", "10.0.0.2", "10.99.0.1", "fd99::1", "orders.shop", "orders.shop.mesh"];
    let Hosts::Some(found) = changed.hosts else { panic!("only its own") };
    assert!(touched.iter().all(|host| found.contains(*host)), "{found:?}");
    check(
        &mesh,
        &[
            ("[fd00::2]:9000", "zoo", None),
            ("10.99.0.1:80", "zoo", None),
            ("10.0.0.1:8080", "zoo", None),
            ("10.0.0.1:80", "zoo", Some("shop/orders")),
        ],
    );
}

#[test]
fn an_alias_is_host_and_port() {
    for (alias, expected) in [
        ("a.b:80", Some(("a.b", 80))),
        ("[::1]:80", Some(("::1", 80))),
        ("10.0.0.1:65535", Some(("10.0.0.1", 65535))),
        ("A.B.:1", Some(("a.b", 1))),
        ("a.b", None),
        ("a.b:", None),
        ("a.b:0", None),
        ("a.b:+80", None),
        ("a.b:65536", None),
        (":80", None),
        (".:80", None),
    ] {
        assert_eq!(parse_alias(alias), expected.map(|(host, port)| (host.to_owned(), port)), "{alias}");
    }
    assert_eq!(parse_alias(&format!("{}:80", "a".repeat(300))), None);
}
