//! Responses whose receiver takes nothing of them: hyper then asks for no more of the body, so nothing that the body
//! itself looks at (the request's deadline, a change of policy) would ever end it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Duration, Instant, Sleep};

use super::watch::{Busy, poll_until};
use crate::{
    body::Settle,
    exchange::Exchange,
    outcome::{Error, ErrorKind},
};

/// How a response flows.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The body has given a piece, and was not asked for the next since.
    untaken: Cell<bool>,
    /// How many it has given.
    pieces: Cell<u32>,
    /// When it must be over, and what it is if it is not.
    deadline: Cell<Option<(Instant, ErrorKind)>>,
    exchange: RefCell<Weak<Exchange>>,
}

impl Flow {
    /// A response begins.
    pub(super) fn begin(&self, settle: &Settle) {
        self.deadline.set(settle.deadline.as_ref().map(|(timer, kind)| (timer.deadline(), *kind)));
        *self.exchange.borrow_mut() = settle.exchange.as_ref().map(Rc::downgrade).unwrap_or_default();
    }

    /// The body gives a piece.
    pub(super) fn gives(&self) {
        self.untaken.set(true);
        self.pieces.set(self.pieces.get().wrapping_add(1));
    }

    /// The body has nothing to give: it is not the receiver who is waited for.
    pub(super) fn waits(&self) {
        self.untaken.set(false);
    }

    /// The response is over.
    pub(super) fn end(&self) {
        self.untaken.set(false);
        self.deadline.set(None);
        *self.exchange.borrow_mut() = Weak::new();
    }
}

/// Ends a response that nobody takes.
#[derive(Debug)]
pub(super) struct Overdue {
    /// For so long nothing may be taken of it.
    limit: Duration,
    /// Pieces given when last looked, and since when it is no more.
    seen: Option<(u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Overdue {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, seen: None, timer: None }
    }

    /// Ready when it has to end; noted then as what became of the request. To be asked by the task that would ask the
    /// body for more, after it had its turn. Costs nothing while the response flows.
    pub(super) fn poll(&mut self, flow: &Flow, cx: &mut Context<'_>) -> Poll<()> {
        if !flow.untaken.get() {
            self.seen = None;
            return Poll::Pending;
        }
        let exchange = flow.exchange.borrow().upgrade();
        let interrupted = exchange.as_ref().map_or(Poll::Pending, |exchange| exchange.poll_interrupted(cx));
        let error = match interrupted {
            Poll::Ready(error) => error,
            Poll::Pending => ready!(self.poll_time(flow, cx)),
        };
        if let Some(exchange) = exchange {
            exchange.note(|outcome| outcome.error = Some(error.after_send()));
        }
        Poll::Ready(())
    }

    fn poll_time(&mut self, flow: &Flow, cx: &mut Context<'_>) -> Poll<Error> {
        let pieces = flow.pieces.get();
        let since = match self.seen {
            Some((seen, since)) if seen == pieces => since,
            _ => self.seen.insert((pieces, Instant::now())).1,
        };
        let stalled = since + self.limit;
        let deadline = flow.deadline.get().filter(|(at, _)| *at < stalled);
        ready!(poll_until(&mut self.timer, deadline.map_or(stalled, |(at, _)| at), cx));
        Poll::Ready(match deadline {
            Some((_, kind)) => Error::new(kind, "the response was not taken in time"),
            None => {
                let detail = format!("nothing of the response was taken for {} s", self.limit.as_secs());
                Error::new(ErrorKind::RequestTimeout, detail)
            }
        })
    }
}

/// Ends a response whose receiver has ended its side, once nothing of it has come for a while: a client that waits for
/// its answer so cannot be told from one that is gone, before something is written to it.
#[derive(Debug, Default)]
pub(super) struct HalfClosed {
    /// Pieces given when last looked, and since when it is no more.
    seen: Option<(u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl HalfClosed {
    /// Ready when it has to end. To be asked once the receiver has ended.
    pub(super) fn poll(&mut self, flow: &Flow, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if flow.untaken.get() {
            // There is more for it to take.
            self.seen = None;
            return Poll::Pending;
        }
        let pieces = flow.pieces.get();
        let since = match self.seen {
            Some((seen, since)) if seen == pieces => since,
            _ => self.seen.insert((pieces, Instant::now())).1,
        };
        poll_until(&mut self.timer, since + limit, cx)
    }
}

/// Runs hyper's tasks for the streams of one HTTP/2 connection, each with a look at its response.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    limit: Duration,
    /// Of the request that hyper is about to make a task for.
    next: Rc<RefCell<Option<Rc<Flow>>>>,
}

impl Streams {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, next: Rc::default() }
    }

    /// The next task is this request's.
    pub(super) fn begin(&self, busy: &Busy) {
        *self.next.borrow_mut() = Some(busy.flow().clone());
    }
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        let Some(flow) = self.next.take() else {
            tokio::task::spawn_local(future);
            return;
        };
        tokio::task::spawn_local(Watched { future, flow, overdue: Overdue::new(self.limit) });
    }
}

pin_project! {
    /// hyper's task for a stream. (No async block: that would have twice its size, for a move of what it is made from.)
    struct Watched<F> {
        #[pin]
        future: F,
        flow: Rc<Flow>,
        overdue: Overdue,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        match this.future.poll(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            // Dropped in the middle, the stream is reset.
            Poll::Pending => this.overdue.poll(this.flow, cx),
        }
    }
}
