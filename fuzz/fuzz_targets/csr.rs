//! Signing requests: any bytes are either refused or a key that is proven.
#![no_main]

use heddle_certs::csr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    if let Ok(key) = csr::verify(der) {
        assert_eq!(csr::verify(der), Ok(key));
        let trailing = [der, &[0]].concat();
        assert!(csr::verify(&trailing).is_err());
    }
});
