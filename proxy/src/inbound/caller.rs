//! Who calls: proved by mTLS, or nobody in particular.

use std::fmt::Write as _;

use bytes::Bytes;
use heddle_certs::{
    SpiffeId,
    verify::{self, Verifier},
};
use rustls::CipherSuite;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::trust::{Proof, lacks_a_root};
use crate::{
    config::Limits,
    connect::{self, Carried},
    headers::Hop,
    outcome::{Error, ErrorKind},
    snapshot::ClusterName,
    stream::{ReadAhead, Stream},
    worker::Worker,
};

/// First byte of a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// A peer proxy.
    Meshed {
        /// Verified.
        id: SpiffeId,
        /// SHA-256 of its leaf, hex.
        certificate_hash: String,
        /// When its leaf expires.
        expires: Instant,
        /// To be judged again when roots change.
        proof: Proof,
    },
    /// Somebody in plaintext.
    Unmeshed,
}

impl Caller {
    /// Verified identity.
    pub(crate) fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Meshed { id, .. } => Some(id),
            Self::Unmeshed => None,
        }
    }

    /// For what is trusted of its headers.
    pub(super) fn hop(&self) -> Hop<'_> {
        match self {
            Self::Meshed { id, certificate_hash, .. } => Hop::Meshed { id, certificate_hash: Some(certificate_hash) },
            Self::Unmeshed => Hop::Unmeshed,
        }
    }
}

/// Whether the caller begins with a TLS handshake; `None` if it ends without a byte.
pub(super) async fn is_tls(limits: &Limits, socket: &TcpStream) -> Result<Option<bool>, Error> {
    let mut first = [0];
    match timeout(limits.handshake_timeout, socket.peek(&mut first)).await {
        Ok(Ok(0) | Err(_)) => Ok(None),
        Ok(Ok(_)) => Ok(Some(first == [HANDSHAKE])),
        Err(_) => Err(too_slow(limits)),
    }
}

/// Ends TLS: the caller, the port that it asks for by SNI, and what it will speak by ALPN. `read` is what was read
/// of it before.
pub(super) async fn terminate(
    worker: &Worker,
    socket: TcpStream,
    read: Bytes,
) -> Result<(Stream, Caller, Option<ClusterName>, Carried), Error> {
    let limits = &worker.common.limits;
    let credentials = worker.common.identity.current();
    let credentials =
        credentials.ok_or_else(|| Error::new(ErrorKind::NoCertificate, "this proxy has no valid certificate"))?;
    let began = Instant::now();
    let accepting = TlsAcceptor::from(credentials.server.clone()).accept(ReadAhead::with(socket, read));
    let tls = match timeout(limits.handshake_timeout, accepting).await {
        Ok(Ok(tls)) => Ok(tls),
        Ok(Err(error)) => Err(failed(&crate::control_plane::causes(&error))),
        Err(_) => Err(too_slow(limits)),
    };
    let took = began.elapsed();
    worker.common.signals.accepted_handshake(tls.as_ref().err().map(|error| error.kind), took);
    let tls = tls?;
    let session = tls.get_ref().1;
    let certificates = session.peer_certificates().unwrap_or_default();
    let peer = verify::peer(certificates).map_err(|error| failed(&error.to_string()))?;
    let certificate_hash = certificates.first().map(|leaf| sha256(leaf)).unwrap_or_default();
    let wanted = session.server_name().and_then(connect::parse_server_name);
    let carried = session.alpn_protocol().and_then(Carried::from_alpn);
    let carried = carried.ok_or_else(|| failed("it names none of the protocols between proxies"))?;
    let expires = credentials.in_time(peer.not_after);
    let proof =
        Proof { chain: certificates.iter().map(|one| one.clone().into_owned()).collect(), at: credentials.now() };
    // A root may have gone while this was under way.
    if let Some(bundle) = worker.common.identity.bundle()
        && lacks_a_root(&bundle, &credentials.bundle)
    {
        proof.check(&Verifier::new(bundle)).map_err(|error| failed(&error.detail))?;
    }
    let caller = Caller::Meshed { id: peer.id, certificate_hash, expires, proof };
    // The caller's first words are here already, so this is one round trip.
    let stream = Stream::from(tokio_rustls::TlsStream::from(tls)).with_away(took);
    Ok((stream, caller, wanted, carried))
}

fn too_slow(limits: &Limits) -> Error {
    failed(&format!("not done within {} ms", limits.handshake_timeout.as_millis()))
}

fn failed(why: &str) -> Error {
    Error::new(ErrorKind::TlsFailed, format!("the caller's handshake: {why}"))
}

fn sha256(bytes: &[u8]) -> String {
    let provider = heddle_certs::tls::provider();
    let suite = provider.cipher_suites.iter().find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    let Some(suite) = suite.and_then(|suite| suite.tls13()) else { return String::new() };
    let hash = suite.common.hash_provider.hash(bytes);
    hash.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string");
        hex
    })
}
