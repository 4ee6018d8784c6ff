//! Certificate signing requests. Of a request only the public key is ever used.

use rustls_pki_types::PrivateKeyDer;

/// Why a signing request was refused or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not a PKCS#10 request in DER.
    #[error("malformed certificate signing request")]
    Malformed,
}

/// A new ECDSA P-256 key, and a PKCS#10 request (DER) that proves its possession.
pub fn generate() -> Result<(PrivateKeyDer<'static>, Vec<u8>), CsrError> {
    todo!()
}
