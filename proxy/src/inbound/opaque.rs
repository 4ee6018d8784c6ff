//! Opaque bytes to the app.

use std::cell::RefCell;

use tokio::time::timeout;

use super::{
    access::{Connection, Port},
    app::{self, CONNECT, TUNNEL_IDLE},
};
use crate::{
    connect::{self, Carried, Target},
    exchange::ConnectionRecord,
    lifecycle::Stage,
    outcome::{Error, ErrorKind},
    preamble::{self, Preamble},
    snapshot::Protocol,
    stream::Stream,
    tcp,
};

/// From a peer proxy, which is told whether it gets in.
pub(super) async fn serve_meshed(
    mut stream: Stream,
    connection: &Connection,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    let limit = connection.worker().common.limits.handshake_timeout;
    let broken = |why: String| Error::new(ErrorKind::BadRequest, format!("the caller's preamble: {why}"));
    match timeout(limit, Preamble::read(&mut stream)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(broken(error.to_string())),
        Err(_) => return Err(broken(format!("not complete within {} ms", limit.as_millis()))),
    }
    match admit(connection, record).await {
        Ok((port, app)) => {
            let accepted = preamble::accept(&mut stream).await;
            accepted.map_err(|error| Error::new(ErrorKind::ClientGone, error.to_string()))?;
            copy(stream, app, connection, &port, record).await;
            Ok(())
        }
        Err(error) => {
            // Whether it still hears the reason is its affair.
            let _ = timeout(limit, async {
                preamble::refuse(&mut stream, &error).await?;
                tokio::io::AsyncWriteExt::shutdown(&mut stream).await
            })
            .await;
            Err(error)
        }
    }
}

/// From somebody in plaintext, who cannot be told anything.
pub(super) async fn serve_plaintext(
    stream: Stream,
    connection: &Connection,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    match admit(connection, record).await {
        Ok((port, app)) => {
            copy(stream, app, connection, &port, record).await;
            Ok(())
        }
        Err(error) => {
            stream.reset();
            Err(error)
        }
    }
}

/// A connection to the app, if the caller may have one.
async fn admit(connection: &Connection, record: &mut ConnectionRecord) -> Result<(Port, Stream), Error> {
    let worker = connection.worker();
    record.outcome.protocol = Protocol::Tcp;
    if worker.common.life.stage() >= Stage::Refusing {
        return Err(Error::new(ErrorKind::Draining, "this instance is shutting down"));
    }
    let port = connection.only_port()?;
    record.outcome.service = Some(port.name.service.clone());
    record.outcome.port = port.name.port;
    connection.check_certificate()?;
    record.outcome.authorization = Some(connection.authorize_opaque(&port)?);
    let app = connect::connect(&worker.common.identity, &Target::plain(port.app), Carried::Tcp, CONNECT).await;
    Ok((port, app.map_err(app::as_of_app)?.stream))
}

/// Until either side ends, or policy no longer allows it.
async fn copy(stream: Stream, app: Stream, connection: &Connection, port: &Port, record: &mut ConnectionRecord) {
    let why = RefCell::new(None);
    let forbidden = async {
        loop {
            // Made before looking: a change in between is not missed.
            let changed = connection.policy_changed.notified();
            let still = connection.only_port().and_then(|now| connection.authorize_opaque(&now));
            if let Err(error) = still {
                tracing::info!(port = %port.name, %error, "an open connection is no longer allowed");
                *why.borrow_mut() = Some(error.after_send());
                return;
            }
            changed.await;
        }
    };
    let copied = tcp::copy(stream, app, TUNNEL_IDLE, forbidden).await;
    record.finish(&copied, why.into_inner());
}
