//! A body that may be sent again: what was read of it is kept, up to a limit.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError};

/// A body and what was read of it. Each [`Replay::reading`] begins anew; the one before is cut off.
pub(crate) struct Replay {
    /// `None`: without bytes.
    shared: Option<Rc<RefCell<Shared>>>,
}

struct Shared {
    body: Body,
    /// In order; `None` once there was more than may be kept.
    kept: Option<Vec<Bytes>>,
    /// Nothing of the body was read yet, so that any reading has all of it.
    untouched: bool,
    trailers: Option<HeaderMap>,
    /// Bytes that may still be kept.
    room: usize,
    /// The reading that counts.
    current: u32,
    /// The whole body's.
    size: SizeHint,
    /// The body was read to its end.
    ended: bool,
    /// Or broke off, which no other try can mend.
    broken: bool,
}

/// One reading.
pub(super) struct Reading {
    shared: Rc<RefCell<Shared>>,
    number: u32,
    /// How many of the pieces kept have been read.
    position: usize,
    done: bool,
}

impl Replay {
    /// Keeps at most `limit` bytes.
    pub(crate) fn new(body: Body, limit: usize) -> Self {
        if body.is_end_stream() {
            return Self { shared: None };
        }
        let size = body.size_hint();
        // Known to be too large: not even begun.
        let keep = size.lower() <= limit as u64;
        let shared = Shared {
            body,
            kept: keep.then(Vec::new),
            untouched: true,
            trailers: None,
            room: limit,
            current: 0,
            size,
            ended: false,
            broken: false,
        };
        Self { shared: Some(Rc::new(RefCell::new(shared))) }
    }

    /// Whether all that was read so far is kept, if anything was, so that it can be read again.
    pub(crate) fn is_replayable(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            let shared = shared.borrow();
            (shared.kept.is_some() || shared.untouched) && !shared.broken
        })
    }

    /// The body from its beginning.
    pub(crate) fn reading(&self) -> Body {
        let Some(shared) = &self.shared else { return Body::empty() };
        let number = {
            let mut shared = shared.borrow_mut();
            shared.current += 1;
            shared.body.pause();
            shared.current
        };
        super::Kind::Replay(Reading { shared: shared.clone(), number, position: 0, done: false }).into()
    }
}

impl Reading {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if shared.current != self.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(piece) = shared.kept.as_ref().and_then(|kept| kept.get(self.position)) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if shared.ended {
            self.done = true;
            return Poll::Ready(shared.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut shared.body).poll_frame(cx));
        shared.untouched = false;
        match &frame {
            None => {
                shared.ended = true;
                self.done = true;
            }
            Some(Err(_)) => shared.broken = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    shared.keep(data);
                    self.position += 1;
                } else if let Some(trailers) = frame.trailers_ref() {
                    shared.trailers = Some(trailers.clone());
                    shared.ended = true;
                    self.done = true;
                }
            }
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let read_all = shared.kept.as_ref().is_none_or(|kept| self.position >= kept.len());
        self.done || (read_all && shared.trailers.is_none() && (shared.ended || shared.body.is_end_stream()))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        // Asked before the first frame for the message's framing; later nobody needs more than this.
        if self.position == 0 { shared.size } else { SizeHint::default() }
    }
}

impl Shared {
    fn keep(&mut self, data: &Bytes) {
        let Some(kept) = &mut self.kept else { return };
        if let Some(room) = self.room.checked_sub(data.remaining()) {
            self.room = room;
            kept.push(data.clone());
        } else {
            self.kept = None;
        }
    }
}
