use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::cluster::retry::Pushback;

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// Sorted `name: value` lines.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
    lines.sort();
    lines
}

fn peer() -> SpiffeId {
    SpiffeId::from_str("spiffe://heddle.local/ns/shop/sa/storefront").unwrap()
}

#[test]
fn hop_by_hop_headers_never_go_on() {
    let mut headers = map(&[
        ("connection", "close, X-Custom ,, keep-alive, host, bad name"),
        ("connection", "x-second, te"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic x"),
        ("proxy-authenticate", "Basic"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, Trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAA"),
        ("x-custom", "1"),
        ("x-second", "1"),
        ("host", "orders"),
        ("trailer", "grpc-status"),
        ("accept", "*/*"),
    ]);
    strip_hop_by_hop(&mut headers);
    assert_eq!(lines(&headers), ["accept: */*", "host: orders", "te: trailers", "trailer: grpc-status"]);

    let mut headers = map(&[("te", "gzip"), ("a", "b")]);
    strip_hop_by_hop(&mut headers);
    assert_eq!(lines(&headers), ["a: b"]);
}

#[test]
fn no_connection_header_removes_what_the_proxy_sets() {
    let id = peer();
    let mut headers = map(&[("connection", "x-forwarded-client-cert, x-forwarded-for, traceparent")]);
    strip_hop_by_hop(&mut headers);
    let hop = Hop::Meshed { id: &id, certificate_hash: None };
    sanitize_inbound(&mut headers, &Origin::new(hop, [10, 0, 0, 1].into(), "http", None));
    assert!(headers.contains_key(XFCC) && headers.contains_key("x-forwarded-for"));
}

const FORGED: &[(&str, &str)] = &[
    ("x-forwarded-client-cert", "URI=spiffe://heddle.local/ns/admin/sa/admin"),
    ("X-Forwarded-Client-Cert", "URI=spiffe://heddle.local/ns/admin/sa/admin2"),
    ("x-forwarded-for", "1.2.3.4"),
    ("x-forwarded-for", "5.6.7.8"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "admin"),
    ("forwarded", "for=1.2.3.4"),
    ("x-real-ip", "1.2.3.4"),
    ("heddle-attempt", "3"),
    ("heddle-deadline", "100"),
    ("heddle-error", "draining"),
    ("heddle-anything", "x"),
    ("x-app", "kept"),
];

#[test]
fn what_a_peer_proxy_says_is_kept_but_never_the_identity() {
    let (id, own) = (peer(), SpiffeId::from_str("spiffe://heddle.local/ns/shop/sa/orders").unwrap());
    let hop = Hop::Meshed { id: &id, certificate_hash: Some("ab12") };
    let mut headers = map(FORGED);
    sanitize_inbound(&mut headers, &Origin::new(hop, "::ffff:10.0.0.1".parse().unwrap(), "http", Some(&own)));
    assert_eq!(
        lines(&headers),
        [
            "forwarded: for=1.2.3.4",
            "heddle-attempt: 3",
            "heddle-deadline: 100",
            "x-app: kept",
            "x-forwarded-client-cert: By=spiffe://heddle.local/ns/shop/sa/orders;Hash=ab12;Subject=\"\";URI=spiffe://heddle.local/ns/shop/sa/storefront",
            "x-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.1",
            "x-forwarded-host: admin",
            "x-forwarded-proto: https",
            "x-real-ip: 1.2.3.4",
        ]
    );
}

#[test]
fn what_somebody_in_plaintext_says_is_not() {
    for hop in [Hop::Unmeshed, Hop::App] {
        let mut headers = map(FORGED);
        sanitize_inbound(&mut headers, &Origin::new(hop, [10, 0, 0, 1].into(), "http", None));
        assert_eq!(lines(&headers), ["x-app: kept", "x-forwarded-for: 10.0.0.1", "x-forwarded-proto: http"]);
    }
}

#[test]
fn apps_may_forward_but_not_forge() {
    let mut headers = map(FORGED);
    sanitize_outbound(&mut headers);
    assert_eq!(
        lines(&headers),
        [
            "forwarded: for=1.2.3.4",
            "x-app: kept",
            "x-forwarded-for: 1.2.3.4",
            "x-forwarded-for: 5.6.7.8",
            "x-forwarded-host: admin",
            "x-forwarded-proto: https",
            "x-real-ip: 1.2.3.4",
        ]
    );
}

#[test]
fn only_peer_proxies_name_errors() {
    let id = peer();
    for (from, kept) in
        [(Hop::App, false), (Hop::Unmeshed, false), (Hop::Meshed { id: &id, certificate_hash: None }, true)]
    {
        let mut headers = map(FORGED);
        sanitize_response(&mut headers, from);
        assert_eq!(headers.contains_key("heddle-error"), kept);
        assert!(!headers.contains_key("heddle-attempt") && !headers.contains_key("heddle-anything"));
        assert!(headers.contains_key("x-app"));
    }
}

#[test]
fn request_ids_are_kept_or_made() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut headers = map(&[("x-request-id", "abc-123")]);
    assert_eq!(request_id(&mut headers, &mut rng), "abc-123");
    for bad in ["", "with space", "ü", &"x".repeat(129)] {
        let mut headers = map(&[("x-request-id", bad)]);
        let id = request_id(&mut headers, &mut rng);
        assert_ne!(id, bad);
        assert_eq!(headers.get_all("x-request-id").iter().collect::<Vec<_>>(), [&id]);
    }
    let mut headers = HeaderMap::new();
    let id = request_id(&mut headers, &mut rng);
    let id = id.to_str().unwrap();
    assert_eq!(id.len(), 36);
    assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    assert_eq!(&id[14..15], "4");
    assert!("89ab".contains(&id[19..20]), "{id}");
    assert_eq!(request_id(&mut headers, &mut rng), id, "the same from then on");
}

#[test]
fn loops_are_seen_in_via() {
    let mut headers = map(&[("via", "1.0 fred, 1.1 p.example.net (comment)"), ("via", "2 orders-1")]);
    assert!(via_contains(&headers, "orders-1") && via_contains(&headers, "p.example.net"));
    assert!(!via_contains(&headers, "orders-10") && !via_contains(&headers, "orders") && !via_contains(&headers, "2"));
    append_via(&mut headers, &via(Version::HTTP_11, "orders-2").unwrap());
    assert_eq!(headers[VIA], "1.0 fred, 1.1 p.example.net (comment), 2 orders-1, 1.1 orders-2");
    assert_eq!(headers.get_all(VIA).iter().count(), 1);
    assert!(via_contains(&headers, "orders-2"));
    let mut headers = HeaderMap::new();
    append_via(&mut headers, &via(Version::HTTP_2, "a").unwrap());
    assert_eq!(headers[VIA], "2 a");
}

#[test]
fn deadlines() {
    for (value, expected) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(Duration::from_millis(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("999999999S", None),
        ("S", None),
        ("", None),
        ("1", None),
        ("-1S", None),
        ("+1S", None),
        ("1.5S", None),
        ("1s", None),
        ("1ü", None),
    ] {
        assert_eq!(deadline(&map(&[("grpc-timeout", value)])), expected, "{value}");
    }
    let both = map(&[("grpc-timeout", "1S"), ("heddle-deadline", "250")]);
    assert_eq!(deadline(&both), Some(Duration::from_millis(250)));
    assert_eq!(deadline(&map(&[("heddle-deadline", "-1")])), None);
    let mut headers = HeaderMap::new();
    set_deadline(&mut headers, Duration::from_micros(1_500_900));
    set_attempt(&mut headers, 2);
    assert_eq!(lines(&headers), ["heddle-attempt: 2", "heddle-deadline: 1500"]);
}

#[test]
fn servers_may_push_back() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
    for (name, value, expected) in [
        ("grpc-retry-pushback-ms", "150", Pushback::After(Duration::from_millis(150))),
        ("grpc-retry-pushback-ms", "-1", Pushback::Never),
        ("grpc-retry-pushback-ms", "x", Pushback::Never),
        ("retry-after", "2", Pushback::After(Duration::from_secs(2))),
        ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", Pushback::After(Duration::from_secs(10))),
        ("retry-after", "Wed, 21 Oct 2015 07:00:00 GMT", Pushback::After(Duration::ZERO)),
        ("retry-after", "soon", Pushback::Never),
    ] {
        assert_eq!(pushback(&map(&[(name, value)]), now), Some(expected), "{value}");
    }
    assert_eq!(pushback(&HeaderMap::new(), now), None);
}

#[test]
fn trailers_are_no_way_round_headers() {
    let all = [
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-authorization", "x"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("content-length", "3"),
        ("host", "x"),
        ("heddle-deadline", "1"),
        ("x-forwarded-client-cert", "URI=spiffe://x"),
        ("authorization", "x"),
        ("set-cookie", "x"),
        ("grpc-status", "0"),
    ];
    let (mut request, mut response) = (map(&all), map(&all));
    sanitize_request_trailers(&mut request);
    sanitize_response_trailers(&mut response);
    assert_eq!(lines(&request), ["grpc-status: 0", "set-cookie: x"]);
    assert_eq!(lines(&response), ["authorization: x", "grpc-status: 0", "x-forwarded-client-cert: URI=spiffe://x"]);
}

#[test]
fn a_date_is_set_where_there_is_none() {
    let at = |seconds| move || std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    for (seconds, expected) in [
        (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (1, "Thu, 01 Jan 1970 00:00:01 GMT"),
    ] {
        let mut headers = HeaderMap::new();
        date(&mut headers, at(seconds));
        assert_eq!(headers["date"], expected);
        date(&mut headers, at(5));
        assert_eq!(lines(&headers), [format!("date: {expected}")]);
    }
}

#[test]
fn a_copy_has_all_headers_in_their_order() {
    let mut headers = HeaderMap::new();
    headers.append("host", HeaderValue::from_static("shop"));
    headers.append("x-many", HeaderValue::from_static("one"));
    headers.append("cookie", HeaderValue::from_bytes(b"caf\xe9=\t1").unwrap());
    headers.append("x-many", HeaderValue::from_static(""));
    headers.get_mut("cookie").unwrap().set_sensitive(true);
    let copy = Copied::of(&headers).to_map();
    assert_eq!(copy, headers);
    assert!(copy.iter().eq(headers.iter()));
    assert!(copy["cookie"].is_sensitive() && !copy["host"].is_sensitive());
    assert!(Copied::of(&HeaderMap::new()).to_map().is_empty());
}
