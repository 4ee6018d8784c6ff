//! Headers: of what concerns one connection nothing goes on, of what nobody may forge nothing either, and all else
//! stays.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use heddle_proxy::headers::{Hop, Origin, sanitize_inbound, sanitize_outbound, sanitize_response, strip_hop_by_hop};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

fuzz_target!(|text: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let before = headers.clone();
    strip_hop_by_hop(&mut headers);
    for name in HOP_BY_HOP.iter().filter(|name| **name != "te") {
        assert!(!headers.contains_key(*name), "{name}");
    }
    assert!(headers.get_all("te").iter().all(|te| te == "trailers"));
    // What is left is what nobody named, with all its values in order.
    let listed: Vec<String> = before
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    for name in before.keys().filter(|name| !HOP_BY_HOP.contains(&name.as_str())) {
        let gone = *name != "host" && listed.iter().any(|listed| listed == name.as_str());
        let left: Vec<_> = headers.get_all(name).iter().collect();
        let came: Vec<_> = before.get_all(name).iter().collect();
        assert_eq!(left, if gone { Vec::new() } else { came }, "{name}");
    }
    let once = headers.clone();
    strip_hop_by_hop(&mut headers);
    assert_eq!(headers, once);

    let heddles = |headers: &HeaderMap| headers.keys().filter(|name| name.as_str().starts_with("heddle-")).count();
    let mut inbound = headers.clone();
    sanitize_inbound(&mut inbound, &Origin::new(Hop::Unmeshed, IpAddr::V4(Ipv4Addr::LOCALHOST), "http", None));
    assert_eq!(heddles(&inbound), 0);
    assert!(!inbound.contains_key("x-forwarded-client-cert") && !inbound.contains_key("forwarded"));
    assert!(!inbound.contains_key("x-real-ip"));
    assert_eq!(inbound["x-forwarded-for"], "127.0.0.1");
    let mut outbound = headers.clone();
    sanitize_outbound(&mut outbound);
    assert_eq!(heddles(&outbound), 0);
    assert!(!outbound.contains_key("x-forwarded-client-cert"));
    for hop in [Hop::App, Hop::Unmeshed] {
        let mut response = headers.clone();
        sanitize_response(&mut response, hop);
        assert_eq!(heddles(&response), 0);
    }
});
