//! rustls configurations for the mesh.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig, crypto::CryptoProvider};

use crate::{Clock, SpiffeId, Svid, TrustBundle};

/// Whether a server asks its clients for an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a valid SVID is refused in the handshake.
    Required,
    /// A client may come without a certificate; one that it does send must be a valid SVID.
    Optional,
    /// Clients are not asked: for those who know nothing of SPIFFE.
    None,
}

/// The identities that a client accepts of a server: any of these, exactly. None of them means that
/// no server is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedPeer(Vec<SpiffeId>);

impl From<Vec<SpiffeId>> for ExpectedPeer {
    fn from(ids: Vec<SpiffeId>) -> Self {
        Self(ids)
    }
}

impl From<&[SpiffeId]> for ExpectedPeer {
    fn from(ids: &[SpiffeId]) -> Self {
        Self(ids.to_vec())
    }
}

impl From<SpiffeId> for ExpectedPeer {
    fn from(id: SpiffeId) -> Self {
        Self(vec![id])
    }
}

/// Why a configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused.
    #[error("TLS configuration")]
    Rustls(#[from] rustls::Error),
}

/// The cryptography of the mesh: aws-lc-rs, TLS 1.3 suites with AES-128-GCM first, X25519MLKEM768
/// preferred.
pub fn provider() -> Arc<CryptoProvider> {
    todo!()
}

/// The configuration of a server that proves `svid` and knows its clients by `bundle`.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
    client_auth: ClientAuth,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, TlsError> {
    todo!("{svid:?} {bundle:?} {alpn:?} {client_auth:?} {clock:?}")
}

/// The configuration of a client that accepts a server only if it is `expected` under `bundle`. It
/// proves `svid` if it has one.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    expected: ExpectedPeer,
    alpn: &[&[u8]],
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, TlsError> {
    todo!("{svid:?} {bundle:?} {expected:?} {alpn:?} {clock:?}")
}
