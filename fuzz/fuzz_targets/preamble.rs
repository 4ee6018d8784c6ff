//! What proxies say before opaque bytes: read is not a byte more than what was said, and what is said again is
//! read as the same.
#![no_main]

use futures_util::FutureExt as _;
use heddle_proxy::fuzzing::{Preamble, read_answer, refuse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    if let Ok(preamble) = Preamble::read(&mut rest).now_or_never().expect("bytes in memory") {
        let read = bytes.len() - rest.len();
        assert_eq!(usize::from(u16::from_be_bytes([bytes[5], bytes[6]])) + 7, read);
        let mut again = Vec::new();
        preamble.write(&mut again).now_or_never().expect("memory").expect("what was short enough is so again");
        let mut reader = again.as_slice();
        assert_eq!(Preamble::read(&mut reader).now_or_never().unwrap().unwrap(), preamble);
        assert!(reader.is_empty());
        // Cut off, it is none.
        for n in 0..read {
            assert!(Preamble::read(&mut &bytes[..n]).now_or_never().unwrap().is_err());
        }
    }
    let mut rest = bytes;
    if let Ok(answer) = read_answer(&mut rest).now_or_never().expect("bytes in memory") {
        assert_eq!(answer.is_none(), bytes[0] == 0);
        let Some(error) = answer else { return };
        assert!(error.never_sent);
        let mut again = Vec::new();
        refuse(&mut again, &error).now_or_never().unwrap().unwrap();
        let told = read_answer(&mut again.as_slice()).now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(told.kind, error.kind);
    }
});
