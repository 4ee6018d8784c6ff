//! Detection: what more bytes say never contradicts what fewer said, so that it makes no difference in which
//! pieces they come; and what is taken for HTTP/1 is what its server takes for it.
#![no_main]

use heddle_proxy::fuzzing::{Detected, classify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = classify(bytes);
    for n in 0..bytes.len() {
        if let Some(said) = classify(&bytes[..n]) {
            // Of TLS, the name may be lost in what comes after the first message; that it is TLS may not.
            let same = match (&said, &whole) {
                (Detected::Tls(_), Some(Detected::Tls(_))) => true,
                (said, whole) => Some(said) == whole.as_ref(),
            };
            assert!(same, "{n} bytes say {said:?}, all say {whole:?}");
        }
    }
    match whole {
        Some(Detected::Http2) => assert!(bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Some(Detected::Http1) => {
            let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes).split(|byte| *byte == b'\n').next().unwrap();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            assert!(line.iter().all(|byte| *byte >= b' ' && *byte != 0x7f));
            assert!(line[..line.len() - 1].ends_with(b" HTTP/1."));
        }
        Some(Detected::Tls(_)) => assert_eq!(bytes[0], 0x16),
        Some(Detected::Opaque) | None => {}
        Some(Detected::Silent | Detected::Ended) => unreachable!("nothing that bytes say"),
    }
});
