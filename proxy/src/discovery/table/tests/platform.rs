//! What the platform says of this workload and of others.

use super::*;

/// The proxy of a pod, whose settings name no service.
fn pod(keep: bool) -> Table {
    let listeners = vec!["0.0.0.0:15006".parse().unwrap()];
    let own = Own { served: Vec::new(), listeners, ..own() };
    Table::new(own, Box::new(|_, _| Ok(())), keep, Instant::now())
}

fn workload(services: &[(&str, u32, u32)]) -> (String, Any) {
    let served = |(service, port, target): &(&str, u32, u32)| proto::ServedService {
        service: (*service).to_owned(),
        ports: vec![proto::EndpointPort { port: *port, target_port: *target }],
    };
    let message = proto::Workload {
        workload: "shop/orders-1".to_owned(),
        addresses: vec!["10.1.0.1".to_owned(), "fd00::1".to_owned()],
        services: services.iter().map(served).collect(),
    };
    ("shop/orders-1".to_owned(), packed(type_url::WORKLOAD, &message))
}

fn policy(service: &str) -> (String, Any) {
    let port = |port| proto::InboundPort { port, ..proto::InboundPort::default() };
    let ports = vec![port(80), port(81)];
    let message = proto::InboundPolicy { service: service.to_owned(), ports, ..proto::InboundPolicy::default() };
    (service.to_owned(), packed(type_url::INBOUND_POLICY, &message))
}

fn apps(snapshot: &Snapshot, service: &str) -> Vec<(u16, Option<SocketAddr>)> {
    let ports = &snapshot.inbound[&service_name(service)].ports;
    ports.iter().map(|(port, at)| (*port, at.app)).collect()
}

#[tokio::test]
async fn a_pod_serves_what_its_platform_says() {
    let (mut table, now) = (pod(true), Instant::now());
    let requests = table.requests(now);
    assert_eq!(subscribed(&requests, type_url::WORKLOAD).0, ["shop/orders-1"]);
    assert!(subscribed(&requests, type_url::INBOUND_POLICY).0.is_empty());
    assert_eq!(table.snapshot(now).served, None, "not ready before it is known");
    let told = workload(&[("shop/orders", 80, 8080), ("shop/orders-headless", 80, 8080)]);
    assert!(is_ack(&table.apply(response(type_url::WORKLOAD, "1", vec![(told, &[])], &[]), now)));
    let wanted = subscribed(&table.requests(now), type_url::INBOUND_POLICY).0;
    assert_eq!(wanted, ["shop/orders", "shop/orders-headless"]);
    let policies = vec![(policy("shop/orders"), &[][..]), (policy("shop/orders-headless"), &[])];
    assert!(is_ack(&table.apply(response(type_url::INBOUND_POLICY, "1", policies, &[]), now)));
    let snapshot = table.snapshot(now);
    let names = ["shop/orders", "shop/orders-headless"].map(service_name);
    assert_eq!(snapshot.served.as_deref(), Some(&names[..]));
    let app = Some("10.1.0.1:8080".parse().unwrap());
    assert_eq!(apps(&snapshot, "shop/orders"), [(80, app), (81, None)], "at its own address, and not what is not said");
    // Another target takes effect though the policy is the same; what is served no more is let go.
    let told = workload(&[("shop/orders", 81, 9090)]);
    table.apply(response(type_url::WORKLOAD, "2", vec![(told, &[])], &[]), now);
    assert_eq!(subscribed(&table.requests(now), type_url::INBOUND_POLICY).1, ["shop/orders-headless"]);
    let snapshot = table.snapshot(now);
    assert_eq!(apps(&snapshot, "shop/orders"), [(80, None), (81, Some("10.1.0.1:9090".parse().unwrap()))]);
    assert_eq!(snapshot.inbound.len(), 1);
    // A port that is the proxy's own is no app's.
    let told = workload(&[("shop/orders", 80, 15006)]);
    table.apply(response(type_url::WORKLOAD, "3", vec![(told, &[])], &[]), now);
    assert_eq!(apps(&table.snapshot(now), "shop/orders"), [(80, None), (81, None)]);
}

#[tokio::test]
async fn a_pod_that_goes_serves_on_and_one_that_starts_anew_knows_what() {
    let (mut table, now) = (pod(true), Instant::now());
    table.requests(now);
    let told = workload(&[("shop/orders", 80, 8080)]);
    table.apply(response(type_url::WORKLOAD, "1", vec![(told, &[])], &[]), now);
    table.requests(now);
    table.apply(response(type_url::INBOUND_POLICY, "1", vec![(policy("shop/orders"), &[])], &[]), now);
    table.apply(response(type_url::WORKLOAD, "", Vec::new(), &["shop/orders-1"]), now);
    let app = Some("10.1.0.1:8080".parse().unwrap());
    assert_eq!(apps(&table.snapshot(now), "shop/orders"), [(80, app), (81, None)]);
    let mut again = pod(true);
    again.restore(&table.saved(), now).unwrap();
    let snapshot = again.snapshot(now);
    assert_eq!(snapshot.served.as_deref(), Some(&[service_name("shop/orders")][..]));
    assert_eq!(apps(&snapshot, "shop/orders"), [(80, app), (81, None)]);
}

#[tokio::test]
async fn without_a_platform_a_workload_serves_what_its_settings_say() {
    let (mut table, now) = (pod(true), Instant::now());
    table.requests(now);
    table.apply(response(type_url::WORKLOAD, "", Vec::new(), &["shop/orders-1"]), now);
    assert_eq!(table.snapshot(now).served.as_deref(), Some(&[][..]), "nothing: it only calls");
    let mut again = pod(true);
    again.restore(&table.saved(), now).unwrap();
    assert_eq!(again.snapshot(now).served.as_deref(), Some(&[][..]), "known without a control plane, too");
    let mut with_settings = super::table();
    assert!(subscribed(&with_settings.requests(now), type_url::WORKLOAD).0.is_empty());
    assert_eq!(with_settings.snapshot(now).served.as_deref(), Some(&[service_name("shop/orders")][..]));
    let bad = [
        proto::Workload { workload: "shop/other".to_owned(), ..proto::Workload::default() },
        proto::Workload { workload: "shop/orders-1".to_owned(), ..proto::Workload::default() },
    ];
    for message in bad {
        let sent = ("shop/orders-1".to_owned(), packed(type_url::WORKLOAD, &message));
        assert!(!is_ack(&table.apply(response(type_url::WORKLOAD, "9", vec![(sent, &[])], &[]), now)), "{message:?}");
    }
}

#[tokio::test]
async fn a_name_before_that_of_a_service_means_one_instance() {
    let (mut table, now) = (table(), Instant::now());
    let aliases = ["db.shop:80", "db-1.db.shop:80", "db-1.db.shop.svc.cluster.local:80", "db-2.db.shop:80"];
    for alias in aliases {
        table.dial(alias, false, now).unwrap();
    }
    let message = proto::Service {
        namespace: "shop".to_owned(),
        name: "db".to_owned(),
        hosts: vec!["db.shop".to_owned(), "db.shop.svc.cluster.local".to_owned()],
        ports: vec![proto::ServicePort { port: 80, ..proto::ServicePort::default() }],
        ..proto::Service::default()
    };
    let db = ("shop/db".to_owned(), packed(type_url::SERVICE, &message));
    table.apply(response(type_url::SERVICE, "1", vec![(db, &aliases)], &[]), now);
    table.requests(now);
    let instance = |(address, hostname, ready): (&str, &str, bool)| proto::Endpoint {
        address: address.to_owned(),
        meshed: true,
        identities: vec!["spiffe://heddle.local/ns/shop/sa/db".to_owned()],
        ports: vec![proto::EndpointPort { port: 80, target_port: 8080 }],
        ready,
        hostname: hostname.to_owned(),
        ..proto::Endpoint::default()
    };
    let both = [("10.0.0.1:15006", "db-0", true), ("10.0.0.2:15006", "db-1", false), ("[fd00::2]:15006", "db-1", true)];
    let message = proto::Endpoints { service: "shop/db".to_owned(), endpoints: both.map(instance).to_vec() };
    let endpoints = ("shop/db".to_owned(), packed(type_url::ENDPOINTS, &message));
    table.apply(response(type_url::ENDPOINTS, "1", vec![(endpoints, &[])], &[]), now);
    let snapshot = table.snapshot(now);
    let shown = aliases.map(|alias| match &snapshot.destinations[alias] {
        Destination::Service { port, instance, .. } => format!("{port} {instance:?}"),
        Destination::Rejected(why) => why.to_string(),
        other => format!("{other:?}"),
    });
    let one = "80 Some([fd00::2]:15006)";
    assert_eq!(shown, ["80 None", one, one, "no instance of shop/db is called db-2.db.shop any more"]);
}
