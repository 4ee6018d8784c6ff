//! Tables after the Gateway API's specification and conformance tests (mesh profile).

use std::collections::HashMap;

use http::header::HOST;
use rand::{SeedableRng, rngs::StdRng};
use regex::Regex;

use super::*;
use crate::snapshot::{ClusterName, HeaderModifier, PathModifier, Protocol, Redirect, Rewrite, ServiceName};

fn backend(name: &str, weight: u32) -> Backend {
    let service = ServiceName { namespace: "shop".into(), name: name.into() };
    Backend { cluster: ClusterName { service, port: 80 }, weight, filters: Vec::new(), invalid: None }
}

fn rule(matches: HttpMatch, to: &str) -> HttpRule {
    HttpRule {
        route: "HTTPRoute shop/orders".into(),
        rule: to.into(),
        hostnames: Vec::new(),
        matches,
        filters: Vec::new(),
        backends: vec![backend(to, 1)],
        request_timeout: None,
        per_try_timeout: None,
        retry: None,
    }
}

fn prefix(path: &str) -> HttpMatch {
    // As discovery keeps it: without the trailing slash.
    HttpMatch { path: Some(PathMatch::Prefix(path.trim_end_matches('/').into())), ..HttpMatch::default() }
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Exact(path.into())), ..HttpMatch::default() }
}

fn regex(s: &str) -> Regex {
    Regex::new(&format!("^(?:{s})$")).unwrap()
}

fn port(rules: Vec<HttpRule>) -> ServicePort {
    ServicePort {
        protocol: Protocol::Http,
        http_rules: rules.into_iter().map(Arc::new).collect(),
        tcp_backends: Vec::new(),
        tcp_route: "".into(),
    }
}

/// `METHOD authority path?query` with headers.
fn ask(
    port: &ServicePort,
    method: &str,
    authority: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Choice, Error> {
    let method = method.parse().unwrap();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let request = Request { authority, path, query, method: &method, headers: &map };
    choose(port, &request, "http", 80, &mut StdRng::seed_from_u64(1))
}

fn to(choice: Result<Choice, Error>) -> String {
    match choice {
        Ok(Choice::Service) => "(service)".into(),
        Ok(Choice::Forward(chosen)) => chosen.backend().cluster.service.name.to_string(),
        Ok(Choice::Redirect { status, location, .. }) => format!("{} {}", status.as_u16(), location.to_str().unwrap()),
        Err(error) => error.kind.row().status.as_u16().to_string(),
    }
}

fn get(port: &ServicePort, target: &str) -> String {
    to(ask(port, "GET", "orders", target, &[]))
}

#[test]
fn without_routes_to_the_service_itself() {
    assert_eq!(get(&port(vec![]), "/x"), "(service)");
}

#[test]
fn paths() {
    let port = port(vec![
        rule(exact("/exact"), "exact"),
        rule(prefix("/v2/"), "v2"),
        rule(HttpMatch { path: Some(PathMatch::Regex(regex("/r/[0-9]+|/s"))), ..HttpMatch::default() }, "regex"),
        rule(prefix("/v1"), "v1"),
    ]);
    for (path, expected) in [
        ("/exact", "exact"),
        ("/exact/", "404"),
        ("/exactly", "404"),
        ("/Exact", "404"),
        ("/v2", "v2"),
        ("/v2/", "v2"),
        ("/v2/a/b?q", "v2"),
        ("/v2x", "404"),
        ("/v1/x", "v1"),
        ("/r/12", "regex"),
        ("/r/12/x", "404"),
        ("/r/", "404"),
        ("/s", "regex"),
        ("/x/s", "404"),
        ("/", "404"),
    ] {
        assert_eq!(get(&port, path), expected, "{path}");
    }
}

#[test]
fn the_prefix_slash_matches_all() {
    let port = port(vec![rule(prefix("/"), "all")]);
    for path in ["/", "/a", "/a/b"] {
        assert_eq!(get(&port, path), "all");
    }
}

#[test]
fn the_first_match_decides() {
    let port = port(vec![rule(prefix("/a/b"), "first"), rule(prefix("/a"), "second"), rule(prefix("/a/b"), "never")]);
    assert_eq!(get(&port, "/a/b/c"), "first");
    assert_eq!(get(&port, "/a/c"), "second");
    let error = ask(&port, "GET", "orders", "/b", &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoRoute);
    assert!(error.never_sent);
    assert_eq!(&*error.detail, "none of 3 route rules matches GET /b");
}

#[test]
fn methods() {
    let method = |method: Method, to| rule(HttpMatch { method: Some(method), ..HttpMatch::default() }, to);
    let port = port(vec![method(Method::GET, "get"), method(Method::POST, "post")]);
    assert_eq!(to(ask(&port, "GET", "orders", "/", &[])), "get");
    assert_eq!(to(ask(&port, "POST", "orders", "/", &[])), "post");
    assert_eq!(to(ask(&port, "PUT", "orders", "/", &[])), "404");
    assert_eq!(to(ask(&port, "get", "orders", "/", &[])), "404", "methods have case");
}

#[test]
fn hostnames() {
    let mut exact = rule(HttpMatch::default(), "exact");
    exact.hostnames = vec![HostPattern::Exact("orders.shop".into()), HostPattern::Exact("::1".into())];
    let mut suffix = rule(HttpMatch::default(), "suffix");
    suffix.hostnames = vec![HostPattern::Suffix(".example.com".into())];
    let port = port(vec![exact, suffix]);
    for (authority, expected) in [
        ("orders.shop", "exact"),
        ("Orders.SHOP:8080", "exact"),
        ("orders.shop.", "exact"),
        ("orders.shop.:80", "exact"),
        ("[::1]:80", "exact"),
        ("orders", "404"),
        ("a.example.com", "suffix"),
        ("a.b.example.com:1", "suffix"),
        ("example.com", "404"),
        (".example.com", "404"),
        ("aexample.com", "404"),
        ("", "404"),
    ] {
        assert_eq!(to(ask(&port, "GET", authority, "/", &[])), expected, "{authority}");
    }
}

#[test]
fn headers() {
    let header = |name: &str, value| (HeaderName::try_from(name).unwrap(), value);
    let both = HttpMatch {
        headers: vec![
            header("version", ValueMatch::Exact("two".into())),
            header("color", ValueMatch::Regex(regex("blue|green"))),
        ],
        ..HttpMatch::default()
    };
    let list = HttpMatch { headers: vec![header("list", ValueMatch::Exact("a,b".into()))], ..HttpMatch::default() };
    let port = port(vec![rule(both, "both"), rule(list, "list")]);
    for (headers, expected) in [
        (&[("version", "two"), ("color", "blue")][..], "both"),
        (&[("VERSION", "two"), ("Color", "green")], "both"),
        (&[("version", "two")], "404"),
        (&[("version", "TWO"), ("color", "blue")], "404"),
        (&[("version", "two"), ("color", "blueish")], "404"),
        (&[("version", "two"), ("version", "three"), ("color", "blue")], "404"),
        (&[("list", "a"), ("list", "b")], "list"),
        (&[("list", "a,b")], "list"),
        (&[("list", "a")], "404"),
        (&[("list", "ü")], "404"),
    ] {
        assert_eq!(to(ask(&port, "GET", "orders", "/", headers)), expected, "{headers:?}");
    }
}

#[test]
fn queries() {
    let query =
        |name: &str, value, to| rule(HttpMatch { query: vec![(name.into(), value)], ..HttpMatch::default() }, to);
    let port = port(vec![
        query("animal", ValueMatch::Exact("whale".into()), "whale"),
        query("animal", ValueMatch::Regex(regex("dol.*")), "dolphin"),
        query("a b", ValueMatch::Exact("ü &=".into()), "encoded"),
        query("flag", ValueMatch::Exact(String::new()), "flag"),
    ]);
    for (target, expected) in [
        ("/?animal=whale", "whale"),
        ("/?x=1&animal=whale&y", "whale"),
        ("/?animal=%77hale", "whale"),
        ("/?animal=dolphin", "dolphin"),
        ("/?Animal=whale", "404"),
        ("/?animal=whales", "404"),
        ("/?animal=cat&animal=whale", "404"),
        ("/?animal=whale&animal=cat", "whale"),
        ("/?a+b=%C3%BC+%26%3D", "encoded"),
        ("/?a%20b=%C3%BC%20%26=", "encoded"),
        ("/?flag", "flag"),
        ("/?flag=", "flag"),
        ("/?flag=1", "404"),
        ("/", "404"),
        ("/?", "404"),
    ] {
        assert_eq!(get(&port, target), expected, "{target}");
    }
}

#[test]
fn all_conditions_must_hold() {
    let matches = HttpMatch {
        path: Some(PathMatch::Prefix("/a".into())),
        headers: vec![(HeaderName::from_static("x"), ValueMatch::Exact("1".into()))],
        query: vec![("q".into(), ValueMatch::Exact("2".into()))],
        method: Some(Method::POST),
    };
    let port = port(vec![rule(matches, "all")]);
    assert_eq!(to(ask(&port, "POST", "orders", "/a?q=2", &[("x", "1")])), "all");
    assert_eq!(to(ask(&port, "GET", "orders", "/a?q=2", &[("x", "1")])), "404");
    assert_eq!(to(ask(&port, "POST", "orders", "/b?q=2", &[("x", "1")])), "404");
    assert_eq!(to(ask(&port, "POST", "orders", "/a?q=3", &[("x", "1")])), "404");
    assert_eq!(to(ask(&port, "POST", "orders", "/a?q=2", &[])), "404");
}

#[test]
fn weights() {
    let mut split = rule(HttpMatch::default(), "");
    split.backends = vec![backend("a", 90), backend("none", 0), backend("b", 10)];
    let port = port(vec![split]);
    let mut rng = StdRng::seed_from_u64(3);
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = Request { authority: "orders", path: "/", query: None, method: &method, headers: &headers };
    let mut counts = HashMap::<String, u32>::new();
    for _ in 0..10_000 {
        *counts.entry(to(choose(&port, &request, "http", 80, &mut rng))).or_default() += 1;
    }
    assert!((8_850..9_150).contains(&counts["a"]), "{counts:?}");
    assert_eq!(counts["a"] + counts["b"], 10_000, "{counts:?}");
}

#[test]
fn without_a_usable_backend_500() {
    let broken = |backends| {
        let mut rule = rule(HttpMatch::default(), "");
        rule.backends = backends;
        port(vec![rule])
    };
    assert_eq!(get(&broken(vec![]), "/"), "500");
    assert_eq!(get(&broken(vec![backend("a", 0), backend("b", 0)]), "/"), "500");
    let missing = Backend { invalid: Some("no service shop/gone".into()), ..backend("gone", 1) };
    let error = ask(&broken(vec![missing.clone()]), "GET", "orders", "/", &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoBackend);
    assert_eq!(&*error.detail, "HTTPRoute shop/orders rule : no service shop/gone");
    // Its share of the requests, and no more.
    let port = broken(vec![missing, backend("a", 1)]);
    let mut rng = StdRng::seed_from_u64(3);
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = Request { authority: "orders", path: "/", query: None, method: &method, headers: &headers };
    let failed = (0..1000).filter(|_| choose(&port, &request, "http", 80, &mut rng).is_err()).count();
    assert!((430..570).contains(&failed), "{failed}");
}

fn redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, port: None, path: None, status: StatusCode::FOUND }
}

#[test]
fn redirects() {
    let full = || Some(PathModifier::Full("/full".into()));
    let replace = |s: &str| Some(PathModifier::Prefix(s.into()));
    for (matches, redirect, listener, authority, target, expected) in [
        (
            prefix("/"),
            Redirect { hostname: Some("example.org".into()), ..redirect() },
            80,
            "orders",
            "/a?q=1",
            "302 http://example.org/a?q=1",
        ),
        (
            prefix("/"),
            Redirect { hostname: Some("example.org".into()), ..redirect() },
            8080,
            "orders",
            "/",
            "302 http://example.org:8080/",
        ),
        (
            prefix("/"),
            Redirect { status: StatusCode::MOVED_PERMANENTLY, ..redirect() },
            80,
            "Orders:80",
            "/",
            "301 http://orders/",
        ),
        (
            prefix("/"),
            Redirect { scheme: Some("https".into()), ..redirect() },
            8080,
            "orders:8080",
            "/",
            "302 https://orders/",
        ),
        (
            prefix("/"),
            Redirect { scheme: Some("http".into()), ..redirect() },
            8080,
            "orders",
            "/",
            "302 http://orders/",
        ),
        (
            prefix("/"),
            Redirect { scheme: Some("https".into()), port: Some(8443), ..redirect() },
            80,
            "orders",
            "/",
            "302 https://orders:8443/",
        ),
        (prefix("/"), Redirect { port: Some(80), ..redirect() }, 8080, "orders", "/", "302 http://orders/"),
        (prefix("/"), Redirect { port: Some(443), ..redirect() }, 8080, "orders", "/", "302 http://orders:443/"),
        (
            prefix("/"),
            Redirect { port: Some(443), scheme: Some("https".into()), ..redirect() },
            8080,
            "orders",
            "/",
            "302 https://orders/",
        ),
        (prefix("/"), Redirect { port: Some(9), ..redirect() }, 8080, "[::1]:8080", "/", "302 http://[::1]:9/"),
        (prefix("/old"), Redirect { path: full(), ..redirect() }, 80, "orders", "/old/x?q", "302 http://orders/full?q"),
        (exact("/old"), Redirect { path: full(), ..redirect() }, 80, "orders", "/old", "302 http://orders/full"),
        (
            prefix("/old"),
            Redirect { path: replace("/new"), ..redirect() },
            80,
            "orders",
            "/old/x?q",
            "302 http://orders/new/x?q",
        ),
        (exact("/old"), Redirect { path: replace("/new"), ..redirect() }, 80, "orders", "/old", "500"),
    ] {
        let mut rule = rule(matches, "");
        rule.backends.clear();
        rule.filters = vec![Filter::Redirect(redirect)];
        let port = port(vec![rule]);
        let (method, headers) = (Method::GET, HeaderMap::new());
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let request = Request { authority, path, query, method: &method, headers: &headers };
        let choice = choose(&port, &request, "http", listener, &mut StdRng::seed_from_u64(1));
        assert_eq!(to(choice), expected, "{rule:?}", rule = port.http_rules[0]);
    }
}

fn forward(rule: HttpRule, uri: &str) -> Result<(Uri, HeaderMap), Error> {
    let mut uri: Uri = uri.parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("orders"));
    let path = uri.path().to_owned();
    let Choice::Forward(chosen) = ask(&port(vec![rule]), "GET", "orders", &path, &[])? else { panic!("no redirect") };
    chosen.apply_to_request(&mut uri, &mut headers)?;
    Ok((uri, headers))
}

#[test]
fn path_rewrites() {
    // The table of the Gateway API's `HTTPPathModifier`, and the same with queries.
    for (matched, modifier, uri, expected) in [
        ("/foo", PathModifier::Prefix("/xyz".into()), "/foo/bar", "/xyz/bar"),
        ("/foo", PathModifier::Prefix("/xyz/".into()), "/foo/bar", "/xyz/bar"),
        ("/foo/", PathModifier::Prefix("/xyz".into()), "/foo/bar", "/xyz/bar"),
        ("/foo/", PathModifier::Prefix("/xyz/".into()), "/foo/bar", "/xyz/bar"),
        ("/foo", PathModifier::Prefix("/xyz".into()), "/foo", "/xyz"),
        ("/foo", PathModifier::Prefix("/xyz".into()), "/foo/", "/xyz/"),
        ("/foo", PathModifier::Prefix(String::new()), "/foo/bar", "/bar"),
        ("/foo/", PathModifier::Prefix(String::new()), "/foo/bar", "/bar"),
        ("/foo", PathModifier::Prefix(String::new()), "/foo", "/"),
        ("/foo", PathModifier::Prefix("/".into()), "/foo/bar", "/bar"),
        ("/foo", PathModifier::Prefix("/".into()), "/foo", "/"),
        ("/foo", PathModifier::Prefix("/".into()), "/foo/", "/"),
        ("/", PathModifier::Prefix("/xyz".into()), "/foo?a=b", "/xyz/foo?a=b"),
        ("/foo", PathModifier::Full("/one/two".into()), "/foo/x?a=b&c", "/one/two?a=b&c"),
        ("/foo", PathModifier::Full("/".into()), "/foo", "/"),
        ("/foo", PathModifier::Prefix("/xyz".into()), "http://orders/foo/bar?q", "http://orders/xyz/bar?q"),
    ] {
        let mut rule = rule(prefix(matched), "a");
        rule.filters = vec![Filter::Rewrite(Rewrite { hostname: None, path: Some(modifier) })];
        let (uri, headers) = forward(rule, uri).unwrap();
        assert_eq!(uri, expected);
        assert_eq!(headers[HOST], "orders");
    }
}

#[test]
fn a_rewrite_never_makes_an_ambiguous_path() {
    for modifier in
        [PathModifier::Full("//admin".into()), PathModifier::Prefix("/a/..".into()), PathModifier::Full("x".into())]
    {
        let mut rule = rule(prefix("/foo"), "a");
        rule.filters = vec![Filter::Rewrite(Rewrite { hostname: None, path: Some(modifier) })];
        assert_eq!(forward(rule, "/foo/bar").unwrap_err().kind, ErrorKind::NoBackend);
    }
}

#[test]
fn host_rewrites() {
    let mut rule = rule(HttpMatch::default(), "a");
    rule.filters =
        vec![Filter::Rewrite(Rewrite { hostname: Some(HeaderValue::from_static("example.org")), path: None })];
    let (uri, headers) = forward(rule.clone(), "/x?q").unwrap();
    assert_eq!((uri, &headers[HOST]), (Uri::from_static("/x?q"), &HeaderValue::from_static("example.org")));
    let (uri, headers) = forward(rule.clone(), "http://orders:80/x?q").unwrap();
    assert_eq!(uri, "http://example.org/x?q");
    assert_eq!(headers[HOST], "example.org");
}

#[test]
fn header_modifiers() {
    let name = HeaderName::from_static;
    let value = HeaderValue::from_static;
    let modifier = |tag: &'static str| HeaderModifier {
        set: vec![(name("x-set"), value(tag))],
        add: vec![(name("x-add"), value(tag))],
        remove: vec![name("x-remove"), name("x-both")],
    };
    let mut rule = rule(HttpMatch::default(), "a");
    rule.filters = vec![
        Filter::RequestHeaders(HeaderModifier { add: vec![(name("x-both"), value("1"))], ..modifier("rule") }),
        Filter::ResponseHeaders(modifier("response rule")),
    ];
    rule.backends[0].filters =
        vec![Filter::RequestHeaders(modifier("backend")), Filter::ResponseHeaders(modifier("response backend"))];
    let chosen = Chosen { rule: Arc::new(rule), backend: 0 };

    let mut headers = HeaderMap::new();
    headers.append("x-set", value("1"));
    headers.append("x-set", value("2"));
    headers.append("x-add", value("0"));
    headers.append("x-remove", value("1"));
    let all = |headers: &HeaderMap, name: &str| {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut request = headers.clone();
    chosen.apply_to_request(&mut Uri::from_static("/"), &mut request).unwrap();
    assert_eq!(all(&request, "x-set"), ["backend"]);
    assert_eq!(all(&request, "x-add"), ["0", "backend"]);
    assert!(!request.contains_key("x-remove") && !request.contains_key("x-both"));

    let mut response = headers;
    chosen.apply_to_response(&mut response);
    assert_eq!(all(&response, "x-set"), ["response rule"]);
    assert_eq!(all(&response, "x-add"), ["0", "response backend", "response rule"]);
}
