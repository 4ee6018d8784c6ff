//! Opaque bytes to the app.

use std::cell::RefCell;

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt,
    time::{Duration, sleep, timeout},
};

use super::{
    access::Connection,
    app::{self, CONNECT, TUNNEL_IDLE},
};
use crate::{
    connect::{self, Carried, Target},
    detect::{Detected, Peek},
    exchange::ConnectionRecord,
    lifecycle::Stage,
    outcome::{Error, ErrorKind},
    preamble::{self, Preamble},
    snapshot::Protocol,
    stream::Stream,
    tcp,
};

/// The rest of a request line that a caller has begun comes within this time, also where a network has lost it once.
const GOES_ON: Duration = Duration::from_secs(1);

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
        Ok(app) => {
            let accepted = preamble::accept(&mut stream).await;
            accepted.map_err(|error| Error::new(ErrorKind::ClientGone, error.to_string()))?;
            copy(stream, app, connection, record).await;
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

/// A connection that was silent at first.
pub(super) struct First {
    pub(super) spoke: Spoke,
    /// A connection to the app, where the caller may have an opaque one.
    pub(super) app: Option<Stream>,
}

/// Who was the first to speak.
pub(super) enum Spoke {
    Caller(Detected),
    App,
    /// Nobody did in this time.
    Nobody(Duration),
    /// Nor will anybody: the proxy ends.
    Closing,
}

/// Waits until the caller or the app speaks. The app is dialled only for a caller that may speak opaquely to it; any
/// other has as long as for the headers of a request.
pub(super) async fn wait_for_first(
    stream: &mut Stream,
    connection: &Connection,
    record: &mut ConnectionRecord,
) -> First {
    let common = &connection.worker().common;
    let limits = common.limits;
    let mut peek = Peek::default();
    let mut app = None;
    let spoke = {
        let others = async {
            match admit(connection, record).await {
                Ok(admitted) => {
                    let dialled = app.insert(admitted);
                    let mut said = BytesMut::with_capacity(4 << 10);
                    // An end or an error shows again with the next read.
                    let spoke = timeout(TUNNEL_IDLE, dialled.read_buf(&mut said)).await;
                    dialled.put_back(said.freeze());
                    spoke.map_or(Spoke::Nobody(TUNNEL_IDLE), |_| Spoke::App)
                }
                Err(error) => {
                    // A caller that speaks HTTP is told what is wrong; a peer proxy may be let in.
                    if error.kind != ErrorKind::AppUnavailable {
                        sleep(limits.header_timeout).await;
                    }
                    Spoke::Nobody(limits.header_timeout)
                }
            }
        };
        tokio::select! {
            biased;
            detected = peek.classify(stream, GOES_ON) => Spoke::Caller(detected.unwrap_or(Detected::Ended)),
            spoke = others => spoke,
            () = common.life.reached(Stage::Closing) => Spoke::Closing,
        }
    };
    stream.put_back(peek.into_bytes());
    First { spoke, app }
}

/// From somebody in plaintext, who cannot be told anything. The connection to the app may be there already.
pub(super) async fn serve_plaintext(
    stream: Stream,
    app: Option<Stream>,
    connection: &Connection,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    let admitted = match app {
        Some(app) => Ok(app),
        None => admit(connection, record).await,
    };
    match admitted {
        Ok(app) => {
            copy(stream, app, connection, record).await;
            Ok(())
        }
        Err(error) => {
            stream.reset();
            Err(error)
        }
    }
}

/// A connection to the app, if the caller may have one.
async fn admit(connection: &Connection, record: &mut ConnectionRecord) -> Result<Stream, Error> {
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
    Ok(app.map_err(app::as_of_app)?.stream)
}

/// Until either side ends, or policy no longer allows it.
async fn copy(stream: Stream, app: Stream, connection: &Connection, record: &mut ConnectionRecord) {
    let why = RefCell::new(None);
    let forbidden = async {
        loop {
            // Made before looking: a change in between is not missed.
            let changed = connection.policy_changed.notified();
            let still = connection.still_trusted().and_then(|()| connection.only_port());
            let still = still.and_then(|now| connection.authorize_opaque(&now));
            if let Err(error) = still {
                connection.worker().inbound.count_ended();
                *why.borrow_mut() = Some(error.after_send());
                return;
            }
            changed.await;
        }
    };
    let copied = tcp::copy(stream, app, TUNNEL_IDLE, forbidden).await;
    record.finish(&copied, why.into_inner());
}
