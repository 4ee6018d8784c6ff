//! rustls configurations for the mesh: TLS 1.3 only, X25519MLKEM768 preferred, AES-128-GCM first.
//!
//! # Session resumption is off
//!
//! A resumed session does not show certificates again: the peer's identity would be the one of the
//! first handshake, whatever has since become of the trust bundle, of either leaf's validity, or of the
//! identity that is expected there. A ticket would have to be bound to all of these (peer identity,
//! bundle epoch, both expiries) and refused when any has changed, or a way around the verification is
//! open. That is a lot of state to get right for what it saves: `examples/handshakes.rs` measured
//! 0.58 ms of processor time for a full mutual handshake, both ends together, and 0.19 ms for a resumed
//! one (x86-64, aws-lc-rs, X25519MLKEM768, P-256 certificates, one intermediate). Connections between
//! proxies are pooled and long-lived, so 0.2 ms for each side now and then is nothing beside a second,
//! weaker way to be let in. Off, every handshake proves everything.
//!
//! Early data is off for the same reason, and because it can be replayed. TLS 1.3 has no renegotiation.
//!
//! # One's own certificate
//!
//! An expired certificate is refused always, one's own too, at every handshake and not only when the
//! configuration is made: a server then offers none and the handshake fails; a client fails it before
//! it sends anything about itself, rather than going on as nobody.

mod own;
mod peer;

use std::sync::{Arc, LazyLock};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};

use crate::{Clock, SpiffeId, Svid, TrustBundle, VerifyError, clock::RustlsTime, verify::Verifier};

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

impl ExpectedPeer {
    fn check(&self, found: SpiffeId) -> Result<(), VerifyError> {
        if self.0.contains(&found) { Ok(()) } else { Err(VerifyError::UnexpectedPeer { found }) }
    }
}

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
    /// The certificate to prove oneself with is not valid now.
    #[error("the certificate to prove oneself with cannot be used")]
    Own(#[from] VerifyError),
    /// rustls refused.
    #[error("TLS configuration")]
    Rustls(#[from] rustls::Error),
}

/// The cryptography of the mesh: aws-lc-rs, with the suites and groups of TLS 1.3 in our order.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite, kx_group};
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// The configuration of a server that proves `svid` and knows its clients by `bundle`.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
    client_auth: ClientAuth,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, TlsError> {
    svid.check_validity(clock.now())?;
    let verifier = match client_auth {
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
        ClientAuth::Required | ClientAuth::Optional => Arc::new(peer::ClientVerifier {
            verifier: Verifier::new(bundle.clone()),
            mandatory: client_auth == ClientAuth::Required,
        }),
    };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(RustlsTime(Arc::clone(&clock))))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(own::OwnCertificate::new(svid.clone(), clock)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The configuration of a client that accepts a server only if it is `expected` under `bundle`. It
/// proves `svid` if it has one.
///
/// The name that a connection asks for (SNI) plays no part in whether the server is accepted.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    expected: ExpectedPeer,
    alpn: &[&[u8]],
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, TlsError> {
    let own = svid.map(|svid| Arc::new(own::OwnCertificate::new(svid.clone(), Arc::clone(&clock))));
    if let Some(svid) = svid {
        svid.check_validity(clock.now())?;
    }
    let verifier = peer::ServerVerifier { verifier: Verifier::new(bundle.clone()), expected, own: svid.cloned() };
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(RustlsTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

#[cfg(test)]
mod tests;
