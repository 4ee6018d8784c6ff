//! Documents for the API: an object that is accepted is written as a document that is accepted as the same object;
//! of any other, faults are told.
#![no_main]

use heddle_api::{
    document::{Format, parse},
    validate,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    for format in [Format::Json, Format::Yaml] {
        let document = match parse(text, format) {
            Ok(document) => document,
            Err(faults) => {
                assert!(!faults.is_empty());
                continue;
            }
        };
        match validate::object(&document, None) {
            Ok(object) => {
                assert_eq!(validate::meaning(&object), []);
                let written = serde_json::to_vec(&object).expect("an object");
                let again = parse(&written, Format::Json).expect("what is written can be read");
                assert_eq!(validate::object(&again, Some(object.kind())).as_ref(), Ok(&object));
            }
            Err(invalid) => {
                assert!(!invalid.faults().is_empty());
                assert!(invalid.faults().iter().all(|fault| !fault.message.is_empty()));
            }
        }
    }
});
