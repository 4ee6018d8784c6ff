use heddle_api::resource::{ObjectKind, PortProtocol};
use heddle_certs::TrustDomain;
use serde_json::{Value, json};

use super::*;
use crate::{
    compile::{self, ResourceKind, tests::bundle},
    kubernetes::objects::Followed,
    mesh::Mesh,
};
use heddle_api::proto::discovery as proto;
use prost::Message as _;

/// A cluster, and the mesh that follows it.
struct World {
    reducer: Reducer,
    mesh: Mesh,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new(TrustDomain::new("td").unwrap()).in_cluster(Some("cluster.local"));
        Self { reducer: Reducer::default(), mesh }
    }

    fn take(&mut self, events: Vec<ClusterEvent>) -> Vec<Change> {
        let changes = self.reducer.reduce(events);
        self.mesh.derive(&changes);
        changes
    }

    fn put(&mut self, events: Vec<ClusterEvent>) -> &mut Self {
        self.take(events);
        self
    }

    fn endpoints(&self, service: &str) -> Vec<proto::Endpoint> {
        let compiled = compile::compile(&self.mesh, &bundle(), ResourceKind::Endpoints, service);
        compiled.map(|compiled| proto::Endpoints::decode(compiled.body).unwrap().endpoints).unwrap_or_default()
    }

    /// Address, identity's account (`-`: plaintext) and readiness of each.
    fn shown(&self, service: &str) -> Vec<String> {
        let show = |one: &proto::Endpoint| {
            let identity = one.identities.first().map_or("-", |id| id.rsplit('/').next().unwrap());
            assert_eq!(one.meshed, !one.identities.is_empty());
            format!("{} {identity} {}", one.address, if one.ready { "ready" } else { "not" })
        };
        self.endpoints(service).iter().map(show).collect()
    }

    fn service(&self, name: &str) -> proto::Service {
        let compiled = compile::compile(&self.mesh, &bundle(), ResourceKind::Service, name).unwrap();
        proto::Service::decode(compiled.body).unwrap()
    }

    fn workload(&self, name: &str) -> Option<proto::Workload> {
        let compiled = compile::compile(&self.mesh, &bundle(), ResourceKind::Workload, name)?;
        Some(proto::Workload::decode(compiled.body).unwrap())
    }

    fn resolves(&self, host: &str, port: u16) -> Option<String> {
        self.mesh.resolve(host, port, "shop").map(|name| name.to_string())
    }
}

fn event<F: Followed>(document: Value) -> Event<F> {
    let wire: F::Wire = serde_json::from_value(document).unwrap();
    let name = F::metadata(&wire).name();
    match F::read(wire) {
        Some(object) => Event::Put(name, object),
        None => Event::Gone(name),
    }
}

fn service(name: &str, spec: Value) -> ClusterEvent {
    ClusterEvent::Service(event(json!({
        "metadata": { "name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z" }, "spec": spec,
    })))
}

/// A Service with a cluster IP and port 80 at the apps' 8080.
fn web() -> ClusterEvent {
    service(
        "web",
        json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
            "ports": [{ "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        }),
    )
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> ClusterEvent {
    ClusterEvent::Slice(event(json!({
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })))
}

fn web_slice(endpoints: Value) -> ClusterEvent {
    slice("web-1", "web", json!([{ "name": "", "port": 8080, "protocol": "TCP" }]), endpoints)
}

fn endpoint(pod: &str, ip: &str, ready: bool) -> Value {
    json!({
        "addresses": [ip], "conditions": { "ready": ready, "serving": ready, "terminating": false },
        "zone": "zone-a", "targetRef": { "kind": "Pod", "name": pod, "namespace": "shop", "uid": format!("uid-{pod}") },
    })
}

fn pod_document(name: &str, ips: &[&str], meshed: bool) -> Value {
    let ips: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let containers = if meshed { json!([{ "name": "heddle-proxy", "restartPolicy": "Always" }]) } else { json!([]) };
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": "web" },
            "ownerReferences": [{ "kind": "ReplicaSet", "name": "web-7f", "controller": true }],
        },
        "spec": {
            "serviceAccountName": "web", "containers": [{ "name": "app" }], "initContainers": containers,
        },
        "status": { "phase": "Running", "podIPs": ips },
    })
}

fn pod(name: &str, ip: &str) -> ClusterEvent {
    ClusterEvent::Pod(event(pod_document(name, &[ip], true)))
}

fn plain_pod(name: &str, ip: &str) -> ClusterEvent {
    ClusterEvent::Pod(event(pod_document(name, &[ip], false)))
}

fn gone_pod(name: &str) -> ClusterEvent {
    ClusterEvent::Pod(Event::Gone(Name::new("shop", name)))
}

#[test]
fn a_service_with_pods_is_a_service_of_the_mesh() {
    let mut world = World::new();
    world.put(vec![web(), web_slice(json!([endpoint("a", "10.1.0.1", true), endpoint("b", "10.1.0.2", false)]))]);
    world.put(vec![pod("a", "10.1.0.1"), pod("b", "10.1.0.2")]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web ready", "10.1.0.2:15006 web not"]);
    let endpoint = world.endpoints("shop/web").remove(0);
    assert_eq!((&*endpoint.workload, &*endpoint.zone), ("shop/a", "zone-a"));
    assert_eq!(endpoint.identities, ["spiffe://td/ns/shop/sa/web"]);
    let compiled = world.service("shop/web");
    assert_eq!(compiled.addresses, ["10.96.0.1"]);
    for host in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.mesh"] {
        assert!(compiled.hosts.iter().any(|known| known == host), "{host}: {:?}", compiled.hosts);
        assert_eq!(world.resolves(host, 80).as_deref(), Some("shop/web"));
    }
    assert_eq!(world.resolves("10.96.0.1", 80).as_deref(), Some("shop/web"), "the cluster IP");
    assert_eq!(world.resolves("10.1.0.1", 8080).as_deref(), Some("shop/web"), "a pod, at its app's port");
    assert_eq!(world.resolves("10.1.0.1", 80), None);
    let object = world.mesh.service(&Name::new("shop", "web")).unwrap();
    assert_eq!(object.spec.service_accounts, ["web"]);
    assert_eq!((object.spec.ports[0].port, object.spec.ports[0].target_port), (80, Some(8080)));
    // What its own proxy is told.
    let workload = world.workload("shop/a").unwrap();
    assert_eq!((&workload.addresses[..], &*workload.services[0].service), (&["10.1.0.1".to_owned()][..], "shop/web"));
    let port = &workload.services[0].ports[0];
    assert_eq!((port.port, port.target_port), (80, 8080));
}

#[test]
fn readiness_is_the_slices_to_say_and_touches_nothing_but_endpoints() {
    let mut world = World::new();
    world.put(vec![web(), pod("a", "10.1.0.1"), web_slice(json!([endpoint("a", "10.1.0.1", false)]))]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web not"]);
    let before = Arc::clone(world.mesh.service(&Name::new("shop", "web")).unwrap());
    let changes = world.take(vec![web_slice(json!([endpoint("a", "10.1.0.1", true)]))]);
    assert_eq!(changes.len(), 1, "the service, and not the pod: {changes:?}");
    let mut other = World::new();
    other.put(vec![web(), pod("a", "10.1.0.1"), web_slice(json!([endpoint("a", "10.1.0.1", false)]))]);
    let again = other.reducer.reduce(vec![web_slice(json!([endpoint("a", "10.1.0.1", true)]))]);
    let affected = other.mesh.derive(&again);
    assert_eq!((affected.services.len(), affected.inbound.len(), affected.endpoints.len()), (0, 0, 1), "{affected:?}");
    assert_eq!(affected.hosts, crate::mesh::Hosts::default());
    assert!(Arc::ptr_eq(&before, world.mesh.service(&Name::new("shop", "web")).unwrap()));
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web ready"]);
    let is_ready = |world: &World| world.mesh.is_pod_ready(world.mesh.pod(&Name::new("shop", "a")).unwrap());
    assert!(is_ready(&world));
    world.put(vec![web_slice(json!([endpoint("a", "10.1.0.1", false)]))]);
    assert!(!is_ready(&world));
    world.put(vec![web_slice(json!([endpoint("a", "10.1.0.1", true)]))]);
    // The same again is no change.
    assert!(
        world.take(vec![web_slice(json!([endpoint("a", "10.1.0.1", true)])), web(), pod("a", "10.1.0.1")]).is_empty()
    );
}

#[test]
fn an_endpoint_waits_for_the_very_pod_that_it_names() {
    let mut world = World::new();
    world.put(vec![web(), web_slice(json!([endpoint("a", "10.1.0.1", true)]))]);
    assert!(world.shown("shop/web").is_empty(), "whether it has a proxy is not known");
    let mut other = pod_document("a", &["10.1.0.1"], false);
    other["metadata"]["uid"] = "uid-of-before".into();
    world.put(vec![ClusterEvent::Pod(event(other))]);
    assert!(world.shown("shop/web").is_empty(), "another pod of this name");
    world.put(vec![pod("a", "10.1.0.9")]);
    assert!(world.shown("shop/web").is_empty(), "another address");
    world.put(vec![pod("a", "10.1.0.1")]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web ready"]);
    world.put(vec![gone_pod("a")]);
    assert!(world.shown("shop/web").is_empty());
    assert_eq!(world.resolves("10.1.0.1", 8080), None);
}

#[test]
fn a_reused_address_is_called_as_the_pod_that_has_it_now() {
    let mut world = World::new();
    world.put(vec![web(), plain_pod("old", "10.1.0.1"), web_slice(json!([endpoint("old", "10.1.0.1", true)]))]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:8080 - ready"]);
    // The old one has ended, and its address goes to one with a proxy, before the slice is written anew.
    let mut ended = pod_document("old", &["10.1.0.1"], false);
    ended["status"]["phase"] = "Succeeded".into();
    world.put(vec![ClusterEvent::Pod(event(ended)), pod("new", "10.1.0.1")]);
    assert!(world.shown("shop/web").is_empty(), "never in plaintext to the new one");
    world.put(vec![web_slice(json!([endpoint("new", "10.1.0.1", true)]))]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web ready"]);
}

#[test]
fn endpoints_with_and_without_proxy_are_mixed_and_told() {
    let mut world = World::new();
    world.put(vec![
        web(),
        pod("a", "10.1.0.1"),
        plain_pod("b", "10.1.0.2"),
        web_slice(
            json!([endpoint("a", "10.1.0.1", true), endpoint("b", "10.1.0.2", true), {"addresses": ["192.168.0.7"]}]),
        ),
    ]);
    let expected = ["10.1.0.1:15006 web ready", "10.1.0.2:8080 - ready", "192.168.0.7:8080 - ready"];
    assert_eq!(world.shown("shop/web"), expected);
    let conditions = compile::conditions::of(&world.mesh, ObjectKind::Service, &Name::new("shop", "web"));
    assert_eq!(conditions[0].r#type, "CalledInPlaintext");
    assert!(conditions[0].message.starts_with("2 of 3 instances have no proxy"), "{}", conditions[0].message);
    // An address alone that turns out to be a pod's with a proxy.
    world.put(vec![pod("c", "192.168.0.7")]);
    assert_eq!(world.shown("shop/web")[2], "192.168.0.7:15006 web ready");
    world.put(vec![gone_pod("c")]);
    assert_eq!(world.shown("shop/web")[2], "192.168.0.7:8080 - ready");
}

#[test]
fn several_ports_named_targets_and_what_they_speak() {
    let mut world = World::new();
    let ports = json!([
        { "name": "web", "port": 80, "targetPort": "app", "appProtocol": "http" },
        { "name": "rpc", "port": 9000, "targetPort": 9001, "appProtocol": "grpc" },
        { "name": "h2", "port": 81, "appProtocol": "kubernetes.io/h2c" },
        { "name": "secure", "port": 443, "appProtocol": "https" },
        { "name": "http-by-name-only", "port": 82 },
        { "name": "other", "port": 83, "appProtocol": "example.com/own" },
        { "name": "dns", "port": 53, "protocol": "UDP" },
    ]);
    let one = |app: u16| json!([{ "name": "web", "port": app }, { "name": "rpc", "port": 9001 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    world.put(vec![
        service("many", json!({ "clusterIPs": ["10.96.0.2"], "ports": ports })),
        pod("a", "10.1.0.1"),
        pod("b", "10.1.0.2"),
        slice("many-1", "many", one(8080), json!([endpoint("a", "10.1.0.1", true)])),
        slice("many-2", "many", one(8081), json!([endpoint("b", "10.1.0.2", true)])),
    ]);
    let object = world.mesh.service(&Name::new("shop", "many")).unwrap();
    let protocols: Vec<_> = object.spec.ports.iter().map(|port| (port.port, port.protocol)).collect();
    assert_eq!(
        protocols,
        [
            (80, Some(PortProtocol::Http)),
            (9000, Some(PortProtocol::Grpc)),
            (81, Some(PortProtocol::Http2)),
            (443, Some(PortProtocol::Tcp)),
            (82, None),
            (83, None)
        ]
    );
    // Each pod has its own meaning of a named port.
    let targets = |index: usize| -> Vec<(u32, u32)> {
        world.endpoints("shop/many")[index].ports.iter().map(|port| (port.port, port.target_port)).collect()
    };
    assert_eq!(targets(0), [(80, 8080), (9000, 9001)]);
    assert_eq!(targets(1), [(80, 8081), (9000, 9001)]);
    assert_eq!(world.resolves("10.1.0.2", 8081).as_deref(), Some("shop/many"));
    assert_eq!(world.resolves("10.1.0.2", 8080), None);
}

#[test]
fn of_a_headless_service_each_pod_has_a_name() {
    let mut world = World::new();
    let mut first = endpoint("db-0", "10.1.0.1", true);
    first["hostname"] = "db-0".into();
    world.put(vec![
        service("db", json!({ "clusterIP": "None", "clusterIPs": ["None"], "ports": [{ "port": 5432 }] })),
        pod("db-0", "10.1.0.1"),
        slice("db-1", "db", json!([{ "name": "", "port": 5432 }]), json!([first])),
    ]);
    assert!(world.service("shop/db").addresses.is_empty());
    for host in ["db.shop", "db-0.db.shop", "db-0.db.shop.svc", "db-0.db.shop.svc.cluster.local", "10.1.0.1"] {
        assert_eq!(world.resolves(host, 5432).as_deref(), Some("shop/db"), "{host}");
    }
    assert_eq!(world.resolves("db-1.db.shop", 5432), None);
    assert_eq!(world.endpoints("shop/db")[0].hostname, "db-0");
}

#[test]
fn in_both_families_a_pod_is_balanced_once() {
    let mut world = World::new();
    let spec = json!({
        "clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"], "ports": [{ "port": 80 }],
    });
    let port = json!([{ "name": "", "port": 80 }]);
    world.put(vec![
        service("both", spec),
        ClusterEvent::Pod(event(pod_document("a", &["10.1.0.1", "fd00::a"], true))),
        ClusterEvent::Pod(event(pod_document("b", &["10.1.0.2"], true))),
        slice("v4", "both", port.clone(), json!([endpoint("a", "10.1.0.1", true), endpoint("b", "10.1.0.2", true)])),
        slice("v6", "both", port, json!([endpoint("a", "fd00::a", true)])),
    ]);
    let expected = ["10.1.0.1:15006 web not", "10.1.0.2:15006 web ready", "[fd00::a]:15006 web ready"];
    assert_eq!(world.shown("shop/both"), expected, "a by its IPv6 address, b by the only one that it has");
    assert_eq!(world.service("shop/both").addresses, ["fd00::1", "10.96.0.1"]);
    for address in ["10.1.0.1", "fd00::a", "10.96.0.1", "fd00::1"] {
        assert_eq!(world.resolves(address, 80).as_deref(), Some("shop/both"), "{address}");
    }
}

#[test]
fn those_that_end_serve_only_where_nobody_else_does() {
    let ending = |mut endpoint: Value| {
        endpoint["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
        endpoint
    };
    let mut world = World::new();
    world.put(vec![
        web(),
        pod("a", "10.1.0.1"),
        pod("b", "10.1.0.2"),
        web_slice(json!([ending(endpoint("a", "10.1.0.1", true)), endpoint("b", "10.1.0.2", true)])),
    ]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web not", "10.1.0.2:15006 web ready"]);
    world.put(vec![web_slice(json!([ending(endpoint("a", "10.1.0.1", true)), endpoint("b", "10.1.0.2", false)]))]);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web ready", "10.1.0.2:15006 web not"]);
    // Its own word that it leaves counts more.
    let affected = world.mesh.leave(&Name::new("shop", "a"), true);
    assert_eq!(affected.endpoints.len(), 1);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web not", "10.1.0.2:15006 web not"]);
    assert!(world.mesh.leave(&Name::new("shop", "a"), true).endpoints.is_empty());
    // Another pod of the name has said nothing.
    let mut again = pod_document("a", &["10.1.0.1"], true);
    again["metadata"]["uid"] = "another".into();
    world.put(vec![ClusterEvent::Pod(event(again))]);
    assert!(!world.mesh.is_leaving(&Name::new("shop", "a")));
}

#[test]
fn an_external_name_is_no_service_and_one_without_tcp_neither() {
    let mut world = World::new();
    world.put(vec![
        service("out", json!({ "type": "ExternalName", "externalName": "example.com", "ports": [{ "port": 80 }] })),
        service("udp", json!({ "clusterIP": "10.96.0.9", "ports": [{ "port": 53, "protocol": "UDP" }] })),
        web(),
    ]);
    assert_eq!(world.mesh.service_count(), 1);
    // One that comes to be an ExternalName goes.
    world.put(vec![service("web", json!({ "type": "ExternalName", "externalName": "example.com" }))]);
    assert_eq!(world.mesh.service_count(), 0);
    assert_eq!(world.mesh.namespaces().count(), 0);
}

#[test]
fn ports_that_clients_without_a_sidecar_may_call_are_named_by_an_annotation() {
    let annotated = |ports: &str| {
        let document = json!({
            "metadata": { "name": "web", "namespace": "shop", "annotations": { "heddle.dev/permissive-ports": ports } },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] },
        });
        let mut world = World::new();
        world.put(vec![ClusterEvent::Service(event(document))]);
        let object = Arc::clone(world.mesh.service(&Name::new("shop", "web")).unwrap());
        object.spec.ports.iter().map(|port| port.mtls == MtlsMode::Permissive).collect::<Vec<_>>()
    };
    assert_eq!(annotated("80"), [true, false]);
    assert_eq!(annotated("a, 81"), [true, true]);
    assert_eq!(annotated("*"), [true, true]);
    assert_eq!(annotated("8"), [false, false]);
    assert_eq!(annotated(""), [false, false]);
}

#[test]
fn a_declared_service_hides_that_of_kubernetes_and_brings_it_to_light_again() {
    let mut world = World::new();
    world.put(vec![web(), pod("a", "10.1.0.1"), web_slice(json!([endpoint("a", "10.1.0.1", true)]))]);
    let name = Name::new("shop", "web");
    let declared = "{kind: Service, metadata: {name: web}, spec: {ports: [{port: 90}]}}";
    let affected = world.mesh.put(crate::mesh::tests::objects(declared).remove(0));
    assert!(affected.hosts != crate::mesh::Hosts::default(), "{affected:?}");
    assert!(world.shown("shop/web").is_empty());
    assert_eq!((world.resolves("10.96.0.1", 80), world.resolves("10.1.0.1", 8080)), (None, None));
    let said = compile::conditions::of(&world.mesh, ObjectKind::Service, &name);
    assert_eq!(said[0].r#type, "HidesKubernetesService");
    // What happens meanwhile is not lost, and another cluster's view takes the same over.
    world.put(vec![web_slice(json!([endpoint("a", "10.1.0.1", false)]))]);
    assert!(world.shown("shop/web").is_empty());
    let mut next = crate::mesh::tests::mesh(declared);
    next.inherit(&mut world.mesh);
    world.mesh = next;
    assert!(world.shown("shop/web").is_empty());
    world.mesh.remove(ObjectKind::Service, &name);
    assert_eq!(world.shown("shop/web"), ["10.1.0.1:15006 web not"]);
    assert_eq!(world.resolves("web.shop.svc.cluster.local", 80).as_deref(), Some("shop/web"));
    // The other way round: the one of Kubernetes goes first.
    world.mesh.put(crate::mesh::tests::objects(declared).remove(0));
    world.put(vec![ClusterEvent::Service(Event::Gone(name.clone()))]);
    assert_eq!(world.service("shop/web").ports[0].port, 90);
    world.mesh.remove(ObjectKind::Service, &name);
    assert_eq!((world.mesh.service_count(), world.mesh.namespaces().count()), (0, 0));
}

#[test]
fn a_list_anew_removes_what_is_no_longer_there() {
    let mut world = World::new();
    world.put(vec![web(), pod("a", "10.1.0.1"), pod("b", "10.1.0.2")]);
    world.put(vec![web_slice(json!([endpoint("a", "10.1.0.1", true), endpoint("b", "10.1.0.2", true)]))]);
    let Event::Put(name, kept) = event::<Pod>(pod_document("b", &["10.1.0.2"], true)) else { panic!() };
    let changes = world.take(vec![ClusterEvent::Pod(Event::All(vec![(name, kept)]))]);
    assert_eq!(changes.len(), 2, "the service and the pod that is gone: {changes:?}");
    assert_eq!(world.shown("shop/web"), ["10.1.0.2:15006 web ready"]);
}

#[test]
fn churn_leaves_nothing_behind() {
    let mut world = World::new();
    world.put(vec![web()]);
    for round in 0..10 {
        let name = |index: usize| format!("web-{round}-{index}");
        let ip = |index: usize| format!("10.1.{round}.{index}");
        let up: Vec<_> = (1..=20).map(|index| endpoint(&name(index), &ip(index), true)).collect();
        for index in 1..=20 {
            world.put(vec![pod(&name(index), &ip(index))]);
        }
        world.put(vec![web_slice(Value::Array(up))]);
        assert_eq!(world.shown("shop/web").len(), 20);
        world.mesh.leave(&Name::new("shop", &name(1)), true);
        for index in 1..=20 {
            world.put(vec![gone_pod(&name(index))]);
        }
        world.put(vec![web_slice(json!([]))]);
    }
    world.put(vec![ClusterEvent::Slice(Event::Gone(Name::new("shop", "web-1")))]);
    world.put(vec![ClusterEvent::Service(Event::Gone(Name::new("shop", "web")))]);
    let Reducer { services, slices, slices_of, pods, pods_at, needs, needed_by, serves, derived, told_pods } =
        &world.reducer;
    let left = [
        services.len(),
        slices.len(),
        slices_of.len(),
        pods.len(),
        pods_at.len(),
        needs.len(),
        needed_by.len(),
        serves.len(),
        derived.len(),
        told_pods.len(),
    ];
    assert_eq!(left, [0; 10]);
    assert!(world.mesh.is_without_cluster());
}
