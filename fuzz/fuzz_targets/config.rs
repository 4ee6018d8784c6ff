//! The proxy's settings file: whatever stands in it, it is read as the same settings each time, or every fault is
//! told with its place.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use heddle_proxy::config::file::{Flags, load};
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("heddle-fuzz-{}.yaml", std::process::id())));

fuzz_target!(|text: &str| {
    fs::write(&*FILE, text).expect("the folder for temporary files takes one");
    let flags = Flags { config: Some(FILE.clone()), ..Flags::default() };
    let first = load(&flags);
    let told = format!("{first:?}");
    assert_eq!(format!("{:?}", load(&flags)), told);
    if let Err(error) = first {
        assert!(!error.faults.is_empty());
        let sentence = error.to_string();
        for fault in &error.faults {
            assert!(!fault.message.is_empty() && sentence.contains(&fault.message), "{sentence}");
        }
    }
});
