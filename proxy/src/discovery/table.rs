//! What is subscribed to and what came of it: a state machine without IO. Responses, dialled names
//! and the time go in; requests to send and the next [`Snapshot`] come out.

mod dump;
mod former;
mod kind;
mod saved;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use heddle_api::proto::{ads, discovery as proto, type_url};
use heddle_certs::{TrustBundle, TrustDomain};
use tokio::time::Instant;

use self::{
    former::Former,
    kind::{Answer, Kind, Response},
};
use super::compile;
use crate::{
    config::ServedService,
    snapshot::{Destination, Endpoints, InboundPolicy, Mesh, Service, ServiceName, Snapshot},
};

/// A resource that is not there after this is taken for missing, as xDS has it.
const MISSING_AFTER: Duration = Duration::from_secs(15);
/// A service that no route leads to any more is kept for this long: requests may be under way on the
/// old route, and routes come and go in quick succession.
const LINGER: Duration = Duration::from_secs(60);

/// What the table must know besides the control plane's word.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    /// `<namespace>/<workload>`.
    pub node: String,
    /// Informational.
    pub service_account: String,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// Namespaces in rules are of this one, and so is the trust bundle.
    pub trust_domain: TrustDomain,
    /// Services that the workload serves.
    pub served: Vec<ServedService>,
    /// Where this proxy itself listens, which is no app.
    pub listeners: Vec<SocketAddr>,
    /// Unused destinations are dropped after this.
    pub idle: Duration,
    /// Most destinations at once.
    pub max_destinations: usize,
}

impl Own {
    fn namespace(&self) -> &str {
        self.node.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// What tells names that are the mesh's by their form from hosts that a service only stands for.
struct Names<'a> {
    mesh: Option<&'a Mesh>,
    /// The proxy's own namespace.
    own: &'a str,
}

impl Names<'_> {
    /// Whether a dialled name (`host:port`) is the mesh's; `led_to` is the service whose it was. Of an address it says
    /// yes: whose that is, its form does not tell.
    fn has(&self, dialled: &str, led_to: Option<&str>) -> bool {
        let Some((host, _)) = dialled.rsplit_once(':').filter(|_| dialled.parse::<SocketAddr>().is_err()) else {
            return true;
        };
        let Some((name, rest)) = host.split_once('.') else { return true };
        // A service's own name stays its own when its namespace goes with it.
        let is_its_own = led_to.and_then(|service| service.split_once('/')) == Some((rest, name));
        is_its_own
            || rest == self.own
            || self.mesh.is_some_and(|mesh| mesh.namespaces.contains(rest) || mesh.is_below_suffix(host))
    }
}

/// Whose word it is that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The control plane's, now.
    ControlPlane,
    /// What an earlier process kept of it.
    StateDirectory,
}

/// Puts roots to use; an error says why they cannot be.
pub(crate) type AcceptBundle = Box<dyn Fn(&TrustBundle, Origin) -> Result<(), String> + Send>;

/// See the module.
pub(crate) struct Table {
    own: Own,
    accept_bundle: AcceptBundle,
    started: Instant,
    meshes: Kind<Mesh>,
    bundles: Kind<TrustBundle>,
    /// The own one only, and only where the settings name no services.
    workloads: Kind<compile::Workload>,
    inbound: Kind<InboundPolicy>,
    services: Kind<Service>,
    endpoints: Kind<Endpoints>,
    dialled: BTreeMap<String, Dialled>,
    former: Former,
    /// Services as the snapshot has them; `services` may hold a later one whose backends are awaited.
    active: BTreeMap<String, Arc<Service>>,
    /// Services in use no longer, and since when.
    unused: BTreeMap<String, Instant>,
    /// Whether this stream's first request was made.
    opened: bool,
}

/// A name that was dialled.
struct Dialled {
    answer: Option<Dial>,
    used: Arc<LastUsed>,
    /// Named in the settings: never dropped.
    pinned: bool,
}

#[derive(Clone, PartialEq)]
enum Dial {
    Service(String),
    Unknown,
    Rejected(Arc<str>),
}

/// When a destination was last used, in seconds since the table was made. Written only when it
/// changes, so that busy workers do not pull its cache line to and fro.
#[derive(Debug, Default)]
pub(super) struct LastUsed {
    seconds: AtomicU64,
    /// Connections that are open.
    open: AtomicU32,
}

impl LastUsed {
    pub(super) fn mark(&self, seconds: u64) {
        if self.seconds.load(Ordering::Relaxed) < seconds {
            self.seconds.store(seconds, Ordering::Relaxed);
        }
    }

    fn seconds(&self) -> u64 {
        self.seconds.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }
}

/// A connection that is open and needs its destination.
#[derive(Debug)]
pub(crate) struct InUse {
    used: Arc<LastUsed>,
    /// Of the clock of [`LastUsed`].
    started: Instant,
}

impl InUse {
    pub(super) fn new(used: Arc<LastUsed>, started: Instant) -> Self {
        used.open.fetch_add(1, Ordering::Relaxed);
        Self { used, started }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // Marked first: in between it would look as if it had not been used for long.
        self.used.mark(self.started.elapsed().as_secs());
        self.used.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// More destinations than allowed.
#[derive(Debug)]
pub(crate) struct Full;

impl Table {
    /// `keep_sent` keeps what [`Table::saved`] needs.
    pub(crate) fn new(own: Own, accept_bundle: AcceptBundle, keep_sent: bool, now: Instant) -> Self {
        let mut table = Self {
            started: now,
            accept_bundle,
            // Nothing works without these two: that they are gone can only be a fault.
            meshes: Kind::new(type_url::MESH_CONFIG, keep_sent).lasting(),
            bundles: Kind::new(type_url::TRUST_BUNDLE, keep_sent).lasting(),
            // A pod that goes serves what is under way until its end.
            workloads: Kind::new(type_url::WORKLOAD, keep_sent).lasting(),
            inbound: Kind::new(type_url::INBOUND_POLICY, keep_sent),
            services: Kind::new(type_url::SERVICE, keep_sent),
            endpoints: Kind::new(type_url::ENDPOINTS, keep_sent),
            dialled: BTreeMap::new(),
            former: Former::default(),
            active: BTreeMap::new(),
            unused: BTreeMap::new(),
            opened: false,
            own,
        };
        table.bundles.want(table.own.trust_domain.to_string(), now);
        table.meshes.want("mesh".to_owned(), now);
        for service in &table.own.served {
            table.inbound.want(service.name.to_string(), now);
        }
        if table.own.served.is_empty() {
            table.workloads.want(table.own.node.clone(), now);
        }
        table
    }

    /// Seconds on the clock of [`LastUsed`].
    pub(super) fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs()
    }

    // === subscriptions ===

    /// Subscribes to a destination, if it is not already.
    pub(crate) fn dial(&mut self, name: &str, pinned: bool, now: Instant) -> Result<(), Full> {
        if !self.dialled.contains_key(name) {
            if self.dialled.len() >= self.own.max_destinations && !pinned {
                self.make_room()?;
            }
            let dialled = Dialled { answer: None, used: Arc::default(), pinned };
            self.dialled.insert(name.to_owned(), dialled);
            self.services.want(name.to_owned(), now);
        }
        if let Some(dialled) = self.dialled.get(name) {
            dialled.used.mark(self.seconds(now));
        }
        Ok(())
    }

    /// Drops the name that is no service and was used least recently: an application that dials ever
    /// new names must not push out the services that it works with.
    fn make_room(&mut self) -> Result<(), Full> {
        let nothing = |dialled: &Dialled| !dialled.pinned && !matches!(dialled.answer, Some(Dial::Service(_)));
        let age = |dialled: &Dialled| (dialled.used.is_in_use(), dialled.used.seconds());
        let oldest = self.dialled.iter().filter(|(_, dialled)| nothing(dialled)).min_by_key(|(_, d)| age(d));
        let name = oldest.map(|(name, _)| name.clone()).ok_or(Full)?;
        self.forget(&name);
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        self.dialled.remove(name);
        self.services.unwant(name);
        // An address that nobody dials any more may come to be somebody else's, and a namespace that is no more a
        // domain's.
        let names = Names { mesh: self.meshes.held("mesh").map(|mesh| &**mesh), own: self.own.namespace() };
        if name.parse::<SocketAddr>().is_ok() || !names.has(name, None) {
            self.former.forget(name);
        }
    }

    /// Usage marks of all destinations, by name.
    pub(super) fn usage(&self) -> HashMap<String, Arc<LastUsed>> {
        self.dialled.iter().map(|(name, dialled)| (name.clone(), Arc::clone(&dialled.used))).collect()
    }

    /// Drops what nobody used for a while. To be called only while the stream is healthy: otherwise
    /// what is dropped could not be had again. Says whether anything was.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        let oldest = self.seconds(now).saturating_sub(self.own.idle.as_secs());
        let is_idle =
            |dialled: &Dialled| !dialled.pinned && !dialled.used.is_in_use() && dialled.used.seconds() < oldest;
        let idle: Vec<_> = self.dialled.iter().filter(|(_, d)| is_idle(d)).map(|(name, _)| name.clone()).collect();
        let mut dropped = !idle.is_empty();
        for name in idle {
            self.forget(&name);
        }
        self.refresh(now);
        let unused = std::mem::take(&mut self.unused);
        for (name, since) in unused {
            if now.saturating_duration_since(since) < LINGER {
                self.unused.insert(name, since);
                continue;
            }
            dropped = true;
            self.services.unwant(&name);
            self.services.forget(&name);
            self.endpoints.unwant(&name);
            self.endpoints.forget(&name);
            self.active.remove(&name);
        }
        dropped
    }

    /// Whether time alone has changed what is in effect, since this was last asked.
    pub(super) fn gives_up(&mut self, now: Instant) -> bool {
        let (services, endpoints) = (self.services.gives_up(now), self.endpoints.gives_up(now));
        let workloads = self.workloads.gives_up(now);
        services || endpoints || workloads
    }

    /// Whether everything asked for was answered.
    pub(super) fn is_settled(&self) -> bool {
        self.meshes.is_settled()
            && self.bundles.is_settled()
            && self.workloads.is_settled()
            && self.inbound.is_settled()
            && self.services.is_settled()
            && self.endpoints.is_settled()
    }

    /// Finds what the destinations in use need, and lets a changed service take effect when all of
    /// that is there.
    fn refresh(&mut self, now: Instant) {
        let fronts: BTreeSet<String> = self
            .dialled
            .values()
            .filter_map(|dialled| match &dialled.answer {
                Some(Dial::Service(name)) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let mut backends = BTreeSet::new();
        for front in &fronts {
            for service in self.services.held(front).into_iter().chain(self.active.get(front)) {
                backends.extend(backends_of(service).map(ToString::to_string));
            }
        }
        for name in backends.difference(&fronts) {
            self.services.want(name.clone(), now);
        }
        let in_use: BTreeSet<String> = fronts.union(&backends).cloned().collect();
        for name in &in_use {
            self.endpoints.want(name.clone(), now);
            self.unused.remove(name);
        }
        for name in self.endpoints.wanted().chain(self.services.held_names()) {
            if !in_use.contains(name) {
                self.unused.entry(name.clone()).or_insert(now);
            }
        }
        for name in &in_use {
            let Some(latest) = self.services.held(name) else {
                self.active.remove(name);
                continue;
            };
            let ready = self.endpoints.is_answered(name, now)
                && (!fronts.contains(name) || self.backends_are_answered(latest, now));
            if ready {
                self.active.insert(name.clone(), Arc::clone(latest));
            }
        }
    }

    fn backends_are_answered(&self, service: &Service, now: Instant) -> bool {
        backends_of(service).map(ToString::to_string).all(|name| {
            // One that answers an alias is not asked for by name.
            let known = self.services.held(&name).is_some() || self.services.is_answered(&name, now);
            known && self.endpoints.is_answered(&name, now)
        })
    }

    // === the stream ===

    /// Nothing that was said on an earlier stream is in force on this one.
    pub(super) fn start_stream(&mut self, now: Instant) {
        self.opened = false;
        self.meshes.start_stream(now);
        self.bundles.start_stream(now);
        self.workloads.start_stream(now);
        self.inbound.start_stream(now);
        self.services.start_stream(now);
        self.endpoints.start_stream(now);
    }

    /// Subscriptions to send, if any have changed.
    pub(super) fn requests(&mut self, now: Instant) -> Vec<ads::DeltaDiscoveryRequest> {
        self.refresh(now);
        // Services before endpoints: so the control plane meets them in the order of their use.
        let requests = [
            self.bundles.request(),
            self.meshes.request(),
            self.workloads.request(),
            self.inbound.request(),
            self.services.request_with(|| aliases(&self.dialled)),
            self.endpoints.request(),
        ];
        let mut requests: Vec<_> = requests.into_iter().flatten().collect();
        if let (false, Some(first)) = (self.opened, requests.first_mut()) {
            first.node = Some(self.node());
            self.opened = true;
        }
        requests
    }

    fn node(&self) -> ads::Node {
        ads::Node {
            id: self.own.node.clone(),
            cluster: self.own.service_account.clone(),
            locality: (!self.own.zone.is_empty())
                .then(|| ads::Locality { zone: self.own.zone.clone(), ..ads::Locality::default() }),
            user_agent_name: "heddle-proxy".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata: None,
        }
    }

    /// Takes what can be taken of a response; the answer is an ACK, or a NACK that names the rest.
    pub(super) fn apply(&mut self, sent: ads::DeltaDiscoveryResponse, now: Instant) -> ads::DeltaDiscoveryRequest {
        self.apply_from(Origin::ControlPlane, sent, now)
    }

    fn apply_from(
        &mut self,
        origin: Origin,
        sent: ads::DeltaDiscoveryResponse,
        now: Instant,
    ) -> ads::DeltaDiscoveryRequest {
        let nonce = sent.nonce.clone();
        let url = sent.type_url.clone();
        let own = &self.own;
        let response = match url.as_str() {
            type_url::MESH_CONFIG => self.meshes.apply(sent, |name, _, sent| compile::mesh(name, sent)),
            // Put to use before it is acknowledged: the control plane goes on to sign under a new
            // root when every proxy has said that it knows it.
            type_url::TRUST_BUNDLE => self.bundles.apply(sent, |name, _, sent| {
                let bundle = compile::trust_bundle(name, sent)?;
                (self.accept_bundle)(&bundle, origin).map(|()| bundle)
            }),
            type_url::WORKLOAD => self.workloads.apply(sent, compile::workload),
            type_url::INBOUND_POLICY => self.inbound.apply(sent, |name, version, sent: proto::InboundPolicy| {
                let served = own.served.iter().find(|served| served.name.to_string() == name);
                let ports = served.map(|served| served.ports.as_slice()).unwrap_or_default();
                compile::inbound(name, version, sent, ports, &own.listeners, &own.trust_domain)
            }),
            type_url::SERVICE => self.apply_services(sent),
            type_url::ENDPOINTS => self.endpoints.apply(sent, compile::endpoints),
            other => Response::refused(other, "this proxy does not know resources of this type"),
        };
        if url == type_url::WORKLOAD {
            self.serve(now);
        }
        self.refresh(now);
        response.answer(url, nonce)
    }

    /// Asks for the policies of what the platform says that is served, and of nothing else.
    fn serve(&mut self, now: Instant) {
        let Some(workload) = self.workloads.held(&self.own.node).cloned() else { return };
        let served: BTreeSet<String> = workload.services.keys().map(ToString::to_string).collect();
        let known: BTreeSet<String> = self.inbound.wanted().cloned().collect();
        for service in known.difference(&served) {
            self.inbound.unwant(service);
            self.inbound.forget(service);
        }
        for service in served {
            self.inbound.want(service, now);
        }
    }

    /// What this workload serves; `None` until it is known.
    fn served(&self, now: Instant) -> Option<Vec<ServiceName>> {
        if !self.own.served.is_empty() {
            return Some(self.own.served.iter().map(|served| served.name.clone()).collect());
        }
        if !self.workloads.is_answered(&self.own.node, now) {
            return None;
        }
        let workload = self.workloads.held(&self.own.node);
        Some(workload.map(|workload| workload.services.keys().cloned().collect()).unwrap_or_default())
    }

    fn apply_services(&mut self, sent: ads::DeltaDiscoveryResponse) -> Response {
        let dialled = &self.dialled;
        let wanted = |resource: &ads::Resource| resource.aliases.iter().any(|alias| dialled.contains_key(alias));
        let response = self.services.apply_if(sent, wanted, compile::service);
        let names = Names { mesh: self.meshes.held("mesh").map(|mesh| &**mesh), own: self.own.namespace() };
        for (name, aliases) in &response.updated {
            for (alias, dialled) in &mut self.dialled {
                let named = aliases.contains(alias);
                let was = dialled.answer == Some(Dial::Service(name.clone()));
                // The aliases are all that hit it: what is not among them no longer does.
                if was && !named && names.has(alias, Some(name)) {
                    self.former.leave(alias);
                }
                if named != was {
                    dialled.answer = Some(if named { Dial::Service(name.clone()) } else { Dial::Unknown });
                }
                if named {
                    self.services.settle(alias, Answer::Held);
                }
            }
        }
        for (rejection, aliases) in &response.rejected {
            let reason: Arc<str> = format!("{}: {}", rejection.name, rejection.reason).into();
            for alias in aliases {
                let waiting = |dialled: &&mut Dialled| !matches!(dialled.answer, Some(Dial::Service(_)));
                if let Some(dialled) = self.dialled.get_mut(alias).filter(waiting) {
                    dialled.answer = Some(Dial::Rejected(Arc::clone(&reason)));
                    self.services.settle(alias, Answer::Rejected);
                }
            }
        }
        for name in &response.removed {
            self.active.remove(name);
            for (alias, dialled) in &mut self.dialled {
                if alias == name || dialled.answer == Some(Dial::Service(name.clone())) {
                    if let Some(Dial::Service(service)) = &dialled.answer
                        && names.has(alias, Some(service))
                    {
                        self.former.leave(alias);
                    }
                    dialled.answer = Some(Dial::Unknown);
                    self.services.settle(alias, Answer::Missing);
                }
            }
        }
        response
    }

    // === what came of it ===

    /// Everything that is in effect now.
    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.refresh(now);
        let mut snapshot =
            Snapshot { mesh: self.meshes.held("mesh").cloned(), served: self.served(now), ..Snapshot::default() };
        let workload = self.workloads.held(&self.own.node);
        for policy in self.inbound.values() {
            let placed = match workload {
                Some(workload) => Arc::new(workload.place(policy, &self.own.listeners)),
                None => Arc::clone(policy),
            };
            snapshot.inbound.insert(policy.service.clone(), placed);
        }
        for service in self.active.values() {
            snapshot.services.insert(service.name.clone(), Arc::clone(service));
            let none = || Endpoints { service: service.name.clone(), endpoints: Vec::new(), version: String::new() };
            let endpoints = self.endpoints.held(&service.name.to_string()).cloned().unwrap_or_else(|| Arc::new(none()));
            snapshot.endpoints.insert(service.name.clone(), endpoints);
        }
        for (name, dialled) in &self.dialled {
            let destination = match &dialled.answer {
                None => continue,
                Some(Dial::Unknown) if self.former.had(name) => Destination::Gone,
                Some(Dial::Unknown) => Destination::Unknown,
                Some(Dial::Rejected(reason)) => Destination::Rejected(Arc::clone(reason)),
                Some(Dial::Service(service)) => {
                    let Some(service) = self.active.get(service) else { continue };
                    // It may be in effect as another's backend, while its own are still awaited.
                    if !self.backends_are_answered(service, now) {
                        continue;
                    }
                    let endpoints = snapshot.endpoints.get(&service.name).map(|endpoints| &**endpoints);
                    match destination(name, service, endpoints) {
                        Some(destination) => destination,
                        None => continue,
                    }
                }
            };
            snapshot.destinations.insert(name.clone(), destination);
        }
        snapshot
    }
}

/// What an alias of a service means: the port that it names; or, if it is the address of an instance and of
/// its app's port, that instance.
fn destination(alias: &str, service: &Service, endpoints: Option<&Endpoints>) -> Option<Destination> {
    let to = |port, instance| Destination::Service { service: service.name.clone(), port, instance };
    let Ok(address) = alias.parse::<SocketAddr>() else {
        let (host, port) = alias.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)))?;
        return Some(match single(host, service) {
            None => to(port, None),
            Some(hostname) => match endpoints.and_then(|endpoints| endpoints.with_hostname(hostname)) {
                Some(endpoint) => to(port, Some(endpoint.address)),
                None => {
                    Destination::Rejected(format!("no instance of {} is called {host} any more", service.name).into())
                }
            },
        });
    };
    Some(match endpoints.and_then(|endpoints| endpoints.at(address)) {
        Some((endpoint, port)) => to(port, Some(endpoint.address)),
        None if service.addresses.contains(&address.ip()) => to(address.port(), None),
        // It has left. Not unknown: that could be sent there in plaintext.
        None => Destination::Rejected(format!("no instance of {} is at {address} any more", service.name).into()),
    })
}

/// The host name of the one instance of a service that a name means: it stands before a name of the service.
fn single<'a>(host: &'a str, service: &Service) -> Option<&'a str> {
    let is_the_service = |host: &str| service.hosts.iter().any(|known| known == host);
    let (hostname, rest) = host.split_once('.')?;
    (!is_the_service(host) && is_the_service(rest)).then_some(hostname)
}

/// Names that stand for a service, with which.
fn aliases(dialled: &BTreeMap<String, Dialled>) -> BTreeMap<String, String> {
    let stands_for = |(alias, dialled): (&String, &Dialled)| match &dialled.answer {
        Some(Dial::Service(service)) => Some((alias.clone(), service.clone())),
        _ => None,
    };
    dialled.iter().filter_map(stands_for).collect()
}

/// Services that the routes of a service lead to, but for itself.
fn backends_of(service: &Service) -> impl Iterator<Item = &ServiceName> {
    let ports = service.ports.values();
    let backends =
        ports.flat_map(|port| port.tcp_backends.iter().chain(port.http_rules.iter().flat_map(|r| &r.backends)));
    backends
        .filter(|backend| backend.invalid.is_none())
        .map(|backend| &backend.cluster.service)
        .filter(|name| **name != service.name)
}
