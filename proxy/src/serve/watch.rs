//! Watching over a server's connection.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use tokio::time::{Duration, Instant, Sleep, sleep, sleep_until};

use super::{
    flow::{Flow, HalfClosed, Overdue},
    park,
};
use crate::{
    config::Limits,
    lifecycle::{Lifecycle, Stage},
    outcome::{Error, ErrorKind},
    stream::Activity,
};

/// An idle connection is closed this long after new requests are refused: whoever was told to stay away
/// has sent what he was about to send.
const GRACE: Duration = Duration::from_secs(1);
/// How long an idle peer may take to agree to the end of a connection.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// When a connection ends with the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending<'a> {
    life: &'a Lifecycle,
    /// From this stage on each response is its connection's last, and HTTP/2 peers get a GOAWAY.
    last: Stage,
    /// From this stage on, and a moment later, idle connections are closed.
    close: Stage,
}

impl<'a> Ending<'a> {
    /// Of the connections of peers.
    pub(crate) fn inbound(life: &'a Lifecycle) -> Self {
        Self { life, last: Stage::Leaving, close: Stage::Refusing }
    }

    /// Of the connections of the app.
    pub(crate) fn outbound(life: &'a Lifecycle) -> Self {
        Self { life, last: Stage::Closing, close: Stage::Closing }
    }

    /// Whether each response is its connection's last.
    pub(crate) fn has_begun(&self) -> bool {
        self.life.stage() >= self.last
    }

    /// When to tell hyper. HTTP/1.1 has no way to say "no more" but to close, which may cross a
    /// request on its way; HTTP/2 has.
    pub(super) async fn come(self, multiplexed: bool) {
        if multiplexed {
            self.life.reached(self.last).await;
        } else {
            self.life.reached(self.close).await;
            sleep(GRACE).await;
        }
    }
}

/// Why a connection was ended, or ended badly.
#[derive(Debug)]
pub(super) enum Cut {
    /// The headers of a request did not come to an end.
    HeaderTimeout(Error),
    /// Nothing was asked for too long.
    Idle,
    /// A response was given up whose receiver takes nothing of it.
    Overdue,
    /// The caller has ended, and nothing more came that it could have waited for.
    Gone,
    /// It is idle, and may as well be held without hyper.
    Parked,
    /// hyper gave up.
    Broken(hyper::Error),
}

/// Whose connection ends after a request is gone, mostly; but it may have said all that it had to say, and an answer
/// that comes at once still reaches it.
const HALF_CLOSED: Duration = Duration::from_millis(250);
/// The same where the request was its connection's last, by what the caller said. No longer than that: mostly it is gone
/// all the same (a probe or a client that gave up), and its request would keep its place at the app.
const HALF_CLOSED_LAST: Duration = Duration::from_secs(10);

/// What can be done to a connection.
pub(super) trait Connection: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Watch {
    state: Rc<State>,
    multiplexed: bool,
    header_timeout: Duration,
    idle_timeout: Duration,
}

#[derive(Debug)]
struct State {
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    /// Reads, to tell a request that has begun from none.
    activity: Activity,
    /// The response of HTTP/1.1, which has one at a time.
    flow: Rc<Flow>,
    /// How long a caller that has ended is taken to wait for more of the answer.
    half_closed: Cell<Duration>,
}

/// A request under way; the connection is not idle until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    state: Rc<State>,
    flow: Rc<Flow>,
    multiplexed: bool,
}

impl Busy {
    /// Whether others may be under way on the same connection.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed
    }

    pub(super) fn flow(&self) -> &Rc<Flow> {
        &self.flow
    }

    /// The response's body gives a piece.
    pub(crate) fn gives(&self) {
        self.flow.gives();
    }

    /// The response's body has nothing to give for now.
    pub(crate) fn waits(&self) {
        self.flow.waits();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Self { state, flow, .. } = self;
        flow.end();
        state.requests.update(|requests| requests - 1);
        if state.requests.get() == 0 {
            // What was read so far was its body.
            state.activity.clear(false);
            state.idle_since.set(Instant::now());
        }
    }
}

impl Watch {
    pub(super) fn new(limits: &Limits, activity: Activity, multiplexed: bool) -> Self {
        Self {
            state: Rc::new(State {
                requests: Cell::new(0),
                idle_since: Cell::new(Instant::now()),
                activity,
                flow: Rc::default(),
                half_closed: Cell::new(HALF_CLOSED),
            }),
            multiplexed,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
        }
    }

    /// A request's headers have come.
    pub(super) fn begin(&self) -> Busy {
        self.state.activity.clear(true);
        self.state.requests.update(|requests| requests + 1);
        let flow = if self.multiplexed { Rc::default() } else { self.state.flow.clone() };
        Busy { state: self.state.clone(), flow, multiplexed: self.multiplexed }
    }

    /// A request of HTTP/1.1 has begun, which is `whole`, or the `last` of its connection by what the caller says.
    /// A caller that ends afterwards may wait for the answer: for longer, if there was nothing more to come of it.
    pub(super) fn may_be_half_closed(&self, whole: bool, last: bool) {
        if whole {
            self.state.activity.note_whole();
        }
        self.state.half_closed.set(if last { HALF_CLOSED_LAST.min(self.idle_timeout) } else { HALF_CLOSED });
    }

    /// Told of the end of a request's body.
    pub(super) fn reading(&self) -> Activity {
        self.state.activity.clone()
    }

    /// Runs a connection to its end.
    pub(super) async fn over(&self, mut connection: Pin<&mut impl Connection>, ending: Ending<'_>) -> Option<Cut> {
        let mut end = pin!(ending.come(self.multiplexed));
        let (mut asked, mut has_ended) = (false, false);
        let mut timer = None;
        let mut phase = Phase::Busy;
        let mut overdue = Overdue::new(self.idle_timeout);
        let mut half_closed = HalfClosed::default();
        poll_fn(|cx| {
            // Asked once, it wakes this task when the proxy's stage changes; not asked again before, as that costs a lock.
            let look = !asked || ending.life.stage() > Stage::Serving;
            asked = true;
            if look && !has_ended && end.as_mut().poll(cx).is_ready() {
                has_ended = true;
                connection.as_mut().graceful_shutdown();
            }
            loop {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    return Poll::Ready(result.err().map(Cut::Broken));
                }
                phase = self.phase(phase);
                if self.state.activity.is_half_closed() && matches!(phase, Phase::Idle | Phase::Head(_)) {
                    // It has had its last answer, once that is written, which is as slow as it reads.
                    phase = Phase::Leaving(Instant::now() + self.idle_timeout);
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                let parks = self.may_park() && !has_ended;
                let Some(until) = self.until(phase, parks) else {
                    if overdue.poll(&self.state.flow, cx).is_ready() {
                        return Poll::Ready(Some(Cut::Overdue));
                    }
                    if !self.state.activity.is_half_closed() {
                        return Poll::Pending;
                    }
                    return half_closed
                        .poll(&self.state.flow, self.state.half_closed.get(), cx)
                        .map(|()| Some(Cut::Gone));
                };
                if poll_until(&mut timer, until, cx).is_pending() {
                    return Poll::Pending;
                }
                match phase {
                    Phase::Busy => return Poll::Pending,
                    Phase::Head(_) => return Poll::Ready(Some(self.header_timeout())),
                    Phase::Idle if parks && self.idle_until() > Instant::now() => {
                        return Poll::Ready(Some(Cut::Parked));
                    }
                    Phase::Idle => {
                        phase = Phase::Leaving(Instant::now() + FAREWELL);
                        connection.as_mut().graceful_shutdown();
                    }
                    Phase::Leaving(_) => return Poll::Ready(Some(Cut::Idle)),
                }
            }
        })
        .await
    }

    fn phase(&self, before: Phase) -> Phase {
        if self.state.requests.get() > 0 {
            return Phase::Busy;
        }
        // HTTP/2 has bytes that are no requests.
        let begun = !self.multiplexed && self.state.activity.seen();
        match before {
            Phase::Leaving(_) => before,
            Phase::Head(_) if begun => before,
            _ if begun => Phase::Head(Instant::now()),
            _ => Phase::Idle,
        }
    }

    /// Whether nothing is lost if hyper is asked for the connection back, once it is idle: all that it had to say is
    /// written.
    fn may_park(&self) -> bool {
        !self.multiplexed && !self.state.activity.is_blocked()
    }

    /// When it has been idle for too long.
    pub(super) fn idle_until(&self) -> Instant {
        self.state.idle_since.get() + self.idle_timeout
    }

    fn until(&self, phase: Phase, parks: bool) -> Option<Instant> {
        match phase {
            Phase::Busy => None,
            Phase::Head(since) => Some(since + self.header_timeout),
            Phase::Idle if parks => Some(self.idle_until().min(self.state.idle_since.get() + park::AFTER)),
            Phase::Idle => Some(self.idle_until()),
            Phase::Leaving(until) => Some(until),
        }
    }

    fn header_timeout(&self) -> Cut {
        let limit = self.header_timeout.as_millis();
        Cut::HeaderTimeout(Error::new(
            ErrorKind::HeaderTimeout,
            format!("the request's headers were not complete within {limit} ms"),
        ))
    }
}

/// What a connection is at.
#[derive(Clone, Copy)]
enum Phase {
    /// Requests.
    Busy,
    /// A request whose headers are not complete, since then.
    Head(Instant),
    /// Nothing.
    Idle,
    /// Its end, until then.
    Leaving(Instant),
}

/// Waits on one timer for points of time that mostly only move away: then it is not touched before it
/// fires.
pub(crate) fn poll_until(timer: &mut Option<Pin<Box<Sleep>>>, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        if until <= Instant::now() {
            return Poll::Ready(());
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        timer.as_mut().reset(until);
    }
}
