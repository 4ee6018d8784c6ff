//! Request bodies that do not come: who has begun one and does not go on holds a connection here and another at the
//! app, and in many apps a thread.
//!
//! Only the time in which the body is waited for counts: nobody is to blame for an app that reads slowly. And only
//! what must come can be late: the rest of a length that was told, the rest of a gRPC message, the first word of a
//! body of unknown length. Between two messages, or once it was answered, a stream may be silent for as long as it
//! likes.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::time::{Duration, Instant, Sleep};

use crate::{
    config::Limits,
    exchange::Exchange,
    outcome::{Error, ErrorKind},
    serve::poll_until,
    stream::Activity,
};

/// Bytes that must come within each `limits.bodyTimeout`.
const PROGRESS: u64 = 1024;
/// Length of what stands before each message of gRPC: a flag and the message's length.
const PREFIX: u8 = 5;

/// The body of a request on its way.
pub(super) struct Upload {
    exchange: Rc<Exchange>,
    expects: Expects,
    /// For what must come.
    limit: Duration,
    /// For what may.
    idle: Duration,
    /// Bytes that came of what must come within a limit, and how long they were waited for.
    bytes: u64,
    waited: Duration,
    /// Since when it is waited for, if it is.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// To be told of the end.
    reading: Option<Activity>,
}

/// What is still to come.
#[derive(Debug)]
enum Expects {
    /// The rest of the length that was told.
    Length,
    /// The rest of a message.
    Message(Messages),
    /// Nobody knows.
    Anything,
}

/// A place in a sequence of gRPC messages.
#[derive(Debug, Default)]
struct Messages {
    /// Bytes read of a prefix.
    prefix: u8,
    /// The length that it tells.
    length: u32,
    /// Bytes of the message that are to come.
    rest: u32,
}

impl Upload {
    pub(super) fn new(exchange: &Rc<Exchange>, limits: &Limits, has_length: bool) -> Self {
        let grpc = || exchange.read(|outcome| outcome.grpc).unwrap_or_default();
        let expects = match () {
            () if has_length => Expects::Length,
            () if grpc() => Expects::Message(Messages::default()),
            () => Expects::Anything,
        };
        Self {
            exchange: exchange.clone(),
            expects,
            limit: limits.body_timeout,
            idle: limits.idle_timeout,
            bytes: 0,
            waited: Duration::ZERO,
            since: None,
            timer: None,
            reading: None,
        }
    }

    /// Who wants to know when all of it has come.
    pub(super) fn tell(&mut self, reading: Activity) {
        self.reading = Some(reading);
    }

    /// All of it has come.
    pub(super) fn ended(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.note_whole();
        }
    }

    /// Nobody waits for it until it is asked for again.
    pub(super) fn pause(&mut self) {
        self.since = None;
    }

    /// A piece comes.
    pub(super) fn passes(&mut self, piece: &[u8]) {
        self.exchange.count_request_bytes(piece.len());
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.bytes += piece.len() as u64;
        if let Expects::Message(messages) = &mut self.expects {
            messages.pass(piece);
        }
    }

    /// Ready when it must be given up; noted then as what became of the request. To be asked whenever there is nothing
    /// of it.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let (limit, progress) = match &self.expects {
            Expects::Length => (self.limit, PROGRESS),
            Expects::Message(messages) if messages.is_within() => (self.limit, PROGRESS),
            Expects::Anything if !self.is_answered() => (self.idle, 1),
            Expects::Message(_) | Expects::Anything => {
                (self.bytes, self.waited, self.since) = (0, Duration::ZERO, None);
                return Poll::Pending;
            }
        };
        if self.bytes >= progress {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        // What it was not waited for does not count.
        let since = *self.since.get_or_insert_with(Instant::now);
        ready!(poll_until(&mut self.timer, since + limit.saturating_sub(self.waited), cx));
        let detail = match self.bytes {
            0 => format!("nothing of the request's body came for {} s", limit.as_secs_f64()),
            bytes => format!("{bytes} bytes of the request's body came within {} s", limit.as_secs_f64()),
        };
        let error = Error::new(ErrorKind::BodyTimeout, detail).after_send();
        self.exchange.note(|outcome| outcome.error = Some(error.clone()));
        Poll::Ready(error)
    }

    fn is_answered(&self) -> bool {
        self.exchange.read(|outcome| outcome.status.is_some()).unwrap_or(true)
    }
}

impl Messages {
    fn pass(&mut self, mut piece: &[u8]) {
        while let Some((first, after)) = piece.split_first() {
            if self.rest > 0 {
                let passed = piece.len().min(self.rest as usize);
                self.rest -= passed as u32;
                piece = &piece[passed..];
                continue;
            }
            // The first is a flag.
            self.length = if self.prefix == 0 { 0 } else { self.length << 8 | u32::from(*first) };
            self.prefix += 1;
            if self.prefix == PREFIX {
                (self.prefix, self.rest) = (0, self.length);
            }
            piece = after;
        }
    }

    /// Whether one has begun and not ended.
    fn is_within(&self) -> bool {
        self.prefix > 0 || self.rest > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_followed_in_pieces_of_any_size() {
        let bytes = b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\x01\x02".map(|byte| byte).to_vec();
        let long = [&[0, 0, 0, 1, 2][..], &[7; 258]].concat();
        let all = [bytes, vec![b'x'; 256 + 1], long].concat();
        let ends = [8, 13, 13 + 5 + 258, 13 + 5 + 258 + 263];
        for size in [1, 2, 3, 5, 8, 13, 100, all.len()] {
            let (mut messages, mut at) = (Messages::default(), 0);
            for piece in all.chunks(size) {
                messages.pass(piece);
                at += piece.len();
                assert_eq!(messages.is_within(), !ends.contains(&at), "after {at} bytes in pieces of {size}");
            }
        }
    }
}
