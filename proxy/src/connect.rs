//! Connections to endpoints: TCP, and to those with a proxy mTLS, never anything else.

mod failure;
mod pool;
#[cfg(test)]
pub(crate) mod tests;

use std::{io, net::SocketAddr, sync::Arc};

use heddle_certs::{SpiffeId, verify};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Duration, Instant, timeout},
};
use tokio_rustls::TlsConnector;

pub(crate) use self::pool::{Dial, Lease, MAX_STREAMS, Pool, Slot, Slots, Via};
use crate::{
    identity::Identity,
    outcome::{Error, ErrorKind},
    snapshot::{ClusterName, Endpoint},
    stream::{ReadAhead, Stream},
};

/// A peer that does not even acknowledge probes is gone after about a minute.
pub(crate) const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);

/// What a connection between proxies carries; nothing is ever translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Carried {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Carried {
    /// Its name in ALPN.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"heddle-h1",
            Self::Http2 => b"heddle-h2",
            Self::Tcp => b"heddle-tcp/1",
        }
    }

    /// By its name in ALPN.
    pub(crate) fn from_alpn(alpn: &[u8]) -> Option<Self> {
        [Self::Http1, Self::Http2, Self::Tcp].into_iter().find(|carried| carried.alpn() == alpn)
    }
}

/// Whom to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Where.
    pub(crate) address: SocketAddr,
    /// Who must answer; `None`: an app, in plaintext.
    pub(crate) mesh: Option<MeshTarget>,
}

/// A peer proxy and what is wanted of it.
#[derive(Clone, Debug)]
pub(crate) struct MeshTarget {
    /// Whose identities are accepted.
    pub(crate) endpoint: Arc<Endpoint>,
    /// `p<port>.<service>.<namespace>.heddle`.
    pub(crate) name: ServerName<'static>,
}

/// A new connection.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    /// Verified identity; none in plaintext.
    pub(crate) peer: Option<SpiffeId>,
    /// When the first of both certificates expires.
    pub(crate) expires: Option<Instant>,
    /// The credentials that it was made with.
    pub(crate) epoch: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Target {
    /// An instance of a cluster.
    pub(crate) fn endpoint(endpoint: &Arc<Endpoint>, cluster: &ClusterName) -> Result<Self, Error> {
        if endpoint.meshed {
            let name = server_name(cluster)?;
            return Ok(Self { address: endpoint.address, mesh: Some(MeshTarget { endpoint: endpoint.clone(), name }) });
        }
        let port = endpoint.ports.get(&cluster.port).copied().filter(|port| *port != 0);
        let port = port.ok_or_else(|| {
            Error::new(ErrorKind::UnknownPort, format!("{} does not serve port {}", endpoint.workload, cluster.port))
        })?;
        Ok(Self { address: SocketAddr::new(endpoint.address.ip(), port), mesh: None })
    }

    /// Whether connections made for this target may be used for `endpoint`.
    pub(crate) fn leads_to(&self, endpoint: &Endpoint, port: u16) -> bool {
        match &self.mesh {
            Some(mesh) => endpoint.meshed && mesh.endpoint.identities == endpoint.identities,
            None => !endpoint.meshed && endpoint.ports.get(&port) == Some(&self.address.port()),
        }
    }

    /// An app, in plaintext.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, mesh: None }
    }
}

/// The name by which a port of a service is asked for.
pub(crate) fn server_name(cluster: &ClusterName) -> Result<ServerName<'static>, Error> {
    let ClusterName { service, port } = cluster;
    let name = format!("p{port}.{}.{}.heddle", service.name, service.namespace);
    ServerName::try_from(name).map_err(|error| Error::new(ErrorKind::Internal, format!("{cluster}: {error}")))
}

/// The port of a service that is asked for by such a name.
pub(crate) fn parse_server_name(name: &str) -> Option<ClusterName> {
    let mut labels = name.split('.');
    let (port, service, namespace) = (labels.next()?, labels.next()?, labels.next()?);
    if (labels.next(), labels.next()) != (Some("heddle"), None) {
        return None;
    }
    let port = port.strip_prefix('p').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    let service = crate::snapshot::ServiceName { namespace: namespace.into(), name: service.into() };
    Some(ClusterName { service, port })
}

/// Connects and, to a peer proxy, proves and verifies identities; all within `limit`.
pub(crate) async fn connect(
    identity: &Identity,
    target: &Target,
    carried: Carried,
    limit: Duration,
) -> Result<Connected, Error> {
    let began = Instant::now();
    let connecting = async {
        match &target.mesh {
            None => connect_plain(target.address).await,
            Some(mesh) => connect_mesh(identity, target.address, mesh, carried).await,
        }
    };
    let mut connected = timeout(limit, connecting).await.unwrap_or_else(|_| {
        let detail = format!("no connection to {} within {} ms", target.address, limit.as_millis());
        Err(Error::new(ErrorKind::ConnectTimeout, detail))
    })?;
    connected.took = began.elapsed();
    Ok(connected)
}

async fn connect_plain(address: SocketAddr) -> Result<Connected, Error> {
    let began = Instant::now();
    let tcp = connect_tcp(address).await?;
    let away = began.elapsed();
    // An app on this machine does not vanish without its kernel's word.
    if !address.ip().is_loopback() {
        keep_alive(&tcp);
    }
    let stream = Stream::from(tcp).with_away(away);
    Ok(Connected { stream, peer: None, expires: None, epoch: 0, took: Duration::ZERO })
}

async fn connect_mesh(
    identity: &Identity,
    address: SocketAddr,
    mesh: &MeshTarget,
    carried: Carried,
) -> Result<Connected, Error> {
    let credentials = identity
        .current()
        .ok_or_else(|| Error::new(ErrorKind::NoCertificate, "this proxy has no valid certificate"))?;
    let config = credentials.client_config(&mesh.endpoint.identities, carried.alpn())?;
    let tcp = connect_tcp(address).await?;
    keep_alive(&tcp);
    let began = Instant::now();
    let tls = TlsConnector::from(config)
        .connect(mesh.name.clone(), ReadAhead::new(tcp))
        .await
        .map_err(|error| handshake_error(address, &error))?;
    let away = began.elapsed();
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(carried.alpn()) {
        return Err(Error::new(ErrorKind::TlsFailed, format!("{address} speaks another protocol")));
    }
    let peer = verify::peer(session.peer_certificates().unwrap_or_default())
        .map_err(|error| Error::new(ErrorKind::PeerIdentity, format!("{address}: {error}")))?;
    let expires = credentials.in_time(peer.not_after.min(credentials.svid.not_after()));
    Ok(Connected {
        stream: Stream::from(tokio_rustls::TlsStream::from(tls)).with_away(away),
        peer: Some(peer.id),
        expires: Some(expires),
        epoch: credentials.epoch,
        took: Duration::ZERO,
    })
}

async fn connect_tcp(address: SocketAddr) -> Result<TcpStream, Error> {
    #[cfg(test)]
    if let Some(errno) = tests::refused(address) {
        return Err(connect_error(address, &errno.into()));
    }
    let tcp = TcpStream::connect(address).await.map_err(|error| connect_error(address, &error))?;
    // It fails only for a socket that is dead already, which writing will tell.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

fn connect_error(address: SocketAddr, error: &io::Error) -> Error {
    use rustix::io::Errno;
    // Of no address in particular. What the kernel has against one (no source address for it, no free port towards it,
    // a rule of a firewall) it may not have against another.
    let is_own = Errno::from_io_error(error)
        .is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM));
    if is_own {
        // It says nothing of whoever listens there.
        let detail = format!("this host gives no connection to {address}: {error}");
        return Error::new(ErrorKind::Overloaded, detail);
    }
    Error::new(ErrorKind::ConnectFailed, format!("{address}: {error}"))
}

/// Has the kernel notice that the other end is gone without a word.
pub(crate) fn keep_alive(tcp: &TcpStream) {
    // Without it the connection works all the same. No TCP_USER_TIMEOUT: it would end a connection whose reader
    // pauses, too, as a window of zero counts for it as nothing acknowledged.
    let _ = SockRef::from(tcp).set_tcp_keepalive(&KEEPALIVE);
}

fn handshake_error(address: SocketAddr, error: &io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let kind = match tls.and_then(verify::refusal) {
        Some(verify::VerifyError::Own(_)) => ErrorKind::NoCertificate,
        Some(_) => ErrorKind::PeerIdentity,
        None => ErrorKind::TlsFailed,
    };
    let detail = match tls.and_then(verify::refusal) {
        Some(rule) => format!("{address}: {}", crate::control_plane::causes(rule)),
        None => format!("{address}: {error}"),
    };
    Error::new(kind, detail)
}
