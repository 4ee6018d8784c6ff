mod platform;

use heddle_api::proto::{Any, discovery as proto};
use prost::Message;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn own() -> Own {
    Own {
        node: "shop/orders-1".to_owned(),
        service_account: "orders".to_owned(),
        zone: String::new(),
        trust_domain: "heddle.local".parse().unwrap(),
        served: vec![ServedService { name: service_name("shop/orders"), ports: Vec::new() }],
        listeners: Vec::new(),
        idle: 600 * SECOND,
        max_destinations: 10,
    }
}

fn table() -> Table {
    Table::new(own(), Box::new(|_, _| Ok(())), true, Instant::now())
}

fn service_name(text: &str) -> ServiceName {
    compile::service_name(text).unwrap()
}

/// A service with one port 80 whose requests all go to these backends.
fn service(name: &str, backends: &[&str]) -> (String, Any) {
    let (namespace, short) = name.split_once('/').unwrap();
    let backend = |service: &&str| proto::Backend {
        service: (*service).to_owned(),
        port: 80,
        weight: 1,
        ..proto::Backend::default()
    };
    let rule = proto::HttpRule {
        route: "HTTPRoute shop/r".to_owned(),
        rule: "0".to_owned(),
        backends: backends.iter().map(backend).collect(),
        ..proto::HttpRule::default()
    };
    let port = proto::ServicePort {
        port: 80,
        http_rules: if backends.is_empty() { Vec::new() } else { vec![rule] },
        ..proto::ServicePort::default()
    };
    let message = proto::Service {
        namespace: namespace.to_owned(),
        name: short.to_owned(),
        ports: vec![port],
        ..proto::Service::default()
    };
    (name.to_owned(), packed(type_url::SERVICE, &message))
}

fn endpoints(name: &str, addresses: &[&str]) -> (String, Any) {
    let endpoint = |address: &&str| proto::Endpoint {
        address: (*address).to_owned(),
        meshed: true,
        identities: vec!["spiffe://heddle.local/ns/shop/sa/x".to_owned()],
        ports: vec![proto::EndpointPort { port: 80, target_port: 0 }],
        ready: true,
        ..proto::Endpoint::default()
    };
    let message = proto::Endpoints { service: name.to_owned(), endpoints: addresses.iter().map(endpoint).collect() };
    (name.to_owned(), packed(type_url::ENDPOINTS, &message))
}

fn mesh(egress_allow: bool) -> (String, Any) {
    let message = proto::MeshConfig {
        trust_domain: "heddle.local".to_owned(),
        suffixes: vec!["mesh.local".to_owned()],
        cidrs: vec!["10.0.0.0/8".to_owned()],
        egress_allow,
        telemetry: None,
        namespaces: vec!["web".to_owned()],
    };
    ("mesh".to_owned(), packed(type_url::MESH_CONFIG, &message))
}

fn packed(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() }
}

/// Resources with the aliases of each.
type Resources<'a> = Vec<((String, Any), &'a [&'a str])>;

fn response(type_url: &str, version: &str, resources: Resources<'_>, removed: &[&str]) -> ads::DeltaDiscoveryResponse {
    let resource = |((name, body), aliases): ((String, Any), &[&str])| ads::Resource {
        version: version.to_owned(),
        resource: Some(body),
        name,
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
    };
    ads::DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources: resources.into_iter().map(resource).collect(),
        type_url: type_url.to_owned(),
        nonce: "n".to_owned(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// Subscriptions that a set of requests changes, of one type.
fn subscribed(requests: &[ads::DeltaDiscoveryRequest], type_url: &str) -> (Vec<String>, Vec<String>) {
    let of_type = requests.iter().filter(|request| request.type_url == type_url);
    of_type.fold(Default::default(), |(mut more, mut less): (Vec<_>, Vec<_>), request| {
        more.extend(request.resource_names_subscribe.clone());
        less.extend(request.resource_names_unsubscribe.clone());
        (more, less)
    })
}

fn is_ack(answer: &ads::DeltaDiscoveryRequest) -> bool {
    answer.response_nonce == "n" && answer.error_detail.is_none()
}

/// The service that a name leads to in the snapshot of now.
fn leads_to(table: &mut Table, name: &str, now: Instant) -> Option<String> {
    match table.snapshot(now).destinations.get(name)? {
        Destination::Service { service, .. } => Some(service.to_string()),
        Destination::Unknown => Some("unknown".to_owned()),
        Destination::Gone => Some("gone".to_owned()),
        Destination::Rejected(reason) => Some(format!("rejected {reason}")),
    }
}

#[tokio::test]
async fn a_stream_begins_with_what_is_always_held() {
    let mut table = table();
    let now = Instant::now();
    table.start_stream(now);
    let requests = table.requests(now);
    assert_eq!(requests[0].node.as_ref().unwrap().id, "shop/orders-1");
    assert!(requests[1..].iter().all(|request| request.node.is_none()));
    assert_eq!(subscribed(&requests, type_url::TRUST_BUNDLE).0, ["heddle.local"]);
    assert_eq!(subscribed(&requests, type_url::MESH_CONFIG).0, ["mesh"]);
    assert_eq!(subscribed(&requests, type_url::INBOUND_POLICY).0, ["shop/orders"]);
    assert_eq!(requests.len(), 3);
    assert!(table.requests(now).is_empty());
}

#[tokio::test]
async fn a_dialled_name_leads_to_its_service_once_the_endpoints_are_there() {
    let mut table = table();
    let now = Instant::now();
    table.start_stream(now);
    table.requests(now);
    table.dial("payments.shop:80", false, now).unwrap();
    assert_eq!(subscribed(&table.requests(now), type_url::SERVICE).0, ["payments.shop:80"]);
    let sent = response(type_url::SERVICE, "1", vec![(service("shop/payments", &[]), &["payments.shop:80"])], &[]);
    assert!(is_ack(&table.apply(sent, now)));
    assert_eq!(subscribed(&table.requests(now), type_url::ENDPOINTS).0, ["shop/payments"]);
    assert_eq!(leads_to(&mut table, "payments.shop:80", now), None);
    let sent = response(type_url::ENDPOINTS, "1", vec![(endpoints("shop/payments", &["127.0.0.1:1"]), &[])], &[]);
    assert!(is_ack(&table.apply(sent, now)));
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("shop/payments"));
    assert_eq!(table.snapshot(now).endpoints[&service_name("shop/payments")].endpoints.len(), 1);
}

/// A table whose `payments.shop:80` leads to `shop/payments` with an endpoint.
fn with_payments(now: Instant) -> Table {
    let mut table = table();
    table.start_stream(now);
    table.dial("payments.shop:80", false, now).unwrap();
    table.requests(now);
    let sent = response(type_url::SERVICE, "1", vec![(service("shop/payments", &[]), &["payments.shop:80"])], &[]);
    table.apply(sent, now);
    table.requests(now);
    let sent = response(type_url::ENDPOINTS, "1", vec![(endpoints("shop/payments", &["127.0.0.1:1"]), &[])], &[]);
    table.apply(sent, now);
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("shop/payments"));
    table
}

fn active_version(table: &mut Table, name: &str, now: Instant) -> String {
    table.snapshot(now).services[&service_name(name)].version.clone()
}

#[tokio::test]
async fn a_route_takes_effect_when_all_its_backends_are_there() {
    let now = Instant::now();
    let mut table = with_payments(now);
    let route = service("shop/payments", &["shop/v1", "shop/v2"]);
    table.apply(response(type_url::SERVICE, "2", vec![(route, &["payments.shop:80"])], &[]), now);
    let requests = table.requests(now);
    assert_eq!(subscribed(&requests, type_url::SERVICE).0, ["shop/v1", "shop/v2"]);
    assert_eq!(subscribed(&requests, type_url::ENDPOINTS).0, ["shop/v1", "shop/v2"]);
    assert_eq!(active_version(&mut table, "shop/payments", now), "1");
    // Endpoints before services, and one service does not exist: any order will do.
    table.apply(
        response(type_url::ENDPOINTS, "1", vec![(endpoints("shop/v1", &["127.0.0.1:2"]), &[])], &["shop/v2"]),
        now,
    );
    assert_eq!(active_version(&mut table, "shop/payments", now), "1");
    table.apply(response(type_url::SERVICE, "1", vec![(service("shop/v1", &[]), &[])], &[]), now);
    assert_eq!(active_version(&mut table, "shop/payments", now), "1");
    table.apply(response(type_url::SERVICE, "1", vec![], &["shop/v2"]), now);
    assert_eq!(active_version(&mut table, "shop/payments", now), "2");
    let snapshot = table.snapshot(now);
    assert!(snapshot.services.contains_key(&service_name("shop/v1")));
    assert!(!snapshot.services.contains_key(&service_name("shop/v2")));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_never_comes_does_not_hold_up_a_route_for_good() {
    let now = Instant::now();
    let mut table = with_payments(now);
    let route = service("shop/payments", &["shop/v1"]);
    table.apply(response(type_url::SERVICE, "2", vec![(route, &["payments.shop:80"])], &[]), now);
    assert!(!table.gives_up(now + 14 * SECOND));
    assert_eq!(active_version(&mut table, "shop/payments", now + 14 * SECOND), "1");
    assert!(table.gives_up(now + 16 * SECOND));
    assert!(!table.gives_up(now + 17 * SECOND), "that is told once");
    assert_eq!(active_version(&mut table, "shop/payments", now + 16 * SECOND), "2");
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_rest_is_taken() {
    let now = Instant::now();
    let mut table = with_payments(now);
    table.dial("orders.shop:80", false, now).unwrap();
    let mut bad = service("shop/payments", &[]);
    let message = proto::Service {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::ServicePort { port: 70_000, ..proto::ServicePort::default() }],
        ..proto::Service::default()
    };
    bad.1 = packed(type_url::SERVICE, &message);
    let good = service("shop/orders", &[]);
    let sent = response(type_url::SERVICE, "2", vec![(bad, &["payments.shop:80"]), (good, &["orders.shop:80"])], &[]);
    let answer = table.apply(sent, now);
    let detail = answer.error_detail.unwrap();
    assert_eq!(detail.message, "shop/payments: ports[0].port: 70000 is no port");
    let rejection = proto::Rejection::decode(&*detail.details[0].value).unwrap();
    assert_eq!((rejection.name.as_str(), rejection.version.as_str()), ("shop/payments", "2"));
    assert_eq!(answer.response_nonce, "n");
    // The last good one stays, and the other came in.
    assert_eq!(active_version(&mut table, "shop/payments", now), "1");
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("shop/payments"));
    table.apply(response(type_url::ENDPOINTS, "1", vec![(endpoints("shop/orders", &[]), &[])], &[]), now);
    assert_eq!(leads_to(&mut table, "orders.shop:80", now).as_deref(), Some("shop/orders"));
    // On the next stream the control plane learns which version is held: the good one.
    table.start_stream(now);
    let requests = table.requests(now);
    let services = requests.iter().find(|request| request.type_url == type_url::SERVICE).unwrap();
    assert_eq!(services.initial_resource_versions["shop/payments"], "1");
}

#[tokio::test]
async fn a_first_resource_that_is_bad_says_so_to_who_dialled() {
    let mut table = table();
    let now = Instant::now();
    table.dial("payments.shop:80", false, now).unwrap();
    let garbage = Any { type_url: type_url::SERVICE.to_owned(), value: vec![0xff; 40].into() };
    let sent =
        response(type_url::SERVICE, "1", vec![(("shop/payments".to_owned(), garbage), &["payments.shop:80"])], &[]);
    assert!(!is_ack(&table.apply(sent, now)));
    let said = leads_to(&mut table, "payments.shop:80", now).unwrap();
    assert!(said.starts_with("rejected shop/payments: cannot be read"), "{said}");
    // A later good one heals it.
    table.apply(
        response(type_url::SERVICE, "2", vec![(service("shop/payments", &[]), &["payments.shop:80"])], &[]),
        now,
    );
    table.apply(response(type_url::ENDPOINTS, "1", vec![], &["shop/payments"]), now);
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("shop/payments"));
}

#[tokio::test]
async fn names_come_and_go() {
    let now = Instant::now();
    let mut table = with_payments(now);
    table.dial("nothing.shop:80", false, now).unwrap();
    table.apply(response(type_url::SERVICE, "", vec![], &["nothing.shop:80"]), now);
    assert_eq!(leads_to(&mut table, "nothing.shop:80", now).as_deref(), Some("unknown"));
    // It appears later.
    table.apply(response(type_url::SERVICE, "1", vec![(service("shop/nothing", &[]), &["nothing.shop:80"])], &[]), now);
    table.apply(response(type_url::ENDPOINTS, "1", vec![(endpoints("shop/nothing", &[]), &[])], &[]), now);
    assert_eq!(leads_to(&mut table, "nothing.shop:80", now).as_deref(), Some("shop/nothing"));
    // The name moves to another service: the aliases of each are all there are.
    table.apply(
        response(
            type_url::SERVICE,
            "2",
            vec![
                (service("shop/nothing", &[]), &[]),
                (service("shop/payments", &[]), &["payments.shop:80", "nothing.shop:80"]),
            ],
            &[],
        ),
        now,
    );
    assert_eq!(leads_to(&mut table, "nothing.shop:80", now).as_deref(), Some("shop/payments"));
    // The service is deleted.
    table
        .apply(response(type_url::SERVICE, "", vec![], &["shop/payments", "payments.shop:80", "nothing.shop:80"]), now);
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("gone"));
    assert!(!table.snapshot(now).services.contains_key(&service_name("shop/payments")));
}

#[tokio::test]
async fn resuming_tells_what_is_held_by_every_name_it_has() {
    let now = Instant::now();
    let mut table = with_payments(now);
    table.dial("nothing.shop:80", false, now).unwrap();
    table.apply(response(type_url::SERVICE, "", vec![], &["nothing.shop:80"]), now);
    table.start_stream(now);
    let requests = table.requests(now);
    assert!(requests[0].node.is_some());
    let services = requests.iter().find(|request| request.type_url == type_url::SERVICE).unwrap();
    assert_eq!(services.resource_names_subscribe, ["nothing.shop:80", "payments.shop:80"]);
    let versions: Vec<_> = services.initial_resource_versions.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(versions, [("payments.shop:80", "1"), ("shop/payments", "1")]);
    // Nothing is lost meanwhile.
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("shop/payments"));
    assert_eq!(leads_to(&mut table, "nothing.shop:80", now).as_deref(), Some("unknown"));
    assert!(table.requests(now).is_empty());
}

#[tokio::test]
async fn what_nobody_uses_is_dropped_and_what_is_used_stays() {
    let now = Instant::now();
    let mut table = with_payments(now);
    let route = service("shop/payments", &["shop/v1"]);
    table.apply(response(type_url::SERVICE, "2", vec![(route, &["payments.shop:80"])], &[]), now);
    table.requests(now);
    let later = now + 700 * SECOND;
    table.usage()["payments.shop:80"].mark(table.seconds(now + 200 * SECOND));
    assert!(!table.sweep(later));
    assert!(table.requests(later).is_empty());
    let later = now + 900 * SECOND;
    assert!(table.sweep(later));
    assert_eq!(subscribed(&table.requests(later), type_url::SERVICE), (vec![], vec!["payments.shop:80".to_owned()]));
    // What it led to stays for a while: requests may be under way.
    assert!(table.snapshot(later).services.contains_key(&service_name("shop/payments")));
    let later = later + LINGER;
    assert!(table.sweep(later));
    let requests = table.requests(later);
    assert_eq!(subscribed(&requests, type_url::SERVICE).1, ["shop/v1"]);
    assert_eq!(subscribed(&requests, type_url::ENDPOINTS).1, ["shop/payments", "shop/v1"]);
    let snapshot = table.snapshot(later);
    assert!(snapshot.services.is_empty() && snapshot.endpoints.is_empty() && snapshot.destinations.is_empty());
    assert!(table.saved().len() < 500, "nothing of it is left");
}

#[tokio::test(start_paused = true)]
async fn what_an_open_connection_needs_is_not_dropped() {
    let now = Instant::now();
    let mut table = with_payments(now);
    let used = || InUse::new(table.usage()["payments.shop:80"].clone(), now);
    let (first, second) = (used(), used());
    drop(first);
    let later = now + 3600 * SECOND;
    assert!(!table.sweep(later));
    assert_eq!(leads_to(&mut table, "payments.shop:80", later).as_deref(), Some("shop/payments"));
    // Nor is it old as soon as the connection ends.
    tokio::time::advance(3600 * SECOND).await;
    drop(second);
    assert!(!table.sweep(later + 599 * SECOND));
    assert!(table.sweep(later + 602 * SECOND));
    assert_eq!(leads_to(&mut table, "payments.shop:80", later), None);
}

#[tokio::test]
async fn what_was_of_the_mesh_stays_so_whatever_becomes_of_it() {
    let now = Instant::now();
    let mut table = with_payments(now);
    table.dial("10.0.0.9:80", false, now).unwrap();
    let aliases = ["10.0.0.9:80", "payments.shop:80"];
    table.apply(response(type_url::SERVICE, "2", vec![(service("shop/payments", &[]), &aliases)], &[]), now);
    table.apply(response(type_url::MESH_CONFIG, "1", vec![(mesh(true), &[])], &[]), now);
    // The port is gone, or it is no longer exported to here: it answers to one alias, then to none.
    let one: &[&str] = &["10.0.0.9:80"];
    table.apply(response(type_url::SERVICE, "3", vec![(service("shop/payments", &[]), one)], &[]), now);
    assert_eq!(leads_to(&mut table, "payments.shop:80", now).as_deref(), Some("gone"));
    table.apply(response(type_url::SERVICE, "", vec![], one), now);
    for alias in aliases {
        assert_eq!(leads_to(&mut table, alias, now).as_deref(), Some("gone"), "{alias}");
    }
    // Nor is it another's after a time in which nobody asked; an address may be.
    let later = now + 700 * SECOND;
    assert!(table.sweep(later));
    for alias in aliases {
        table.dial(alias, false, later).unwrap();
    }
    table.apply(response(type_url::SERVICE, "", vec![], &aliases), later);
    assert_eq!(leads_to(&mut table, "payments.shop:80", later).as_deref(), Some("gone"));
    assert_eq!(leads_to(&mut table, "10.0.0.9:80", later).as_deref(), Some("unknown"));
    table.apply(response(type_url::SERVICE, "4", vec![(service("shop/payments", &[]), &aliases)], &[]), later);
    table.apply(
        response(type_url::ENDPOINTS, "4", vec![(endpoints("shop/payments", &["127.0.0.1:1"]), &[])], &[]),
        later,
    );
    assert_eq!(leads_to(&mut table, "payments.shop:80", later).as_deref(), Some("shop/payments"));
}

#[tokio::test]
async fn a_host_that_a_service_stood_for_is_a_host_again_and_a_namespace_that_left_is_none() {
    let now = Instant::now();
    let mut table = with_payments(now);
    let aliases = [
        "api.example.com:80",
        "payments.shop:80",
        "payments.shop.mesh.local:80",
        "x.web:80",
        "go.dev:80",
        "192.0.2.9:80",
    ];
    for alias in aliases {
        table.dial(alias, false, now).unwrap();
    }
    table.apply(response(type_url::MESH_CONFIG, "1", vec![(mesh(true), &[])], &[]), now);
    table.apply(response(type_url::SERVICE, "2", vec![(service("shop/payments", &[]), &aliases)], &[]), now);
    for alias in &aliases[..5] {
        assert_eq!(leads_to(&mut table, alias, now).as_deref(), Some("shop/payments"), "{alias}");
    }
    // One by one, then all.
    table.apply(response(type_url::SERVICE, "3", vec![(service("shop/payments", &[]), &aliases[1..])], &[]), now);
    table.apply(response(type_url::SERVICE, "", vec![], &aliases), now);
    let answers = ["unknown", "gone", "gone", "gone", "unknown", "gone"];
    for (alias, answer) in aliases.iter().zip(answers) {
        assert_eq!(leads_to(&mut table, alias, now).as_deref(), Some(answer), "{alias}");
    }

    // A service's own name outlives its namespace, until nobody asks for it any more.
    let dev = ["go.dev:80"];
    table.apply(response(type_url::SERVICE, "4", vec![(service("dev/go", &[]), &dev)], &[]), now);
    table.apply(response(type_url::ENDPOINTS, "4", vec![(endpoints("dev/go", &["127.0.0.1:1"]), &[])], &[]), now);
    assert_eq!(leads_to(&mut table, "go.dev:80", now).as_deref(), Some("dev/go"));
    table.apply(response(type_url::SERVICE, "", vec![], &dev), now);
    assert_eq!(leads_to(&mut table, "go.dev:80", now).as_deref(), Some("gone"));
    let later = now + 700 * SECOND;
    assert!(table.sweep(later));
    table.dial("go.dev:80", false, later).unwrap();
    table.apply(response(type_url::SERVICE, "", vec![], &dev), later);
    assert_eq!(leads_to(&mut table, "go.dev:80", later).as_deref(), Some("unknown"));
}

#[tokio::test]
async fn ever_new_names_do_not_push_out_services() {
    let now = Instant::now();
    let mut table = with_payments(now);
    for number in 0..100u64 {
        let later = now + number as u32 * SECOND;
        table.dial(&format!("n{number}.example:80"), false, later).unwrap();
    }
    assert_eq!(table.usage().len(), 10);
    assert!(table.usage().contains_key("payments.shop:80"));
    assert!(table.usage().contains_key("n99.example:80"));
}

#[tokio::test]
async fn what_was_saved_comes_back_and_garbage_does_not() {
    let now = Instant::now();
    let mut table = with_payments(now);
    table.dial("nothing.shop:80", false, now).unwrap();
    table.apply(response(type_url::SERVICE, "", vec![], &["nothing.shop:80"]), now);
    table.apply(response(type_url::MESH_CONFIG, "7", vec![(mesh(true), &[])], &[]), now);
    let route = service("shop/payments", &["shop/v1"]);
    table.apply(response(type_url::SERVICE, "2", vec![(route, &["payments.shop:80"])], &[]), now);
    table.apply(response(type_url::ENDPOINTS, "3", vec![(endpoints("shop/v1", &["127.0.0.1:2"]), &[])], &[]), now);
    table.apply(response(type_url::SERVICE, "4", vec![(service("shop/v1", &[]), &[])], &[]), now);
    let saved = table.saved();

    let mut fresh = self::table();
    fresh.restore(&saved, now).unwrap();
    assert_eq!(leads_to(&mut fresh, "payments.shop:80", now).as_deref(), Some("shop/payments"));
    assert_eq!(leads_to(&mut fresh, "nothing.shop:80", now).as_deref(), Some("unknown"));
    assert_eq!(active_version(&mut fresh, "shop/payments", now), "2");
    assert!(fresh.snapshot(now).mesh.is_some());
    assert_eq!(fresh.saved(), saved);

    for cut in (0..saved.len()).step_by(7) {
        let mut fresh = self::table();
        let _ = fresh.restore(&saved[..cut], now);
        let _ = fresh.snapshot(now);
        let mut flipped = saved.clone();
        flipped[cut] ^= 0x55;
        let mut fresh = self::table();
        let _ = fresh.restore(&flipped, now);
        let _ = fresh.snapshot(now);
    }
}

#[tokio::test]
async fn roots_are_in_use_before_they_are_acknowledged_and_refused_ones_are_not() {
    let td = "heddle.local".parse::<TrustDomain>().unwrap();
    let authority = heddle_certs::Authority::create(td, std::time::SystemTime::now()).unwrap();
    let roots: Vec<Vec<u8>> = authority.bundle().roots().iter().map(|root| root.to_vec()).collect();
    let bundle = |roots: Vec<Vec<u8>>| {
        let message = proto::TrustBundle { trust_domain: "heddle.local".to_owned(), epoch: 5, roots };
        response(
            type_url::TRUST_BUNDLE,
            "1",
            vec![(("heddle.local".to_owned(), packed(type_url::TRUST_BUNDLE, &message)), &[])],
            &[],
        )
    };
    let used = Arc::new(std::sync::Mutex::new(Vec::new()));
    let accept: AcceptBundle = Box::new({
        let used = Arc::clone(&used);
        move |bundle, origin| {
            used.lock().unwrap().push((bundle.epoch(), origin));
            Ok(())
        }
    });
    let now = Instant::now();
    let mut table = Table::new(own(), accept, true, now);
    assert!(!is_ack(&table.apply(bundle(Vec::new()), now)), "a mesh without roots");
    assert!(!is_ack(&table.apply(bundle(vec![vec![1, 2, 3]]), now)), "no certificate");
    assert!(used.lock().unwrap().is_empty());
    assert!(is_ack(&table.apply(bundle(roots.clone()), now)));
    assert_eq!(*used.lock().unwrap(), [(5, Origin::ControlPlane)]);
    // What is read back is no word of the control plane of today.
    let saved = table.saved();
    used.lock().unwrap().clear();
    table.restore(&saved, now).unwrap();
    assert_eq!(*used.lock().unwrap(), [(5, Origin::StateDirectory)]);

    let mut table = Table::new(own(), Box::new(|_, _| Err("no".to_owned())), false, now);
    assert!(!is_ack(&table.apply(bundle(roots), now)));
}

#[tokio::test]
async fn nothing_that_is_sent_makes_it_panic() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let now = Instant::now();
    let mut table = with_payments(now);
    for number in 0..3000 {
        let url = [
            type_url::SERVICE,
            type_url::ENDPOINTS,
            type_url::INBOUND_POLICY,
            type_url::MESH_CONFIG,
            type_url::TRUST_BUNDLE,
            type_url::WORKLOAD,
            "type.googleapis.com/other",
        ][number % 7];
        let (_, mut body) = service("shop/payments", &["shop/v1"]);
        body.type_url = url.to_owned();
        for _ in 0..rng.random_range(0..6) {
            let at = rng.random_range(0..body.value.len());
            let mut damaged = body.value.to_vec();
            damaged[at] = rng.random();
            body.value = damaged.into();
        }
        let name = ["shop/payments", "shop/orders", "mesh", "heddle.local", ""][rng.random_range(0..5)];
        let resource = ((name.to_owned(), body), &["payments.shop:80", ""][..rng.random_range(0..2)]);
        let removed: &[&str] = [&[][..], &["shop/payments"], &["payments.shop:80", "mesh"]][rng.random_range(0..3)];
        table.apply(response(url, "9", vec![resource.clone(), resource], removed), now);
        table.requests(now);
        table.snapshot(now);
    }
}

#[test]
fn an_address_means_one_instance_or_the_service_that_claims_it() {
    let now = Instant::now();
    let mut table = table();
    let aliases = ["10.0.0.1:8080", "10.9.0.1:80", "10.0.0.2:8080"];
    for alias in aliases {
        table.dial(alias, false, now).unwrap();
    }
    let message = proto::Service {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        ports: vec![proto::ServicePort { port: 80, ..proto::ServicePort::default() }],
        addresses: vec!["10.9.0.1".to_owned()],
        ..proto::Service::default()
    };
    let cart = ("shop/cart".to_owned(), packed(type_url::SERVICE, &message));
    table.apply(response(type_url::SERVICE, "1", vec![(cart, &aliases)], &[]), now);
    let instance = |address: &str| proto::Endpoint {
        address: address.to_owned(),
        meshed: true,
        identities: vec!["spiffe://heddle.local/ns/shop/sa/cart".to_owned()],
        ports: vec![proto::EndpointPort { port: 80, target_port: 8080 }],
        ready: true,
        ..proto::Endpoint::default()
    };
    let endpoints = ["10.0.0.1:15006", "10.0.0.3:15006"].map(instance).to_vec();
    let message = proto::Endpoints { service: "shop/cart".to_owned(), endpoints };
    let endpoints = ("shop/cart".to_owned(), packed(type_url::ENDPOINTS, &message));
    table.requests(now);
    table.apply(response(type_url::ENDPOINTS, "1", vec![(endpoints, &[])], &[]), now);
    let snapshot = table.snapshot(now);
    let shown = aliases.map(|alias| match &snapshot.destinations[alias] {
        Destination::Service { service, port, instance } => format!("{service}:{port} {instance:?}"),
        Destination::Unknown => "unknown".to_owned(),
        Destination::Gone => "gone".to_owned(),
        Destination::Rejected(why) => why.to_string(),
    });
    assert_eq!(
        shown,
        [
            "shop/cart:80 Some(10.0.0.1:15006)",
            "shop/cart:80 None",
            "no instance of shop/cart is at 10.0.0.2:8080 any more",
        ]
    );
}
