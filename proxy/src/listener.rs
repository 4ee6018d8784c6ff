//! Accepting connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use heddle_runtime::{accept::accept_as_is, drain};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    config::DialName,
    connect::KEEPALIVE,
    exchange::{ConnectionRecord, Sink},
    lifecycle::Stage,
    outcome::{ConnectionOutcome, Direction, Error, ErrorKind},
    stream::Stream,
    telemetry,
    worker::{Common, Handle, Load, Worker},
};

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// mTLS from peer proxies, and connections to the app, redirected here.
    Inbound,
    /// An explicit HTTP proxy.
    HttpProxy,
    /// A local port that leads to one service.
    Upstream(Arc<DialName>),
    /// Connections of the app to anywhere, redirected here.
    Captured,
}

impl Role {
    /// For metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::HttpProxy => "http-proxy",
            Self::Upstream(_) => "upstream",
            Self::Captured => "captured",
        }
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) role: Role,
    /// Where from.
    pub(crate) peer: SocketAddr,
    /// Where to, as the caller dialled it.
    pub(crate) local: SocketAddr,
    /// Whether it was meant for somebody else than this listener.
    pub(crate) redirected: bool,
    /// Whether it was meant for this proxy itself, where that makes no sense.
    loops: bool,
    pub(crate) started: SystemTime,
    pub(crate) since: Instant,
    /// Counts it on its worker.
    pub(crate) load: Option<Load>,
    /// Counts it on its listener.
    _open: Arc<()>,
    /// Counts it in the metrics.
    _counted: telemetry::Open,
    /// Counts it in the proxy's life.
    _guard: drain::Guard,
}

/// One listening socket.
pub(crate) struct Listener {
    role: Role,
    socket: TcpListener,
    local: SocketAddr,
    own_listeners: Arc<[SocketAddr]>,
    /// As many references as connections, and one.
    open: Arc<()>,
    counts: telemetry::Accepted,
    max: usize,
}

impl Listener {
    pub(crate) fn new(role: Role, socket: std::net::TcpListener, common: &Common) -> io::Result<Self> {
        let local = socket.local_addr()?;
        take_over(&socket, local)?;
        Ok(Self {
            counts: common.signals.accepted(role.name()),
            role,
            socket: TcpListener::from_std(socket)?,
            local,
            own_listeners: common.own_listeners.clone(),
            open: Arc::new(()),
            max: common.limits.max_connections,
        })
    }

    /// Accepts until the proxy closes.
    pub(crate) async fn run(self, worker: Rc<Worker>, workers: Rc<[Handle]>) {
        let life = worker.common.life.clone();
        let accepting = async {
            loop {
                let (socket, peer) = accept_as_is(&self.socket).await;
                let arrival = self.arrival(&socket, canonical(peer), &worker.common);
                if Arc::strong_count(&self.open) > self.max + 1 {
                    self.refuse(&worker, socket, &arrival);
                } else {
                    Handle::dispatch(&workers, &worker, socket, arrival);
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            // Until then callers who have not heard yet are told, which a closed socket cannot.
            () = life.reached(Stage::Closing) => {}
        }
    }

    fn arrival(&self, socket: &TcpStream, peer: SocketAddr, common: &Common) -> Arrival {
        let original = match &self.role {
            Role::Captured | Role::Inbound => original_destination(socket, self.local),
            Role::HttpProxy | Role::Upstream(_) => None,
        };
        let to_itself = || original.is_none_or(|original| is_own(&self.own_listeners, original, Some(peer.ip())));
        Arrival {
            role: self.role.clone(),
            peer,
            local: original.unwrap_or(self.local),
            redirected: original.is_some(),
            loops: self.role == Role::Captured && to_itself(),
            started: SystemTime::now(),
            since: Instant::now(),
            load: None,
            _open: self.open.clone(),
            _counted: self.counts.count(),
            _guard: common.life.connections().guard(),
        }
    }

    fn refuse(&self, worker: &Worker, socket: TcpStream, arrival: &Arrival) {
        let detail = format!("{} connections to {} are open, as many as its limit", self.max, self.local);
        arrival.record(&worker.sink).fail(Error::new(ErrorKind::TooManyConnections, detail));
        Stream::from(socket).reset();
    }
}

impl Arrival {
    /// Begins the record of the connection.
    pub(crate) fn record(&self, sink: &Sink) -> ConnectionRecord {
        ConnectionRecord::new(self.outcome(), self.since, sink)
    }

    /// Errors: `Loop`, for a captured connection that was meant for a listener of this proxy.
    pub(crate) fn refuse_loop(&self) -> Result<(), Error> {
        if self.loops {
            return Err(Error::new(ErrorKind::Loop, format!("{} is a listener of this proxy", self.local)));
        }
        Ok(())
    }

    fn outcome(&self) -> ConnectionOutcome {
        let direction = match self.role {
            Role::Inbound => Direction::Inbound,
            Role::HttpProxy | Role::Upstream(_) | Role::Captured => Direction::Outbound,
        };
        ConnectionOutcome::new(direction, self.peer, self.started)
    }
}

/// Whether an address is one of these listeners; `here` is an address that this host is known to have.
pub(crate) fn is_own(listeners: &[SocketAddr], address: SocketAddr, here: Option<IpAddr>) -> bool {
    let address = canonical(address);
    listeners.iter().any(|own| {
        let any = own.ip().is_unspecified() && (address.ip().is_loopback() || Some(address.ip()) == here);
        own.port() == address.port() && (canonical(*own).ip() == address.ip() || any)
    })
}

/// An IPv4 address as that, also where it came over a socket of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sets the options that accepted sockets take over, which spares a system call for each of them on each.
fn take_over(listening: &std::net::TcpListener, local: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(listening);
    socket.set_tcp_nodelay(true)?;
    // Nobody but this machine reaches loopback, redirected or not, and its kernel tells of who vanishes.
    if !canonical(local).ip().is_loopback() {
        socket.set_tcp_keepalive(&KEEPALIVE)?;
    }
    Ok(())
}

/// Where a redirected connection was meant to go (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`); none if it was
/// not redirected. `listening`: the address of the socket that accepted it.
fn original_destination(socket: &TcpStream, listening: SocketAddr) -> Option<SocketAddr> {
    let reference = SockRef::from(socket);
    let local = if listening.ip().is_unspecified() { socket.local_addr().ok()? } else { listening };
    let local = canonical(local);
    #[cfg(target_os = "linux")]
    let original = if local.is_ipv4() { reference.original_dst_v4() } else { reference.original_dst_v6() };
    #[cfg(not(target_os = "linux"))]
    let original: io::Result<socket2::SockAddr> = Err(io::ErrorKind::Unsupported.into());
    let _ = reference;
    original.ok()?.as_socket().map(canonical).filter(|original| *original != local)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::testing::{TestMesh, calling, run};

    #[test]
    fn whoever_may_vanish_is_probed() {
        run(async {
            let proxy = TestMesh::new().proxy("web", calling(Vec::new()), &[]);
            for (address, probed) in [("127.0.0.1:0", false), ("[::1]:0", false), ("0.0.0.0:0", true), ("[::]:0", true)]
            {
                let socket = std::net::TcpListener::bind(address).unwrap();
                socket.set_nonblocking(true).unwrap();
                let listener = Listener::new(Role::HttpProxy, socket, &proxy.worker.common).unwrap();
                let _client = TcpStream::connect(listener.local).await.unwrap();
                let (accepted, _) = accept_as_is(&listener.socket).await;
                assert!(accepted.nodelay().unwrap(), "{address}");
                let accepted = SockRef::from(&accepted);
                assert_eq!(accepted.keepalive().unwrap(), probed, "{address}");
                if probed {
                    assert_eq!(accepted.tcp_keepalive_time().unwrap().as_secs(), 30, "{address}");
                }
            }
        });
    }
}
