//! Connections that carry many requests at once.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::{
    sync::Notify,
    task::spawn_local,
    time::{Duration, Instant, timeout},
};

use super::{Dial, Facts, Pool};
use crate::{
    body::Body,
    connect::{Carried, Connected, connect, failure},
    outcome::{Error, ErrorKind},
    serve::windows::Windows,
    stream::{self, Gathered, Turn},
};

/// With so many streams on a connection the next one gets another, though the other end took more.
pub(crate) const MAX_STREAMS: usize = 100;
/// Pings to peer proxies on connections with streams open ...
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// ... which a peer that is there answers in this time.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection.
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<Body>,
    streams: Cell<usize>,
    /// So many may be open, if the other end takes as many.
    most: usize,
    driven: Rc<Driven>,
    meshed: bool,
    pub(super) facts: Facts,
}

/// A connection while it lives: once it has ended, who waits for it must learn that from its being gone.
struct Driven {
    connection: RefCell<Option<Connection>>,
    /// Why it ended.
    failure: RefCell<Option<hyper::Error>>,
}

type Connection = http2::Connection<TokioIo<Gathered>, Body, Executor>;

/// Runs hyper's tasks, one of which is the connection's, and tells when one has done something: what the other end said
/// may have been heard.
#[derive(Clone)]
struct Executor {
    turn: Turn,
    news: Rc<Notify>,
}

/// One stream of a connection.
pub(super) struct Stream(pub(super) Rc<Http2>);

impl Pool {
    /// A stream, and how long its connection took if it was waited for.
    pub(super) async fn stream(self: &Rc<Self>, dial: &Dial) -> Result<(Stream, Option<Duration>), Error> {
        let mut took = None;
        loop {
            if let Some(connection) = self.shared_http2(dial.idle) {
                return Ok((Stream::new(connection), took));
            }
            let began = Instant::now();
            let connection = self.make_http2(dial).await?;
            took = Some(took.unwrap_or_default() + began.elapsed());
            // Others waited for it, too.
            if connection.has_room() {
                return Ok((Stream::new(connection), took));
            }
        }
    }

    /// One that is there and takes another stream.
    pub(super) fn shared_http2(&self, idle: Duration) -> Option<Rc<Http2>> {
        let now = Instant::now();
        let epoch = self.epoch();
        let mut all = self.shared.borrow_mut();
        // Those that are dropped here end when their last stream does.
        all.retain(|connection| {
            if !connection.is_unused() {
                connection.facts.used.set(now);
            }
            !connection.sender.is_closed() && connection.facts.is_usable(now, epoch, idle)
        });
        all.iter().find(|connection| connection.has_room()).cloned()
    }

    async fn make_http2(self: &Rc<Self>, dial: &Dial) -> Result<Rc<Http2>, Error> {
        let connecting = self
            .connecting
            .borrow_mut()
            .get_or_insert_with(|| {
                let (pool, dial) = (self.clone(), dial.clone());
                // A task of its own: who asked first may go away before it is made.
                let task = spawn_local(async move {
                    let made = pool.connect_http2(&dial).await;
                    pool.connecting.borrow_mut().take();
                    made
                });
                let gone = |error| Err(Error::new(ErrorKind::Internal, format!("connecting: {error}")));
                task.map(move |made| made.unwrap_or_else(gone)).boxed_local().shared()
            })
            .clone();
        connecting.await
    }

    async fn connect_http2(&self, dial: &Dial) -> Result<Rc<Http2>, Error> {
        let slot = match &dial.slots {
            None => None,
            Some(slots) => Some(timeout(dial.timeout, slots.room()).await.map_err(|_| {
                Error::new(ErrorKind::Overloaded, "as many connections as policy allows, each with all its streams")
            })?),
        };
        let Connected { stream, peer, expires, epoch, .. } =
            connect(&self.identity, &self.target, Carried::Http2, dial.timeout).await?;
        let windows = Windows::dialled(stream.away());
        let (sender, driven) = self.handshake(stream, &windows, dial).await?;
        let facts = Facts::new(peer, epoch, expires, slot);
        let (most, meshed) = (windows.streams as usize, self.target.mesh.is_some());
        let made = Rc::new(Http2 { sender, streams: Cell::new(0), most, driven, meshed, facts });
        if !self.retired.get() {
            self.shared.borrow_mut().push(made.clone());
        }
        Ok(made)
    }

    /// Begins to speak HTTP/2; with an app, when it has said what it takes.
    async fn handshake(
        &self,
        stream: stream::Stream,
        windows: &Windows,
        dial: &Dial,
    ) -> Result<(http2::SendRequest<Body>, Rc<Driven>), Error> {
        let (stream, turn) = Gathered::new(stream);
        let executor = Executor { turn, news: Rc::default() };
        let mut builder = http2::Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_send_buf_size(windows.send_buffer)
            .max_header_list_size(dial.max_header_bytes);
        let meshed = self.target.mesh.is_some();
        if meshed {
            builder.keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        } else {
            // Nothing is known yet. And an app is not pinged: a gRPC server takes pings on a stream that is silent
            // for long as an attack, and a dead app's connections end by themselves.
            builder.initial_max_send_streams(0);
        }
        let made = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|error| failure::unsent(&error, &self.who))?;
        let connection = Rc::new(Driven { connection: RefCell::new(Some(connection)), failure: RefCell::default() });
        let (who, driven, ended) = (self.who.clone(), connection.clone(), executor.clone());
        spawn_local(async move {
            if let Err(error) = poll_fn(|cx| driven.poll(cx)).await {
                tracing::debug!(%error, who, "HTTP/2 connection ended");
                driven.failure.replace(Some(error));
            }
            ended.news.notify_waiters();
        });
        // A peer proxy takes enough: the first request need not wait to hear it.
        if meshed {
            return Ok((sender, connection));
        }
        let offered = async {
            loop {
                let news = executor.news.notified();
                if connection.offered_streams().is_none_or(|offered| offered > 0) {
                    return;
                }
                news.await;
            }
        };
        timeout(dial.timeout, offered).await.map_err(|_| {
            let detail = format!("{} took no HTTP/2 stream within {} ms", self.who, dial.timeout.as_millis());
            Error::new(ErrorKind::ConnectTimeout, detail)
        })?;
        match connection.failure.take() {
            Some(error) => Err(failure::unsent(&error, &self.who)),
            None => Ok((sender, connection)),
        }
    }
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        spawn_local(Run { future, executor: self.clone() });
    }
}

pin_project! {
    /// One of hyper's tasks. (No async block: that would have twice its size, for a move of what it is made from.)
    struct Run<F> {
        #[pin]
        future: F,
        executor: Executor,
    }
}

impl<F: Future> Future for Run<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = this.future.poll(cx);
        this.executor.turn.ends(cx);
        this.executor.news.notify_waiters();
        result
    }
}

impl Driven {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let mut connection = self.connection.borrow_mut();
        let result = connection.as_mut().map_or(Poll::Ready(Ok(())), |connection| connection.poll_unpin(cx));
        let ended = if result.is_ready() { connection.take() } else { None };
        // Whatever waits in it may look here when it is dropped.
        drop(connection);
        drop(ended);
        result
    }

    /// How many streams the other end takes, while it is there.
    fn offered_streams(&self) -> Option<usize> {
        self.connection.borrow().as_ref().map(Connection::current_max_send_streams)
    }
}

impl Http2 {
    pub(super) fn is_unused(&self) -> bool {
        self.streams.get() == 0
    }

    fn has_room(&self) -> bool {
        // Of one that is gone the request is given back, and another is made.
        let offered = self.driven.offered_streams().unwrap_or(self.most);
        self.streams.get() < offered.min(self.most) || self.sender.is_closed()
    }
}

impl Stream {
    fn new(connection: Rc<Http2>) -> Self {
        connection.streams.update(|streams| streams + 1);
        Self(connection)
    }

    pub(super) fn send(&self, request: Request<Body>) -> impl Future<Output = super::Sent> + use<> {
        self.0.sender.clone().try_send_request(request)
    }

    /// Whether it may be made a tunnel (RFC 8441). Peer proxies allow it, and ask their apps.
    pub(super) fn takes_extended_connect(&self) -> bool {
        let connection = self.0.driven.connection.borrow();
        self.0.meshed || connection.as_ref().is_some_and(Connection::is_extended_connect_protocol_enabled)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Self(connection) = self;
        connection.streams.update(|streams| streams - 1);
        connection.facts.used.set(Instant::now());
        if let (true, Some(slot)) = (connection.is_unused(), &connection.facts.slot) {
            slot.slots().unused();
        }
    }
}
