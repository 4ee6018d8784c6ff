//! The rules of X.509-SVID, for certificates of others.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::SpiffeId;

/// Which rule a certificate breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer sent no certificate.
    #[error("no certificate")]
    NoCertificate,
}

/// What a verified leaf says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// A connection with this peer is not to outlive this.
    pub not_after: SystemTime,
}

/// Reads the peer from a chain that a handshake has already verified.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, VerifyError> {
    todo!("{chain:?}")
}

/// Reads the peer's identity from a chain that a handshake has already verified.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    Ok(peer(chain)?.id)
}

/// The rule that made a handshake fail, if it was one of this crate's.
pub fn refusal(error: &rustls::Error) -> Option<&VerifyError> {
    todo!("{error}")
}
