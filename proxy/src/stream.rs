//! One type for every byte stream that the proxy carries: plain TCP or TLS over it, with what was
//! read from it too early to be read again.
//!
//! One type, so that hyper's state machines are compiled once, and a branch at each read is what
//! it costs.

mod gather;
mod read_ahead;

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Duration,
};
use tokio_rustls::TlsStream;

pub(crate) use self::{
    gather::{Gathered, Turn},
    read_ahead::ReadAhead,
};

/// A byte stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// To be read before what the stream still has.
    prefix: Bytes,
    kind: Kind,
    /// Set at each read, for whoever watches over idleness.
    activity: Option<Activity>,
    /// What is written instead of what hyper writes.
    instead: Option<Instead>,
    /// How long the other end took to answer.
    away: Duration,
}

/// Other bytes in the place of these, or none.
type Replace = Box<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send>;

/// Puts other bytes in the place of some.
struct Instead {
    replace: Replace,
    /// To be written before anything else.
    unwritten: Bytes,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Tls(Box<TlsStream<ReadAhead>>),
    /// One stream of an HTTP/2 connection.
    Http2(Box<TokioIo<Upgraded>>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Whether anything was read since last asked. Shared with who watches (hyper wants its streams `Send`,
/// hence not a `Cell`; it never leaves its thread).
#[derive(Clone, Debug, Default)]
pub(crate) struct Activity(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    read: AtomicBool,
    busy: AtomicBool,
    whole: AtomicBool,
    half_closed: AtomicBool,
    blocked: AtomicBool,
}

impl Activity {
    /// Whether anything was read since this was last cleared.
    pub(crate) fn seen(&self) -> bool {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Whether a request has begun and not ended.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.busy.load(Ordering::Relaxed)
    }

    /// What was read is dealt with: a request has begun, or the last one has ended.
    pub(crate) fn clear(&self, busy: bool) {
        self.0.read.store(false, Ordering::Relaxed);
        self.0.busy.store(busy, Ordering::Relaxed);
        self.0.whole.store(false, Ordering::Relaxed);
    }

    /// The request under way has come to its end: if the other side ends now, that may be all it had to say, and it
    /// may wait for the answer. Until that has been given the end is not read.
    pub(crate) fn note_whole(&self) {
        self.0.whole.store(true, Ordering::Relaxed);
    }

    /// Whether the other side has ended, and waits for an answer, perhaps.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.0.half_closed.load(Ordering::Relaxed)
    }

    /// Whether something waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        self.0.blocked.load(Ordering::Relaxed)
    }

    fn holds_back_end(&self) -> bool {
        let holds_back = self.is_busy() && self.0.whole.load(Ordering::Relaxed);
        if holds_back {
            self.0.half_closed.store(true, Ordering::Relaxed);
        }
        holds_back
    }
}

impl Stream {
    fn new(kind: Kind) -> Self {
        Self { prefix: Bytes::new(), kind, activity: None, instead: None, away: Duration::ZERO }
    }

    /// With how long the other end took to answer: a round trip, and some computing.
    #[must_use]
    pub(crate) fn with_away(mut self, away: Duration) -> Self {
        self.away = away;
        self
    }

    /// How far away the other end is (a round trip); zero where that is not known.
    pub(crate) fn away(&self) -> Duration {
        self.away
    }

    /// Puts bytes back in front.
    #[must_use]
    pub(crate) fn with_prefix(mut self, prefix: Bytes) -> Self {
        self.put_back(prefix);
        self
    }

    /// Puts bytes back in front of what is there.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else if !bytes.is_empty() {
            self.prefix = [&bytes[..], &self.prefix[..]].concat().into();
        }
    }

    /// Has reads noted.
    pub(crate) fn watch(&mut self) -> Activity {
        let activity = Activity::default();
        // What was read ahead counts: it is the beginning of a request.
        activity.0.read.store(!self.prefix.is_empty(), Ordering::Relaxed);
        self.activity = Some(activity.clone());
        activity
    }

    /// Has every write shown to `replace`, which may give other bytes to be written instead. They are few, and
    /// written at the next write, flush or end.
    pub(crate) fn replace_writes(&mut self, replace: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) {
        self.instead = Some(Instead { replace: Box::new(replace), unwritten: Bytes::new() });
    }

    /// Watched no longer: it carries something else from now on.
    #[must_use]
    pub(crate) fn unwatched(mut self) -> Self {
        self.activity = None;
        self.instead = None;
        self
    }

    /// Writes what takes the place of something else; ready when nothing of it is left.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(Instead { unwritten, .. }) = &mut self.instead else { return Poll::Ready(Ok(())) };
        while !unwritten.is_empty() {
            let written = self.kind.poll_write(cx, unwritten);
            match ready!(noted(self.activity.as_ref(), written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => unwritten.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether these bytes were taken, to write others instead.
    fn takes(&mut self, bytes: &[u8]) -> bool {
        let Some(Instead { replace, unwritten }) = &mut self.instead else { return false };
        let Some(others) = replace(bytes) else { return false };
        *unwritten = others.into();
        true
    }

    /// Whether it is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// The connection beneath, with what is to be read before its own bytes; none if it is no TCP by itself.
    pub(crate) fn into_tcp(self) -> Option<(TcpStream, Bytes)> {
        match self.kind {
            Kind::Tcp(tcp) => Some((tcp, self.prefix)),
            Kind::Tls(_) | Kind::Http2(_) => None,
            #[cfg(test)]
            Kind::Memory(_) => None,
        }
    }

    /// Ends it so that the peer sees a failure, not an end: TCP's RST, and no `close_notify`.
    pub(crate) fn reset(self) {
        let tcp = match &self.kind {
            Kind::Tcp(tcp) => tcp,
            Kind::Tls(tls) => tls.get_ref().0.get_ref(),
            // hyper ends it as if it were whole; what it carries has an end of its own, as WebSocket has.
            Kind::Http2(_) => return,
            #[cfg(test)]
            Kind::Memory(_) => return,
        };
        // It fails only for a socket that is dead already.
        let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }
}

impl fmt::Debug for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instead").field("unwritten", &self.unwritten).finish_non_exhaustive()
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::new(Kind::Tcp(tcp))
    }
}

impl From<Upgraded> for Stream {
    fn from(upgraded: Upgraded) -> Self {
        Self::new(Kind::Http2(Box::new(TokioIo::new(upgraded))))
    }
}

impl From<TlsStream<ReadAhead>> for Stream {
    fn from(tls: TlsStream<ReadAhead>) -> Self {
        Self::new(Kind::Tls(Box::new(tls)))
    }
}

#[cfg(test)]
impl From<tokio::io::DuplexStream> for Stream {
    fn from(memory: tokio::io::DuplexStream) -> Self {
        Self::new(Kind::Memory(memory))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(out.remaining());
            out.put_slice(&this.prefix[..n]);
            this.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let result = match &mut this.kind {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_read(cx, out),
            Kind::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, out),
            Kind::Http2(stream) => Pin::new(&mut **stream).poll_read(cx, out),
            #[cfg(test)]
            Kind::Memory(memory) => Pin::new(memory).poll_read(cx, out),
        };
        if let Some(activity) = &this.activity {
            if out.filled().len() > before {
                activity.0.read.store(true, Ordering::Relaxed);
            } else if matches!(result, Poll::Ready(Ok(()))) && out.remaining() > 0 && activity.holds_back_end() {
                // Asked for again once the answer has been written.
                return Poll::Pending;
            }
        }
        result
    }
}

/// Notes whether a write has to wait.
fn noted<T>(activity: Option<&Activity>, written: Poll<T>) -> Poll<T> {
    if let Some(activity) = activity {
        activity.0.blocked.store(written.is_pending(), Ordering::Relaxed);
    }
    written
}

impl Kind {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
            Self::Http2(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            #[cfg(test)]
            Self::Memory(memory) => Pin::new(memory).poll_write(cx, bytes),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_some() {
            ready!(this.poll_unwritten(cx))?;
            if this.takes(bytes) {
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        let written = this.kind.poll_write(cx, bytes);
        noted(this.activity.as_ref(), written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(cx))?;
        let flushed = match &mut self.kind {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Kind::Http2(stream) => Pin::new(&mut **stream).poll_flush(cx),
            #[cfg(test)]
            Kind::Memory(memory) => Pin::new(memory).poll_flush(cx),
        };
        noted(self.activity.as_ref(), flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(cx))?;
        match &mut self.kind {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Kind::Http2(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            #[cfg(test)]
            Kind::Memory(memory) => Pin::new(memory).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_some() {
            ready!(this.poll_unwritten(cx))?;
            // What is to be replaced comes in one piece.
            if let [bytes] = slices
                && this.takes(bytes)
            {
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        let written = match &mut this.kind {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Kind::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, slices),
            Kind::Http2(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, slices),
            #[cfg(test)]
            Kind::Memory(memory) => Pin::new(memory).poll_write_vectored(cx, slices),
        };
        noted(this.activity.as_ref(), written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.is_write_vectored(),
            Kind::Tls(tls) => tls.is_write_vectored(),
            Kind::Http2(stream) => stream.is_write_vectored(),
            #[cfg(test)]
            Kind::Memory(memory) => memory.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_put_back_is_read_first_and_in_order() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b"rest").await.unwrap();
        drop(far);
        let mut stream = Stream::from(near).with_prefix(Bytes::from_static(b"second "));
        stream.put_back(Bytes::from_static(b"first "));
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "first second rest");
    }

    #[tokio::test]
    async fn what_is_written_may_be_replaced() {
        let (mut far, near) = tokio::io::duplex(4);
        let mut stream = Stream::from(near);
        stream.replace_writes(|bytes| (bytes == b"two").then(|| b"zwei".to_vec()));
        let writing = tokio::spawn(async move {
            for word in [b"one", b"two", b"six"] {
                stream.write_all(word).await.unwrap();
            }
            stream.write_all(b"two").await.unwrap();
            stream.flush().await.unwrap();
            let mut stream = stream.unwatched();
            stream.write_all(b"two").await.unwrap();
        });
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        writing.await.unwrap();
        assert_eq!(all, "onezweisixzweitwo");
    }

    #[tokio::test]
    async fn reads_are_noted() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut stream = Stream::from(near);
        let activity = stream.watch();
        assert!(!activity.seen());
        far.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        assert!(activity.seen() && !activity.is_busy());
        activity.clear(true);
        assert!(!activity.seen() && activity.is_busy());
        assert!(Stream::from(tokio::io::duplex(1).0).with_prefix(Bytes::from_static(b"G")).watch().seen());
    }
}
