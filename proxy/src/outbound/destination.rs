//! What a connection is meant for, and what it speaks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use tokio::time::{Duration, Instant};

use crate::{
    cluster::Cluster,
    config::DialName,
    connect::Carried,
    detect::{self, Detected},
    discovery::{Discovery, InUse, Mark, Resolved},
    learned::{Because, Found, LeadsTo, Speaks},
    outcome::{Error, ErrorKind},
    snapshot::{ClusterName, Protocol, Service, ServicePort},
    stream::Stream,
    worker::Worker,
};

/// What a name leads to.
pub(super) enum Destination {
    /// A port of a service, which the service may not have; of this instance, if its own address was dialled.
    Service { service: Arc<Service>, port: u16, instance: Option<SocketAddr> },
    /// Outside the mesh, where it may be called.
    Outside(DialName),
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http(Carried),
    Opaque,
    /// Nothing yet; the server may be the one to speak first.
    Silent,
    /// The app closed it at once.
    Nothing,
}

/// What a name leads to, as discovery knows it.
pub(super) async fn resolve(worker: &Worker, name: &DialName) -> Result<Destination, Error> {
    Ok(match worker.common.discovery.resolve(name).await? {
        Resolved::Service { service, port, instance } => Destination::Service { service, port, instance },
        Resolved::Outside => Destination::Outside(name.clone()),
    })
}

/// A name that connections are made for, and what it leads to: asked anew when what is known of the mesh has changed.
pub(super) struct Name {
    pub(super) name: DialName,
    /// As it is shown.
    pub(super) text: Arc<str>,
    kept: RefCell<Option<(u64, Rc<Destination>, Mark)>>,
}

impl Name {
    pub(super) fn new(name: DialName) -> Rc<Self> {
        let text = name.to_string().into();
        Rc::new(Self { name, text, kept: RefCell::default() })
    }

    /// As [`resolve`].
    pub(super) async fn resolve(&self, worker: &Worker, now: Instant) -> Result<Rc<Destination>, Error> {
        let discovery = &worker.common.discovery;
        // Before the question: what changes meanwhile is asked for the next time.
        let version = discovery.version();
        if let Some((of, destination, mark)) = &*self.kept.borrow()
            && *of == version
        {
            discovery.used(mark, now);
            return Ok(destination.clone());
        }
        let destination = Rc::new(resolve(worker, &self.name).await?);
        *self.kept.borrow_mut() = discovery.marker(&self.name).map(|mark| (version, destination.clone(), mark));
        Ok(destination)
    }

    /// Keeps it from being forgotten; to be asked once it was resolved.
    pub(super) fn keep(&self, discovery: &Discovery) -> Option<InUse> {
        match &*self.kept.borrow() {
            Some((version, _, mark)) if *version == discovery.version() => Some(discovery.keep_marked(mark)),
            Some(_) | None => discovery.keep(&self.name),
        }
    }
}

/// Names that a worker remembers at most, of each kind.
const MOST: usize = 1024;

/// The names that connections of the app were made for lately: the next connection need not look them up again.
#[derive(Default)]
pub(crate) struct Names {
    captured: RefCell<HashMap<SocketAddr, Rc<Name>>>,
    upstream: RefCell<HashMap<Arc<DialName>, Rc<Name>>>,
    /// Of what is known of the mesh, when last looked.
    version: Cell<u64>,
}

impl Names {
    /// An address that the app dialled.
    pub(super) fn captured(&self, address: SocketAddr) -> Rc<Name> {
        let name = || Name::new(DialName::new(&address.ip().to_string(), address.port()));
        remembered(&mut self.captured.borrow_mut(), &address, name)
    }

    /// What an upstream port leads to.
    pub(super) fn upstream(&self, name: &Arc<DialName>) -> Rc<Name> {
        remembered(&mut self.upstream.borrow_mut(), name, || Name::new(DialName::clone(name)))
    }

    /// Forgets all, when they would be looked up anew anyway.
    pub(crate) fn sweep(&self, discovery: &Discovery) {
        let version = discovery.version();
        if self.version.replace(version) != version {
            self.captured.take();
            self.upstream.take();
        }
    }
}

fn remembered<K: Clone + Eq + std::hash::Hash>(
    all: &mut HashMap<K, Rc<Name>>,
    key: &K,
    name: impl FnOnce() -> Rc<Name>,
) -> Rc<Name> {
    if let Some(name) = all.get(key) {
        return name.clone();
    }
    if all.len() >= MOST {
        all.clear();
    }
    let name = name();
    all.insert(key.clone(), name.clone());
    name
}

/// What a connection speaks, and how that is known where it is: as declared, else as its first bytes say.
pub(super) async fn spoken(
    worker: &Worker,
    stream: &mut Stream,
    name: &DialName,
    destination: Option<&Destination>,
) -> (Spoken, Option<Found>) {
    let limits = &worker.common.limits;
    let declared = match destination {
        Some(Destination::Service { service, port, .. }) => service.ports.get(port).map(|port| port.protocol),
        Some(Destination::Outside(_)) | None => None,
    };
    let as_declared = |spoken, speaks| (spoken, Some(Found { speaks, because: Because::Declared }));
    let wait = match declared.unwrap_or(Protocol::Detect) {
        Protocol::Http1 => return as_declared(Spoken::Http(Carried::Http1), Speaks::Http1),
        Protocol::Http2 | Protocol::Grpc => return as_declared(Spoken::Http(Carried::Http2), Speaks::Http2),
        Protocol::Tcp => return as_declared(Spoken::Opaque, Speaks::Opaque),
        Protocol::Http => limits.idle_timeout,
        // The dial that silence leads to may be begun sooner; what the client says is looked at all the same.
        Protocol::Detect if worker.learned.outbound_server_speaks_first(name) => Duration::ZERO,
        Protocol::Detect => limits.detect_timeout,
    };
    let as_said = |spoken, speaks| (spoken, Some(Found { speaks, because: Because::FirstBytes }));
    match detect::detect(stream, wait).await {
        Ok(Detected::Http2) => as_said(Spoken::Http(Carried::Http2), Speaks::Http2),
        Ok(Detected::Http1) => as_said(Spoken::Http(Carried::Http1), Speaks::Http1),
        Ok(Detected::Ended) | Err(_) => (Spoken::Nothing, None),
        // Declared HTTP, so the HTTP server is to say what is wrong with it.
        Ok(_) if declared == Some(Protocol::Http) => as_declared(Spoken::Http(Carried::Http1), Speaks::Http1),
        Ok(Detected::Opaque) => as_said(Spoken::Opaque, Speaks::Opaque),
        Ok(Detected::Tls(_)) => as_said(Spoken::Opaque, Speaks::Tls),
        Ok(Detected::Silent) => (Spoken::Silent, None),
    }
}

/// For what is learnt of a name.
pub(super) fn leads_to(destination: Result<&Destination, &Error>) -> LeadsTo {
    match destination {
        Ok(Destination::Service { service, port, instance }) => {
            LeadsTo::Service { service: service.name.clone(), port: *port, instance: *instance }
        }
        Ok(Destination::Outside(_)) => LeadsTo::Outside,
        Err(error) => LeadsTo::Refused(error.kind),
    }
}

impl Destination {
    /// The port as its service describes it, whose routes apply; none do where one instance was dialled.
    pub(super) fn port(&self) -> Result<Option<&ServicePort>, Error> {
        match self {
            Self::Service { instance: Some(_), .. } => Ok(None),
            Self::Service { service, port, instance: None } => {
                let known = service
                    .ports
                    .get(port)
                    .ok_or_else(|| Error::new(ErrorKind::UnknownPort, format!("{} has no port {port}", service.name)));
                known.map(Some)
            }
            Self::Outside(_) => Ok(None),
        }
    }

    /// The only instance that is meant.
    pub(super) fn instance(&self) -> Option<SocketAddr> {
        match self {
            Self::Service { instance, .. } => *instance,
            Self::Outside(_) => None,
        }
    }

    /// The cluster of the destination itself, where no route says otherwise.
    pub(super) async fn own_cluster(&self, worker: &Worker) -> Result<Rc<Cluster>, Error> {
        match self {
            Self::Service { service, port, .. } => {
                worker.clusters.find(&ClusterName { service: service.name.clone(), port: *port }).await
            }
            Self::Outside(name) => worker.clusters.outside(name).await,
        }
    }
}
