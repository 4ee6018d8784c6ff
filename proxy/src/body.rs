//! The one type of body: of requests and responses, received or made here.
//!
//! It knows when it is over, and settles then what was held for it: the connection goes back to its
//! pool, the permit to its limit, the outcome on the record. A body that is dropped before its end
//! settles too, as one that was given up.

mod expect;
mod replay;
mod settle;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    error::Error as StdError,
    fmt,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Duration, timeout};

pub(crate) use self::{
    expect::Expect,
    replay::Replay,
    settle::{Settle, grpc_status},
};
use crate::{config::Limits, exchange::Exchange, headers, outcome, stream::Activity};

/// How long a response whose length is told waits for its first bytes. Apps write head and body one after the
/// other: the bytes are microseconds behind.
const GATHER: Duration = Duration::from_millis(1);

/// A body.
pub(crate) struct Body {
    kind: Kind,
    /// Read ahead of being asked for.
    first: Option<Bytes>,
    /// It broke off, and what came before has had its turn to leave.
    failed: bool,
    watched: Watched,
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    /// One reading of a body that may be read again.
    Replay(replay::Reading),
    /// One that must not be read before the upstream asks for it.
    Expect(Box<expect::Held>),
    /// One that broke off before it was asked for.
    Failed(Option<BodyError>),
    #[cfg(test)]
    Test(tests::Scripted),
}

/// Who wants to know what passes.
enum Watched {
    Nobody,
    /// A request's: its bytes are counted, and must come in time.
    Request(upload::Upload),
    /// A response's.
    Response(Box<Settle>),
}

/// Why a body broke off.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The connection that it came from failed, or its sender reset it; the reason goes on to the other side.
    Broken(hyper::Error),
    /// The proxy gave it up.
    GivenUp(outcome::Error),
    /// It was to be read again, and the first reading is still at it.
    Superseded,
}

impl Body {
    /// Without bytes.
    pub(crate) fn empty() -> Self {
        Kind::Empty.into()
    }

    /// These pieces, and then an end, or nothing for ever.
    #[cfg(test)]
    pub(crate) fn scripted(pieces: &[&'static str], ends: bool) -> Self {
        let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes()))).collect();
        Kind::Test(tests::Scripted { frames, ends, told: false }).into()
    }

    /// One that may only be read once the upstream has asked for it.
    pub(crate) fn expect(mut self, expect: Expect) -> Self {
        let body = std::mem::replace(&mut self.kind, Kind::Empty);
        self.kind = Kind::Expect(Box::new(expect::Held::new(body, expect)));
        self
    }

    /// Has the bytes of a request counted, and waited for no longer than the limits say.
    pub(crate) fn counted(mut self, exchange: &Rc<Exchange>, limits: &Limits) -> Self {
        if !self.is_end_stream() {
            let has_length = self.size_hint().exact().is_some();
            self.watched = Watched::Request(upload::Upload::new(exchange, limits, has_length));
        }
        self
    }

    /// Has the connection that a request comes over told when all of it has come.
    pub(crate) fn telling(mut self, reading: Option<Activity>) -> Self {
        if let (Watched::Request(upload), Some(reading)) = (&mut self.watched, reading) {
            upload.tell(reading);
        }
        self
    }

    /// Whoever read it has given up; it is not waited for until somebody reads on.
    fn pause(&mut self) {
        if let Watched::Request(upload) = &mut self.watched {
            upload.pause();
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => self.kind.poll_frame(cx),
        }
    }

    /// Waits a moment for the first bytes, so that they leave in one write (and one TLS record, and one read
    /// of the other side) with the head. A body of unknown length may be a stream whose head is urgent: it does
    /// not wait.
    pub(crate) async fn gather(&mut self) {
        if self.kind.is_end_stream() || self.kind.size_hint().exact().is_none() {
            return;
        }
        let mut next = poll_fn(|cx| self.kind.poll_frame(cx));
        // No timer is made if the bytes are there.
        let first = match poll_fn(|cx| Poll::Ready(next.poll_unpin(cx))).await {
            Poll::Ready(first) => Ok(first),
            Poll::Pending => timeout(GATHER, next).await,
        };
        match first {
            // Of a length that is told, something comes before trailers.
            Ok(Some(Ok(frame))) => self.first = frame.into_data().ok(),
            Ok(Some(Err(error))) => self.kind = Kind::Failed(Some(error)),
            Ok(None) | Err(_) => {}
        }
    }

    /// What is to be settled when this response is over.
    pub(crate) fn settle(&mut self) -> &mut Settle {
        if !matches!(self.watched, Watched::Response(_)) {
            self.watched = Watched::Response(Box::default());
        }
        match &mut self.watched {
            Watched::Response(settle) => settle,
            Watched::Nobody | Watched::Request(_) => unreachable!("set above"),
        }
    }

    /// Whether this is the response of an endpoint with a proxy.
    pub(crate) fn comes_from_mesh(&self) -> bool {
        match &self.watched {
            Watched::Response(settle) => settle.picked.as_ref().is_some_and(|picked| picked.endpoint().meshed),
            Watched::Nobody | Watched::Request(_) => false,
        }
    }

    /// Takes over what was to be settled: what follows is no body.
    pub(crate) fn take_settle(&mut self) -> Box<Settle> {
        match std::mem::replace(&mut self.watched, Watched::Nobody) {
            Watched::Response(settle) => settle,
            Watched::Nobody | Watched::Request(_) => Box::default(),
        }
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, first: None, failed: false, watched: Watched::Nobody }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Kind::Incoming(incoming).into() }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Kind::Full(bytes).into() }
    }
}

impl Kind {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::Broken),
            Self::Replay(reading) => reading.poll_frame(cx),
            Self::Expect(held) => held.poll_frame(cx),
            Self::Failed(error) => Poll::Ready(error.take().map(Err)),
            #[cfg(test)]
            Self::Test(scripted) => scripted.poll_frame(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Replay(reading) => reading.is_end_stream(),
            Self::Expect(held) => held.is_end_stream(),
            Self::Failed(_) => false,
            #[cfg(test)]
            Self::Test(scripted) => scripted.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Replay(reading) => reading.size_hint(),
            Self::Expect(held) => held.size_hint(),
            Self::Failed(_) => SizeHint::default(),
            #[cfg(test)]
            Self::Test(scripted) => scripted.size_hint(),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let given_up = match &this.watched {
            Watched::Response(settle) => settle.given_up(),
            Watched::Nobody | Watched::Request(_) => None,
        };
        let mut frame = match given_up {
            Some(error) => Some(Err(BodyError::GivenUp(error))),
            None => match this.next(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => match &mut this.watched {
                    Watched::Response(settle) => Some(Err(BodyError::GivenUp(ready!(settle.poll_given_up(cx))))),
                    Watched::Request(upload) => Some(Err(BodyError::GivenUp(ready!(upload.poll_late(cx))))),
                    Watched::Nobody => return Poll::Pending,
                },
            },
        };
        frame = match (frame, &mut this.watched) {
            // hyper throws away what it has not written yet when a body fails: head and bytes that the caller is to see.
            // A moment later they are on their way.
            (Some(Err(error)), Watched::Response(settle)) if !this.failed => {
                settle.fail(&error);
                this.failed = true;
                this.kind = Kind::Failed(Some(error));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            (frame, _) => frame,
        };
        match &mut this.watched {
            Watched::Nobody => {}
            Watched::Request(upload) => {
                if let Some(Ok(frame)) = &mut frame {
                    match frame.trailers_mut() {
                        Some(trailers) => headers::sanitize_request_trailers(trailers),
                        None => frame.data_ref().into_iter().for_each(|data| upload.passes(data)),
                    }
                }
                if frame.is_none() || this.kind.is_end_stream() {
                    upload.ended();
                }
            }
            Watched::Response(settle) => match &mut frame {
                Some(Ok(frame)) => {
                    frame.trailers_mut().into_iter().for_each(headers::sanitize_response_trailers);
                    settle.note(frame);
                    if this.kind.is_end_stream() {
                        settle.complete();
                    }
                }
                None => settle.complete(),
                Some(Err(error)) => settle.fail(error),
            },
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.kind.size_hint();
        let first = self.first.as_ref().map_or(0, |data| data.len() as u64);
        // Only bodies of known length are read ahead.
        if first == 0 { rest } else { SizeHint::with_exact(rest.lower() + first) }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // Of a body without bytes (or after the last) hyper does not ask for a frame.
        if let Watched::Response(settle) = &mut self.watched
            && self.first.is_none()
            && self.kind.is_end_stream()
        {
            settle.complete();
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.kind.size_hint()).finish_non_exhaustive()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(_) => f.write_str("the body broke off"),
            Self::GivenUp(_) => f.write_str("the body was given up"),
            Self::Superseded => f.write_str("the body is read anew"),
        }
    }
}

impl StdError for BodyError {
    /// hyper finds the reason of an HTTP/2 reset here and passes it on.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Broken(error) => Some(error),
            Self::GivenUp(error) => Some(error),
            Self::Superseded => None,
        }
    }
}
