//! HTTP servers: hyper's, with our limits, watched over.
//!
//! Each request is handed to one async function and its response is hyper's to write. Beside that a
//! connection is watched: a request whose headers do not come to an end, a connection that is idle for too long,
//! and the end of the proxy's own life end it, each in its way.

mod flow;
mod front;
pub(crate) mod reply;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;
mod watch;

use std::{convert::Infallible, future::Future, pin::Pin};

use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, time::Duration};

use self::{
    flow::Streams,
    watch::{Connection, Cut, Watch},
};
pub(crate) use self::{
    front::{Front, answer_here, authority, is_grpc, receive},
    watch::{Busy, Ending, poll_until},
};
use crate::{
    body::Body,
    config::Limits,
    outcome::{Error, ErrorKind},
    stream::Stream,
};

/// Flow control of HTTP/2, both ways and on both sides.
pub(crate) mod windows {
    use crate::connect::MAX_STREAMS;

    /// Of a stream that a proxy opens: 25 MB/s at 10 ms.
    pub(crate) const STREAM: u32 = 256 << 10;
    /// What waits to be sent on a stream, at most.
    pub(crate) const SEND_BUFFER: usize = 64 << 10;

    /// Of a connection at most, as this is what somebody else may have us keep: that of the streams that a proxy opens.
    const CONNECTION: u32 = STREAM * MAX_STREAMS as u32;

    /// Of each of so many streams that others may open.
    pub(crate) fn stream(streams: u32) -> u32 {
        (CONNECTION / streams.max(1)).clamp(1, STREAM)
    }

    /// Of a connection: as large as all its streams' together, so that streams whose readers are slow never hold up the
    /// others.
    pub(crate) fn connection(streams: u32) -> u32 {
        (stream(streams).saturating_mul(streams)).min(CONNECTION)
    }

    /// What waits to be sent on a stream of so many: no more than 8 MiB together, as long as each has one frame.
    pub(crate) fn send_buffer(streams: u32) -> usize {
        ((8 << 20) / streams.max(1) as usize).clamp(16 << 10, SEND_BUFFER)
    }
}

/// hyper's own limit of headers in HTTP/1.1. Set, even to the same, it costs the copying of an array for each
/// message.
pub(crate) const HYPER_MAX_HEADERS: usize = 100;

/// Headers of HTTP/2 that are so many bytes above the limit, at most, are told why they are refused. A frame: with more,
/// h2 would take frames of headers up to twice the limit and beyond before it ends the connection.
const TOLD_WHY: u32 = 16 << 10;

/// Pings that tell whether a peer with streams open is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection ended, if not well; `None`: nobody is to blame.
pub(crate) type Ended = Option<Error>;

/// Serves HTTP/1.1 until the connection ends.
pub(crate) async fn http1<F>(
    mut stream: Stream,
    limits: &Limits,
    ending: Ending<'_>,
    handle: impl Fn(Request<Incoming>) -> F,
) -> Ended
where
    F: Future<Output = Response<Body>>,
{
    let activity = stream.watch();
    let watch = Watch::new(limits, activity.clone(), false);
    stream.replace_writes(move |bytes| if activity.is_busy() { None } else { reply::instead_of(bytes) });
    // A peer proxy that ends has given its requests up.
    let may_half_close = !stream.is_tls();
    let service = service_fn(|mut request| {
        let busy = watch.begin();
        if may_half_close {
            may_be_half_closed(&watch, &mut request);
        }
        answer(&handle, request, busy)
    });
    let mut builder = http1::Builder::new();
    if limits.max_headers != HYPER_MAX_HEADERS {
        builder.max_headers(limits.max_headers);
    }
    let mut connection = builder
        .timer(TokioTimer::new())
        // hyper's would run while no request has begun, too.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes as usize)
        .max_buf_size((8 << 10) + limits.max_header_bytes as usize)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let cut = watch.over(Pin::new(&mut connection), ending).await;
    match &cut {
        Some(Cut::HeaderTimeout(error)) => {
            if let Some(parts) = connection.into_parts() {
                // Nobody has answered it yet.
                let _ = parts.io.into_inner().write_all(&reply::raw(error)).await;
            }
        }
        Some(Cut::Overdue) => {
            if let Some(parts) = connection.into_parts() {
                parts.io.into_inner().reset();
            }
        }
        Some(Cut::Idle | Cut::Gone | Cut::Broken(_)) | None => {}
    }
    cut.and_then(ended)
}

/// Serves HTTP/2 until the connection ends.
pub(crate) async fn http2<F>(
    mut stream: Stream,
    limits: &Limits,
    ending: Ending<'_>,
    handle: impl Fn(Request<Incoming>) -> F + Clone + 'static,
) -> Ended
where
    F: Future<Output = Response<Body>> + 'static,
{
    let watch = Watch::new(limits, stream.watch(), true);
    let streams = Streams::new(limits.idle_timeout);
    let mut connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .initial_stream_window_size(windows::stream(limits.max_streams))
        .initial_connection_window_size(windows::connection(limits.max_streams))
        .max_send_buf_size(windows::send_buffer(limits.max_streams))
        // What h2 refuses is refused without a reason; so it takes more than is allowed, which `receive` refuses.
        .max_header_list_size(limits.max_header_bytes.saturating_add(TOLD_WHY))
        .max_pending_accept_reset_streams(limits.max_resets)
        .max_local_error_reset_streams(limits.max_resets)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false)
        .enable_connect_protocol()
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request| {
                let busy = watch.begin();
                streams.begin(&busy);
                answer(handle.clone(), request, busy)
            }),
        );
    watch.over(Pin::new(&mut connection), ending).await.and_then(ended)
}

/// Notes, before more is read, how the caller of this request may end.
fn may_be_half_closed(watch: &Watch, request: &mut Request<Incoming>) {
    let (whole, last) = (request.body().is_end_stream(), front::is_last(request));
    watch.may_be_half_closed(whole, last);
    if last && !whole {
        request.extensions_mut().insert(watch.reading());
    }
}

/// Answers a request. Its future is made where it stays: it is large, and each move of it a copy.
async fn answer<F: Future<Output = Response<Body>>>(
    handle: impl Fn(Request<Incoming>) -> F,
    request: Request<Incoming>,
    busy: Busy,
) -> Result<Response<Body>, Infallible> {
    Ok(hold(handle(request).await, busy).await)
}

/// The connection is busy until the response has been sent, which begins when it is worth a write.
async fn hold(mut response: Response<Body>, busy: Busy) -> Response<Body> {
    let body = response.body_mut();
    let settle = body.settle();
    busy.flow().begin(settle);
    settle.busy = Some(busy);
    body.gather().await;
    response
}

impl<S> Connection for http1::UpgradeableConnection<TokioIo<Stream>, S>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Connection for http2::Connection<TokioIo<Stream>, S, Streams>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Future: 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

fn ended(cut: Cut) -> Ended {
    match cut {
        Cut::HeaderTimeout(error) => Some(error),
        // Of the second and third, its request tells.
        Cut::Idle | Cut::Overdue | Cut::Gone => None,
        Cut::Broken(error) if error.is_parse_too_large() => Some(reply::too_large()),
        Cut::Broken(error) if error.is_parse() => Some(Error::new(ErrorKind::BadRequest, error.to_string())),
        // The caller went away, or sent what only HTTP/2 answers by itself.
        Cut::Broken(_) => None,
    }
}
