//! Connections that were meant for the app and redirected here: from clients without a sidecar, and from peer
//! proxies that dialled the app's address.

use std::rc::Rc;

use tokio::net::TcpStream;

use super::{
    access::Connection,
    caller::Caller,
    know,
    opaque::{self, First},
    serve_http, serve_meshed,
};
use crate::{
    connect::{self, Carried},
    detect::{self, Detected},
    exchange::ConnectionRecord,
    listener::Arrival,
    outcome::{Error, ErrorKind},
    stream::Stream,
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
    let wait = worker.common.limits.detect_timeout;
    let connection = Connection::open(worker.clone(), arrival.clone(), Caller::Unmeshed, None);
    let first = match detect::detect(&mut stream, wait).await {
        // Who speaks first here may be the app.
        Ok(Detected::Silent) => opaque::wait_for_first(&mut stream, &connection, record).await,
        Ok(detected) => First { caller: Some(detected), app: None },
        Err(_) => return Ok(()),
    };
    match first {
        First { caller: Some(Detected::Ended), .. } => Ok(()),
        First { caller: Some(Detected::Tls(Some(name))), .. } if connect::parse_server_name(&name).is_some() => {
            let beneath = stream.into_tcp();
            let (socket, read) =
                beneath.ok_or_else(|| Error::new(ErrorKind::Internal, "an accepted connection is no TCP"))?;
            Box::pin(serve_meshed(worker, socket, read, arrival, record)).await
        }
        First { caller: Some(Detected::Http1), .. } => serve_http(stream, connection, Carried::Http1).await,
        First { caller: Some(Detected::Http2), .. } => serve_http(stream, connection, Carried::Http2).await,
        First { app, .. } => opaque::serve_plaintext(stream, app, &connection, record).await,
    }
}
