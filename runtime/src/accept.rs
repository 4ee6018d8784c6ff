//! Accepting connections, for every listener of both daemons.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts the next connection, with TCP_NODELAY set; otherwise as [`accept_as_is`].
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = accept_as_is(listener).await;
    // It fails only for a connection that is dead already, which reading will tell.
    let _ = stream.set_nodelay(true);
    (stream, peer)
}

/// Accepts the next connection, with the options that the listening socket has.
///
/// Never fails. Out of file descriptors or memory it pauses, longer each time up to a second, because
/// the listening socket stays readable and trying at once would spin. Errors of one connection that
/// died in the queue are passed over. Cancel safe.
pub async fn accept_as_is(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut pause = FIRST_PAUSE;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept connections");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
