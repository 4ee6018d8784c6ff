use serde_json::{Value, json};

use super::*;

/// An object of a kind in namespace `shop`.
fn document(kind: &str, spec: Value) -> Value {
    let mut metadata = json!({ "name": "it", "namespace": "shop" });
    if kind == "MeshConfig" {
        metadata = json!({ "name": "mesh" });
    }
    json!({ "apiVersion": "heddle.dev/v1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn told(document: &Value) -> Vec<String> {
    object(document, None)
        .map_or_else(|invalid| invalid.faults().iter().map(ToString::to_string).collect(), |_| Vec::new())
}

/// Checks that exactly these faults are told, by what each begins with and holds.
#[track_caller]
fn expect(kind: &str, spec: Value, faults: &[(&str, &str)]) {
    let document = document(kind, spec);
    let told = told(&document);
    for (path, part) in faults {
        let begins = if path.is_empty() { String::new() } else { format!("{path}: ") };
        assert!(
            told.iter().any(|told| told.starts_with(&begins) && told.contains(part)),
            "no fault {path}: …{part}… among {told:#?}"
        );
    }
    assert_eq!(told.len(), faults.len(), "{told:#?}");
}

fn route(rule: Value) -> Value {
    json!({ "parentRefs": [{ "name": "orders" }], "rules": [rule] })
}

fn match_rule(matches: Value) -> Value {
    route(json!({ "matches": [matches], "backendRefs": [{ "name": "orders" }] }))
}

#[test]
fn good_objects_pass() {
    expect(
        "Service",
        json!({ "ports": [
        { "port": 80, "name": "http", "protocol": "http", "targetPort": 8080, "mtls": "permissive" }, { "port": 81 },
    ], "serviceAccounts": ["orders", "orders.v2"], "hosts": ["orders.example.com"], "exportTo": [".", "web"],
       "probeExemptions": [{ "port": 80, "path": "/healthz" }] }),
        &[],
    );
    expect(
        "Workload",
        json!({ "address": "fd00::1", "inboundPort": 15006, "serviceAccount": "orders",
        "services": [{ "name": "orders", "ports": [80] }], "zone": "eu-1a", "weight": 5 }),
        &[],
    );
    expect(
        "HTTPRoute",
        json!({
            "parentRefs": [{ "name": "orders", "port": 80 }, { "name": "orders", "port": 81 }],
            "hostnames": ["orders.example.com", "*.example.com"],
            "rules": [{
                "name": "v2",
                "matches": [{ "path": { "value": "/api/" }, "method": "GET",
                    "headers": [{ "name": "X-Env", "value": "(test|dev)-\\d+", "type": "RegularExpression" }],
                    "queryParams": [{ "name": "v", "value": "2" }] }],
                "filters": [
                    { "type": "RequestHeaderModifier", "requestHeaderModifier": {
                        "set": [{ "name": "x-a", "value": "1" }], "remove": ["x-b"] } },
                    { "type": "URLRewrite", "urlRewrite": { "path": {
                        "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" } } },
                ],
                "backendRefs": [
                    { "name": "orders", "weight": 90 },
                    { "name": "orders", "namespace": "other", "port": 80, "weight": 0 },
                ],
                "timeouts": { "request": "10s", "backendRequest": "2s" },
                "retry": { "codes": [503], "attempts": 2, "backoff": "10ms" },
            }, {
                "matches": [{ "path": { "type": "Exact", "value": "/old" } }],
                "filters": [{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https", "statusCode": 301 } }],
            }],
        }),
        &[],
    );
    expect(
        "GRPCRoute",
        json!({ "parentRefs": [{ "name": "inventory" }], "rules": [
        { "matches": [{ "method": { "service": "shop.v1.Inventory", "method": "Reserve" } }],
          "backendRefs": [{ "name": "inventory", "port": 50051 }] },
    ] }),
        &[],
    );
    expect(
        "TCPRoute",
        json!({ "parentRefs": [{ "name": "db" }], "rules": [{ "backendRefs": [{ "name": "db2" }] }] }),
        &[],
    );
    expect(
        "TrafficPolicy",
        json!({ "targetRef": { "kind": "Service", "name": "orders" }, "balancing": "roundRobin",
        "timeouts": { "request": "0s", "perTry": "5s" },
        "retries": { "attempts": 3, "on": ["reset"], "statuses": [503], "grpcStatuses": ["UNAVAILABLE"] },
        "outlierDetection": { "consecutiveFailures": 0 }, "limits": { "maxRequests": 10 } }),
        &[],
    );
    expect(
        "AuthorizationPolicy",
        json!({ "action": "ALLOW", "rules": [{
        "from": [
            { "identities": ["shop/storefront", "*/*", "spiffe://heddle.local/ns/*/sa/x", "spiffe://heddle.local/**"],
              "namespaces": ["shop"], "cidrs": ["10.0.0.0/8", "fd00::/8"] },
            { "unauthenticated": true },
        ],
        "to": [{ "ports": [80], "methods": ["GET"], "paths": ["*", "/a", "/b/*", "/pkg.Service/Method"] }],
    }, {}] }),
        &[],
    );
    expect("AuthorizationPolicy", json!({ "action": "DENY", "rules": [] }), &[]);
    expect(
        "MeshConfig",
        json!({ "defaultAuthorization": "allow", "suffixes": ["mesh", "svc.cluster.local"],
        "cidrs": ["10.0.0.0/8"], "telemetry": { "samplingRatio": 1 } }),
        &[],
    );
    expect("MeshConfig", json!({}), &[]);
}

#[test]
fn every_fault_of_structure_is_told_with_its_path() {
    let document = json!({
        "apiVersion": "heddle.dev/v2", "kind": "HTTPRoute",
        "metadata": { "name": "It", "namespace": "shop", "label": {} },
        "spec": {
            "parentRefs": [],
            "hostname": ["a.example.com"],
            "rules": [{
                "matches": [
                    { "path": { "type": "Prefix", "value": "/" } },
                    { "path": { "type": "Exact" }, "headers": [{ "name": "a", "value": 1 }] },
                    { "path": { "value": null } },
                ],
                "backendRefs": [{ "name": "a", "port": 70000, "weight": -1 }, { "name": "b", "port": "80" }],
                "timeouts": { "request": "10 seconds" },
                "filters": {},
            }],
        },
    });
    let told = told(&document);
    let expected = [
        "apiVersion: is \"heddle.dev/v2\"; it must be \"heddle.dev/v1\"",
        "metadata.label: there is no such field; did you mean \"labels\"?",
        "metadata.name: \"It\" is no DNS label",
        "spec.hostname: there is no such field; did you mean \"hostnames\"?",
        "spec.parentRefs: is empty; at least 1 entry is wanted",
        "spec.rules[0].backendRefs[0].port: is 70000; at most 65535 is wanted",
        "spec.rules[0].backendRefs[0].weight: is -1; at least 0 is wanted",
        "spec.rules[0].backendRefs[1].port: is \"80\"; a whole number is wanted",
        "spec.rules[0].filters: is an object; a list is wanted",
        "spec.rules[0].matches[0].path.type: \"Prefix\" is none of PathPrefix, Exact and RegularExpression; did you mean \"PathPrefix\"?",
        "spec.rules[0].matches[1].headers[0].value: is 1; text is wanted",
        "spec.rules[0].matches[1].path.value: is missing; text is wanted",
        "spec.rules[0].matches[2].path.value: is null (leave the field out instead); text is wanted",
        "spec.rules[0].timeouts.request: \"10 seconds\" is no duration",
    ];
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}\nis not\n{expected}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn faults_of_meaning_are_told_beside_those_of_structure() {
    expect(
        "Service",
        json!({ "ports": [{ "port": 80 }, { "port": 80, "protokol": "http" }], "hosts": ["Orders"] }),
        &[
            ("spec.ports[1].protokol", "did you mean \"protocol\"?"),
            ("spec.ports[1].port", "is the port of entry 0 already"),
            ("spec.hosts[0]", "is no host name"),
        ],
    );
}

#[test]
fn kinds_are_told_apart() {
    assert!(told(&json!([]))[0].contains("is a list; an object with apiVersion"));
    assert!(told(&json!({}))[0].contains("kind: is missing; one of MeshConfig, Service"));
    assert!(told(&document("HttpRoute", json!({})))[0].contains("did you mean \"HTTPRoute\"?"));
    assert!(told(&json!({ "kind": 1 }))[0].starts_with("kind: is 1; text is wanted"));
    let other = object(&document("Service", json!({})), Some(ObjectKind::Workload)).unwrap_err();
    assert_eq!(other.faults()[0].to_string(), "kind: is \"Service\"; here it must be \"Workload\"");
    let missing = object(&json!({ "spec": { "ports": [{ "port": 1 }] } }), Some(ObjectKind::Service)).unwrap_err();
    let paths: Vec<_> = missing.faults().iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["apiVersion", "kind", "metadata"]);
    let mut named = document("MeshConfig", json!({}));
    named["metadata"]["name"] = json!("other");
    named["metadata"]["namespace"] = json!("shop");
    assert_eq!(told(&named).len(), 2, "{:?}", told(&named));
}

#[test]
fn metadata() {
    let mut document = document("Service", json!({ "ports": [{ "port": 1 }] }));
    document["metadata"]["labels"] = json!({
        "app": "a", "example.com/tier": "", "heddle.dev/registered": "true", "-bad": "x", "ok": "not ok",
        "Ex_ample/x": "1",
    });
    document["metadata"]["annotations"] = json!({ "a b": "anything goes here", "note": "x y z" });
    document["metadata"]["generation"] = json!(7);
    document["status"] = json!({ "observedGeneration": 1, "applied": 0, "pending": 0 });
    let told = told(&document);
    let expected = [
        "metadata.labels.-bad: \"-bad\" is no key",
        "metadata.labels[\"Ex_ample/x\"]: the prefix",
        "metadata.labels[\"heddle.dev/registered\"]: keys that begin with heddle.dev/ are Heddle's own",
        "metadata.labels.ok: \"not ok\" is no label value",
        "metadata.annotations[\"a b\"]: \"a b\" is no key",
    ];
    for expected in expected {
        assert!(told.iter().any(|told| told.starts_with(expected)), "{expected} is not in {told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn services() {
    expect(
        "Service",
        json!({ "ports": [
        { "port": 80, "name": "http" }, { "port": 81, "name": "http" }, { "port": 82, "protocol": "tcp", "name": "X" },
    ], "serviceAccounts": ["a", "a", "a/b"], "hosts": ["10.0.0.1", "orders", "a.com:80", "*.a.com"],
       "addresses": ["10.0.0.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "a.b"],
       "exportTo": ["*", "shop", "Web"], "probeExemptions": [
        { "port": 83, "path": "/" }, { "port": 82, "path": "/x" }, { "port": 80, "path": "x?y" },
        { "port": 80, "path": "/a" }, { "port": 80, "path": "/a" },
    ] }),
        &[
            ("spec.ports[1].name", "entry 0"),
            ("spec.ports[2].name", "no DNS label"),
            ("spec.serviceAccounts[1]", "already"),
            ("spec.serviceAccounts[2]", "no service account"),
            ("spec.hosts[0]", "no host name"),
            ("spec.hosts[1]", "has no dot"),
            ("spec.hosts[2]", "no host name"),
            ("spec.hosts[3]", "no host name"),
            ("spec.addresses[1]", "already"),
            ("spec.addresses[2]", "no address that other hosts"),
            ("spec.addresses[3]", "write 10.0.0.1"),
            ("spec.addresses[4]", "no IP address"),
            ("spec.exportTo[2]", "no namespace"),
            ("spec.exportTo", "leave the others out"),
            ("spec.probeExemptions[0].port", "no port of this service"),
            ("spec.probeExemptions[1].port", "speaks tcp"),
            ("spec.probeExemptions[2].path", "does not begin with /"),
            ("spec.probeExemptions[4]", "already"),
        ],
    );
}

#[test]
fn workloads() {
    expect(
        "Workload",
        json!({ "address": "10.0.0.1:80", "inboundPort": 15006, "zone": "a b", "services": [
        { "name": "a", "ports": [0, 80, 80] }, { "name": "a" }, { "name": "A" } ] }),
        &[
            ("spec.address", "no IP address"),
            ("spec.serviceAccount", "is missing"),
            ("spec.zone", "no zone"),
            ("spec.services[0].ports[0]", "is 0"),
            ("spec.services[0].ports[2]", "already"),
            ("spec.services[1].name", "entry 0 already"),
            ("spec.services[2].name", "no DNS label"),
        ],
    );
    for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::"] {
        expect("Workload", json!({ "address": address, "services": [{ "name": "a" }] }), &[("spec.address", "")]);
    }
}

#[test]
fn paths_of_routes_are_as_proxies_forward_them() {
    for path in ["/", "/a", "/a/", "/a/b.c/~d", "/%C3%A4", "/a:b@c", "/a%3Ab", "/{id}"] {
        assert_eq!(check_path(path), Ok(()), "{path}");
    }
    for (path, why) in [
        ("", "does not begin"),
        ("a", "does not begin"),
        ("//", "empty segment"),
        ("/a//b", "empty segment"),
        ("/a/../b", "segment \"..\""),
        ("/.", "segment \".\""),
        ("/a?b", "query"),
        ("/a#b", "character"),
        ("/a;b", "character"),
        ("/a b", "character"),
        ("/ä", "character"),
        ("/a\\b", "character"),
        ("/%61", "write it plain"),
        ("/%2e", "write it plain"),
        ("/%2F", "refuse"),
        ("/%00", "refuse"),
        ("/%3a", "upper case"),
        ("/%", "two hex digits"),
        ("/%4", "two hex digits"),
        ("/%zz", "two hex digits"),
        ("/%FF", "UTF-8"),
        ("/%C0%AF", "UTF-8"),
    ] {
        assert!(check_path(path).is_err_and(|told| told.contains(why)), "{path}: {:?}", check_path(path));
    }
    for r#type in ["Exact", "PathPrefix"] {
        expect(
            "HTTPRoute",
            match_rule(json!({ "path": { "type": r#type, "value": "x" } })),
            &[("spec.rules[0].matches[0].path.value", "does not begin")],
        );
    }
}

#[test]
fn regular_expressions_compile_within_bounds() {
    for (value, why) in [
        ("(", "unclosed group"),
        ("a)|(b", ""),
        ("(?=x)", "look-around"),
        ("[a-z]{9999}{999}", ""),
        ("(\\w{100}){100}", "too much memory"),
    ] {
        let spec = match_rule(json!({ "path": { "type": "RegularExpression", "value": value } }));
        expect("HTTPRoute", spec, &[("spec.rules[0].matches[0].path.value", why)]);
    }
    let long = "x".repeat(1025);
    expect(
        "HTTPRoute",
        match_rule(json!({ "queryParams": [{ "name": "q", "type": "RegularExpression", "value": long }] })),
        &[("spec.rules[0].matches[0].queryParams[0].value", "at most 1024")],
    );
    expect(
        "HTTPRoute",
        match_rule(json!({ "path": { "type": "RegularExpression", "value": "/users/[0-9]+(/.*)?" } })),
        &[],
    );
}

#[test]
fn matches_of_routes() {
    expect(
        "HTTPRoute",
        match_rule(json!({
            "method": "get",
            "headers": [
                { "name": "a b", "value": "1" }, { "name": ":path", "value": "1" }, { "name": "Host", "value": "1" },
                { "name": "x", "value": "1" }, { "name": "X", "value": "2" }, { "name": "y", "value": "a\nb" },
                { "name": "connection", "value": "close" }, { "name": "z", "value": " a" },
            ],
            "queryParams": [{ "name": "", "value": "1" }, { "name": "a", "value": "1" }, { "name": "a", "value": "2" }],
        })),
        &[
            ("spec.rules[0].matches[0].method", "\"GET\""),
            ("spec.rules[0].matches[0].headers[0].name", "no header name"),
            ("spec.rules[0].matches[0].headers[1].name", "part of the request line"),
            ("spec.rules[0].matches[0].headers[2].name", "spec.hostnames"),
            ("spec.rules[0].matches[0].headers[4].name", "entry 3"),
            ("spec.rules[0].matches[0].headers[5].value", "no header value"),
            ("spec.rules[0].matches[0].headers[6].name", "taken away"),
            ("spec.rules[0].matches[0].headers[7].value", "blanks"),
            ("spec.rules[0].matches[0].queryParams[0].name", "1 to"),
            ("spec.rules[0].matches[0].queryParams[2].name", "entry 1"),
        ],
    );
}

#[test]
fn rules_that_never_get_a_request() {
    let backends = json!([{ "name": "a" }]);
    expect(
        "HTTPRoute",
        json!({ "parentRefs": [{ "name": "a" }], "rules": [
        { "matches": [{ "path": { "value": "/a" } }, { "path": { "value": "/a" } }], "backendRefs": backends },
        { "backendRefs": backends },
        { "matches": [{ "method": "GET" }, { "path": { "value": "/a" } }], "backendRefs": backends },
        { "matches": [{}], "backendRefs": backends },
    ] }),
        &[
            ("spec.rules[0].matches[1]", "spec.rules[0].matches[0] matches the same"),
            ("spec.rules[2].matches[1]", "spec.rules[0].matches[0] matches the same"),
            ("spec.rules[3].matches[0]", "spec.rules[1] matches the same"),
        ],
    );
    expect(
        "GRPCRoute",
        json!({ "parentRefs": [{ "name": "a" }], "rules": [
        { "matches": [{ "method": { "service": "a.B" } }], "backendRefs": backends },
        { "matches": [{ "method": { "service": "a.B" } }], "backendRefs": backends },
    ] }),
        &[("spec.rules[1].matches[0]", "matches the same")],
    );
}

#[test]
fn filters_do_what_their_type_says() {
    let filtered = |filters: Value| route(json!({ "filters": filters, "backendRefs": [{ "name": "a" }] }));
    expect(
        "HTTPRoute",
        filtered(json!([
            { "type": "URLRewrite" },
            { "type": "RequestHeaderModifier", "responseHeaderModifier": { "remove": ["x"] } },
            { "type": "ResponseHeaderModifier", "responseHeaderModifier": {} },
            { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "remove": ["x"] } },
        ])),
        &[
            ("spec.rules[0].filters[0].urlRewrite", "is missing"),
            ("spec.rules[0].filters[1].requestHeaderModifier", "is missing"),
            ("spec.rules[0].filters[1].responseHeaderModifier", "does not belong"),
            ("spec.rules[0].filters[2].responseHeaderModifier", "changes nothing"),
            ("spec.rules[0].filters[3].type", "filter 2 already"),
        ],
    );
    expect(
        "HTTPRoute",
        filtered(json!([{ "type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{ "name": "Connection", "value": "x" }, { "name": "heddle-attempt", "value": "1" },
            { "name": "host", "value": "a" }, { "name": "x-a", "value": "é" }],
        "add": [{ "name": "X-A", "value": "1" }, { "name": "x-forwarded-client-cert", "value": "1" }],
        "remove": ["te", "x-a", "bad name"],
    } }])),
        &[
            ("spec.rules[0].filters[0].requestHeaderModifier.set[0].name", "set by proxies"),
            ("spec.rules[0].filters[0].requestHeaderModifier.set[1].name", "set by proxies"),
            ("spec.rules[0].filters[0].requestHeaderModifier.set[2].name", "URLRewrite"),
            ("spec.rules[0].filters[0].requestHeaderModifier.set[3].value", "no header value"),
            ("spec.rules[0].filters[0].requestHeaderModifier.add[0].name", "changed already"),
            ("spec.rules[0].filters[0].requestHeaderModifier.add[1].name", "set by proxies"),
            ("spec.rules[0].filters[0].requestHeaderModifier.remove[0]", "set by proxies"),
            ("spec.rules[0].filters[0].requestHeaderModifier.remove[1]", "changed already"),
            ("spec.rules[0].filters[0].requestHeaderModifier.remove[2]", "no header name"),
        ],
    );
    expect(
        "HTTPRoute",
        route(json!({ "backendRefs": [{ "name": "a" }], "filters": [
        { "type": "RequestRedirect", "requestRedirect": {
            "scheme": "ftp", "hostname": "A", "statusCode": 200,
            "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "x" } } },
        { "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplaceFullPath", "replacePrefixMatch": "/" } } },
    ] })),
        &[
            ("spec.rules[0].filters[0].requestRedirect.scheme", "neither"),
            ("spec.rules[0].filters[0].requestRedirect.hostname", "no host name"),
            ("spec.rules[0].filters[0].requestRedirect.statusCode", "no redirect"),
            ("spec.rules[0].filters[0].requestRedirect.path.replacePrefixMatch", "does not begin"),
            ("spec.rules[0].filters[0].requestRedirect.path.type", "no prefix to replace"),
            ("spec.rules[0].filters[1].urlRewrite.path.replaceFullPath", "is missing"),
            ("spec.rules[0].filters[1].urlRewrite.path.replacePrefixMatch", "does not belong"),
            ("spec.rules[0].filters[1]", "beside the redirect"),
            ("spec.rules[0].backendRefs", "the rule redirects"),
        ],
    );
    expect(
        "HTTPRoute",
        route(json!({ "filters": [{ "type": "RequestRedirect", "requestRedirect": {} }] })),
        &[("spec.rules[0].filters[0].requestRedirect", "leads back")],
    );
}

#[test]
fn backends_timeouts_and_retries_of_routes() {
    expect("HTTPRoute", route(json!({})), &[("spec.rules[0].backendRefs", "is missing")]);
    expect(
        "HTTPRoute",
        json!({
            "parentRefs": [{ "name": "a" }, { "name": "a", "port": 80 }, { "name": "B" }],
            "hostnames": ["a.com", "a.com", "*", "a.*.com", "UP.com", "10.0.0.1"],
            "rules": [{
                "name": "x", "backendRefs": [
                    { "name": "a", "weight": 0 }, { "name": "a", "weight": 0 }, { "name": "b", "namespace": "N", "weight": 0,
                      "filters": [{ "type": "URLRewrite", "urlRewrite": { "hostname": "a.com" } }] },
                ],
                "timeouts": { "request": "1s", "backendRequest": "2s" },
                "retry": { "codes": [200, 503, 503], "methods": ["post"], "backoff": "5s" },
            }, { "name": "x", "matches": [{ "method": "GET" }], "backendRefs": [{ "name": "a" }] },
               { "name": "7", "matches": [{ "method": "PUT" }], "backendRefs": [{ "name": "a" }] }],
        }),
        &[
            ("spec.parentRefs[1]", "entry 0"),
            ("spec.parentRefs[2].name", "no DNS label"),
            ("spec.hostnames[1]", "already"),
            ("spec.hostnames[2]", "no host name"),
            ("spec.hostnames[3]", "no host name"),
            ("spec.hostnames[4]", "no host name"),
            ("spec.hostnames[5]", "no host name"),
            ("spec.rules[0].backendRefs[1]", "add up"),
            ("spec.rules[0].backendRefs[2].namespace", "no DNS label"),
            ("spec.rules[0].backendRefs[2].filters[0].type", "only headers"),
            ("spec.rules[0].backendRefs", "weight 0"),
            ("spec.rules[0].timeouts.backendRequest", "more than request (1s)"),
            ("spec.rules[0].retry.codes[0]", "400 to 599"),
            ("spec.rules[0].retry.codes[2]", "already"),
            ("spec.rules[0].retry.methods[0]", "\"POST\""),
            ("spec.rules[0].retry.backoff", "more than timeouts.request"),
            ("spec.rules[1].name", "rule 0"),
            ("spec.rules[2].name", "is a number"),
        ],
    );
}

#[test]
fn grpc_and_tcp_routes() {
    expect(
        "GRPCRoute",
        json!({ "parentRefs": [{ "name": "a" }], "rules": [{
        "matches": [{ "method": {} }, { "method": { "service": "a..b", "method": "x.y" } },
            { "method": { "type": "RegularExpression", "service": "(" } }],
        "filters": [{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https" } }],
        "backendRefs": [{ "name": "a" }],
    }] }),
        &[
            ("spec.rules[0].matches[0].method", "matches nothing"),
            ("spec.rules[0].matches[1].method.service", "no gRPC service"),
            ("spec.rules[0].matches[1].method.method", "no gRPC method"),
            ("spec.rules[0].matches[2].method.service", "no regular expression"),
            ("spec.rules[0].filters[0].type", "neither be redirected"),
        ],
    );
    expect(
        "TCPRoute",
        json!({ "parentRefs": [{ "name": "a" }], "rules": [{ "backendRefs": [
        { "name": "a", "filters": [{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "remove": ["x"] } }] },
    ] }] }),
        &[("spec.rules[0].backendRefs[0].filters[0]", "cannot be filtered")],
    );
    expect("TCPRoute", json!({ "parentRefs": [{ "name": "a" }], "rules": [] }), &[("spec.rules", "at least 1 entry")]);
}

#[test]
fn traffic_policies() {
    expect(
        "TrafficPolicy",
        json!({
            "targetRef": { "kind": "Service", "name": "A" },
            "balancing": "random ",
            "timeouts": { "request": "1s", "perTry": "2s", "connect": "0s" },
            "retries": { "attempts": 11, "on": ["reset", "reset"], "statuses": [200], "grpcStatuses": ["UNAVAILIBLE", "OK"],
                "methods": ["PoST"], "backoff": "1s", "replayBytes": 2_000_000 },
            "outlierDetection": { "baseEjection": "10m", "maxEjection": "0s", "maxEjectedPercent": 51 },
            "limits": { "maxRequests": 0 },
        }),
        &[
            ("spec.targetRef.name", "no DNS label"),
            ("spec.balancing", "did you mean \"random\"?"),
            ("spec.timeouts.perTry", "more than request"),
            ("spec.timeouts.connect", "is 0s"),
            ("spec.retries.attempts", "at most 10"),
            ("spec.retries.on[1]", "already"),
            ("spec.retries.statuses[0]", "400 to 599"),
            ("spec.retries.grpcStatuses[0]", "did you mean \"UNAVAILABLE\"?"),
            ("spec.retries.grpcStatuses[1]", "no gRPC status of a failure"),
            ("spec.retries.methods[0]", "\"POST\""),
            ("spec.retries.backoff", "more than maxBackoff (250ms)"),
            ("spec.retries.replayBytes", "at most 1048576"),
            ("spec.outlierDetection.maxEjection", "is 0s"),
            ("spec.outlierDetection.maxEjectedPercent", "at most 50"),
            ("spec.limits.maxRequests", "at least 1"),
        ],
    );
    expect(
        "TrafficPolicy",
        json!({ "retries": { "maxBackoff": "5ms" }, "outlierDetection": { "maxEjection": "5s" } }),
        &[
            ("spec.retries.maxBackoff", "25ms when left out"),
            ("spec.outlierDetection.maxEjection", "10s when left out"),
        ],
    );
}

#[test]
fn authorization_policies() {
    expect(
        "AuthorizationPolicy",
        json!({ "action": "ALLOW", "rules": [
        { "name": "a", "from": [{}, { "unauthenticated": true, "namespaces": ["a"] }], "to": [{}] },
        { "name": "a", "from": [{
            "identities": ["orders", "shop/Orders!", "spiffe://td", "spiffe://td/ns/a*/sa/b", "spiffe://TD/ns/a/sa/b",
                "spiffe://td/ns//sa/b", "shop/a", "shop/a"],
            "namespaces": ["*"], "cidrs": ["10.0.0.1", "10.0.0.1/8", "ten/8"],
        }], "to": [{ "ports": [0, 1, 1], "methods": ["*"], "paths": ["a", "/a*", "/a/*/b", "/a/../b", "/x//*"] }] },
    ] }),
        &[
            ("spec.rules[0].from[0]", "names nobody"),
            ("spec.rules[0].from[1].namespaces", "has none"),
            ("spec.rules[0].to[0]", "names nothing"),
            ("spec.rules[1].name", "rule 0"),
            ("spec.rules[1].from[0].identities[0]", "no identity"),
            ("spec.rules[1].from[0].identities[1]", "no service account"),
            ("spec.rules[1].from[0].identities[2]", "whole trust domain"),
            ("spec.rules[1].from[0].identities[3]", "whole segment"),
            ("spec.rules[1].from[0].identities[4]", "no SPIFFE ID"),
            ("spec.rules[1].from[0].identities[5]", "no SPIFFE ID"),
            ("spec.rules[1].from[0].identities[7]", "already"),
            ("spec.rules[1].from[0].namespaces[0]", "no DNS label"),
            ("spec.rules[1].from[0].cidrs[0]", "write 10.0.0.1/32"),
            ("spec.rules[1].from[0].cidrs[1]", "write 10.0.0.0/8"),
            ("spec.rules[1].from[0].cidrs[2]", "no address range"),
            ("spec.rules[1].to[0].ports[0]", "is 0"),
            ("spec.rules[1].to[0].ports[2]", "already"),
            ("spec.rules[1].to[0].methods[0]", "no method"),
            ("spec.rules[1].to[0].paths[0]", "does not begin"),
            ("spec.rules[1].to[0].paths[1]", "* may only"),
            ("spec.rules[1].to[0].paths[2]", "* may only"),
            ("spec.rules[1].to[0].paths[3]", "segment"),
            ("spec.rules[1].to[0].paths[4]", "empty segment"),
        ],
    );
    expect(
        "AuthorizationPolicy",
        json!({ "action": "allow" }),
        &[("spec.action", "did you mean \"ALLOW\"?"), ("spec.rules", "is missing; a list is wanted")],
    );
}

#[test]
fn mesh_config() {
    expect(
        "MeshConfig",
        json!({ "defaultAuthorization": "ALLOW", "suffixes": [".mesh", "mesh", "mesh"],
        "cidrs": ["10.0.0.0/33"], "telemetry": { "samplingRatio": 1.5 } }),
        &[
            ("spec.defaultAuthorization", "did you mean \"allow\"?"),
            ("spec.suffixes[0]", "no name suffix"),
            ("spec.suffixes[2]", "already"),
            ("spec.cidrs[0]", "no address range"),
            ("spec.telemetry.samplingRatio", "at most 1"),
        ],
    );
}

#[test]
fn how_much_a_route_may_come_to() {
    let matches = |count: usize, kind: &str| -> Vec<Value> {
        (0..count).map(|index| json!({ "path": { "type": kind, "value": format!("/{index}") } })).collect()
    };
    let rule = |matches: Vec<Value>| json!({ "matches": matches, "backendRefs": [{ "name": "orders" }] });
    let of = |hosts: usize, rules: Vec<Value>| {
        let hostnames: Vec<_> = (0..hosts).map(|index| format!("h{index}.example")).collect();
        json!({ "parentRefs": [{ "name": "orders" }], "hostnames": hostnames, "rules": rules })
    };
    let other = |rule: &mut Value| {
        for wanted in rule["matches"].as_array_mut().unwrap() {
            wanted["method"] = json!("GET");
        }
    };
    let mut more = rule(matches(64, "Exact"));
    other(&mut more);
    expect("HTTPRoute", of(8, vec![rule(matches(64, "Exact")), more.clone()]), &[]);
    expect(
        "HTTPRoute",
        of(9, vec![rule(matches(64, "Exact")), more.clone()]),
        &[("spec.rules", "have 128 matches for 9 host names, which makes 1152; at most 1024")],
    );
    let mut last = rule(Vec::new());
    last["matches"] = json!([]);
    expect(
        "HTTPRoute",
        of(0, vec![rule(matches(64, "Exact")), more, last]),
        &[("spec.rules", "have 129 matches; a route has at most 128")],
    );
    // A hundred matches of three expressions each.
    let expressions: Vec<_> = (0..64)
        .map(|index| {
            let header =
                |name: &str| json!({ "type": "RegularExpression", "name": name, "value": format!("{index}.*") });
            let names = ["a", "b", "c", "d", "e"].map(header);
            json!({ "headers": names })
        })
        .collect();
    expect(
        "HTTPRoute",
        of(0, vec![rule(expressions)]),
        &[("spec.rules", "have 320 regular expressions; a route has at most 256")],
    );
}

#[test]
fn expressions_for_a_grpc_method_are_checked_as_proxies_use_them() {
    let spec = |service: &str, method: &str| {
        json!({ "parentRefs": [{ "name": "orders" }], "rules": [{ "backendRefs": [{ "name": "orders" }],
            "matches": [{ "method": { "type": "RegularExpression", "service": service, "method": method } }] }] })
    };
    expect("GRPCRoute", spec(r"shop\..*", "Get.*"), &[]);
    // The largest that is allowed by itself; with another like it, it is too large.
    let expression = |repetitions: usize| format!("[a-z]{{{repetitions}}}");
    let largest = (0..1_000_000).step_by(500).take_while(|count| common::regex(&expression(*count)).is_ok()).last();
    let half = &expression(largest.unwrap());
    expect("GRPCRoute", spec(half, "Get"), &[]);
    expect("GRPCRoute", spec(half, half), &[("spec.rules[0].matches[0].method", "too much memory")]);
}
