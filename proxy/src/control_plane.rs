//! Connections to the control plane: mutual TLS, and exactly its reserved identity at the other end.

use std::{io, sync::Arc, time::Duration};

use heddle_certs::{Clock, SpiffeId, Svid, TrustBundle, tls};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest wait for TCP, TLS and HTTP/2.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked for a sign of life this often, and given up [`KEEP_ALIVE_TIMEOUT`]
/// later.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of one message from the control plane.
pub(crate) const MAX_MESSAGE: usize = 32 << 20;

/// Where the control plane is.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlane {
    /// `host:port`.
    pub address: String,
    /// What time it is, for certificates.
    pub clock: Arc<dyn Clock>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The credentials make no TLS configuration.
    #[error("TLS")]
    Tls(#[from] tls::TlsError),
    /// TCP, TLS or HTTP/2 failed.
    #[error("cannot connect to the control plane at {address}")]
    Transport {
        /// Which.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

impl ControlPlane {
    /// Connects. `svid` is shown if there is one; the control plane must prove its reserved identity
    /// under `roots`.
    pub(crate) async fn connect(&self, svid: Option<&Svid>, roots: &TrustBundle) -> Result<Channel, ConnectError> {
        let expected = SpiffeId::control_plane(roots.trust_domain());
        let config = tls::client_config(svid, roots, expected.into(), &[b"h2"], Arc::clone(&self.clock))?;
        let connector = TlsConnector::from(Arc::new(config));
        let address = self.address.clone();
        let connect = tower::service_fn(move |_: Uri| connect(address.clone(), connector.clone()));
        // The URI's host is not used to connect or to verify.
        Endpoint::from_static("http://heddle-control-plane")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connect)
            .await
            .map_err(|source| ConnectError::Transport { address: self.address.clone(), source })
    }
}

async fn connect(
    address: String,
    connector: TlsConnector,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    // Identities are SPIFFE IDs; the name is only a hint in the handshake.
    let name = ServerName::try_from("heddle-control-plane").map_err(io::Error::other)?;
    connector.connect(name, stream).await.map(TokioIo::new)
}

/// An error with all its causes, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Several layers repeat what the one below says.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
