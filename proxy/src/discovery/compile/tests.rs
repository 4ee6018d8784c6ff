use std::net::IpAddr;

use heddle_api::proto::discovery as proto;

use super::*;
use crate::{
    authorize::{AtAccept, Peer},
    config::ServedPort,
    snapshot::{HostPattern, PathMatch},
};

fn exact(text: &str) -> Option<proto::StringMatch> {
    Some(proto::StringMatch { kind: Some(proto::string_match::Kind::Exact(text.to_owned())) })
}

fn regex_of(text: &str) -> Option<proto::StringMatch> {
    Some(proto::StringMatch { kind: Some(proto::string_match::Kind::Regex(text.to_owned())) })
}

fn prefix(text: &str) -> Option<proto::StringMatch> {
    Some(proto::StringMatch { kind: Some(proto::string_match::Kind::Prefix(text.to_owned())) })
}

fn rule() -> proto::HttpRule {
    proto::HttpRule { route: "HTTPRoute shop/r".to_owned(), rule: "first".to_owned(), ..proto::HttpRule::default() }
}

fn with_match(matches: proto::HttpMatch) -> proto::HttpRule {
    proto::HttpRule { r#match: Some(matches), ..rule() }
}

fn with_filter(kind: proto::http_filter::Kind) -> proto::HttpRule {
    proto::HttpRule { filters: vec![proto::HttpFilter { kind: Some(kind) }], ..rule() }
}

fn compiled(rule: proto::HttpRule) -> Result<crate::snapshot::Service, Reason> {
    let port = proto::ServicePort { port: 80, http_rules: vec![rule], ..proto::ServicePort::default() };
    let sent = proto::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        ports: vec![port],
        ..proto::Service::default()
    };
    service("shop/orders", "v", sent)
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_path_and_origin() {
    use proto::http_filter::Kind;
    let header = |name: &str, value| proto::HttpMatch {
        headers: vec![proto::NamedMatch { name: name.to_owned(), value }],
        ..proto::HttpMatch::default()
    };
    let path = |path| proto::HttpMatch { path, ..proto::HttpMatch::default() };
    let set = |name: &str, value: &str| {
        let header = proto::Header { name: name.to_owned(), value: value.to_owned() };
        Kind::RequestHeaders(proto::HeaderModifier { set: vec![header], ..proto::HeaderModifier::default() })
    };
    let modifier = |path: &str| proto::PathModifier {
        kind: Some(proto::path_modifier::Kind::ReplacePrefixMatch(path.to_owned())),
    };
    let full = |path: &str| {
        let kind = Some(proto::path_modifier::Kind::ReplaceFull(path.to_owned()));
        Kind::Rewrite(proto::Rewrite { path: Some(proto::PathModifier { kind }), ..proto::Rewrite::default() })
    };
    let redirect = |status| Kind::Redirect(proto::Redirect { status, ..proto::Redirect::default() });
    let backend = |service: &str, port| proto::HttpRule {
        backends: vec![proto::Backend { service: service.to_owned(), port, ..proto::Backend::default() }],
        ..rule()
    };
    for (rule, says) in [
        (with_match(path(exact("orders"))), "match.path: \"orders\" does not begin with a slash"),
        (with_match(path(regex_of("/(a"))), "match.path: \"/(a\" is no usable regular expression"),
        // It would escape the anchors and match everything.
        (with_match(path(regex_of("a)|(?:.*"))), "match.path: \"a)|(?:.*\" is no regular expression on its own"),
        (with_match(path(regex_of(&format!("({}){{1000}}", r"\w{100}")))), "match.path"),
        (with_match(header("a b", exact("x"))), "match.headers[0].name: \"a b\" is no name of a header"),
        (with_match(header("a", prefix("x"))), "match.headers[0].value: a prefix is for paths only"),
        (with_match(header("a", None)), "match.headers[0].value: is missing"),
        (
            with_match(proto::HttpMatch { method: "GE T".to_owned(), ..proto::HttpMatch::default() }),
            "match.method: \"GE T\" is no method",
        ),
        (with_filter(set("a", "b\r\nc: d")), "filters[0].set[0].value"),
        (with_filter(set("", "b")), "filters[0].set[0].name"),
        (with_filter(redirect(200)), "filters[0].status: 200 is no redirect"),
        (with_filter(full("/a?b")), "filters[0].path: \"/a?b\" is no path"),
        (with_filter(full("/a b")), "filters[0].path: \"/a b\" is no path"),
        (
            with_filter(Kind::Rewrite(proto::Rewrite { path: Some(modifier("/x")), ..proto::Rewrite::default() })),
            "filters[0].path: replace_prefix_match needs a match of a prefix",
        ),
        (
            with_filter(Kind::Rewrite(proto::Rewrite { hostname: "a b".to_owned(), path: None })),
            "filters[0].hostname: \"a b\" is no host name",
        ),
        (proto::HttpRule { hostnames: vec!["a_b".to_owned()], ..rule() }, "hostnames[0]"),
        (backend("payments", 80), "backends[0].service: \"payments\" is no <namespace>/<name>"),
        (backend("shop/payments", 0), "backends[0].port: 0 is no port"),
        (proto::HttpRule { filters: vec![proto::HttpFilter { kind: None }], ..rule() }, "does not know the filter"),
    ] {
        let reason = compiled(rule).unwrap_err();
        assert!(reason.starts_with("ports[0].http_rules[0]."), "{reason}");
        assert!(reason.contains(says), "{says:?} in {reason}");
        assert!(reason.ends_with("(HTTPRoute shop/r rule first)"), "{reason}");
    }
}

#[test]
fn regular_expressions_match_whole_values_and_are_not_too_many() {
    let rule_of =
        |pattern: &str| with_match(proto::HttpMatch { path: regex_of(pattern), ..proto::HttpMatch::default() });
    let service = compiled(rule_of("/a|/b")).unwrap();
    let Some(PathMatch::Regex(regex)) = &service.ports[&80].http_rules[0].matches.path else { panic!("no regex") };
    assert!(regex.is_match("/a") && regex.is_match("/b"));
    assert!(!regex.is_match("/ab") && !regex.is_match("x/a") && !regex.is_match("/a\n"));
    let port = proto::ServicePort { port: 80, http_rules: vec![rule_of("/a"); 501], ..proto::ServicePort::default() };
    let sent = proto::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        ports: vec![port],
        ..proto::Service::default()
    };
    assert!(super::service("shop/orders", "v", sent).unwrap_err().contains("501 regular expressions"));
}

#[test]
fn hosts_prefixes_and_defaults() {
    let rule = proto::HttpRule {
        hostnames: vec!["*.Shop.example".to_owned(), "Orders".to_owned()],
        ..with_match(proto::HttpMatch { path: prefix("/api/"), ..proto::HttpMatch::default() })
    };
    let service = compiled(rule).unwrap();
    let rule = &service.ports[&80].http_rules[0];
    let hosts = [HostPattern::Suffix(".shop.example".to_owned()), HostPattern::Exact("orders".to_owned())];
    assert_eq!(rule.hostnames, hosts);
    assert!(matches!(&rule.matches.path, Some(PathMatch::Prefix(path)) if path == "/api"));
    assert_eq!(service.policy.connect_timeout, Duration::from_secs(2));
    assert_eq!(service.policy.limits.max_requests, 1024);
    assert_eq!(service.policy.source.as_ref(), "default");
    assert!(super::service("shop/other", "v", proto::Service::default()).is_err());
}

#[test]
fn endpoints_that_nobody_could_trust_or_dial_are_refused() {
    let good = proto::Endpoint {
        address: "127.0.0.1:15006".to_owned(),
        meshed: true,
        identities: vec!["spiffe://heddle.local/ns/shop/sa/orders".to_owned()],
        ports: vec![proto::EndpointPort { port: 80, target_port: 0 }],
        ..proto::Endpoint::default()
    };
    let compile = |list: Vec<proto::Endpoint>| {
        endpoints("shop/orders", "v", proto::Endpoints { service: "shop/orders".to_owned(), endpoints: list })
    };
    let held = compile(vec![good.clone()]).unwrap();
    assert_eq!(held.endpoints[0].weight, 1);
    let with = |change: fn(&mut proto::Endpoint)| {
        let mut endpoint = good.clone();
        change(&mut endpoint);
        endpoint
    };
    for (bad, says) in [
        (with(|e| e.address = "orders:80".to_owned()), "endpoints[0].address"),
        (with(|e| e.address = "127.0.0.1:0".to_owned()), "cannot be dialled"),
        (with(|e| e.address = "0.0.0.0:1".to_owned()), "cannot be dialled"),
        (with(|e| e.address = "224.0.0.1:1".to_owned()), "cannot be dialled"),
        (with(|e| e.identities.clear()), "endpoints[0].identities: a meshed endpoint needs at least one"),
        (with(|e| e.identities = vec!["orders".to_owned()]), "endpoints[0].identities[0]"),
        (with(|e| e.ports[0].port = 0), "endpoints[0].ports[0].port: 0 is no port"),
        (with(|e| e.meshed = false), "endpoints[0].ports[0].target_port: 0 is no port"),
    ] {
        let reason = compile(vec![bad]).unwrap_err();
        assert!(reason.contains(says), "{says:?} in {reason}");
    }
    assert!(compile(vec![good.clone(), good]).unwrap_err().contains("twice"));
    assert!(endpoints("shop/a", "v", proto::Endpoints { service: "shop/b".to_owned(), endpoints: vec![] }).is_err());
}

fn policy(ports: &[(u32, u32)], rules: Vec<proto::AuthorizationRule>) -> proto::InboundPolicy {
    let port = |(port, target_port): &(u32, u32)| proto::InboundPort {
        port: *port,
        target_port: *target_port,
        ..proto::InboundPort::default()
    };
    proto::InboundPolicy {
        service: "shop/orders".to_owned(),
        ports: ports.iter().map(port).collect(),
        rules,
        ..proto::InboundPolicy::default()
    }
}

fn inbound_of(sent: proto::InboundPolicy, served: &[ServedPort]) -> Result<crate::snapshot::InboundPolicy, Reason> {
    let own = ["0.0.0.0:15006".parse().unwrap(), "127.0.0.1:15000".parse().unwrap()];
    inbound("shop/orders", "v", sent, served, &own, &TrustDomain::new("heddle.local").unwrap())
}

#[test]
fn ports_of_the_application_come_from_the_settings_or_the_service() {
    let served = |port, app: u16| ServedPort { port, app: ([127, 0, 0, 1], app).into() };
    type Case<'a> = (&'a [(u32, u32)], &'a [ServedPort], &'a [(u16, Option<u16>)]);
    let cases: [Case<'_>; 6] = [
        (&[(80, 8080), (90, 0)], &[], &[(80, Some(8080)), (90, Some(90))]),
        (&[(80, 8080), (90, 9090)], &[served(Some(80), 7)], &[(80, Some(7)), (90, None)]),
        (&[(80, 8080), (90, 9090)], &[served(None, 9090)], &[(80, None), (90, Some(9090))]),
        (&[(80, 8080)], &[served(None, 7)], &[(80, Some(7))]),
        (&[(80, 8080), (90, 9090)], &[served(None, 7)], &[(80, None), (90, None)]),
        (&[(80, 8080)], &[served(Some(81), 7)], &[(80, None)]),
    ];
    for (ports, settings, expected) in cases {
        let compiled = inbound_of(policy(ports, Vec::new()), settings).unwrap();
        let apps: Vec<_> = compiled.ports.iter().map(|(port, at)| (*port, at.app.map(|app| app.port()))).collect();
        assert_eq!(apps, expected, "{ports:?} {settings:?}");
    }
}

#[test]
fn rules_are_compiled_whole_or_not_at_all() {
    let rule = |source: proto::Source, operation: proto::Operation| proto::AuthorizationRule {
        policy: "AuthorizationPolicy shop/p".to_owned(),
        rule: "0".to_owned(),
        deny: false,
        sources: vec![source],
        operations: vec![operation],
    };
    let namespaces = proto::Source { namespaces: vec!["shop".to_owned()], ..proto::Source::default() };
    let compiled = inbound_of(policy(&[(80, 0)], vec![rule(namespaces, proto::Operation::default())]), &[]).unwrap();
    let at_accept = |id: &str| {
        let id = id.parse().unwrap();
        compiled.authorizer.at_accept(&Peer { id: Some(&id), ip: IpAddr::from([127, 0, 0, 1]), port: 80 })
    };
    assert!(matches!(at_accept("spiffe://heddle.local/ns/shop/sa/x"), AtAccept::Allow(_)));
    assert!(matches!(at_accept("spiffe://heddle.local/ns/other/sa/x"), AtAccept::Deny(_)));
    assert!(matches!(at_accept("spiffe://other.local/ns/shop/sa/x"), AtAccept::Deny(_)));

    // A condition that cannot be understood must not become one that is not there.
    let source = |change: fn(&mut proto::Source)| {
        let mut source = proto::Source::default();
        change(&mut source);
        rule(source, proto::Operation::default())
    };
    let operation = |change: fn(&mut proto::Operation)| {
        let mut operation = proto::Operation::default();
        change(&mut operation);
        rule(proto::Source::default(), operation)
    };
    for (bad, says) in [
        (source(|s| s.identities = vec!["*".to_owned()]), "sources[0].identities[0]"),
        (source(|s| s.identities = vec![String::new()]), "sources[0].identities[0]"),
        (source(|s| s.namespaces = vec!["a/b".to_owned()]), "sources[0].namespaces[0]"),
        (source(|s| s.cidrs = vec!["10.0.0.0/99".to_owned()]), "sources[0].cidrs[0]"),
        (operation(|o| o.ports = vec![0]), "operations[0].ports[0]"),
        (operation(|o| o.methods = vec![String::new()]), "operations[0].methods[0]"),
        (operation(|o| o.paths = vec!["admin".to_owned()]), "operations[0].paths[0]"),
    ] {
        let reason = inbound_of(policy(&[(80, 0)], vec![bad]), &[]).unwrap_err();
        assert!(reason.contains(says) && reason.ends_with("(AuthorizationPolicy shop/p rule 0)"), "{says}: {reason}");
    }
    let probe = proto::ProbeExemption { port: 80, path: "healthz".to_owned() };
    let with_probe = proto::InboundPolicy { probe_exemptions: vec![probe], ..policy(&[(80, 0)], Vec::new()) };
    assert!(inbound_of(with_probe, &[]).unwrap_err().contains("probe_exemptions[0].path"));
}

#[test]
fn no_listener_of_the_proxy_itself_is_an_app() {
    let compiled = inbound_of(policy(&[(80, 15006), (81, 15000), (82, 15001)], Vec::new()), &[]).unwrap();
    let apps: Vec<_> = compiled.ports.values().map(|port| port.app.map(|app| app.port())).collect();
    assert_eq!(apps, [None, None, Some(15001)]);
}

#[test]
fn no_time_is_too_long_to_be_added_to_now() {
    assert_eq!(millis(0), None);
    assert_eq!(millis(1500), Some(Duration::from_millis(1500)));
    assert!(millis(u64::MAX).unwrap() < Duration::from_secs(20 * 365 * 24 * 3600), "an Instant overflows");
}

#[test]
fn a_mesh_without_meaning_is_refused() {
    let good = proto::MeshConfig {
        trust_domain: "heddle.local".to_owned(),
        suffixes: vec!["Mesh.local".to_owned()],
        cidrs: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
        ..proto::MeshConfig::default()
    };
    assert_eq!(mesh("mesh", good.clone()).unwrap().suffixes, ["mesh.local"]);
    let mapped = proto::MeshConfig { cidrs: vec!["::ffff:10.0.0.0/104".to_owned()], ..good.clone() };
    assert_eq!(mesh("mesh", mapped).unwrap().cidrs[0].to_string(), "10.0.0.0/8");
    let with = |change: fn(&mut proto::MeshConfig)| {
        let mut sent = good.clone();
        change(&mut sent);
        mesh("mesh", sent)
    };
    for bad in [
        with(|m| m.trust_domain = String::new()),
        // An empty suffix would claim every name.
        with(|m| m.suffixes = vec![String::new()]),
        with(|m| m.cidrs = vec!["10.0.0.0".to_owned()]),
        with(|m| m.namespaces = vec!["web".to_owned(), "Shop".to_owned()]),
        with(|m| m.telemetry = Some(proto::Telemetry { sampling_ratio: f64::NAN, access_log: false })),
        mesh("other", good.clone()),
    ] {
        assert!(bad.is_err(), "{bad:?}");
    }
}
