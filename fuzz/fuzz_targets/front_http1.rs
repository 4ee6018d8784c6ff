//! HTTP/1.1 through a pair of proxies: whatever a client sends, the app behind them sees whole requests, each one that
//! the client wrote, and another client is answered as if there were no other.
#![no_main]

use heddle_proxy::fuzzing::Fronts;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FRONTS: Fronts = Fronts::start();
}

fuzz_target!(|bytes: &[u8]| {
    let seen = FRONTS.with(|fronts| fronts.http1(bytes));
    let lines = bytes.windows(8).filter(|part| part.starts_with(b" HTTP/1.")).count();
    assert!(seen.len() <= lines, "{seen:?}");
});
