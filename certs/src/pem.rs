//! PEM in and out, in one place.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Every certificate in `text`. Other sections are passed over; a broken one is an error.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// The first private key in `text`: PKCS#8, SEC1 or PKCS#1.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, rustls_pki_types::pem::Error> {
    PrivateKeyDer::from_pem_slice(text)
}

pub(crate) fn encode<'a>(label: &str, sections: impl IntoIterator<Item = &'a [u8]>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    sections.into_iter().map(|der| pem::encode_config(&Pem::new(label, der), config)).collect()
}

pub(crate) fn encode_certificates(chain: &[CertificateDer<'_>]) -> String {
    encode(CERTIFICATE, chain.iter().map(AsRef::as_ref))
}
