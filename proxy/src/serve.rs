//! HTTP servers: hyper's, with our limits, watched over.
//!
//! Each request is handed to one async function and its response is hyper's to write. Beside that a
//! connection is watched: a request whose headers do not come to an end, a connection that is idle for too long,
//! and the end of the proxy's own life end it, each in its way.

mod flow;
mod front;
mod park;
pub(crate) mod reply;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;
mod watch;
pub(crate) mod windows;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    time::{Duration, timeout},
};

use self::{
    flow::Streams,
    watch::{Connection, Cut, Watch},
    windows::Windows,
};
pub(crate) use self::{
    front::{Front, answer_here, authority, is_grpc, receive},
    watch::{Busy, Ending, poll_until},
};
use crate::{
    body::Body,
    config::Limits,
    outcome::{Error, ErrorKind},
    stream::{Gathered, Stream, Turn},
};

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
    handle: impl Fn(Request<Incoming>) -> F + Clone,
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
        // In a box: it is large, and hyper moves it.
        Box::pin(answer(handle.clone(), request, busy))
    });
    let mut builder = http1::Builder::new();
    if limits.max_headers != HYPER_MAX_HEADERS {
        builder.max_headers(limits.max_headers);
    }
    builder
        // hyper's would run while no request has begun, too.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes as usize)
        .max_buf_size((8 << 10) + limits.max_header_bytes as usize)
        .auto_date_header(false);
    loop {
        let connection = builder.serve_connection(TokioIo::new(stream), &service).with_upgrades();
        let mut connection = Box::new(connection);
        let cut = watch.over(Pin::new(&mut *connection), ending).await;
        let parts = match cut {
            None | Some(Cut::Idle | Cut::Gone | Cut::Broken(_)) => return cut.and_then(ended),
            Some(Cut::HeaderTimeout(_) | Cut::Overdue | Cut::Parked) => connection.into_parts(),
        };
        let Some(parts) = parts else { return cut.and_then(ended) };
        stream = parts.io.into_inner();
        stream.put_back(parts.read_buf);
        match &cut {
            Some(Cut::Parked) => {
                if park::wait(&mut stream, watch.idle_until(), ending.come(false)).await {
                    continue;
                }
                // It ends as hyper would end it; whoever does not take that has no part in it any more.
                let _ = timeout(watch::FAREWELL, stream.shutdown()).await;
            }
            Some(Cut::Overdue) => stream.reset(),
            // Nobody has answered it yet.
            Some(Cut::HeaderTimeout(error)) => _ = stream.write_all(&reply::raw(error)).await,
            Some(Cut::Idle | Cut::Gone | Cut::Broken(_)) | None => {}
        }
        return cut.and_then(ended);
    }
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
    let windows = Windows::new(limits.max_streams, stream.away());
    let (stream, turn) = Gathered::new(stream);
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(windows.streams)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_send_buf_size(windows.send_buffer)
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
                Box::pin(answer(handle.clone(), request, busy))
            }),
        );
    let mut connection = InTurns { connection, turn };
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

/// The connection is busy until the response has been sent, which in HTTP/1.1 begins when it is worth a write; in HTTP/2
/// it is written with those of others.
async fn hold(mut response: Response<Body>, busy: Busy) -> Response<Body> {
    let body = response.body_mut();
    let is_alone = !busy.is_multiplexed();
    let settle = body.settle();
    busy.flow().begin(settle);
    settle.busy = Some(busy);
    if is_alone {
        body.gather().await;
    }
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

/// What is polled writes at the end of its turns.
struct InTurns<C> {
    connection: C,
    turn: Turn,
}

impl<C: Future + Unpin> Future for InTurns<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let result = Pin::new(&mut self.connection).poll(cx);
        self.turn.ends(cx);
        result
    }
}

impl<S> Connection for InTurns<http2::Connection<TokioIo<Gathered>, S, Streams>>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Future: 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        Pin::new(&mut self.get_mut().connection).graceful_shutdown();
    }
}

fn ended(cut: Cut) -> Ended {
    match cut {
        Cut::HeaderTimeout(error) => Some(error),
        // Of the second and third, its request tells.
        Cut::Idle | Cut::Overdue | Cut::Gone | Cut::Parked => None,
        Cut::Broken(error) if error.is_parse_too_large() => Some(reply::too_large()),
        Cut::Broken(error) if error.is_parse() => Some(Error::new(ErrorKind::BadRequest, error.to_string())),
        // The caller went away, or sent what only HTTP/2 answers by itself.
        Cut::Broken(_) => None,
    }
}
