//! Frames of HTTP/2 that leave together.
//!
//! h2 writes, and flushes, each frame of data by itself: a system call each and, encrypted, a record each, which the
//! other end opens one by one. Here they are gathered instead for as long as h2's task is at it, and written when its
//! turn is over. That is for whoever polls that task to say: [`Turn::ends`].

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Written at once when so much is there, turn or not: four full records of TLS.
const FULL: usize = 64 << 10;

thread_local! {
    /// An empty buffer for the next turn of any connection of this thread: nearly all turns are written in full, so that
    /// one is enough for all.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// A connection whose writes are gathered.
#[derive(Debug)]
pub(crate) struct Gathered(Rc<RefCell<State>>);

/// The turns of the task that writes to it.
#[derive(Clone, Debug)]
pub(crate) struct Turn(Weak<RefCell<State>>);

#[derive(Debug)]
struct State {
    stream: Stream,
    /// Still to be written. It has memory only while there is something in it.
    buffer: BytesMut,
    /// A flush was asked for, and put off until the end of the turn.
    put_off: bool,
    /// Why that came to nothing.
    failure: Option<io::Error>,
}

impl Gathered {
    /// The connection, and what its task's turns are told to.
    pub(crate) fn new(stream: Stream) -> (Self, Turn) {
        let state = State { stream, buffer: BytesMut::new(), put_off: false, failure: None };
        let state = Rc::new(RefCell::new(state));
        let turn = Turn(Rc::downgrade(&state));
        (Self(state), turn)
    }
}

impl Turn {
    /// Writes what the task with this context has put off. What the connection does not take yet is left for another
    /// turn, for which the task is woken.
    pub(crate) fn ends(&self, cx: &mut Context<'_>) {
        let Some(state) = self.0.upgrade() else { return };
        let mut state = state.borrow_mut();
        if !std::mem::take(&mut state.put_off) {
            return;
        }
        if let Poll::Ready(Err(error)) = state.poll_flush(cx) {
            state.failure = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl State {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Err(error));
        }
        while !self.buffer.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.buffer.advance(written),
            }
        }
        let mut empty = std::mem::take(&mut self.buffer);
        if empty.try_reclaim(FULL) {
            SPARE.set(empty);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Takes as much as there is room for.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE.take();
            self.buffer.reserve(FULL);
        }
        let taken = bytes.len().min(FULL - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }
}

impl AsyncRead for Gathered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        if state.buffer.len() >= FULL || state.failure.is_some() {
            ready!(state.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(slices.iter().map(|slice| state.gather(slice)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        state.put_off = true;
        Poll::Ready(state.failure.take().map_or(Ok(()), Err))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_write_out(cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_test::{assert_pending, task::spawn};

    use super::*;

    fn pair(room: usize) -> (DuplexStream, Gathered, Turn) {
        let (far, near) = tokio::io::duplex(room);
        let (gathered, turn) = Gathered::new(Stream::from(near));
        (far, gathered, turn)
    }

    #[tokio::test]
    async fn what_is_written_in_a_turn_leaves_at_its_end() {
        let (mut far, mut gathered, turn) = pair(1024);
        for frame in ["one", "two", "six"] {
            gathered.write_all(frame.as_bytes()).await.unwrap();
            gathered.flush().await.unwrap();
        }
        let mut buffer = [0; 64];
        assert_pending!(spawn(far.read(&mut buffer)).poll());
        spawn(()).enter(|cx, _| turn.ends(cx));
        assert_eq!(far.read(&mut buffer).await.unwrap(), 9);
        assert_eq!(&buffer[..9], b"onetwosix");
        assert_eq!(gathered.0.borrow().buffer.capacity(), 0, "nothing is kept");
        gathered.write_all(b"end").await.unwrap();
        gathered.shutdown().await.unwrap();
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "end");
    }

    #[tokio::test]
    async fn what_is_not_taken_waits_for_another_turn() {
        let (mut far, mut gathered, turn) = pair(4);
        gathered.write_all(b"twelve bytes").await.unwrap();
        gathered.flush().await.unwrap();
        let mut task = spawn(());
        task.enter(|cx, _| turn.ends(cx));
        let mut all = Vec::new();
        while all.len() < 12 {
            far.read_buf(&mut all).await.unwrap();
            assert!(task.is_woken() || all.len() == 12);
            gathered.flush().await.unwrap();
            task.enter(|cx, _| turn.ends(cx));
        }
        assert_eq!(all, b"twelve bytes");
    }

    #[tokio::test]
    async fn a_turn_does_not_gather_without_end() {
        let (mut far, mut gathered, _turn) = pair(16 << 10);
        let sent: Vec<u8> = (0..FULL * 2).map(|n| (n / 7) as u8).collect();
        let mut writing = spawn(async {
            gathered.write_all(&sent).await.unwrap();
            gathered.shutdown().await.unwrap();
        });
        assert_pending!(writing.poll());
        let mut got = Vec::new();
        let mut reading = spawn(far.read_to_end(&mut got));
        while reading.poll().is_pending() {
            let _ = writing.poll();
        }
        drop(reading);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_failure_is_told_at_the_next_write() {
        let (far, mut gathered, turn) = pair(4);
        drop(far);
        gathered.write_all(b"x").await.unwrap();
        gathered.flush().await.unwrap();
        let mut task = spawn(());
        task.enter(|cx, _| turn.ends(cx));
        assert!(task.is_woken());
        gathered.write_all(b"y").await.unwrap_err();
    }
}
