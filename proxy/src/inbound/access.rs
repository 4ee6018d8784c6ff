//! Which port is called, and whether the caller may.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::SystemTime,
};

use http::{HeaderValue, Method, header::USER_AGENT, request::Parts};
use tokio::{sync::Notify, time::Instant};

use super::{caller::Caller, trust::Proof};
use crate::{
    authorize::{AtAccept, Authorizer, Peer},
    exchange::Exchange,
    headers::{self, Origin},
    identity::Credentials,
    listener::Arrival,
    open::Open,
    outcome::{Authorization, Direction, Error, ErrorKind, RequestOutcome},
    serve,
    snapshot::{ClusterName, InboundPolicy, InboundPort, Protocol, ServiceName, Snapshot},
    trace_context::TraceContext,
    worker::Worker,
};

/// One inbound connection.
pub(crate) struct Connection {
    worker: Rc<Worker>,
    arrival: Rc<Arrival>,
    caller: Caller,
    /// The port asked for by a peer proxy. In plaintext the address dialled says it; where that is our own
    /// listener's, it is not known before a request names a host.
    wanted: Option<ClusterName>,
    /// The port that all requests are for, as of this version of what is known of the mesh.
    port: RefCell<Option<(u64, Rc<Port>)>>,
    /// What the app is told of the caller, with these credentials of its own.
    origin: RefCell<Option<(u64, Origin)>>,
    /// What was decided at accept, and by which policy.
    decided: RefCell<Option<(Arc<InboundPolicy>, u16, AtAccept)>>,
    /// Requests under way; policy may change.
    open: RefCell<Vec<Weak<Exchange>>>,
    /// Tells opaque bytes that policy has changed.
    pub(super) policy_changed: Notify,
    /// Why the caller is no longer believed to be who it is.
    distrusted: RefCell<Option<Error>>,
}

/// The connections of a worker, for when policy changes.
pub(crate) type Connections = Open<Connection>;

/// What is believed has changed: where that is true of inbound policy, what is under way and no longer allowed ends.
pub(crate) async fn recheck(connections: &Connections, before: &Snapshot, now: &Snapshot) {
    // Any of them may decide a connection: that of another service which leads to the same app, too.
    let same = before.inbound.len() == now.inbound.len()
        && before.inbound.values().zip(now.inbound.values()).all(|(before, now)| Arc::ptr_eq(before, now));
    if !same {
        connections.each(Connection::recheck).await;
    }
}

/// A port of a service that this workload serves, as policy now describes it.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(super) name: ClusterName,
    pub(super) policy: Arc<InboundPolicy>,
    pub(super) protocol: Protocol,
    /// Where the app listens.
    pub(super) app: SocketAddr,
    permissive: bool,
    /// Ports of this workload's services that lead to the same place: what is forbidden there is here, too.
    others: Vec<(Arc<InboundPolicy>, u16)>,
}

impl Connection {
    /// Begins, and has changes of policy told.
    pub(super) fn open(
        worker: Rc<Worker>,
        arrival: Rc<Arrival>,
        caller: Caller,
        wanted: Option<ClusterName>,
    ) -> Rc<Self> {
        let connection = Rc::new(Self {
            worker,
            arrival,
            caller,
            wanted,
            port: RefCell::default(),
            origin: RefCell::default(),
            decided: RefCell::default(),
            open: RefCell::default(),
            policy_changed: Notify::new(),
            distrusted: RefCell::default(),
        });
        connection.worker.inbound.add(&connection);
        connection
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    pub(super) fn arrival(&self) -> &Rc<Arrival> {
        &self.arrival
    }

    /// A request begins, and with it the span that it is.
    pub(super) fn begin(&self, parts: &Parts, grpc: bool) -> (Rc<Exchange>, TraceContext) {
        let rng = &mut *self.worker.rng.borrow_mut();
        let span = TraceContext::extract(&parts.headers, &self.worker.common.sampler, rng).child(rng);
        let line = (parts.version, parts.method.clone(), parts.uri.clone());
        let mut outcome =
            RequestOutcome::new(Direction::Inbound, line, self.arrival.peer, SystemTime::now(), span.clone());
        outcome.grpc = grpc;
        outcome.authority = serve::authority(parts);
        outcome.user_agent = parts.headers.get(USER_AGENT).cloned();
        outcome.peer = self.caller.id().cloned();
        if let Some(wanted) = &self.wanted {
            outcome.service = Some(wanted.service.clone());
            outcome.port = wanted.port;
        }
        let exchange = Exchange::begin(outcome, &self.worker.sink);
        let mut open = self.open.borrow_mut();
        if open.len() == open.capacity() {
            open.retain(|exchange| exchange.strong_count() > 0);
        }
        open.push(Rc::downgrade(&exchange));
        (exchange, span)
    }

    /// The port that is called; `authority` says which in plaintext, where nothing else does.
    pub(super) fn port(&self, authority: &HeaderValue) -> Result<Rc<Port>, Error> {
        let discovery = &self.worker.common.discovery;
        // Before the question: what changes meanwhile is asked for the next time.
        let version = discovery.version();
        if let Some((of, port)) = &*self.port.borrow()
            && *of == version
        {
            return Ok(port.clone());
        }
        let port = Rc::new(self.find_port(&discovery.snapshot(), authority)?);
        if self.wanted.is_some() {
            *self.port.borrow_mut() = Some((version, port.clone()));
        }
        Ok(port)
    }

    fn find_port(&self, snapshot: &Snapshot, authority: &HeaderValue) -> Result<Port, Error> {
        match &self.wanted {
            Some(wanted) => find(snapshot, wanted),
            None if self.caller.id().is_some() => {
                Err(Error::new(ErrorKind::NotServed, "the caller's handshake names no port of a service"))
            }
            None if self.arrival.redirected => find_dialled(snapshot, self.arrival.local),
            None => find_by_host(snapshot, authority),
        }
    }

    /// The port at which a request was let in, as policy describes it now. Of plaintext that was sent to the listener
    /// itself only the request said which; that is not asked again, as its target and its `Host` may have differed.
    fn port_again(&self, name: &ClusterName) -> Result<Rc<Port>, Error> {
        if self.wanted.is_some() || self.caller.id().is_some() || self.arrival.redirected {
            return self.only_port();
        }
        find(&self.worker.common.discovery.snapshot(), name).map(Rc::new)
    }

    /// The only one that it can be, where no request says more.
    pub(super) fn only_port(&self) -> Result<Rc<Port>, Error> {
        self.port(&HeaderValue::from_static(""))
    }

    /// Whether a request may come in; noted in either case.
    pub(super) fn authorize(&self, port: &Port, parts: &Parts, exchange: &Exchange) -> Result<(), Error> {
        exchange.note(|outcome| {
            outcome.service = Some(port.name.service.clone());
            outcome.port = port.name.port;
        });
        self.check_certificate()?;
        let said = self.judge(port, &parts.method, parts.uri.path())?;
        let result = self.verdict(port, &said);
        exchange.note(|outcome| outcome.authorization = Some(said));
        result
    }

    fn judge(&self, port: &Port, method: &Method, path: &str) -> Result<Authorization, Error> {
        match &self.caller {
            Caller::Meshed { .. } => {}
            Caller::Unmeshed if port.is_exempt(method, path) => {
                return Ok(Authorization { allowed: true, policy: None, rule: None });
            }
            Caller::Unmeshed => self.check_plaintext(port)?,
        }
        let peer = self.as_peer(port);
        let mut decided = self.decided.borrow_mut();
        let known =
            decided.as_ref().is_some_and(|(policy, at, _)| Arc::ptr_eq(policy, &port.policy) && *at == port.name.port);
        if !known {
            *decided = Some((port.policy.clone(), port.name.port, port.policy.authorizer.at_accept(&peer)));
        }
        let said = match decided.as_ref() {
            Some((_, _, AtAccept::Allow(said) | AtAccept::Deny(said))) => said.clone(),
            Some((_, _, AtAccept::PerRequest)) | None => port.policy.authorizer.at_request(&peer, method, path),
        };
        let elsewhere = self.denied_elsewhere(port, |authorizer, peer| authorizer.at_request(peer, method, path));
        Ok(elsewhere.filter(|_| said.allowed).unwrap_or(said))
    }

    /// What a DENY rule for another port that leads to the same place says: which name the caller asks by is its
    /// own choice.
    fn denied_elsewhere(
        &self,
        port: &Port,
        judge: impl Fn(&Authorizer, &Peer<'_>) -> Authorization,
    ) -> Option<Authorization> {
        port.others.iter().find_map(|(policy, number)| {
            let said = judge(&policy.authorizer, &Peer { port: *number, ..self.as_peer(port) });
            // Without a policy it is that nobody has allowed it.
            (!said.allowed && said.policy.is_some()).then_some(said)
        })
    }

    /// Whether opaque bytes may come in, and what was said.
    pub(super) fn authorize_opaque(&self, port: &Port) -> Result<Authorization, Error> {
        if self.caller.id().is_none() {
            self.check_plaintext(port)?;
        }
        let http = matches!(port.protocol, Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc);
        if http || port.policy.authorizer.has_request_rules(port.name.port) {
            let why = if http { "is declared HTTP" } else { "has rules that ask for method or path" };
            return Err(Error::new(ErrorKind::OpaqueRefused, format!("{} {why}", port.name)));
        }
        let said = port.policy.authorizer.at_opaque(&self.as_peer(port));
        let elsewhere = self.denied_elsewhere(port, Authorizer::at_opaque);
        let said = elsewhere.filter(|_| said.allowed).unwrap_or(said);
        self.verdict(port, &said)?;
        Ok(said)
    }

    /// Of what begins now; what began before is let finish.
    pub(super) fn check_certificate(&self) -> Result<(), Error> {
        if let Some(error) = &*self.distrusted.borrow() {
            return Err(error.clone());
        }
        match &self.caller {
            Caller::Meshed { id, expires, .. } if Instant::now() >= *expires => {
                Err(Error::new(ErrorKind::CertificateExpired, format!("the certificate of {id} has expired")))
            }
            Caller::Meshed { .. } | Caller::Unmeshed => Ok(()),
        }
    }

    /// What the caller proved itself with.
    pub(super) fn proof(&self) -> Option<&Proof> {
        match &self.caller {
            Caller::Meshed { proof, .. } => Some(proof),
            Caller::Unmeshed => None,
        }
    }

    /// Whether what has begun may go on.
    pub(super) fn still_trusted(&self) -> Result<(), Error> {
        match &*self.distrusted.borrow() {
            Some(error) => Err(Error { kind: ErrorKind::Denied, ..error.clone() }),
            None => Ok(()),
        }
    }

    /// Nothing begins any more, and what is under way ends.
    pub(super) fn distrust(&self, error: &Error) {
        *self.distrusted.borrow_mut() = Some(error.clone());
        self.policy_changed.notify_waiters();
        let Err(ended) = self.still_trusted() else { return };
        for exchange in self.open.borrow().iter().filter_map(Weak::upgrade) {
            exchange.interrupt(ended.clone().after_send());
        }
    }

    fn check_plaintext(&self, port: &Port) -> Result<(), Error> {
        if port.permissive {
            return Ok(());
        }
        Err(Error::new(ErrorKind::PlaintextRefused, format!("{} takes only callers with a sidecar", port.name)))
    }

    fn verdict(&self, port: &Port, said: &Authorization) -> Result<(), Error> {
        if said.allowed {
            return Ok(());
        }
        let who = self.caller.id().map_or_else(|| "unauthenticated callers".to_owned(), ToString::to_string);
        let detail = match (&said.policy, &said.rule) {
            (Some(policy), Some(rule)) => format!("{policy} rule {rule} denies {who}"),
            (Some(policy), None) => format!("{policy} denies {who}"),
            (None, _) => format!("no rule of {} allows {who}, and the mesh's default is to deny", port.name.service),
        };
        Err(Error::new(ErrorKind::Denied, detail))
    }

    fn as_peer(&self, port: &Port) -> Peer<'_> {
        Peer { id: self.caller.id(), ip: self.arrival.peer.ip(), port: port.name.port }
    }

    /// Takes off a request what its caller must not say, and says who it is.
    pub(super) fn sanitize(&self, parts: &mut Parts) {
        let identity = &self.worker.common.identity;
        let epoch = identity.epoch();
        let mut origin = self.origin.borrow_mut();
        let (_, origin) = match &mut *origin {
            Some(known) if known.0 == epoch => known,
            other => other.insert((epoch, self.make_origin(identity.current().as_deref()))),
        };
        headers::sanitize_inbound(&mut parts.headers, origin);
    }

    fn make_origin(&self, credentials: Option<&Credentials>) -> Origin {
        let own = credentials.map(|credentials| credentials.svid.id());
        let scheme = if self.caller.id().is_some() { "https" } else { "http" };
        Origin::new(self.caller.hop(), self.arrival.peer.ip(), scheme, own)
    }

    fn recheck(&self) {
        self.policy_changed.notify_waiters();
        for exchange in self.open.borrow().iter().filter_map(Weak::upgrade) {
            let asked = exchange.read(|outcome| {
                outcome.authorization.as_ref()?;
                let name = ClusterName { service: outcome.service.clone()?, port: outcome.port };
                Some((name, outcome.method.clone(), outcome.uri.path().to_owned()))
            });
            let Some((name, method, path)) = asked.flatten() else { continue };
            let result = self.port_again(&name).and_then(|port| {
                let said = self.judge(&port, &method, &path)?;
                self.verdict(&port, &said)
            });
            if let Err(error) = result {
                exchange.interrupt(error.after_send());
            }
        }
    }
}

impl Port {
    /// Whether this is a probe that needs nothing.
    fn is_exempt(&self, method: &Method, path: &str) -> bool {
        matches!(*method, Method::GET | Method::HEAD)
            && self.policy.probe_exemptions.iter().any(|(port, exempt)| *port == self.name.port && exempt == path)
    }
}

/// The port of a service that the app serves at an address that somebody without a proxy dialled. Where several
/// services have that port, the strictest decides: the caller has no way to say which it means.
fn find_dialled(snapshot: &Snapshot, dialled: SocketAddr) -> Result<Port, Error> {
    let here = served(snapshot).filter(|(_, _, port)| port.app.is_some_and(|app| app.port() == dialled.port()));
    let strictest = here.min_by_key(|(policy, number, port)| (port.permissive, policy.service.clone(), *number));
    match strictest {
        Some((policy, number, _)) => {
            let port = find(snapshot, &ClusterName { service: policy.service.clone(), port: number })?;
            // As it was dialled: what the app has bound to loopback alone stays there.
            Ok(Port { app: dialled, ..port })
        }
        None if snapshot.inbound.is_empty() => Err(Error::new(ErrorKind::NotReady, "this proxy has no policy yet")),
        None => {
            let detail = format!("this workload serves no service at port {} of its app", dialled.port());
            Err(Error::new(ErrorKind::NotServed, detail))
        }
    }
}

/// All ports of this workload.
fn served(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<InboundPolicy>, u16, &InboundPort)> {
    snapshot.inbound.values().flat_map(|policy| policy.ports.iter().map(move |(number, port)| (policy, *number, port)))
}

fn find(snapshot: &Snapshot, wanted: &ClusterName) -> Result<Port, Error> {
    if snapshot.inbound.is_empty() {
        return Err(Error::new(ErrorKind::NotReady, "this proxy has no policy yet"));
    }
    let not_served = || Error::new(ErrorKind::NotServed, format!("this workload does not serve {wanted}"));
    let policy = snapshot.inbound.get(&wanted.service).ok_or_else(not_served)?;
    let port = policy.ports.get(&wanted.port).ok_or_else(not_served)?;
    let app = port.app.ok_or_else(not_served)?;
    let same_place = |other: &InboundPort| other.app == Some(app) && !std::ptr::eq(other, port);
    let others = || served(snapshot).filter(|(.., other)| same_place(other));
    Ok(Port {
        name: wanted.clone(),
        policy: policy.clone(),
        protocol: port.protocol,
        app,
        permissive: port.permissive && others().all(|(.., other)| other.permissive),
        others: others().map(|(policy, number, _)| (policy.clone(), number)).collect(),
    })
}

/// Where no redirection tells the port: the one that `Host` names, or the only one. Whoever names another
/// port gets that port's policy.
fn find_by_host(snapshot: &Snapshot, authority: &HeaderValue) -> Result<Port, Error> {
    let mut ports = served(snapshot).filter(|(_, _, port)| port.app.is_some());
    let name = |(policy, port, _): (&Arc<InboundPolicy>, u16, &InboundPort)| ClusterName {
        service: policy.service.clone(),
        port,
    };
    if let (Some(only), None) = (ports.next(), ports.next()) {
        return find(snapshot, &name(only));
    }
    let dialled = authority.to_str().ok().and_then(|authority| authority.parse::<crate::config::DialName>().ok());
    let named = dialled.and_then(|dialled| {
        let mut labels = dialled.host.split('.');
        let (service, namespace) = (labels.next()?.to_owned(), labels.next().map(str::to_owned));
        served(snapshot)
            .filter(|(policy, port, _)| {
                let ServiceName { namespace: own, name } = &policy.service;
                *port == dialled.port
                    && **name == *service
                    && namespace.as_ref().is_none_or(|namespace| **own == **namespace)
            })
            .map(name)
            .next()
    });
    match named {
        Some(named) => find(snapshot, &named),
        None if snapshot.inbound.is_empty() => Err(Error::new(ErrorKind::NotReady, "this proxy has no policy yet")),
        None => Err(Error::new(ErrorKind::NotServed, "Host names none of the ports that this workload serves")),
    }
}
