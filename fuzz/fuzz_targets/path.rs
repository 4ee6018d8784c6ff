//! Paths: what policy decides on is what is forwarded, it means what the caller wrote, and it means one thing to
//! whoever reads it.
#![no_main]

use heddle_proxy::{fuzzing::receive, path::normalize};
use http::{Method, Request, Uri, Version};
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;

fuzz_target!(|input: &str| {
    if let Ok(normal) = normalize(input) {
        assert_eq!(normalize(&normal).expect("what is normal is accepted"), normal, "normal twice");
        if normal != "*" {
            check(input, &normal);
        }
    }
    // As a request has it: whatever stands before and after the path.
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let target = if version == Version::HTTP_2 { format!("http://h{input}") } else { input.to_owned() };
        let Ok(uri) = target.parse::<Uri>() else { continue };
        let (written, query) = (uri.path().to_owned(), uri.query().map(str::to_owned));
        let request = Request::builder().method(Method::GET).uri(uri).version(version).header("host", "h");
        let Ok(request) = request.body(()) else { continue };
        let (mut parts, ()) = request.into_parts();
        if receive(&mut parts).is_ok() {
            assert_eq!(parts.uri.path(), normalize(&written).expect("it was accepted"));
            assert_eq!(parts.uri.query(), query.as_deref(), "the query is none of a path's business");
            assert!(sent_path(&parts.uri).starts_with('/'), "what is sent shows its path");
            // What the next one reads of what is sent.
            let sent = sent_path(&parts.uri);
            let reread = format!("http://h{sent}").parse::<Uri>().expect("what is sent can be read");
            assert_eq!(reread.path(), parts.uri.path());
        }
    }
});

fn sent_path(uri: &Uri) -> &str {
    uri.path_and_query().expect("a path").as_str()
}

fn check(written: &str, normal: &str) {
    assert!(normal.starts_with('/'));
    for segment in normal[1..].split('/').collect::<Vec<_>>().split_last().map_or(&[][..], |(_, before)| before) {
        assert!(!segment.is_empty());
    }
    let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let decoded = decode(normal);
    assert_eq!(decoded, decode(if written.is_empty() { "/" } else { written }), "it means what was written");
    assert!(std::str::from_utf8(&decoded).is_ok());
    assert!(!decoded.iter().any(|byte| *byte < b' ' || *byte == 0x7f || br"\;#?".contains(byte)));
    assert_eq!(decoded.iter().filter(|byte| **byte == b'/').count(), normal.matches('/').count(), "no hidden slash");
    // Who decodes twice sees the same segments.
    let twice = decode(&String::from_utf8_lossy(&decoded));
    assert!(!String::from_utf8_lossy(&twice).split('/').any(|segment| matches!(segment, "." | "..")));
    // Another parser, that resolves what it takes for dot segments and backslashes (WHATWG URL).
    let url = url::Url::parse(&format!("http://h{normal}")).expect("a URL");
    assert_eq!(decode(url.path()), decoded, "{url}");
}
