//! HTTP/2 through a pair of proxies: whatever frames a client sends, its connection ends, and another client is answered.
#![no_main]

use heddle_proxy::fuzzing::Fronts;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FRONTS: Fronts = Fronts::start();
}

fuzz_target!(|bytes: &[u8]| {
    FRONTS.with(|fronts| fronts.http2(bytes));
});
