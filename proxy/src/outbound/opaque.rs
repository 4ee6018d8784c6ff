//! Opaque bytes to an endpoint.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::{Rc, Weak},
};

use bytes::BytesMut;
use rand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, Instant, sleep, timeout},
};

use super::{Destination, tunnel::Tunnel};
use crate::{
    cluster::{
        Cluster,
        balance::{Picked, Verdict},
    },
    config::DialName,
    connect::{self, Carried, Slot, Target},
    detect::{Detected, Peek},
    exchange::ConnectionRecord,
    learned::{Because, Found, Speaks},
    lifecycle::Stage,
    outcome::{Error, ErrorKind},
    preamble::{self, Preamble},
    snapshot::{Backend, Protocol, ServicePort},
    stream::Stream,
    tcp,
    worker::Worker,
};

/// How a connection went on that had said nothing.
pub(super) enum Tentative {
    /// It speaks HTTP after all.
    Http(Carried, Stream),
    /// It was opaque, and is over.
    Done,
}

/// A connection to an endpoint.
struct Opened {
    stream: Stream,
    cluster: Rc<Cluster>,
    /// Its load counts while the connection is open.
    picked: Picked,
    _slot: Slot,
}

/// Serves a connection that is known to be opaque.
pub(super) async fn serve(
    worker: &Worker,
    stream: Stream,
    name: &DialName,
    destination: &Destination,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    match open(worker, destination, record).await {
        Ok(opened) => {
            copy(worker, stream, opened, (name, destination), record).await;
            Ok(())
        }
        Err(error) => {
            // Not an end of stream, which could be taken for an answer.
            stream.reset();
            Err(error)
        }
    }
}

/// Serves a connection on which the app has said nothing: it is dialled as opaque, and whoever speaks first
/// decides, which `learn` is told. Is it the server, it stays opaque; is it the client, it is what it says.
pub(super) async fn serve_silent(
    worker: &Worker,
    mut stream: Stream,
    name: &DialName,
    destination: &Destination,
    learn: impl Fn(Found),
    record: &mut ConnectionRecord,
) -> Result<Tentative, Error> {
    let mut peek = Peek::default();
    let mut opened = None;
    let first = {
        let upstream = async {
            match opened.insert(open(worker, destination, record).await) {
                Ok(opened) => {
                    let idle = opened.cluster.policy().idle_timeout;
                    let spoken = timeout(idle, speak(&mut opened.stream)).await;
                    spoken.map_or(First::Nobody(idle), |()| First::Server)
                }
                Err(error) => {
                    // It may not be meant as opaque at all; then the client will tell, and soon. Where only the
                    // dial can tell, it has.
                    let patience = worker.common.limits.header_timeout;
                    if may_be_http(destination, error) {
                        sleep(patience).await;
                    }
                    First::Nobody(patience)
                }
            }
        };
        tokio::select! {
            biased;
            detected = peek.classify(&mut stream, worker.common.limits.detect_timeout) => First::Client(detected.unwrap_or(Detected::Ended)),
            first = upstream => first,
            () = worker.common.life.reached(Stage::Closing) => First::Closing,
        }
    };
    stream.put_back(peek.into_bytes());
    first.found().into_iter().for_each(learn);
    match (first, &opened) {
        (First::Client(Detected::Http1), _) => return Ok(Tentative::Http(Carried::Http1, stream)),
        (First::Client(Detected::Http2), _) => return Ok(Tentative::Http(Carried::Http2, stream)),
        (
            First::Client(Detected::Opaque | Detected::Tls(_) | Detected::Silent | Detected::Ended) | First::Server,
            _,
        ) => {}
        (First::Nobody(idle), Some(Ok(_))) => {
            stream.reset();
            return Err(tcp::Failure::Idle(idle).error());
        }
        // Neither side has begun anything that could be cut off.
        (First::Closing, Some(Ok(_)) | None) => return Ok(Tentative::Done),
        (First::Nobody(_) | First::Closing, _) => {}
    }
    match opened {
        Some(Ok(opened)) => copy(worker, stream, opened, (name, destination), record).await,
        Some(Err(error)) => {
            stream.reset();
            return Err(error);
        }
        // The client was faster than the dial.
        None => serve(worker, stream, name, destination, record).await?,
    }
    Ok(Tentative::Done)
}

impl First {
    /// What that says of the connection.
    fn found(&self) -> Option<Found> {
        let said = |speaks| Some(Found { speaks, because: Because::FirstBytes });
        match self {
            Self::Client(Detected::Http1) => said(Speaks::Http1),
            Self::Client(Detected::Http2) => said(Speaks::Http2),
            Self::Client(Detected::Tls(_)) => said(Speaks::Tls),
            Self::Client(Detected::Opaque) => said(Speaks::Opaque),
            Self::Server => Some(Found { speaks: Speaks::Opaque, because: Because::ServerSpokeFirst }),
            Self::Client(Detected::Silent | Detected::Ended) | Self::Nobody(_) | Self::Closing => None,
        }
    }
}

/// Who was the first to speak on a connection where nobody had to.
enum First {
    Client(Detected),
    Server,
    /// Nobody did in this time.
    Nobody(Duration),
    /// Nobody, and the proxy ends.
    Closing,
}

/// Whether a client whose opaque connection came to nothing may fare better with HTTP.
fn may_be_http(destination: &Destination, error: &Error) -> bool {
    let routed = destination.port().is_ok_and(|port| port.is_some_and(|port| !port.http_rules.is_empty()));
    routed || error.kind == ErrorKind::OpaqueRefused
}

/// Waits until the server speaks (or ends), and leaves what it said to be read.
async fn speak(upstream: &mut Stream) {
    let mut said = BytesMut::with_capacity(4 << 10);
    // An error shows again with the next read.
    let _ = upstream.read_buf(&mut said).await;
    upstream.put_back(said.freeze());
}

/// Until either side ends, or what is believed no longer allows it.
async fn copy(
    worker: &Worker,
    stream: Stream,
    opened: Opened,
    (name, destination): (&DialName, &Destination),
    record: &mut ConnectionRecord,
) {
    let Opened { stream: upstream, cluster, picked, _slot } = opened;
    let idle = cluster.policy().idle_timeout;
    let peer = record.outcome.peer.as_ref();
    let tunnel = Tunnel::open(worker, name, destination, &cluster, picked.endpoint(), peer, Weak::new());
    let why = RefCell::new(None);
    let forbidden = async {
        *why.borrow_mut() = Some(tunnel.end().await);
    };
    let copied = tcp::copy(stream, upstream, idle, forbidden).await;
    record.finish(&copied, why.into_inner());
}

/// Connects to an endpoint of the destination. None of the app's bytes are sent before an endpoint has let the
/// connection in, so all may be tried.
async fn open(worker: &Worker, destination: &Destination, record: &mut ConnectionRecord) -> Result<Opened, Error> {
    record.outcome.protocol = Protocol::Tcp;
    if let Destination::Service { service, port, .. } = destination {
        record.outcome.service = Some(service.name.clone());
        record.outcome.port = *port;
    }
    let cluster = match destination.port()? {
        Some(port) if !port.tcp_backends.is_empty() => {
            record.outcome.route = Some(port.tcp_route.clone());
            let backend = choose(port, &mut *worker.rng.borrow_mut())?;
            worker.clusters.find(&backend.cluster).await?
        }
        Some(_) | None => destination.own_cluster(worker).await?,
    };
    if matches!(destination, Destination::Service { .. }) {
        record.outcome.cluster = Some(cluster.name().clone());
    }
    let slot = cluster.connection_slot().ok_or_else(|| {
        Error::new(ErrorKind::Overloaded, "as many connections to this cluster as its traffic policy allows")
    })?;
    let instance = destination.instance();
    let retries = if instance.is_some() { 0 } else { cluster.policy().retry.max_retries };
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let picked = cluster.pick(instance, &tried, Instant::now())?;
        record.outcome.endpoint = Some(picked.endpoint().clone());
        let result = try_endpoint(worker, &cluster, &picked, record).await;
        let failed = result.as_ref().is_err_and(|error| is_of_endpoint(error.kind));
        // What this side lacks says nothing of the endpoint.
        if result.as_ref().err().is_none_or(|error| error.kind != ErrorKind::Overloaded) {
            picked.report(if failed { Verdict::Failure } else { Verdict::Success }, Instant::now());
        }
        match result {
            Ok(stream) => return Ok(Opened { stream, cluster, picked, _slot: slot }),
            Err(error) if failed && tried.len() < retries as usize => {
                tracing::debug!(%error, endpoint = %picked.endpoint().address, "trying another endpoint");
                tried.push(picked.endpoint().address);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn try_endpoint(
    worker: &Worker,
    cluster: &Cluster,
    picked: &Picked,
    record: &mut ConnectionRecord,
) -> Result<Stream, Error> {
    let target = Target::endpoint(picked.endpoint(), cluster.name())?;
    let limit = cluster.policy().connect_timeout;
    let connected = connect::connect(&worker.common.identity, &target, Carried::Tcp, limit).await?;
    let mut stream = connected.stream;
    record.outcome.tls = stream.is_tls();
    record.outcome.peer = connected.peer;
    if target.mesh.is_some() {
        let asking = async {
            let preamble = Preamble { traceparent: None, via: Some(worker.common.instance.to_string()) };
            preamble.write(&mut stream).await?;
            preamble::read_answer(&mut stream).await
        };
        let address = target.address;
        match timeout(limit, asking).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(refused))) => {
                let _ = stream.shutdown().await;
                return Err(refused);
            }
            Ok(Err(error)) => return Err(Error::new(ErrorKind::UpstreamReset, format!("{address}: {error}"))),
            Err(_) => {
                return Err(Error::new(ErrorKind::ConnectTimeout, format!("{address} did not let it in in time")));
            }
        }
    }
    Ok(stream)
}

/// Whether another endpoint may do better.
fn is_of_endpoint(kind: ErrorKind) -> bool {
    use ErrorKind as K;
    matches!(
        kind,
        K::ConnectFailed | K::ConnectTimeout | K::TlsFailed | K::PeerIdentity | K::UpstreamReset | K::UpstreamRefused
    ) || kind.is_of_instance()
}

/// By weight.
fn choose<'a>(port: &'a ServicePort, rng: &mut impl Rng) -> Result<&'a Backend, Error> {
    let no_backend = |why: &str| Error::new(ErrorKind::NoBackend, format!("{}: {why}", port.tcp_route));
    let total: u64 = port.tcp_backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 {
        return Err(no_backend("all its backends have weight 0"));
    }
    let mut ticket = rng.random_range(0..total);
    let chosen = port.tcp_backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    });
    let chosen = chosen.ok_or_else(|| no_backend("it has no backends"))?;
    match &chosen.invalid {
        Some(why) => Err(no_backend(why)),
        None => Ok(chosen),
    }
}
