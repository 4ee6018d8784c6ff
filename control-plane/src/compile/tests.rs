use heddle_api::proto::discovery::{InboundPolicy, MeshConfig, Service, string_match::Kind};

use super::*;
use crate::mesh::tests::{mesh, objects, registered};

fn service(mesh: &Mesh, name: &str) -> Service {
    service::compile(mesh, &Name::parse(name).unwrap()).unwrap()
}

fn inbound(mesh: &Mesh, name: &str) -> InboundPolicy {
    inbound::compile(mesh, &Name::parse(name).unwrap()).unwrap()
}

/// Rules of the first port, each as its route's name and rule.
fn order(mesh: &Mesh) -> Vec<String> {
    let rules = service(mesh, "shop/orders").ports.remove(0).http_rules;
    rules.iter().map(|rule| format!("{}/{}", rule.route.rsplit_once('/').unwrap().1, rule.rule)).collect()
}

const ORDERS: &str = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}";

/// One route of rules that go to `orders`.
fn route(name: &str, hostnames: &str, rules: &[(&str, &str)]) -> String {
    let rules: Vec<_> = rules
        .iter()
        .map(|(name, matches)| format!("{{name: '{name}', matches: [{matches}], backendRefs: [{{name: orders}}]}}"))
        .collect();
    format!(
        "{{kind: HTTPRoute, metadata: {{name: {name}}}, spec: {{parentRefs: [{{name: orders}}], hostnames: [{hostnames}], rules: [{}]}}}}",
        rules.join(", ")
    )
}

#[test]
fn the_more_specific_match_goes_first() {
    let rules = [
        ("any", ""),
        ("root", "{path: {value: /}, method: GET}"),
        ("regex", "{path: {type: RegularExpression, value: '/v[0-9]+'}}"),
        ("short", "{path: {value: /a}}"),
        ("long", "{path: {value: /a/b}}"),
        ("exact", "{path: {type: Exact, value: /a}}"),
        ("exact-get", "{path: {type: Exact, value: /a}, method: GET}"),
        ("long-header", "{path: {value: /a/b}, headers: [{name: x, value: y}]}"),
        ("long-2-headers", "{path: {value: /a/b}, headers: [{name: x, value: y}, {name: z, value: y}]}"),
        ("long-query", "{path: {value: /a/b}, queryParams: [{name: x, value: y}]}"),
        (
            "long-header-query",
            "{path: {value: /a/b}, headers: [{name: x, value: y}], queryParams: [{name: x, value: y}]}",
        ),
        ("long-post", "{path: {value: /a/b}, method: POST}"),
    ];
    let mesh = mesh(&format!("{ORDERS}\n---\n{}", route("r", "", &rules)));
    let expected = [
        "exact-get",
        "exact",
        "long-post",
        "long-2-headers",
        "long-header-query",
        "long-header",
        "long-query",
        "long",
        "short",
        "regex",
        "root",
        "any",
    ];
    assert_eq!(order(&mesh), expected.map(|rule| format!("r/{rule}")));
}

#[test]
fn the_more_specific_host_goes_before_the_more_specific_path() {
    let exact = "{path: {type: Exact, value: /a}}";
    let text = [
        ORDERS.to_owned(),
        route("any", "", &[("0", exact)]),
        route("suffix", "'*.example'", &[("0", exact)]),
        route("longer-suffix", "'*.b.example'", &[("0", exact)]),
        route("host", "A.b.example", &[("0", "")]),
        route("both", "'*.example', a.b.example", &[("0", "")]),
    ];
    let mesh = mesh(&text.join("\n---\n"));
    assert_eq!(order(&mesh), ["both/0", "host/0", "longer-suffix/0", "suffix/0", "both/0", "any/0"]);
    let rules = service(&mesh, "shop/orders").ports.remove(0).http_rules;
    assert_eq!(rules[1].hostnames, ["a.b.example"]);
    assert!(rules[5].hostnames.is_empty());
}

#[test]
fn ties_go_to_the_oldest_then_by_name_then_by_order() {
    let dated = |name: &str, time: &str| {
        route(name, "", &[("first", ""), ("second", "")])
            .replace("metadata: {", &format!("metadata: {{creationTimestamp: '{time}', "))
    };
    let text = [
        ORDERS.to_owned(),
        dated("c", "2026-01-01T00:00:00Z"),
        dated("b", "2026-01-02T00:00:00Z"),
        dated("a", "2026-01-02T00:00:00Z"),
        // Older than c, though not as text.
        dated("d", "2026-01-01T00:59:59+01:00"),
    ];
    let expected = ["d/first", "d/second", "c/first", "c/second", "a/first", "a/second", "b/first", "b/second"];
    assert_eq!(order(&mesh(&text.join("\n---\n"))), expected);
}

#[test]
fn grpc_methods_are_paths() {
    let mesh = mesh(&format!(
        "{ORDERS}\n---\n{}",
        "
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{name: orders}]
  rules:
  - name: all
    backendRefs: [{name: orders}]
  - name: service
    matches: [{method: {service: pkg.Svc}}]
    backendRefs: [{name: orders}]
  - name: method
    matches: [{method: {method: Get.It}}]
    backendRefs: [{name: orders}]
  - name: both
    matches: [{method: {service: pkg.Svc, method: Get}, headers: [{name: X-Env, value: a}]}]
    backendRefs: [{name: orders}]
  - name: regex
    matches: [{method: {type: RegularExpression, service: 'a|b'}}]
    backendRefs: [{name: orders}]
"
    ));
    let rules = service(&mesh, "shop/orders").ports.remove(0).http_rules;
    let found: Vec<_> = (rules.iter())
        .map(|rule| {
            let wanted = rule.r#match.clone().unwrap();
            (rule.route.as_str(), rule.rule.as_str(), wanted.path.and_then(|path| path.kind))
        })
        .collect();
    let route = "GRPCRoute shop/g";
    assert_eq!(
        found,
        [
            (route, "both", Some(Kind::Exact("/pkg.Svc/Get".to_owned()))),
            (route, "service", Some(Kind::Prefix("/pkg.Svc".to_owned()))),
            (route, "method", Some(Kind::Regex(r"/[^/]+/Get\.It".to_owned()))),
            (route, "regex", Some(Kind::Regex("/(?:a|b)/(?:[^/]+)".to_owned()))),
            (route, "all", None),
        ]
    );
    assert_eq!(rules[0].r#match.as_ref().unwrap().headers[0].name, "x-env");
}

#[test]
fn a_route_applies_to_the_ports_that_it_names_and_that_speak_it() {
    let mesh = mesh(
        "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80, protocol: http}, {port: 81}, {port: 82, protocol: tcp}, {port: 83, protocol: http}]}
---
kind: HTTPRoute
metadata: {name: h}
spec: {parentRefs: [{name: orders, port: 80}, {name: orders, port: 81}, {name: orders, port: 82}], rules: [{backendRefs: [{name: orders, port: 80}]}]}
---
kind: TCPRoute
metadata: {name: t, creationTimestamp: '2026-01-02T00:00:00Z'}
spec: {parentRefs: [{name: orders}], rules: [{backendRefs: [{name: orders, port: 82, weight: 3}]}]}
---
kind: TCPRoute
metadata: {name: younger, creationTimestamp: '2026-01-03T00:00:00Z'}
spec: {parentRefs: [{name: orders}], rules: [{backendRefs: [{name: orders, port: 80}]}]}
",
    );
    let found: Vec<_> = (service(&mesh, "shop/orders").ports.iter())
        .map(|port| (port.port, port.http_rules.len(), port.tcp_route.clone(), port.tcp_backends.len()))
        .collect();
    let tcp = || "TCPRoute shop/t".to_owned();
    assert_eq!(found, [(80, 1, String::new(), 0), (81, 1, tcp(), 1), (82, 0, tcp(), 1), (83, 0, String::new(), 0)]);
    assert_eq!(service(&mesh, "shop/orders").ports[2].tcp_backends[0].weight, 3);
}

#[test]
fn a_backend_that_cannot_be_says_why() {
    let yaml = "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {name: two, namespace: other}
spec: {ports: [{port: 1}, {port: 2}]}
---
kind: HTTPRoute
metadata: {name: h}
spec:
  parentRefs: [{name: orders}]
  rules:
  - backendRefs:
    - {name: orders}
    - {name: two, namespace: other, port: 2}
    - {name: two, namespace: other}
    - {name: two, namespace: other, port: 3}
    - {name: two, port: 2, weight: 0}
";
    let mut mesh = mesh(yaml);
    let backends = |mesh: &Mesh| {
        let rule = service(mesh, "shop/orders").ports.remove(0).http_rules.remove(0);
        rule.backends
            .into_iter()
            .map(|backend| (backend.service, backend.port, backend.weight, backend.invalid))
            .collect::<Vec<_>>()
    };
    let ok = |service: &str, port, weight| (service.to_owned(), port, weight, String::new());
    let bad = |service: &str, port, weight, why: &str| (service.to_owned(), port, weight, why.to_owned());
    let several = "service other/two has several ports and the route names none";
    assert_eq!(
        backends(&mesh),
        [
            ok("shop/orders", 80, 1),
            ok("other/two", 2, 1),
            bad("other/two", 0, 1, several),
            bad("other/two", 3, 1, "service other/two has no port 3"),
            bad("shop/two", 2, 0, "service shop/two does not exist"),
        ]
    );
    mesh.remove(heddle_api::resource::ObjectKind::Service, &Name::new("other", "two"));
    assert_eq!(backends(&mesh)[1], bad("other/two", 2, 1, "service other/two does not exist"));
}

#[test]
fn traffic_policy_has_its_defaults_and_the_nearest_wins_whole() {
    let mut mesh = mesh(ORDERS);
    let policy = |mesh: &Mesh| service(mesh, "shop/orders").traffic_policy.unwrap();
    let defaults = policy(&mesh);
    let retry = defaults.retry.clone().unwrap();
    assert_eq!((defaults.request_timeout_ms, defaults.per_try_timeout_ms), (0, 0));
    assert_eq!((defaults.connect_timeout_ms, defaults.idle_timeout_ms), (2_000, 3_600_000));
    assert_eq!((retry.max_retries, retry.budget_percent, retry.budget_min_per_second), (2, 20, 10));
    assert_eq!((retry.statuses, retry.grpc_statuses), (vec![502, 503, 504], vec![14]));
    assert!(retry.on_connect_failure && retry.on_reset && retry.on_refused_stream);
    assert_eq!((retry.backoff_base_ms, retry.backoff_max_ms, retry.replay_bytes), (25, 250, 65_536));
    let limits = defaults.limits.unwrap();
    assert_eq!((limits.max_connections, limits.max_requests, limits.max_pending), (1024, 1024, 1024));
    let outlier = defaults.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_failures, outlier.base_ejection_ms), (5, 10_000));
    assert_eq!((outlier.max_ejection_ms, outlier.max_ejected_percent), (300_000, 50));
    assert_eq!(defaults.source, "");

    let put = |mesh: &mut Mesh, text: &str| {
        for object in objects(&format!("{{kind: TrafficPolicy, metadata: {text}}}")) {
            mesh.put(object);
        }
    };
    put(
        &mut mesh,
        "{name: m, namespace: heddle}, spec: {timeouts: {request: 9s}, retries: {attempts: 0, on: [reset], statuses: [500], grpcStatuses: [INTERNAL], methods: [POST], backoff: 1s}}",
    );
    let of_mesh = policy(&mesh);
    assert_eq!((of_mesh.request_timeout_ms, of_mesh.source.as_str()), (9_000, "TrafficPolicy heddle/m"));
    let retry = of_mesh.retry.unwrap();
    assert_eq!((retry.max_retries, retry.statuses, retry.grpc_statuses), (0, vec![500], vec![13]));
    assert!(!retry.on_connect_failure && retry.on_reset && !retry.on_refused_stream);
    assert_eq!((retry.backoff_base_ms, retry.backoff_max_ms, retry.methods), (1_000, 1_000, vec!["POST".to_owned()]));

    put(&mut mesh, "{name: n}, spec: {timeouts: {connect: 5s}}");
    let of_namespace = policy(&mesh);
    assert_eq!(
        (of_namespace.request_timeout_ms, of_namespace.connect_timeout_ms),
        (0, 5_000),
        "not mixed with the mesh's"
    );
    put(
        &mut mesh,
        "{name: s}, spec: {targetRef: {kind: Service, name: orders}, balancing: random, limits: {maxPending: 1}}",
    );
    let own = policy(&mesh);
    assert_eq!(own.balancing(), proto::Balancing::Random);
    assert_eq!(
        (own.connect_timeout_ms, own.limits.unwrap().max_pending, own.source.as_str()),
        (2_000, 1, "TrafficPolicy shop/s")
    );
    put(
        &mut mesh,
        "{name: older, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {targetRef: {kind: Service, name: orders}}",
    );
    assert_eq!(policy(&mesh).source, "TrafficPolicy shop/older");
}

#[test]
fn a_rules_own_timeouts_and_retries_go_with_it() {
    let mesh = mesh(&format!(
        "{ORDERS}\n---\n{}",
        "
kind: HTTPRoute
metadata: {name: h}
spec:
  parentRefs: [{name: orders}]
  rules:
  - timeouts: {request: 3s, backendRequest: 1s}
    retry: {codes: [500], attempts: 4, backoff: 10ms, methods: [POST]}
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: b}], remove: [X-C]}}
    - {type: URLRewrite, urlRewrite: {hostname: other, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    backendRefs: [{name: orders}]
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443}}]
"
    ));
    let rules = service(&mesh, "shop/orders").ports.remove(0).http_rules;
    assert_eq!((rules[0].rule.as_str(), rules[0].request_timeout_ms, rules[0].per_try_timeout_ms), ("0", 3_000, 1_000));
    let retry = rules[0].retry.clone().unwrap();
    assert_eq!((retry.max_retries, retry.statuses, retry.backoff_base_ms), (4, vec![500], 10));
    assert_eq!(rules[0].filters.len(), 2);
    let Some(proto::http_filter::Kind::Redirect(redirect)) = rules[1].filters[0].kind.clone() else { panic!() };
    assert_eq!((redirect.scheme.as_str(), redirect.port, redirect.status), ("https", 8443, 302));
    assert!(rules[1].backends.is_empty() && rules[1].retry.is_none());
}

#[test]
fn endpoints_are_those_who_may_serve() {
    let mut mesh = mesh(
        "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80, targetPort: 8080}, {port: 81}], serviceAccounts: [orders, batch]}
---
kind: Workload
metadata: {name: declared}
spec: {address: 10.0.0.2, inboundPort: 15006, serviceAccount: batch, services: [{name: orders, ports: [81]}], zone: z, weight: 7}
---
kind: Workload
metadata: {name: bare}
spec: {address: 10.0.0.1, services: [{name: orders}]}
---
kind: Workload
metadata: {name: stranger}
spec: {address: 10.0.0.3, inboundPort: 15006, serviceAccount: other, services: [{name: orders}]}
",
    );
    let mut r1 = (*registered("r1", "orders", "10.0.0.4:15006", &["shop/orders"])).clone();
    r1.app_ports = [(Name::new("shop", "orders"), [(80, 8001)].into())].into();
    mesh.register(r1.into());
    mesh.register(registered("r2", "stranger", "10.0.0.5:15006", &["shop/orders"]));
    let found = endpoints::compile(&mesh, &Name::new("shop", "orders")).unwrap();
    let short: Vec<_> = (found.endpoints.iter())
        .map(|endpoint| {
            let ports: Vec<_> = endpoint.ports.iter().map(|port| (port.port, port.target_port)).collect();
            (endpoint.address.as_str(), endpoint.meshed, endpoint.workload.as_str(), ports)
        })
        .collect();
    assert_eq!(
        short,
        [
            ("10.0.0.1:8080", false, "shop/bare", vec![(80, 8080), (81, 81)]),
            ("10.0.0.2:15006", true, "shop/declared", vec![(81, 81)]),
            ("10.0.0.4:15006", true, "shop/r1", vec![(80, 8001), (81, 81)]),
        ]
    );
    assert!(found.endpoints[0].identities.is_empty());
    assert_eq!(found.endpoints[1].identities, ["spiffe://td/ns/shop/sa/batch"]);
    assert_eq!((found.endpoints[1].zone.as_str(), found.endpoints[1].weight), ("z", 7));
    assert_eq!(found.endpoints[2].identities, ["spiffe://td/ns/shop/sa/orders"]);

    let narrowed = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}], serviceAccounts: [batch]}}";
    mesh.put(objects(narrowed).remove(0));
    let found = endpoints::compile(&mesh, &Name::new("shop", "orders")).unwrap();
    let left: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.workload.as_str()).collect();
    assert_eq!(left, ["shop/bare"], "the others' account or port is not the service's any more");
}

#[test]
fn who_may_serve_is_listed_or_has_the_services_name() {
    let may = |yaml: &str, identity: &str| {
        let mesh = mesh(yaml);
        let service = mesh.service(&Name::new("shop", "orders")).unwrap();
        may_serve(service, &identity.parse().unwrap())
    };
    let listed = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}], serviceAccounts: [a]}}";
    assert!(may(ORDERS, "spiffe://td/ns/shop/sa/orders"));
    assert!(may(listed, "spiffe://td/ns/shop/sa/a"));
    for (yaml, identity) in [
        (listed, "spiffe://td/ns/shop/sa/orders"),
        (ORDERS, "spiffe://td/ns/other/sa/orders"),
        (ORDERS, "spiffe://td/ns/shop/sa/order"),
        (ORDERS, "spiffe://td/heddle/control-plane"),
    ] {
        assert!(!may(yaml, identity), "{identity}");
    }
}

#[test]
fn inbound_policy_puts_denials_first_and_names_its_rules() {
    let mesh = mesh(
        "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80, targetPort: 8080, mtls: permissive, protocol: http}], probeExemptions: [{port: 80, path: /healthz}]}
---
kind: AuthorizationPolicy
metadata: {name: own}
spec: {targetRef: {kind: Service, name: orders}, action: ALLOW, rules: [{name: callers, from: [{identities: [shop/storefront, 'web/*', 'spiffe://td/ns/**']}], to: [{methods: [GET], paths: ['/a/*'], ports: [80]}]}]}
---
kind: AuthorizationPolicy
metadata: {name: mesh, namespace: heddle}
spec: {action: ALLOW, rules: [{from: [{namespaces: [ops]}]}]}
---
kind: AuthorizationPolicy
metadata: {name: not}
spec: {action: DENY, rules: [{from: [{cidrs: [10.0.0.0/8], unauthenticated: true}]}, {}]}
---
kind: AuthorizationPolicy
metadata: {name: elsewhere}
spec: {targetRef: {kind: Service, name: payments}, action: DENY, rules: [{}]}
---
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: web}
spec: {action: DENY, rules: [{}]}
",
    );
    let policy = inbound(&mesh, "shop/orders");
    let rules: Vec<_> = policy.rules.iter().map(|rule| (rule.policy.as_str(), rule.rule.as_str(), rule.deny)).collect();
    assert_eq!(
        rules,
        [
            ("AuthorizationPolicy shop/not", "0", true),
            ("AuthorizationPolicy shop/not", "1", true),
            ("AuthorizationPolicy heddle/mesh", "0", false),
            ("AuthorizationPolicy shop/own", "callers", false),
        ]
    );
    let identities = ["spiffe://td/ns/shop/sa/storefront", "spiffe://td/ns/web/sa/*", "spiffe://td/ns/**"];
    assert_eq!(policy.rules[3].sources[0].identities, identities);
    assert_eq!(policy.rules[3].operations[0].paths, ["/a/*"]);
    assert!(policy.rules[0].sources[0].unauthenticated);
    assert!(!policy.default_allow, "a new mesh denies");
    let port = &policy.ports[0];
    assert_eq!(
        (port.port, port.target_port, port.permissive, port.protocol()),
        (80, 8080, true, proto::Protocol::Http)
    );
    assert_eq!((policy.probe_exemptions[0].port, policy.probe_exemptions[0].path.as_str()), (80, "/healthz"));
}

#[test]
fn settings_of_the_mesh_and_their_defaults() {
    let settings = |yaml: &str| mesh_config(&mesh(yaml));
    let default = settings("");
    assert_eq!(default.suffixes, ["mesh"]);
    assert!(!default.egress_allow && default.cidrs.is_empty());
    let telemetry = Some(proto::Telemetry { sampling_ratio: 0.01, access_log: false });
    assert_eq!((default.trust_domain.as_str(), default.telemetry), ("td", telemetry));
    let written = settings(
        "{kind: MeshConfig, metadata: {name: mesh}, spec: {suffixes: [Cluster.Local], cidrs: [10.0.0.0/8], egress: allow, defaultAuthorization: allow, telemetry: {samplingRatio: 1, accessLog: true}}}",
    );
    assert_eq!(
        written,
        MeshConfig {
            trust_domain: "td".to_owned(),
            suffixes: vec!["cluster.local".to_owned()],
            cidrs: vec!["10.0.0.0/8".to_owned()],
            egress_allow: true,
            telemetry: Some(proto::Telemetry { sampling_ratio: 1.0, access_log: true }),
            namespaces: Vec::new(),
        }
    );
    let of_two = "kind: TrafficPolicy\nmetadata: {name: t, namespace: web}\nspec: {}\n---\n";
    assert_eq!(settings(&format!("{of_two}{ORDERS}")).namespaces, ["shop", "web"]);
}

#[test]
fn a_version_is_a_hash_of_the_content() {
    let version = |yaml: &str, name: &str| {
        let bundle = bundle();
        compile(&mesh(yaml), &bundle, ResourceKind::Service, name).map(|compiled| compiled.version)
    };
    let first = version(ORDERS, "shop/orders").unwrap();
    assert_eq!(first.len(), 16);
    let other_order =
        format!("{{kind: Service, metadata: {{name: other}}, spec: {{ports: [{{port: 1}}]}}}}\n---\n{ORDERS}");
    assert_eq!(version(&other_order, "shop/orders"), Some(Arc::clone(&first)), "nothing else counts");
    assert_ne!(version(&ORDERS.replace("80", "81"), "shop/orders"), Some(first));
    assert_eq!(version(ORDERS, "shop/nothing"), None);
    assert_eq!(version(ORDERS, "orders"), None);
}

pub(crate) fn bundle() -> TrustBundle {
    let trust_domain = heddle_certs::TrustDomain::new("td").unwrap();
    let authority = heddle_certs::Authority::create(trust_domain, std::time::SystemTime::now()).unwrap();
    authority.bundle().clone()
}
