//! Idle connections of HTTP/1.1, without hyper's buffers: what waits for its next request holds little more than its
//! socket.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Duration, Instant, sleep_until},
};

use crate::stream::Stream;

/// A connection that was idle for so long is held without buffers: so seldom used, it does not pay to keep them.
pub(super) const AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
thread_local! {
    /// How often a connection was parked on this thread.
    pub(super) static PARKED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// What is read at once when it goes on: the whole head of most requests.
const FIRST: usize = 1 << 10;

/// Waits for the next request, whose beginning is put back into the stream. `false`: there is none, as the caller has
/// ended, `until` has passed or `end` has come.
pub(super) async fn wait(stream: &mut Stream, until: Instant, end: impl Future<Output = ()>) -> bool {
    #[cfg(test)]
    PARKED.with(|parked| parked.set(parked.get() + 1));
    let mut end = pin!(end);
    let mut timer = pin!(sleep_until(until));
    let first = poll_fn(|cx| {
        let mut buffer = [0; FIRST];
        let mut buffer = ReadBuf::new(&mut buffer);
        if let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
            return Poll::Ready(read.ok().map(|()| Bytes::copy_from_slice(buffer.filled())));
        }
        let is_over = end.as_mut().poll(cx).is_ready() || timer.as_mut().poll(cx).is_ready();
        if is_over { Poll::Ready(None) } else { Poll::Pending }
    });
    match first.await {
        Some(bytes) if !bytes.is_empty() => {
            stream.put_back(bytes);
            true
        }
        Some(_) | None => false,
    }
}
