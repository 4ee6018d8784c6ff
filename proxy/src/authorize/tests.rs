use std::str::FromStr;

use heddle_certs::TrustDomain;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

fn td() -> TrustDomain {
    TrustDomain::new("heddle.local").unwrap()
}

fn id(s: &str) -> SpiffeId {
    SpiffeId::from_str(s).unwrap()
}

fn pattern(s: &str) -> IdentityPattern {
    s.parse().unwrap()
}

fn rule(deny: bool, sources: Vec<Source>, operations: Vec<Operation>) -> Rule {
    Rule {
        policy: format!("AuthorizationPolicy shop/{}", if deny { "deny" } else { "allow" }).into(),
        name: "0".into(),
        deny,
        sources,
        operations,
    }
}

fn from(identity: &str) -> Vec<Source> {
    vec![Source { identities: vec![pattern(identity)], ..Source::default() }]
}

fn paths(paths: &[&str]) -> Vec<Operation> {
    vec![Operation { paths: paths.iter().map(|path| path.parse().unwrap()).collect(), ..Operation::default() }]
}

const CALLER: &str = "spiffe://heddle.local/ns/shop/sa/storefront";

fn peer(id: Option<&SpiffeId>) -> Peer<'_> {
    Peer { id, ip: [10, 0, 0, 1].into(), port: 80 }
}

#[test]
fn identity_patterns() {
    for (pattern, matching, other) in [
        (
            CALLER,
            &[CALLER][..],
            &["spiffe://heddle.local/ns/shop/sa/storefront2", "spiffe://other/ns/shop/sa/storefront"][..],
        ),
        (
            "spiffe://heddle.local/ns/shop/sa/*",
            &[CALLER, "spiffe://heddle.local/ns/shop/sa/x"],
            &[
                "spiffe://heddle.local/ns/other/sa/x",
                "spiffe://heddle.local/ns/shop/sa/x/y",
                "spiffe://heddle.local/ns/shop/sa",
                "spiffe://evil/ns/shop/sa/x",
            ],
        ),
        (
            "spiffe://heddle.local/ns/*/sa/storefront",
            &[CALLER, "spiffe://heddle.local/ns/b/sa/storefront"],
            &["spiffe://heddle.local/ns/b/sa/other", "spiffe://heddle.local/ns/b/c/sa/storefront"],
        ),
        (
            "spiffe://heddle.local/ns/shop/**",
            &[CALLER, "spiffe://heddle.local/ns/shop/a/b/c"],
            &["spiffe://heddle.local/ns/shop", "spiffe://heddle.local/ns/shopx/sa/a"],
        ),
        ("spiffe://heddle.local/**", &[CALLER, "spiffe://heddle.local/x"], &["spiffe://heddle.local2/x"]),
    ] {
        let pattern: IdentityPattern = pattern.parse().unwrap();
        for s in matching {
            assert!(pattern.matches(&id(s)), "{pattern:?} {s}");
        }
        for s in other {
            assert!(!pattern.matches(&id(s)), "{pattern:?} {s}");
        }
    }
    for bad in [
        "",
        "*",
        "shop/storefront",
        "spiffe://*/ns/shop/sa/x",
        "spiffe://heddle.local/ns/sh*p/sa/x",
        "spiffe://heddle.local/**/x",
        "spiffe://heddle.local/ns//sa/*",
        "spiffe://heddle.local/ns/***",
        "spiffe://heddle.local/ns/../*",
        "spiffe://heddle.local/",
        "https://heddle.local/*",
        "spiffe://heddle.local/ns/a%20b/*",
        "spiffe://heddle.local/*/",
        "spiffe://HEDDLE/*",
    ] {
        assert!(bad.parse::<IdentityPattern>().is_err(), "{bad}");
    }
    let namespace = IdentityPattern::namespace(&td(), "shop");
    assert!(namespace.matches(&id(CALLER)));
    assert!(!namespace.matches(&id("spiffe://other/ns/shop/sa/storefront")), "another trust domain's namespace");
    assert!(!namespace.matches(&id("spiffe://heddle.local/ns/shop")));
}

#[test]
fn path_patterns() {
    for (pattern, matching, other) in [
        ("*", &["/", "/a", "*"][..], &[][..]),
        ("/*", &["/", "/a/b"], &[]),
        ("/admin", &["/admin"], &["/admin/", "/admin/x", "/Admin", "/adminx", "/"]),
        ("/admin/*", &["/admin/", "/admin/x", "/admin/x/y"], &["/admin", "/administer"]),
        ("/a:b", &["/a:b"], &[]),
        ("/a%3ab", &["/a:b"], &["/a%3Ab"]),
        ("/%61", &["/a"], &[]),
    ] {
        let pattern: PathPattern = pattern.parse().unwrap();
        for path in matching {
            assert!(pattern.matches(path), "{pattern:?} {path}");
        }
        for path in other {
            assert!(!pattern.matches(path), "{pattern:?} {path}");
        }
    }
    for bad in ["", "admin", "/a*", "/*/b", "**", "/a/**", "/a//b", "/a/../b", "/a;b", "//*"] {
        assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
    }
}

#[test]
fn encoded_paths_meet_the_same_rules() {
    let caller = id(CALLER);
    let authorizer = Authorizer::new(vec![rule(true, vec![], paths(&["/v1/users:delete"]))], true);
    for path in ["/v1/users:delete", "/v1/users%3Adelete", "/v1/%75sers%3adelete"] {
        let path = crate::path::normalize(path).unwrap();
        assert!(!authorizer.at_request(&peer(Some(&caller)), &Method::GET, &path).allowed, "{path}");
    }
    assert!(authorizer.at_request(&peer(Some(&caller)), &Method::GET, "/v1/users").allowed);
}

#[test]
fn deny_wins_then_allow_then_default() {
    let caller = id(CALLER);
    let caller = peer(Some(&caller));
    let allow = rule(false, from(CALLER), vec![]);
    let deny = rule(true, from("spiffe://heddle.local/ns/shop/sa/*"), vec![]);

    let allowed = Authorizer::new(vec![allow.clone()], false);
    assert!(
        matches!(allowed.at_accept(&caller), AtAccept::Allow(why) if why.policy.as_deref() == Some("AuthorizationPolicy shop/allow"))
    );
    assert!(matches!(allowed.at_accept(&peer(None)), AtAccept::Deny(why) if why.policy.is_none()));

    // Whatever their order.
    for rules in [vec![allow.clone(), deny.clone()], vec![deny, allow]] {
        let denied = Authorizer::new(rules, true);
        assert!(
            matches!(denied.at_accept(&caller), AtAccept::Deny(why) if why.policy.as_deref() == Some("AuthorizationPolicy shop/deny"))
        );
        assert!(!denied.at_request(&caller, &Method::GET, "/").allowed);
        assert!(denied.at_request(&peer(None), &Method::GET, "/").allowed);
    }
    for default in [true, false] {
        let empty = Authorizer::new(vec![], default);
        assert_eq!(
            empty.at_request(&caller, &Method::GET, "/"),
            Authorization { allowed: default, policy: None, rule: None }
        );
        assert_eq!(empty.at_opaque(&caller).allowed, default);
    }
}

#[test]
fn what_needs_a_request_is_not_decided_at_accept() {
    let caller = id(CALLER);
    let caller = peer(Some(&caller));
    let deny_admin = rule(true, vec![], paths(&["/admin/*"]));
    let allow_caller = rule(false, from(CALLER), vec![]);
    let allow_orders = rule(false, from(CALLER), paths(&["/orders"]));

    // A DENY that may match one of the requests.
    let authorizer = Authorizer::new(vec![deny_admin.clone(), allow_caller.clone()], false);
    assert_eq!(authorizer.at_accept(&caller), AtAccept::PerRequest);
    assert!(authorizer.has_request_rules(80));
    // Yet nothing allows this one, whatever it asks for.
    assert!(matches!(authorizer.at_accept(&peer(None)), AtAccept::Deny(_)));
    // A DENY of another port does not concern it.
    let mut elsewhere = deny_admin.clone();
    elsewhere.operations[0].ports = vec![8080];
    let authorizer = Authorizer::new(vec![elsewhere, allow_caller], false);
    assert!(matches!(authorizer.at_accept(&caller), AtAccept::Allow(_)));
    assert!(!authorizer.has_request_rules(80) && authorizer.has_request_rules(8080));

    // An ALLOW that may match one of the requests.
    let authorizer = Authorizer::new(vec![allow_orders], false);
    assert_eq!(authorizer.at_accept(&caller), AtAccept::PerRequest);
    assert!(matches!(authorizer.at_accept(&peer(None)), AtAccept::Deny(_)));
    // Opaque bytes: a request-level ALLOW lets nothing in, a request-level DENY keeps everything out.
    assert!(!authorizer.at_opaque(&caller).allowed);
    assert!(!Authorizer::new(vec![deny_admin], true).at_opaque(&caller).allowed);
}

#[test]
fn callers_without_identity() {
    let caller = id(CALLER);
    let unauthenticated =
        vec![Source { unauthenticated: true, cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..Source::default() }];
    let authorizer = Authorizer::new(vec![rule(false, unauthenticated, vec![])], false);
    assert!(matches!(authorizer.at_accept(&peer(None)), AtAccept::Allow(_)));
    assert!(matches!(authorizer.at_accept(&peer(Some(&caller))), AtAccept::Deny(_)), "it has one");
    let mapped = Peer { ip: "::ffff:10.1.2.3".parse().unwrap(), ..peer(None) };
    assert!(matches!(authorizer.at_accept(&mapped), AtAccept::Allow(_)), "IPv4 on a dual-stack socket");
    let elsewhere = Peer { ip: [192, 168, 0, 1].into(), ..peer(None) };
    assert!(matches!(authorizer.at_accept(&elsewhere), AtAccept::Deny(_)));
    // Identities and namespaces never match who has none.
    let namespace = vec![Source { namespaces: vec![IdentityPattern::namespace(&td(), "shop")], ..Source::default() }];
    let authorizer = Authorizer::new(vec![rule(false, namespace, vec![])], false);
    assert!(matches!(authorizer.at_accept(&peer(None)), AtAccept::Deny(_)));
    assert!(matches!(authorizer.at_accept(&peer(Some(&caller))), AtAccept::Allow(_)));
}

/// Rules as they are written, walked as DESIGN says, without any cleverness.
fn naive(rules: &[Rule], default: bool, peer: &Peer<'_>, method: &Method, path: &str) -> bool {
    let matches = |rule: &&Rule| {
        let source = |source: &Source| {
            let ids = source.identities.is_empty()
                || source.identities.iter().any(|p| peer.id.is_some_and(|id| p.matches(id)));
            let namespaces = source.namespaces.is_empty()
                || source.namespaces.iter().any(|p| peer.id.is_some_and(|id| p.matches(id)));
            let cidrs = source.cidrs.is_empty() || source.cidrs.iter().any(|cidr| cidr.contains(&peer.ip));
            ids && namespaces && cidrs && (!source.unauthenticated || peer.id.is_none())
        };
        let operation = |operation: &Operation| {
            (operation.ports.is_empty() || operation.ports.contains(&peer.port))
                && (operation.methods.is_empty() || operation.methods.contains(method))
                && (operation.paths.is_empty() || operation.paths.iter().any(|pattern| pattern.matches(path)))
        };
        (rule.sources.is_empty() || rule.sources.iter().any(source))
            && (rule.operations.is_empty() || rule.operations.iter().any(operation))
    };
    if rules.iter().filter(|rule| rule.deny).any(|rule| matches(&rule)) {
        return false;
    }
    rules.iter().filter(|rule| !rule.deny).any(|rule| matches(&rule)) || default
}

fn some<T: Clone>(rng: &mut StdRng, from: &[T]) -> Vec<T> {
    let n = *[0, 0, 1, 1, 2].choose(rng).unwrap();
    from.choose_multiple(rng, n).cloned().collect()
}

#[test]
fn accept_and_request_together_decide_like_the_naive_walk() {
    let mut rng = StdRng::seed_from_u64(7);
    let ids = [CALLER, "spiffe://heddle.local/ns/shop/sa/orders", "spiffe://heddle.local/ns/bank/sa/orders"].map(id);
    let patterns = [CALLER, "spiffe://heddle.local/ns/*/sa/orders", "spiffe://heddle.local/ns/bank/**"].map(pattern);
    let namespaces = ["shop", "bank"].map(|namespace| IdentityPattern::namespace(&td(), namespace));
    let cidrs: Vec<IpNet> = ["10.0.0.0/8", "10.1.0.0/16", "::/0"].iter().map(|s| s.parse().unwrap()).collect();
    let ips: [IpAddr; 3] = ["10.0.0.1".parse().unwrap(), "10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let ports = [80, 443];
    let methods = [Method::GET, Method::POST];
    let all_paths = ["/", "/admin", "/admin/x", "/orders"];
    let path_patterns: Vec<PathPattern> =
        ["*", "/admin", "/admin/*", "/orders"].iter().map(|s| s.parse().unwrap()).collect();

    let (mut allowed, mut denied, mut per_request) = (0, 0, 0);
    for _ in 0..5_000 {
        let mut rules = Vec::new();
        for index in 0..rng.random_range(0..6) {
            let sources = (0..rng.random_range(0..3))
                .map(|_| Source {
                    identities: some(&mut rng, &patterns),
                    namespaces: some(&mut rng, &namespaces),
                    cidrs: some(&mut rng, &cidrs),
                    unauthenticated: rng.random_bool(0.2),
                })
                .collect();
            let operations = (0..rng.random_range(0..3))
                .map(|_| Operation {
                    ports: some(&mut rng, &ports),
                    methods: some(&mut rng, &methods),
                    paths: some(&mut rng, &path_patterns),
                })
                .collect();
            let deny = rng.random_bool(0.4);
            rules.push(Rule { policy: "p".into(), name: index.to_string().into(), deny, sources, operations });
        }
        let default = rng.random_bool(0.3);
        let authorizer = Authorizer::new(rules.clone(), default);
        for _ in 0..4 {
            let id = if rng.random_bool(0.2) { None } else { ids.choose(&mut rng) };
            let peer = Peer { id, ip: *ips.choose(&mut rng).unwrap(), port: *ports.choose(&mut rng).unwrap() };
            let at_accept = authorizer.at_accept(&peer);
            match &at_accept {
                AtAccept::Allow(why) => {
                    assert!(why.allowed);
                    allowed += 1;
                }
                AtAccept::Deny(why) => {
                    assert!(!why.allowed);
                    denied += 1;
                }
                AtAccept::PerRequest => per_request += 1,
            }
            let mut verdicts = Vec::new();
            for method in &methods {
                for path in all_paths {
                    let expected = naive(&rules, default, &peer, method, path);
                    let at_request = authorizer.at_request(&peer, method, path);
                    assert_eq!(at_request.allowed, expected);
                    if let Some(name) = &at_request.rule {
                        assert_eq!(
                            rules[name.parse::<usize>().unwrap()].deny,
                            !at_request.allowed,
                            "the reason is that of the verdict"
                        );
                    }
                    match &at_accept {
                        AtAccept::Allow(_) => {
                            assert!(expected, "allowed at accept, denied at request: {rules:#?} {peer:?}")
                        }
                        AtAccept::Deny(_) => {
                            assert!(!expected, "denied at accept, allowed at request: {rules:#?} {peer:?}")
                        }
                        AtAccept::PerRequest => {}
                    }
                    verdicts.push(expected);
                }
            }
            // Opaque bytes get in only where every request would.
            if authorizer.at_opaque(&peer).allowed {
                assert!(verdicts.iter().all(|allowed| *allowed), "{rules:#?} {peer:?}");
            }
        }
    }
    assert!(allowed > 500 && denied > 500 && per_request > 500, "{allowed} {denied} {per_request}");
}
