mod pods;

use std::time::SystemTime;

use heddle_api::proto::registration::Instance;
use heddle_certs::{SystemClock, TrustDomain, verify};
use tonic::Code;

use super::*;
use crate::{
    compile::tests::bundle,
    follow,
    mesh::{Mesh, tests::objects},
    registry::{Author, Operation},
    store::{RedbOptions, RedbStore},
};

const LEASE: Duration = Duration::from_secs(30);

/// A control plane without listeners.
struct World {
    folder: tempfile::TempDir,
    registry: Arc<Registry>,
    registrations: Registrations,
    hub: Hub,
    stop: drain::Signal,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self::open(folder).await;
        world.apply("{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}").await;
        world.apply("{kind: Service, metadata: {name: shared}, spec: {ports: [{port: 80}], serviceAccounts: [orders, batch]}}").await;
        world
    }

    async fn open(folder: tempfile::TempDir) -> Self {
        let store = RedbStore::open(&folder.path().join("store.redb"), &RedbOptions::default()).unwrap();
        let registry = Registry::open(Arc::new(store)).await.unwrap();
        let metrics = Metrics::new().unwrap();
        let trust_domain = TrustDomain::new("td").unwrap();
        let hub = Hub::new(Mesh::new(trust_domain.clone()), bundle(), metrics.clone());
        let registrations =
            Registrations::new(Arc::clone(&registry), hub.clone(), LEASE, SystemClock::shared(), metrics);
        let (view, changes) = registry.subscribe();
        hub.replace(view.revision(), follow::mesh_of(&view, &trust_domain, &registrations));
        let (stop, watch) = drain::channel();
        watch.spawn(follow::follow(changes, hub.clone(), registrations.clone(), trust_domain, watch.clone()));
        Self { folder, registry, registrations, hub, stop }
    }

    /// Stops and starts again with the same store.
    async fn restart(self) -> Self {
        let Self { folder, registry, registrations, hub, stop } = self;
        stop.drain();
        stop.finished().await;
        drop((registry, registrations, hub));
        Self::open(folder).await
    }

    async fn apply(&self, yaml: &str) {
        let operations = objects(yaml).into_iter().map(|object| Operation::Apply { object, expected: None }).collect();
        let author = Author { name: "tester".to_owned(), reason: None };
        self.registry.apply(operations, &author, false).await.unwrap();
        self.settle().await;
    }

    /// Waits until the mesh is where the registry is.
    async fn settle(&self) {
        let revision = self.registry.view().revision();
        assert!(self.hub.reached(revision, Instant::now() + Duration::from_secs(10)).await);
    }

    async fn register(&self, account: &str, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        let answer = self.registrations.register(&peer(account), request).await;
        self.settle().await;
        answer
    }

    async fn deregister(&self, account: &str, workload: &str) -> Result<DeregisterResponse, Status> {
        let request = DeregisterRequest { workload: workload.to_owned(), wait_milliseconds: 1000 };
        self.registrations.deregister(&peer(account), request).await
    }

    /// Endpoints of a service: workload and readiness.
    fn endpoints(&self, service: &str) -> Vec<(String, bool)> {
        self.hub.read(|mesh| {
            let name = Name::parse(service).unwrap();
            let found = mesh.registered_workloads(&name);
            found.map(|workload| (workload.name.name.to_string(), workload.ready)).collect()
        })
    }
}

fn peer(account: &str) -> Peer {
    let id = format!("spiffe://td/ns/shop/sa/{account}").parse().unwrap();
    let not_after = SystemTime::now() + Duration::from_secs(3600);
    Peer {
        address: "10.0.0.1:40000".parse().unwrap(),
        certificate: Some(verify::Peer { id, not_after }),
        fingerprint: None,
        shown: None,
    }
}

fn request(workload: &str, services: &[&str]) -> RegisterRequest {
    let instance = |service: &&str| Instance { service: (*service).to_owned(), ..Instance::default() };
    RegisterRequest {
        workload: workload.to_owned(),
        instances: services.iter().map(instance).collect(),
        address: ":15006".to_owned(),
        ready: true,
        ..RegisterRequest::default()
    }
}

fn on_port(request: RegisterRequest, port: u16) -> RegisterRequest {
    RegisterRequest { address: format!(":{port}"), ..request }
}

#[tokio::test]
async fn a_workload_is_an_endpoint_of_the_services_that_list_it() {
    let world = World::new().await;
    let answer = world.register("orders", request("orders-1", &["shop/orders", "shop/shared"])).await.unwrap();
    assert_eq!(answer.lease_seconds, 30);
    assert_eq!(world.endpoints("shop/orders"), [("orders-1".to_owned(), true)]);
    assert_eq!(world.endpoints("shop/shared"), [("orders-1".to_owned(), true)]);
    assert!(world.deregister("orders", "orders-1").await.unwrap().acknowledged);
    assert_eq!(world.endpoints("shop/orders"), []);
    assert!(world.deregister("orders", "orders-1").await.unwrap().acknowledged, "again");
}

#[tokio::test]
async fn what_is_not_the_callers_is_refused_whole() {
    let world = World::new().await;
    let ports = |ports: &[u32]| {
        let mut request = request("w", &["shop/orders"]);
        request.instances[0].ports = ports.to_vec();
        request
    };
    let denied = Code::PermissionDenied;
    let invalid = Code::InvalidArgument;
    for (what, account, request, code) in [
        ("another account", "batch", request("w", &["shop/orders"]), denied),
        ("one of two", "batch", request("w", &["shop/shared", "shop/orders"]), denied),
        ("no such service", "orders", request("w", &["shop/nothing"]), denied),
        ("another namespace", "orders", request("w", &["other/orders"]), denied),
        ("not a name", "orders", request("w", &["orders"]), invalid),
        ("twice", "orders", request("w", &["shop/orders", "shop/orders"]), invalid),
        ("port 0", "orders", ports(&[0]), invalid),
        ("port 65536", "orders", ports(&[65_536]), invalid),
        ("name", "orders", request("W/..", &["shop/orders"]), invalid),
        ("long name", "orders", request(&"w".repeat(1000), &["shop/orders"]), invalid),
        ("address", "orders", RegisterRequest { address: "10.9.9.9:1".to_owned(), ..request("w", &[]) }, denied),
        ("zone", "orders", RegisterRequest { zone: "z".repeat(1000), ..request("w", &[]) }, invalid),
        (
            "labels",
            "orders",
            RegisterRequest {
                labels: (0..100).map(|index| (index.to_string(), String::new())).collect(),
                ..request("w", &[])
            },
            invalid,
        ),
        ("services", "orders", request("w", &["shop/orders"; 65]), invalid),
    ] {
        let status = world.register(account, request).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(world.registry.view().registrations(None, None).next().is_none(), "{what}");
    }
    let nobody = Peer { certificate: None, ..peer("orders") };
    let status = world.registrations.register(&nobody, request("w", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut expired = peer("orders");
    expired.certificate.as_mut().unwrap().not_after = SystemTime::now() - Duration::from_secs(1);
    let status = world.registrations.register(&expired, request("w", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut control_plane = peer("orders");
    control_plane.certificate.as_mut().unwrap().id = SpiffeId::control_plane(&TrustDomain::new("td").unwrap());
    let status = world.registrations.register(&control_plane, request("w", &[])).await.unwrap_err();
    assert_eq!(status.code(), denied);
}

#[tokio::test]
async fn a_name_belongs_to_the_identity_that_has_it() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/shared"])).await.unwrap();
    let taken = world.register("batch", on_port(request("w", &["shop/shared"]), 2)).await.unwrap_err();
    assert_eq!(taken.code(), Code::PermissionDenied);
    assert_eq!(world.deregister("batch", "w").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(world.endpoints("shop/shared").len(), 1);
    world.deregister("orders", "w").await.unwrap();
    world.register("batch", on_port(request("w", &["shop/shared"]), 2)).await.unwrap();

    let declared = "{kind: Workload, metadata: {name: d}, spec: {address: 10.0.0.9, inboundPort: 1, serviceAccount: batch, services: [{name: shared}]}}";
    world.apply(declared).await;
    let hidden = world.register("orders", request("d", &["shop/shared"])).await.unwrap_err();
    assert_eq!(hidden.code(), Code::PermissionDenied, "it would hide the declared workload");
    let there = RegisterRequest { address: "10.0.0.9:7".to_owned(), ..request("d", &["shop/shared"]) };
    world.register("batch", there).await.unwrap();
}

#[tokio::test]
async fn who_listens_at_an_address_supersedes_who_did() {
    let world = World::new().await;
    world.register("orders", request("before", &["shop/shared"])).await.unwrap();
    world.register("batch", request("stranger", &["shop/shared"])).await.unwrap();
    world.register("orders", on_port(request("elsewhere", &["shop/shared"]), 7)).await.unwrap();
    world.register("orders", request("after", &["shop/shared"])).await.unwrap();
    let mut names: Vec<_> = world.endpoints("shop/shared").into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["after", "elsewhere", "stranger"]);
}

#[tokio::test]
async fn renewals_tell_readiness_and_write_it_when_it_changes() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let revision = world.registry.store().revision();
    for ready in [true, true, false, false, true] {
        let renewal = RegisterRequest { ready, ..request("w", &["shop/orders"]) };
        world.register("orders", renewal).await.unwrap();
        assert_eq!(world.endpoints("shop/orders"), [("w".to_owned(), ready)]);
    }
    assert_eq!(world.registry.store().revision(), revision + 2, "two changes");
    // Something else that concerns the endpoint does not make it ready again.
    world.register("orders", RegisterRequest { ready: false, ..request("w", &["shop/orders"]) }).await.unwrap();
    let changed = RegisterRequest { ready: false, zone: "z".to_owned(), ..request("w", &["shop/orders"]) };
    world.register("orders", changed).await.unwrap();
    assert_eq!(world.endpoints("shop/orders"), [("w".to_owned(), false)]);
    assert_eq!(world.registry.store().revision(), revision + 4);
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    world.register("orders", on_port(request("v", &["shop/orders"]), 2)).await.unwrap();
    let start = Instant::now();
    for second in 1..=29 {
        world.registrations.expire_once(start + Duration::from_secs(second)).await;
    }
    world.settle().await;
    assert_eq!(world.endpoints("shop/orders").len(), 2);
    world.registrations.leases().renew(&Name::new("shop", "v"), true, start + Duration::from_secs(29));
    world.registrations.expire_once(start + Duration::from_secs(31)).await;
    world.settle().await;
    assert_eq!(world.endpoints("shop/orders"), [("v".to_owned(), true)]);
    assert!(world.registry.view().registration(&Name::new("shop", "w")).is_none());
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    assert_eq!(world.endpoints("shop/orders").len(), 2, "back when it calls again");
}

#[tokio::test]
async fn a_restart_keeps_everyone_for_a_full_lease() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let world = world.restart().await;
    assert_eq!(world.endpoints("shop/orders"), [("w".to_owned(), true)]);
    let start = Instant::now();
    for second in 1..=29 {
        world.registrations.expire_once(start + Duration::from_secs(second)).await;
    }
    assert_eq!(world.endpoints("shop/orders").len(), 1);
    let revision = world.registry.store().revision();
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    assert_eq!(world.registry.store().revision(), revision, "it calls as if nothing had been");
}

#[tokio::test]
async fn leases_are_looked_at_by_themselves() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let (stop, watch) = drain::channel();
    watch.spawn(world.registrations.clone().expire(watch.clone()));
    // Paused only while nobody waits for the store, which has a clock and a thread of its own.
    tokio::time::pause();
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(world.endpoints("shop/orders").len(), 1);
    tokio::time::sleep(LEASE / 2 - LOOK).await;
    assert_eq!(world.endpoints("shop/orders").len(), 1);
    tokio::time::resume();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !world.endpoints("shop/orders").is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.drain();
    stop.finished().await;
}

#[tokio::test]
async fn endpoints_follow_a_service_that_comes_and_goes() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let compiled = |world: &World| {
        world.hub.read(|mesh| {
            crate::compile::compile(mesh, &bundle(), crate::compile::ResourceKind::Endpoints, "shop/orders")
                .map(|compiled| compiled.body.len() > 20)
        })
    };
    assert_eq!(compiled(&world), Some(true));
    world
        .apply("{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}], serviceAccounts: [batch]}}")
        .await;
    assert_eq!(compiled(&world), Some(false), "its account is no longer listed");
    world.apply("{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}").await;
    assert_eq!(compiled(&world), Some(true));
}

#[tokio::test]
async fn what_the_mesh_has_not_heard_of_is_not_acknowledged() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    world.stop.drain();
    world.stop.finished().await;
    assert!(!world.deregister("orders", "w").await.unwrap().acknowledged, "nobody has been told yet");
}

#[tokio::test]
async fn a_registration_that_others_removed_has_no_lease() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let known = world.registry.view().registration(&Name::new("shop", "w")).cloned().unwrap();
    assert!(world.registry.deregister(&[known]).await.unwrap());
    world.settle().await;
    assert_eq!(world.registrations.leases().count(), 0);
    assert_eq!(world.endpoints("shop/orders"), []);
}

#[tokio::test]
async fn word_of_readiness_that_comes_after_the_removal_brings_nobody_back() {
    let world = World::new().await;
    world.register("orders", request("w", &["shop/orders"])).await.unwrap();
    let name = Name::new("shop", "w");
    world.registrations.publish(&name);
    assert_eq!(world.endpoints("shop/orders").len(), 1);
    world.deregister("orders", "w").await.unwrap();
    world.settle().await;
    // A renewal that changed readiness had been let through before, and waited for the mesh.
    world.registrations.publish(&name);
    assert_eq!(world.endpoints("shop/orders"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_that_take_a_name_at_once_one_gets_it() {
    let world = Arc::new(World::new().await);
    for round in 0..20 {
        let workload = format!("w-{round}");
        let both = ["orders", "batch"].map(|account| {
            let (world, request) = (Arc::clone(&world), request(&workload, &["shop/shared"]));
            let port = 1000 + 2 * round + u16::from(account == "batch");
            tokio::spawn(async move { world.registrations.register(&peer(account), on_port(request, port)).await })
        });
        let [orders, batch] = both;
        let results = [orders.await.unwrap(), batch.await.unwrap()];
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        let winner = if results[0].is_ok() { "orders" } else { "batch" };
        let view = world.registry.view();
        let known = view.registration(&Name::new("shop", &workload)).unwrap();
        assert!(known.identity.ends_with(winner), "{} has it, {winner} was told so", known.identity);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_one_address_one_is_left() {
    let world = Arc::new(World::new().await);
    let all = (0..20).map(|index| {
        let (world, request) = (Arc::clone(&world), request(&format!("w-{index}"), &["shop/orders"]));
        tokio::spawn(async move { world.registrations.register(&peer("orders"), request).await.unwrap() })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    world.settle().await;
    assert_eq!(world.endpoints("shop/orders").len(), 1);
    assert_eq!(world.registrations.leases().count(), 1);
}

#[tokio::test]
async fn leases_that_end_together_go_in_one_transaction() {
    let world = World::new().await;
    for index in 0..50 {
        let request = on_port(request(&format!("w-{index}"), &["shop/orders"]), 1000 + index);
        world.register("orders", request).await.unwrap();
    }
    let revision = world.registry.store().revision();
    world.registrations.expire_once(Instant::now() + LEASE + LOOK).await;
    world.settle().await;
    assert_eq!(world.endpoints("shop/orders"), []);
    assert_eq!(world.registry.store().revision(), revision + 1);
    assert_eq!(world.registrations.0.metrics.leases_expired.get(), 50);
}

#[tokio::test]
async fn a_restart_makes_nobody_ready_who_is_not() {
    let world = World::new().await;
    let says = |ready| RegisterRequest { ready, ..request("w", &["shop/orders"]) };
    let is = |ready| vec![("w".to_owned(), ready)];
    world.register("orders", says(false)).await.unwrap();
    let world = world.restart().await;
    assert_eq!(world.endpoints("shop/orders"), is(false));
    // It says so by a renewal, which changes nothing else.
    world.register("orders", says(true)).await.unwrap();
    assert_eq!(world.endpoints("shop/orders"), is(true));
    let world = world.restart().await;
    assert_eq!(world.endpoints("shop/orders"), is(true));
    world.register("orders", says(false)).await.unwrap();
    let written = world.registry.view().revision();
    world.register("orders", says(false)).await.unwrap();
    assert_eq!(world.registry.view().revision(), written, "a renewal writes nothing");
    assert_eq!(world.restart().await.endpoints("shop/orders"), is(false));
}

#[tokio::test]
async fn labels_and_names_are_such_as_the_api_takes() {
    let world = World::new().await;
    let labelled = |key: &str, value: &str| RegisterRequest {
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..request("w", &["shop/orders"])
    };
    for (key, value) in [("version", "v1.2"), ("example.com/team", ""), ("a", "B_c")] {
        world.register("orders", labelled(key, value)).await.unwrap();
    }
    for (key, value) in
        [("", "x"), ("a b", "x"), ("heddle.dev/registered", "false"), ("a", "-x"), ("a", "x y"), ("a", &"x".repeat(64))]
    {
        let refused = world.register("orders", labelled(key, value)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{key}={value}");
        assert!(refused.message().starts_with("label "), "{refused}");
    }
    let refused = world.register("orders", request("orders.7f", &["shop/orders"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn two_that_call_themselves_the_same_are_told_of() {
    let world = World::new().await;
    let name = Name::new("shop", "w1");
    for (turn, port) in [1, 2, 1, 2, 1].into_iter().enumerate() {
        assert!(!world.registrations.is_contested(&name), "after {turn} turns");
        world.register("orders", on_port(request("w1", &["shop/orders"]), port)).await.unwrap();
    }
    assert!(world.registrations.is_contested(&name));
    // A renewal moves nothing.
    for _ in 0..10 {
        world.register("orders", on_port(request("w2", &["shop/orders"]), 3)).await.unwrap();
    }
    assert!(!world.registrations.is_contested(&Name::new("shop", "w2")));
}
