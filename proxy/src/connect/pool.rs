//! Connections to one address that carry HTTP, kept for the next request.
//!
//! What they were made for is fixed: whoever changes address, identities or protocol asks another pool.
//! Credentials change under way: a connection that was made with others than today's is not used again.

mod http2;
mod slots;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use futures_util::future::{Either, LocalBoxFuture, Shared};
use heddle_certs::SpiffeId;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
    ext::Protocol,
};
use hyper_util::rt::TokioIo;
use tokio::{
    task::{spawn_local, yield_now},
    time::{Duration, Instant},
};

pub(crate) use self::http2::MAX_STREAMS;
use self::http2::{Http2, Stream};
pub(crate) use self::slots::{Slot, Slots};
use super::{Carried, Connected, Target, connect, failure};
use crate::{
    body::Body,
    headers::is_plainly_framed,
    identity::Identity,
    outcome::{Error, ErrorKind},
    serve::HYPER_MAX_HEADERS,
};

/// Old connections are replaced even if they are in use all the time, so that new instances behind
/// the same address get their share.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// A connection is not used in the last moments of a certificate's life (of a very short one, its last quarter).
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);
/// Peers close a connection after ten idle minutes; not to meet in the middle, we are earlier.
const MAX_IDLE: Duration = Duration::from_secs(300);
/// A connection that is just given back is free after a turn or two of its task.
const TURNS: u32 = 4;
/// More than any of ours sends, and the least that hyper takes.
const MIN_BUFFER: usize = 8 << 10;

/// A response, or why there is none, with the request if it was not sent.
type Sent = Result<Response<Incoming>, TrySendError<Request<Body>>>;

/// Connections to one target.
pub(crate) struct Pool {
    target: Target,
    who: String,
    identity: Identity,
    idle: RefCell<Vec<Http1>>,
    shared: RefCell<Vec<Rc<Http2>>>,
    /// One HTTP/2 connection is made at a time, for all that wait for it.
    connecting: RefCell<Option<Connecting>>,
    /// Set when the target changed: what is under way ends, nothing is kept.
    retired: Cell<bool>,
}

type Connecting = Shared<LocalBoxFuture<'static, Result<Rc<Http2>, Error>>>;

/// How to make a connection, as policy now says.
#[derive(Clone)]
pub(crate) struct Dial {
    /// For TCP and TLS.
    pub(crate) timeout: Duration,
    /// Unused connections are dropped after this.
    pub(crate) idle: Duration,
    /// Of the cluster; an app has none.
    pub(crate) slots: Option<Rc<Slots>>,
    /// Largest header list of a response.
    pub(crate) max_header_bytes: u32,
    /// Most headers of a response.
    pub(crate) max_headers: usize,
}

/// What is known of a connection.
struct Facts {
    peer: Option<SpiffeId>,
    epoch: u64,
    /// Not to be used from then on.
    until: Cell<Instant>,
    used: Cell<Instant>,
    slot: Option<Slot>,
}

struct Http1 {
    sender: http1::SendRequest<Body>,
    facts: Facts,
}

/// A connection in use by one request.
pub(crate) struct Lease(Kind);

enum Kind {
    Http1(Http1, Rc<Pool>),
    Http2(Stream),
}

/// What was found out about the connection that a request goes over.
pub(crate) struct Via<'a> {
    /// Verified identity of the other end.
    pub(crate) peer: Option<&'a SpiffeId>,
    /// How long it took to make it, if it was made for this request.
    pub(crate) connect: Option<Duration>,
    /// How long nobody has used it.
    pub(crate) idle: Duration,
}

impl Pool {
    /// Without connections.
    pub(crate) fn new(target: Target, identity: &Identity) -> Rc<Self> {
        Rc::new(Self {
            who: target.address.to_string(),
            target,
            identity: identity.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            connecting: RefCell::default(),
            retired: Cell::new(false),
        })
    }

    /// Whom it leads to.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends a request and awaits its response's headers. The response's body holds the connection. A connection
    /// that turns out to have been closed before the request was sent is replaced without a word.
    pub(crate) async fn send(
        self: &Rc<Self>,
        mut request: Box<Request<Body>>,
        carried: Carried,
        dial: &Dial,
        mut on_connection: impl FnMut(&Via<'_>, &Request<Body>),
    ) -> Result<Response<Body>, Error> {
        loop {
            let (mut lease, connect) = self.lease(carried, dial).await?;
            if request.extensions().get::<Protocol>().is_some() && !lease.takes_extended_connect() {
                let detail = format!("{} does not offer extended CONNECT (RFC 8441)", self.who);
                return Err(Error::new(ErrorKind::UpgradeRefused, detail));
            }
            let facts = lease.facts();
            on_connection(&Via { peer: facts.peer.as_ref(), connect, idle: facts.used.get().elapsed() }, &request);
            let mut error = match lease.send(*request).await {
                Ok(response) => {
                    if self.target.mesh.is_some() && is_expired(&response) {
                        lease.facts().until.set(Instant::now());
                    }
                    if !is_plainly_framed(response.headers()) {
                        let detail = format!("{}: a transfer coding other than chunked", self.who);
                        return Err(Error::new(ErrorKind::UpstreamProtocol, detail).after_send());
                    }
                    let mut response = response.map(Body::from);
                    response.body_mut().settle().lease = Some(lease);
                    return Ok(response);
                }
                Err(error) => error,
            };
            request = match error.take_message() {
                Some(request) if connect.is_none() => Box::new(request),
                // A new connection that fails at once would do so again.
                Some(_) => return Err(failure::unsent(error.error(), &self.who)),
                None => return Err(failure::sent(error.error(), &self.who)),
            };
        }
    }

    /// A connection, and how long it took if it is new.
    async fn lease(self: &Rc<Self>, carried: Carried, dial: &Dial) -> Result<(Lease, Option<Duration>), Error> {
        match carried {
            Carried::Http1 => {
                let (connection, took) = match self.idle_http1(dial.idle) {
                    Some(connection) => (connection, None),
                    // In a box, as is what else is rare: its future is large, and would be moved with each request.
                    None => Box::pin(self.make_http1(dial)).await?,
                };
                Ok((Lease(Kind::Http1(connection, self.clone())), took))
            }
            Carried::Http2 => {
                let (stream, took) = self.stream(dial).await?;
                Ok((Lease(Kind::Http2(stream)), took))
            }
            Carried::Tcp => Err(Error::new(ErrorKind::Internal, "opaque connections are not pooled")),
        }
    }

    /// The connection used last, which is the least likely to be closed.
    fn idle_http1(&self, idle: Duration) -> Option<Http1> {
        let now = Instant::now();
        let epoch = self.epoch();
        let mut all = self.idle.borrow_mut();
        let mut at = all.len();
        while let Some(index) = at.checked_sub(1) {
            at = index;
            let connection = &all[index];
            if connection.sender.is_closed() || !connection.facts.is_usable(now, epoch, idle) {
                all.remove(index);
            } else if connection.sender.is_ready() {
                return Some(all.remove(index));
            }
        }
        None
    }

    async fn make_http1(&self, dial: &Dial) -> Result<(Http1, Option<Duration>), Error> {
        let slot = match &dial.slots {
            None => None,
            Some(slots) => match slots.take() {
                Some(slot) => Some(slot),
                None => match self.wait_http1(slots, dial).await? {
                    Waited::Slot(slot) => Some(slot),
                    Waited::Connection(connection) => return Ok((*connection, None)),
                },
            },
        };
        let Connected { stream, peer, expires, epoch, took } =
            connect(&self.identity, &self.target, Carried::Http1, dial.timeout).await?;
        let mut builder = http1::Builder::new();
        if dial.max_headers != HYPER_MAX_HEADERS {
            builder.max_headers(dial.max_headers);
        }
        let (sender, connection) = builder
            .max_header_size(dial.max_header_bytes as usize)
            .max_buf_size(MIN_BUFFER + dial.max_header_bytes as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure::unsent(&error, &self.who))?;
        let who = self.who.clone();
        spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, who, "HTTP/1.1 connection ended");
            }
        });
        Ok((Http1 { sender, facts: Facts::new(peer, epoch, expires, slot) }, Some(took)))
    }

    /// Waits its turn for a connection, where the cluster may have no more.
    async fn wait_http1(&self, slots: &Rc<Slots>, dial: &Dial) -> Result<Waited, Error> {
        if let Some(slot) = slots.make_room(Some(self)) {
            return Ok(Waited::Slot(slot));
        }
        let Some(_pending) = slots.limit.pending() else {
            return Err(Error::new(ErrorKind::Overloaded, "as many connections and waiting requests as policy allows"));
        };
        loop {
            // Before looking, so as not to miss one.
            let freed = slots.freed();
            for _ in 0..TURNS {
                if let Some(connection) = self.idle_http1(dial.idle) {
                    return Ok(Waited::Connection(Box::new(connection)));
                }
                if self.idle.borrow().is_empty() {
                    break;
                }
                yield_now().await;
            }
            if let Some(slot) = slots.take().or_else(|| slots.make_room(Some(self))) {
                return Ok(Waited::Slot(slot));
            }
            freed.await;
        }
    }

    /// Of the credentials that connections must have been made with.
    fn epoch(&self) -> u64 {
        match &self.target.mesh {
            Some(_) => self.identity.epoch(),
            None => 0,
        }
    }

    /// The target has changed: nothing is kept any longer.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Drops what is unused for too long, too old or closed.
    pub(crate) fn sweep(&self, idle: Duration) {
        let now = Instant::now();
        let epoch = self.epoch();
        let mut all = self.idle.borrow_mut();
        all.retain(|connection| !connection.sender.is_closed() && connection.facts.is_usable(now, epoch, idle));
        drop(all);
        self.shared_http2(idle);
    }

    /// Since when the connection has been unused that has been for the longest time.
    fn longest_unused(&self, http1: bool) -> Option<Instant> {
        let idle = self.idle.borrow();
        let shared = self.shared.borrow();
        let http2 = shared.iter().filter(|connection| connection.is_unused()).map(|one| one.facts.used.get());
        idle.iter().filter(|_| http1).map(|one| one.facts.used.get()).chain(http2).min()
    }

    /// Drops the connections that have been unused since then.
    fn drop_unused(&self, http1: bool, since: Instant) {
        self.idle.borrow_mut().retain(|one| !http1 || one.facts.used.get() > since);
        self.shared.borrow_mut().retain(|one| !one.is_unused() || one.facts.used.get() > since);
    }

    /// How many connections it keeps.
    pub(crate) fn len(&self) -> usize {
        self.idle.borrow().len() + self.shared.borrow().len()
    }
}

enum Waited {
    Slot(Slot),
    Connection(Box<Http1>),
}

impl Lease {
    fn facts(&self) -> &Facts {
        match &self.0 {
            Kind::Http1(connection, _) => &connection.facts,
            Kind::Http2(Stream(connection)) => &connection.facts,
        }
    }

    fn takes_extended_connect(&self) -> bool {
        match &self.0 {
            Kind::Http1(..) => false,
            Kind::Http2(stream) => stream.takes_extended_connect(),
        }
    }

    /// Hands the request over at once: it is large, and not kept in the future.
    fn send(&mut self, request: Request<Body>) -> impl Future<Output = Sent> + use<> {
        match &mut self.0 {
            Kind::Http1(connection, _) => Either::Left(connection.sender.try_send_request(request)),
            Kind::Http2(stream) => Either::Right(stream.send(request)),
        }
    }

    /// The response has come in full: the connection is for the next one.
    pub(crate) fn give_back(self) {
        let Kind::Http1(connection, pool) = self.0 else { return };
        if pool.retired.get() || connection.sender.is_closed() {
            return;
        }
        connection.facts.used.set(Instant::now());
        let slots = connection.facts.slot.as_ref().map(|slot| slot.slots().clone());
        pool.idle.borrow_mut().push(connection);
        if let Some(slots) = slots {
            slots.unused();
        }
    }
}

impl Facts {
    fn new(peer: Option<SpiffeId>, epoch: u64, expires: Option<Instant>, slot: Option<Slot>) -> Self {
        let now = Instant::now();
        let oldest = now + MAX_AGE;
        let until = expires.map_or(oldest, |expires| oldest.min(expires - EXPIRY_MARGIN.min((expires - now) / 4)));
        Self { peer, epoch, until: Cell::new(until), used: Cell::new(now), slot }
    }

    fn is_usable(&self, now: Instant, epoch: u64, idle: Duration) -> bool {
        self.epoch == epoch
            && now < self.until.get()
            && now.saturating_duration_since(self.used.get()) < idle.min(MAX_IDLE)
    }
}

/// The peer has refused the request because this proxy's certificate has expired: by its clock, which is not ours.
fn is_expired(response: &Response<Incoming>) -> bool {
    ErrorKind::said(response.headers()) == Some(ErrorKind::CertificateExpired)
}
