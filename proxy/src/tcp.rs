//! Opaque bytes, both ways.
//!
//! Each direction ends by itself (half-close): an end of stream goes on as an end of stream. A failure
//! on one side goes on as a reset to the other, so that nobody takes a cut-off stream for a whole one; with TLS
//! an end without `close_notify` is a failure.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use crate::{
    outcome::{ClosedBy, Error, ErrorKind},
    stream::Stream,
};

/// First buffer of a direction: most connections carry little at a time.
const SMALL: usize = 4 << 10;
/// A direction that fills its buffer gets one twice as large, up to this.
const LARGE: usize = 256 << 10;

/// What became of a connection.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Bytes from downstream to upstream.
    pub(crate) sent: u64,
    /// Bytes from upstream to downstream.
    pub(crate) received: u64,
    /// Who ended it first; nobody did where it was interrupted.
    pub(crate) closed_by: Option<ClosedBy>,
    /// Why it ended, if not well.
    pub(crate) failure: Option<Failure>,
}

/// Why a connection was cut off.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Reading or writing failed on this side.
    Broken(ClosedBy, io::Error),
    /// Nothing came from either side for too long.
    Idle(Duration),
    /// [`copy`] was told to stop.
    Interrupted,
}

impl Failure {
    /// As what became of the connection.
    pub(crate) fn error(&self) -> Error {
        let (kind, detail) = match self {
            Self::Broken(ClosedBy::Downstream, error) => (ErrorKind::ClientGone, format!("the caller: {error}")),
            Self::Broken(_, error) => (ErrorKind::UpstreamReset, format!("the called: {error}")),
            Self::Idle(idle) => (ErrorKind::RequestTimeout, format!("silent for {} s", idle.as_secs())),
            Self::Interrupted => (ErrorKind::Denied, "no longer allowed".to_owned()),
        };
        Error::new(kind, detail).after_send()
    }
}

/// Copies until both sides have ended, either fails, nothing comes for `idle`, or `interrupt` is ready. What ends
/// badly is reset on both sides.
pub(crate) async fn copy(
    mut downstream: Stream,
    mut upstream: Stream,
    idle: Duration,
    interrupt: impl Future<Output = ()>,
) -> Copied {
    let mut there = Direction::new();
    let mut back = Direction::new();
    let mut idle_timer = IdleTimer::new(idle);
    let mut interrupt = pin!(interrupt);
    let mut closed_by = None;
    let failure = poll_fn(|cx| {
        if interrupt.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Failure::Interrupted));
        }
        let before = there.copied + back.copied;
        let first = there.poll(cx, &mut downstream, &mut upstream);
        if there.ended {
            closed_by.get_or_insert(ClosedBy::Downstream);
        }
        let second = back.poll(cx, &mut upstream, &mut downstream);
        if back.ended {
            closed_by.get_or_insert(ClosedBy::Upstream);
        }
        match (first, second) {
            (Poll::Ready(Err(Broken::Reader(error))), _) | (_, Poll::Ready(Err(Broken::Writer(error)))) => {
                Poll::Ready(Some(Failure::Broken(ClosedBy::Downstream, error)))
            }
            (Poll::Ready(Err(Broken::Writer(error))), _) | (_, Poll::Ready(Err(Broken::Reader(error)))) => {
                Poll::Ready(Some(Failure::Broken(ClosedBy::Upstream, error)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(None),
            _ => {
                if there.copied + back.copied != before {
                    idle_timer.restart();
                }
                idle_timer.poll(cx).map(|()| Some(Failure::Idle(idle)))
            }
        }
    })
    .await;
    if let Some(failure) = &failure {
        closed_by = match failure {
            Failure::Broken(side, _) => Some(closed_by.unwrap_or(*side)),
            Failure::Idle(_) | Failure::Interrupted => Some(ClosedBy::Proxy),
        };
        downstream.reset();
        upstream.reset();
    }
    Copied { sent: there.copied, received: back.copied, closed_by, failure }
}

/// Which end of a direction failed.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction.
struct Direction {
    buffer: BytesMut,
    /// Size of the next buffer.
    size: usize,
    copied: u64,
    unflushed: bool,
    /// The reader has ended.
    ended: bool,
    /// And the writer knows.
    shut: bool,
}

impl Direction {
    fn new() -> Self {
        Self { buffer: BytesMut::new(), size: SMALL, copied: 0, unflushed: false, ended: false, shut: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broken>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.buffer.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer)).map_err(Broken::Writer)?;
                if n == 0 {
                    return Poll::Ready(Err(Broken::Writer(io::ErrorKind::WriteZero.into())));
                }
                self.buffer.advance(n);
                self.copied += n as u64;
                self.unflushed = true;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::Writer)?;
                self.shut = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_fill(cx, from) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Reader(error))),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::Writer)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads into the empty buffer. While nothing comes, there is none.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<usize>> {
        self.buffer.clear();
        if self.buffer.capacity() < self.size {
            self.buffer = BytesMut::with_capacity(self.size);
        }
        let Poll::Ready(result) = poll_read_buf(Pin::new(from), cx, &mut self.buffer) else {
            self.buffer = BytesMut::new();
            return Poll::Pending;
        };
        if self.buffer.len() >= self.size {
            self.size = (self.size * 2).min(LARGE);
        }
        Poll::Ready(result)
    }
}

/// A timer that is restarted at each read, for the price of one that is not.
struct IdleTimer {
    idle: Duration,
    /// When anything last came.
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl IdleTimer {
    fn new(idle: Duration) -> Self {
        let since = Instant::now();
        Self { idle, since, sleep: Box::pin(sleep_until(since + idle)) }
    }

    fn restart(&mut self) {
        self.since = Instant::now();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let until = self.since + self.idle;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn between(
        idle: Duration,
        interrupt: impl Future<Output = ()> + Send + 'static,
    ) -> (DuplexStream, DuplexStream, JoinHandle<Copied>) {
        let (client, downstream) = duplex(1 << 10);
        let (server, upstream) = duplex(1 << 10);
        let task = tokio::spawn(copy(downstream.into(), upstream.into(), idle, interrupt));
        (client, server, task)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut client, mut server, task) = between(HOUR, pending());
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let copied = task.await.unwrap();
        assert_eq!((copied.sent, copied.received), (8, 6));
        assert_eq!(copied.closed_by, Some(ClosedBy::Downstream));
        assert!(copied.failure.is_none());
    }

    #[tokio::test]
    async fn much_passes_in_buffers_that_grow_and_a_slow_reader_is_waited_for() {
        let (mut client, mut server, task) = between(HOUR, pending());
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let writer = tokio::spawn({
            let sent = sent.clone();
            async move {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                client
            }
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        drop(server);
        drop(writer.await.unwrap());
        assert_eq!(task.await.unwrap().sent, 5_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_on_both_sides_ends_it() {
        let (mut client, mut server, task) = between(Duration::from_secs(10), pending());
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let since = Instant::now();
        let copied = task.await.unwrap();
        assert!(matches!(copied.failure, Some(Failure::Idle(_))));
        assert_eq!(copied.closed_by, Some(ClosedBy::Proxy));
        assert_eq!(since.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn an_interrupt_ends_it() {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (_client, _server, task) = between(HOUR, async move { stopped.await.unwrap() });
        stop.send(()).unwrap();
        assert!(matches!(task.await.unwrap().failure, Some(Failure::Interrupted)));
    }

    #[tokio::test]
    async fn a_reset_goes_on_as_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = || async {
            let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
            (near.unwrap(), far.unwrap().0)
        };
        let (mut client, downstream) = pair().await;
        let (server, upstream) = pair().await;
        let task = tokio::spawn(copy(downstream.into(), upstream.into(), HOUR, pending()));
        Stream::from(server).reset();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let copied = task.await.unwrap();
        assert!(matches!(copied.failure, Some(Failure::Broken(ClosedBy::Upstream, _))));
    }
}
