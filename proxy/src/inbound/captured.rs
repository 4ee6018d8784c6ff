//! Connections that were meant for the app and redirected here: from clients without a sidecar, and from peer
//! proxies that dialled the app's address.

use std::rc::Rc;

use tokio::net::TcpStream;

use super::{
    access::Connection,
    caller::Caller,
    know,
    opaque::{self, First, Spoke},
    serve_http, serve_meshed,
};
use crate::{
    connect::{self, Carried},
    detect::{self, Detected},
    exchange::ConnectionRecord,
    learned::{Because, Found, Speaks},
    listener::Arrival,
    outcome::{Error, ErrorKind},
    stream::Stream,
    tcp,
    worker::Worker,
};

/// Serves one. A handshake that names a port as peer proxies do is one of theirs; everything else is plaintext
/// for the app, even if the app calls it TLS.
pub(super) async fn serve(
    worker: Rc<Worker>,
    socket: TcpStream,
    arrival: Rc<Arrival>,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    record.target(arrival.local.to_string());
    know(record, &Caller::Unmeshed, None);
    let mut stream = Stream::from(socket);
    // Whatever was spoken here before: a peer proxy's handshake must be given the time to arrive.
    let wait = worker.common.limits.detect_timeout;
    let connection = Connection::open(worker.clone(), arrival.clone(), Caller::Unmeshed, None);
    let first = match detect::detect(&mut stream, wait).await {
        // Who speaks first here may be the app.
        Ok(Detected::Silent) => opaque::wait_for_first(&mut stream, &connection, record).await,
        Ok(detected) => First { spoke: Spoke::Caller(detected), app: None },
        Err(_) => return Ok(()),
    };
    let is_peer = matches!(
        &first.spoke,
        Spoke::Caller(Detected::Tls(Some(name))) if connect::parse_server_name(name).is_some()
    );
    if let Some(found) = found(&first.spoke, is_peer) {
        let port = connection.only_port().ok().map(|port| port.name.clone());
        worker.learned.inbound(arrival.local, port, found);
    }
    match (first.spoke, first.app) {
        (Spoke::Caller(Detected::Ended) | Spoke::Closing, _) => Ok(()),
        (Spoke::Caller(_), _) if is_peer => {
            let beneath = stream.into_tcp();
            let (socket, read) =
                beneath.ok_or_else(|| Error::new(ErrorKind::Internal, "an accepted connection is no TCP"))?;
            Box::pin(serve_meshed(worker, socket, read, arrival, record)).await
        }
        (Spoke::Caller(Detected::Http1), _) => serve_http(stream, connection, Carried::Http1).await,
        (Spoke::Caller(Detected::Http2), _) => serve_http(stream, connection, Carried::Http2).await,
        (Spoke::Nobody(idle), Some(_)) => {
            stream.reset();
            Err(tcp::Failure::Idle(idle).error())
        }
        (Spoke::Caller(_) | Spoke::App | Spoke::Nobody(_), app) => {
            opaque::serve_plaintext(stream, app, &connection, record).await
        }
    }
}

/// What it turned out to be.
fn found(spoke: &Spoke, is_peer: bool) -> Option<Found> {
    let said = |speaks| Some(Found { speaks, because: Because::FirstBytes });
    match spoke {
        Spoke::Caller(Detected::Tls(_)) if is_peer => said(Speaks::Mesh),
        Spoke::Caller(Detected::Tls(_)) => said(Speaks::Tls),
        Spoke::Caller(Detected::Http1) => said(Speaks::Http1),
        Spoke::Caller(Detected::Http2) => said(Speaks::Http2),
        Spoke::Caller(Detected::Opaque) => said(Speaks::Opaque),
        Spoke::App => Some(Found { speaks: Speaks::Opaque, because: Because::ServerSpokeFirst }),
        Spoke::Caller(Detected::Ended | Detected::Silent) | Spoke::Nobody(_) | Spoke::Closing => None,
    }
}
