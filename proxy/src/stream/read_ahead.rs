//! Larger reads beneath TLS.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// rustls reads 4 KiB at the start of a record, whose length can be 16 KiB: one system call for the
/// whole record instead took 14 % off the CPU time of a small request, and 64 KiB no more.
const READ: usize = 16 << 10;

thread_local! {
    /// An empty buffer for the next read of any connection of this thread: nearly all reads are passed on in full, so
    /// that one is enough for all.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// A TCP connection that is read in large pieces. The buffer is there only while there is something in
/// it: a connection that waits holds none.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    tcp: TcpStream,
    buffer: BytesMut,
}

impl ReadAhead {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, buffer: BytesMut::new() }
    }

    /// With what was read of it before.
    pub(crate) fn with(tcp: TcpStream, read: Bytes) -> Self {
        Self { tcp, buffer: read.into() }
    }

    pub(super) fn get_ref(&self) -> &TcpStream {
        &self.tcp
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_empty() {
            if out.remaining() >= READ {
                return Pin::new(&mut this.tcp).poll_read(cx, out);
            }
            let mut buffer = SPARE.take();
            buffer.clear();
            buffer.reserve(READ);
            let read = poll_read_buf(Pin::new(&mut this.tcp), cx, &mut buffer);
            this.buffer = buffer;
            if !matches!(read, Poll::Ready(Ok(_))) {
                SPARE.set(std::mem::take(&mut this.buffer));
                return read.map_ok(|_| ());
            }
        }
        let n = this.buffer.len().min(out.remaining());
        out.put_slice(&this.buffer[..n]);
        this.buffer.advance(n);
        if this.buffer.is_empty() {
            SPARE.set(std::mem::take(&mut this.buffer));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
