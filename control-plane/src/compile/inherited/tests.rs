use heddle_api::{
    proto::discovery::AuthorizationRule,
    resource::{HttpRouteMatch, PathMatch, PathMatchType, PathModifierType},
};

use super::*;
use crate::mesh::{
    Affected, Mesh,
    tests::{mesh, objects},
};

const SHOP: &str = "
kind: Service
metadata: {name: orders}
spec: {ports: [{port: 80}, {port: 90}, {port: 5432, protocol: tcp}]}
---
kind: Service
metadata: {name: orders-v1}
spec: {ports: [{port: 8080}]}
---
kind: Service
metadata: {name: orders-v2, namespace: canary}
spec: {ports: [{port: 80}, {port: 81}]}
---
kind: Service
metadata: {name: other}
spec: {ports: [{port: 80}]}
---
kind: HTTPRoute
metadata: {name: split}
spec: {parentRefs: [{name: orders, port: 80}], rules: [{backendRefs: [{name: orders-v1}, {name: orders-v2, namespace: canary, port: 81}]}]}
";

const DENY: &str = "
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {targetRef: {kind: Service, name: orders}, action: DENY, rules: [{name: admin, from: [{identities: [shop/web]}], to: [{paths: [/admin/*]}]}]}
";

fn rules(mesh: &Mesh, service: &str) -> Vec<AuthorizationRule> {
    super::super::inbound::compile(mesh, &Name::parse(service).unwrap()).unwrap().rules
}

/// Each rule as `policy/rule ports methods paths`.
fn short(mesh: &Mesh, service: &str) -> Vec<String> {
    let rules = rules(mesh, service);
    let show = |rule: &AuthorizationRule| {
        let name = format!("{}/{}", rule.policy.rsplit_once('/').unwrap().1, rule.rule);
        let of = rule.operations.iter().map(|operation| {
            format!("{:?} {} {}", operation.ports, operation.methods.join(","), operation.paths.join(","))
        });
        format!("{} {name} {}", if rule.deny { "DENY" } else { "ALLOW" }, of.collect::<Vec<_>>().join("; "))
    };
    rules.iter().map(show).collect()
}

fn put(mesh: &mut Mesh, text: &str) -> Affected {
    let mut affected = Affected::default();
    for object in objects(text) {
        affected.merge(mesh.put(object));
    }
    affected
}

#[test]
fn a_denial_for_a_service_holds_for_those_that_its_routes_lead_to() {
    let mut mesh = mesh(&format!("{SHOP}---{DENY}"));
    put(
        &mut mesh,
        "{kind: AuthorizationPolicy, metadata: {name: allow}, spec: {targetRef: {kind: Service, name: orders}, action: ALLOW, rules: [{}]}}",
    );
    assert_eq!(short(&mesh, "shop/orders"), ["DENY deny/admin []  /admin/*", "ALLOW allow/0 "]);
    assert_eq!(short(&mesh, "shop/orders-v1"), ["DENY deny/admin [8080]  /admin/*"], "nothing is let in by it");
    assert_eq!(short(&mesh, "canary/orders-v2"), ["DENY deny/admin [81]  /admin/*"]);
    assert_eq!(rules(&mesh, "shop/orders-v1")[0].sources[0].identities, ["spiffe://td/ns/shop/sa/web"]);
    assert!(short(&mesh, "shop/other").is_empty());
}

#[test]
fn ports_are_those_of_the_backend() {
    let mut mesh = mesh(SHOP);
    let deny = |to: &str| {
        format!(
            "{{kind: AuthorizationPolicy, metadata: {{name: deny}}, spec: {{targetRef: {{kind: Service, name: orders}}, action: DENY, rules: [{{{to}}}]}}}}"
        )
    };
    put(&mut mesh, &deny(""));
    assert_eq!(short(&mesh, "shop/orders-v1"), ["DENY deny/0 [8080]  "]);
    put(&mut mesh, &deny("to: [{ports: [90]}]"));
    assert!(short(&mesh, "shop/orders-v1").is_empty(), "the route is not of that port");
    put(&mut mesh, &deny("to: [{ports: [80, 90], methods: [POST]}]"));
    assert_eq!(short(&mesh, "shop/orders-v1"), ["DENY deny/0 [8080] POST "]);
    // Opaque connections of another port come by another route.
    put(
        &mut mesh,
        "{kind: TCPRoute, metadata: {name: t}, spec: {parentRefs: [{name: orders, port: 5432}], rules: [{backendRefs: [{name: orders-v2, namespace: canary, port: 80}]}]}}",
    );
    put(&mut mesh, &deny("to: [{ports: [5432]}]"));
    assert!(short(&mesh, "shop/orders-v1").is_empty());
    assert_eq!(short(&mesh, "canary/orders-v2"), ["DENY deny/0 [80]  "]);
    put(&mut mesh, &deny(""));
    assert_eq!(short(&mesh, "canary/orders-v2"), ["DENY deny/0 [80, 81]  "]);
    // Opaque bytes have no method that could be compared.
    put(&mut mesh, &deny("to: [{methods: [POST]}]"));
    assert_eq!(short(&mesh, "canary/orders-v2"), ["DENY deny/0 [81] POST ; [80]  "]);
}

#[test]
fn a_namespaces_denials_go_with_its_routes_to_other_namespaces() {
    let mut mesh = mesh(SHOP);
    put(
        &mut mesh,
        "{kind: AuthorizationPolicy, metadata: {name: all}, spec: {action: DENY, rules: [{to: [{methods: [PUT]}]}]}}",
    );
    put(
        &mut mesh,
        "{kind: AuthorizationPolicy, metadata: {name: mesh, namespace: heddle}, spec: {action: DENY, rules: [{to: [{ports: [80]}]}]}}",
    );
    // The mesh's holds anyway, but its port 80 is another one behind the route.
    assert_eq!(short(&mesh, "shop/orders-v1"), ["DENY mesh/0 [80]  ", "DENY all/0 [] PUT ", "DENY mesh/0 [8080]  "]);
    assert_eq!(short(&mesh, "canary/orders-v2"), ["DENY mesh/0 [80]  ", "DENY mesh/0 [81]  ", "DENY all/0 [81] PUT "]);
}

#[test]
fn a_denied_path_follows_a_rewrite() {
    let mut mesh = mesh(&format!("{SHOP}---{DENY}"));
    let route = |rule: &str| {
        format!(
            "{{kind: HTTPRoute, metadata: {{name: split}}, spec: {{parentRefs: [{{name: orders}}], rules: [{rule}]}}}}"
        )
    };
    put(
        &mut mesh,
        &route(
            "{matches: [{path: {value: /admin}}], backendRefs: [{name: orders-v1}, {name: orders, port: 90}], filters: \
             [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}]}",
        ),
    );
    assert_eq!(short(&mesh, "shop/orders-v1"), ["DENY deny/admin [8080]  /admin/*,/x/*"]);
    // A service that routes to itself, too.
    assert_eq!(short(&mesh, "shop/orders"), ["DENY deny/admin []  /admin/*", "DENY deny/admin [90]  /admin/*,/x/*"]);
}

fn modifier(r#type: PathModifierType, path: &str) -> PathModifierSpec {
    let given = |of| (of == r#type).then(|| path.to_owned());
    PathModifierSpec {
        r#type,
        replace_full_path: given(PathModifierType::ReplaceFullPath),
        replace_prefix_match: given(PathModifierType::ReplacePrefixMatch),
    }
}

#[test]
fn where_rewritten_paths_go() {
    let check = |pattern: &str, matched: (PathMatchType, &str), new: &PathModifierSpec, expected: &[&str]| {
        let path = Some(PathMatch { r#type: matched.0, value: matched.1.to_owned() });
        let matches = [HttpRouteMatch { path, ..HttpRouteMatch::default() }];
        let found = paths::rewritten(pattern, new, &paths::matched(&matches));
        assert_eq!(found, expected, "{pattern} of {matched:?} to {new:?}");
    };
    use PathMatchType::{Exact, PathPrefix, RegularExpression};
    let prefix = |new: &str| modifier(PathModifierType::ReplacePrefixMatch, new);
    for (pattern, matched, new, expected) in [
        ("/v1/admin/*", "/v1", "/", &["/admin/*"][..]),
        ("/v1/admin/*", "/v1/", "/x/", &["/x/admin/*"]),
        ("/v1/admin", "/v1", "/x", &["/x/admin"]),
        ("/v1", "/v1", "/x", &["/x", "/x/"]),
        ("/v1", "/v1", "/", &["/", "/"]),
        ("/v1/*", "/v1", "/", &["/*"]),
        ("/v1/*", "/v1/a", "/x", &["/x", "/x/*"]),
        ("*", "/v1", "/x", &["/x", "/x/*"]),
        ("/a/b", "/", "/x", &["/x/a/b"]),
        ("/v12/*", "/v1", "/x", &[]),
        ("/v12", "/v1", "/x", &[]),
        ("/%761/admin", "/v1", "/x", &["/x", "/x/*"]),
        ("/v1/a", "/v1", "/x*", &["/x%2A/a"]),
    ] {
        check(pattern, (PathPrefix, matched), &prefix(new), expected);
    }
    let full = |new: &str| modifier(PathModifierType::ReplaceFullPath, new);
    for (pattern, matched, expected) in [
        ("/admin/*", (Exact, "/admin/x"), &["/new"][..]),
        ("/admin/*", (Exact, "/other"), &[]),
        ("/admin", (Exact, "/admin"), &["/new"]),
        ("/admin/*", (PathPrefix, "/"), &["/new"]),
        ("/admin/*", (PathPrefix, "/admin/a"), &["/new"]),
        ("/admin/*", (PathPrefix, "/administrators"), &[]),
        ("/admin", (RegularExpression, "/.*"), &["/new"]),
        ("*", (Exact, "/a"), &["/new"]),
    ] {
        check(pattern, matched, &full("/new"), expected);
    }
    let any = paths::matched(&[]);
    assert_eq!(paths::rewritten("/admin", &full("/new"), &any), ["/new"]);
}

#[test]
fn what_changes_denials_touches_those_who_inherit_them() {
    let mut mesh = mesh(SHOP);
    let inbound = |affected: Affected| affected.inbound.into_iter().collect::<Vec<_>>();
    let of = |name: &str| Scope::Service(Name::parse(name).unwrap());
    let backends = [of("canary/orders-v2"), of("shop/orders-v1")];
    let with_parent = [of("canary/orders-v2"), of("shop/orders"), of("shop/orders-v1")];
    let route = objects(SHOP).pop().unwrap();
    assert!(inbound(mesh.put(route.clone())).is_empty(), "nothing is denied yet");
    assert_eq!(inbound(put(&mut mesh, DENY)), with_parent);
    assert_eq!(inbound(mesh.remove(ObjectKind::HttpRoute, &Name::new("shop", "split"))), backends);
    assert_eq!(inbound(mesh.put(route)), backends);
    // Its ports are translated.
    let service = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}";
    assert_eq!(inbound(put(&mut mesh, service)), with_parent);
    let allow = DENY.replace("DENY", "ALLOW");
    assert_eq!(inbound(put(&mut mesh, &allow)), with_parent, "what was denied no longer is");
    assert_eq!(inbound(put(&mut mesh, &allow)), [of("shop/orders")]);
    put(&mut mesh, DENY);
    assert_eq!(inbound(mesh.remove(ObjectKind::AuthorizationPolicy, &Name::new("shop", "deny"))), with_parent);
    let all = "{kind: AuthorizationPolicy, metadata: {name: all}, spec: {action: DENY, rules: [{}]}}";
    let found = inbound(put(&mut mesh, all));
    assert!(found.contains(&Scope::Namespace("shop".into())) && found.contains(&of("canary/orders-v2")), "{found:?}");
}
