//! One proxy's side of the protocol: what it subscribed to, what it was told, what it made of it.
//! Pure; [`super::stream`] does the talking.
//!
//! A change only marks a name; what is sent is looked up when the stream can take it. So a slow
//! reader costs one mark for each name, and gets the latest, never a queue of what is past.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use heddle_api::proto::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, Status};
use prost_types::Any;

use super::catalog::{Catalog, StreamId, Touched, Viewer, is_alias};
use crate::{
    compile::{Compiled, ResourceKind},
    mesh::{MAX_ALIAS, parse_alias},
};

/// Names that a stream may subscribe to, of all kinds; further ones are "no such resource".
pub(super) const MAX_NAMES: usize = 16_384;
/// A name longer than this names nothing.
const MAX_NAME: usize = MAX_ALIAS;
/// Responses of a kind on the way at once; the next one waits for an answer.
const MAX_IN_FLIGHT: usize = 16;
/// Names refused that are answered; beyond, the proxy is not listening anyway.
const MAX_REFUSED: usize = 1024;
/// Names looked at in one go, so that the lock on the hub is held briefly.
const NAMES_AT_ONCE: usize = 256;
/// Resources in a response.
const MAX_RESOURCES: usize = 256;
/// A response is full from here on; one resource may be larger by itself.
const FULL_BYTES: usize = 512 * 1024;

/// A stream's state.
#[derive(Debug)]
pub(super) struct Session {
    id: StreamId,
    viewer: Viewer,
    nonces: u64,
    kinds: BTreeMap<ResourceKind, Subscriptions>,
}

/// What happened with a request, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Handled {
    pub(super) acknowledged: bool,
    pub(super) rejected: bool,
    pub(super) refused_names: usize,
}

/// What a stream should do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this.
    Response(ResourceKind, DeltaDiscoveryResponse),
    /// Ask again: there was more to look at than fits one go.
    Again,
    /// Nothing to say until something changes.
    Idle,
}

/// What a proxy made of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Applied,
    Pending,
    Rejected(String),
}

#[derive(Debug, Default)]
struct Subscriptions {
    /// Whether the first request has been taken in: only that one brings versions along.
    opened: bool,
    /// From `initial_resource_versions`: what the proxy brought along.
    resumed: HashMap<String, String>,
    names: BTreeMap<Arc<str>, Subscription>,
    /// Aliases by their host.
    hosts: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// By canonical name.
    held: BTreeMap<Arc<str>, Held>,
    /// Subscribed names to look at again.
    marked: BTreeSet<Arc<str>>,
    /// Canonical names to send.
    outgoing: BTreeSet<Arc<str>>,
    /// Names to say "no such resource" of.
    gone: BTreeSet<Arc<str>>,
    in_flight: VecDeque<Sent>,
}

#[derive(Debug, Default)]
struct Subscription {
    target: Option<Arc<str>>,
    told: Told,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Resource,
    Missing,
}

/// A resource as far as this proxy is concerned.
#[derive(Debug, Default)]
struct Held {
    /// Subscribed names that stand for it.
    names: BTreeSet<Arc<str>>,
    /// The version sent last; answers to earlier ones count for nothing.
    sent: Option<Arc<str>>,
    /// With which response; absent: the proxy brought it along.
    nonce: Option<Arc<str>>,
    /// What the proxy made of that: why not, if it rejected it.
    answer: Option<Result<(), String>>,
}

#[derive(Debug)]
struct Sent {
    nonce: Arc<str>,
    /// Canonical names.
    resources: Vec<Arc<str>>,
}

impl Session {
    pub(super) fn new(id: StreamId, viewer: Viewer) -> Self {
        let kinds = ResourceKind::ALL.into_iter().map(|kind| (kind, Subscriptions::default())).collect();
        Self { id, viewer, nonces: 0, kinds }
    }

    /// Takes in a message of the proxy.
    pub(super) fn handle(
        &mut self,
        catalog: &mut Catalog,
        kind: ResourceKind,
        request: DeltaDiscoveryRequest,
    ) -> Handled {
        let mut handled = Handled::default();
        let mut room = MAX_NAMES.saturating_sub(self.kinds.values().map(|kind| kind.names.len()).sum());
        let (id, viewer) = (self.id, self.viewer.clone());
        let subscriptions = self.kinds.entry(kind).or_default();
        if !request.response_nonce.is_empty() {
            subscriptions.answered(&request.response_nonce, request.error_detail.as_ref(), &mut handled);
        }
        if !std::mem::replace(&mut subscriptions.opened, true) {
            let versions = request.initial_resource_versions.into_iter().take(MAX_NAMES).collect();
            subscriptions.resume(catalog, kind, &viewer, versions);
        }
        for name in &request.resource_names_unsubscribe {
            subscriptions.unsubscribe(catalog, kind, name, id);
        }
        for name in request.resource_names_subscribe {
            let new = !subscriptions.names.contains_key(name.as_str());
            if name.is_empty() || name.len() > MAX_NAME || (new && room == 0) {
                // An app that dials nonsense must not cost its proxy the stream.
                handled.refused_names += 1;
                if subscriptions.gone.len() < MAX_REFUSED && name.len() < MAX_REFUSED {
                    subscriptions.gone.insert(name.into());
                }
            } else {
                room -= usize::from(new);
                subscriptions.subscribe(catalog, kind, name.into(), id);
            }
        }
        handled
    }

    /// Marks what a change may have touched.
    pub(super) fn touch(&mut self, touched: &Touched) {
        match touched {
            Touched::Resource((kind, name)) => {
                let subscriptions = self.kinds.entry(*kind).or_default();
                if let Some(held) = subscriptions.held.get(name) {
                    subscriptions.marked.extend(held.names.iter().cloned());
                }
            }
            Touched::Host(host) => {
                let subscriptions = self.kinds.entry(ResourceKind::Service).or_default();
                subscriptions.marked.extend(subscriptions.hosts.get(host).into_iter().flatten().cloned());
            }
        }
    }

    /// The next response, if anything is to be said that can be said now. Kinds go in their order, so
    /// that endpoints arrive before the routes that lead to them; removals go last, and the other way
    /// round.
    pub(super) fn next(&mut self, catalog: &mut Catalog) -> Next {
        let (id, viewer) = (self.id, self.viewer.clone());
        for kind in ResourceKind::ALL {
            let subscriptions = self.kinds.entry(kind).or_default();
            if subscriptions.in_flight.len() >= MAX_IN_FLIGHT {
                continue;
            }
            subscriptions.look(catalog, kind, &viewer, id);
            let resources = subscriptions.take_outgoing(catalog, kind, &viewer);
            let more = !subscriptions.marked.is_empty();
            if !resources.is_empty() {
                return Next::Response(kind, self.respond(catalog, kind, resources, Vec::new()));
            }
            if more {
                return Next::Again;
            }
        }
        for kind in ResourceKind::ALL.into_iter().rev() {
            let subscriptions = self.kinds.entry(kind).or_default();
            if subscriptions.in_flight.len() < MAX_IN_FLIGHT && !subscriptions.gone.is_empty() {
                let removed = subscriptions.take_gone();
                return Next::Response(kind, self.respond(catalog, kind, Vec::new(), removed));
            }
        }
        Next::Idle
    }

    /// What the proxy made of the present version of a resource; `None`: it does not hold it.
    pub(super) fn standing(&self, kind: ResourceKind, name: &str, current: Option<&str>) -> Option<Standing> {
        let held = self.kinds.get(&kind)?.held.get(name)?;
        if held.sent.as_deref() != current {
            return Some(Standing::Pending);
        }
        Some(match (&held.answer, current) {
            (Some(Err(reason)), _) => Standing::Rejected(reason.clone()),
            (Some(Ok(())), _) | (None, None) => Standing::Applied,
            (None, Some(_)) => Standing::Pending,
        })
    }

    /// Canonical names held, of a kind.
    pub(super) fn held(&self, kind: ResourceKind) -> impl Iterator<Item = &Arc<str>> {
        self.kinds.get(&kind).into_iter().flat_map(|subscriptions| subscriptions.held.keys())
    }

    /// Who is at the other end.
    pub(super) fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    /// Ends all watches.
    pub(super) fn close(mut self, catalog: &mut Catalog) {
        for (kind, subscriptions) in &mut self.kinds {
            let names: Vec<_> = subscriptions.names.keys().cloned().collect();
            for name in names {
                subscriptions.unsubscribe(catalog, *kind, &name, self.id);
            }
        }
    }

    fn respond(
        &mut self,
        catalog: &Catalog,
        kind: ResourceKind,
        resources: Vec<Outgoing>,
        removed: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonces += 1;
        // Nonces of an earlier stream must never fit this one.
        let nonce: Arc<str> = format!("{}-{}", self.id, self.nonces).into();
        let subscriptions = self.kinds.entry(kind).or_default();
        for out in &resources {
            if let Some(held) = subscriptions.held.get_mut(&out.name) {
                held.nonce = Some(Arc::clone(&nonce));
            }
        }
        let names = resources.iter().map(|out| Arc::clone(&out.name)).collect();
        subscriptions.in_flight.push_back(Sent { nonce: Arc::clone(&nonce), resources: names });
        DeltaDiscoveryResponse {
            system_version_info: catalog.revision.to_string(),
            resources: resources.into_iter().map(|out| out.into_resource(kind)).collect(),
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_string(),
            removed_resources: removed,
        }
    }
}

/// A resource on its way.
struct Outgoing {
    name: Arc<str>,
    aliases: Vec<String>,
    compiled: Compiled,
}

impl Outgoing {
    fn into_resource(self, kind: ResourceKind) -> Resource {
        Resource {
            version: self.compiled.version.to_string(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: self.compiled.body.to_vec() }),
            name: self.name.to_string(),
            aliases: self.aliases,
        }
    }
}

impl Subscriptions {
    fn subscribe(&mut self, catalog: &mut Catalog, kind: ResourceKind, name: Arc<str>, id: StreamId) {
        if let Some(host) = alias_host(kind, &name) {
            catalog.watch_host(&host, id);
            self.hosts.entry(host).or_default().insert(Arc::clone(&name));
        }
        // Subscribed anew: the proxy may have dropped what it was told.
        self.names.entry(Arc::clone(&name)).or_default().told = Told::Nothing;
        self.gone.remove(&name);
        self.marked.insert(name);
    }

    fn unsubscribe(&mut self, catalog: &mut Catalog, kind: ResourceKind, name: &str, id: StreamId) {
        let Some((name, subscription)) = self.names.remove_entry(name) else {
            return;
        };
        self.marked.remove(&name);
        self.gone.remove(&name);
        if let Some(target) = subscription.target {
            self.detach(catalog, kind, &name, &target, id);
        }
        if let Some(host) = alias_host(kind, &name)
            && let Some(aliases) = self.hosts.get_mut(&host)
        {
            aliases.remove(&name);
            if aliases.is_empty() {
                self.hosts.remove(&host);
                catalog.unwatch_host(&host, id);
            }
        }
    }

    /// Takes in what the proxy brought along, and notes what of it is gone.
    fn resume(
        &mut self,
        catalog: &mut Catalog,
        kind: ResourceKind,
        viewer: &Viewer,
        versions: HashMap<String, String>,
    ) {
        for name in versions.keys().filter(|name| !is_alias(kind, name)) {
            if !catalog.exists(kind, name, viewer) {
                self.gone.insert(name.as_str().into());
            }
        }
        self.resumed.extend(versions);
    }

    /// Looks at some of the marked names: what do they stand for now, and does the proxy know?
    fn look(&mut self, catalog: &mut Catalog, kind: ResourceKind, viewer: &Viewer, id: StreamId) {
        for _ in 0..NAMES_AT_ONCE {
            let Some(name) = self.marked.pop_first() else {
                break;
            };
            self.look_at(catalog, kind, viewer, id, &name);
        }
    }

    fn look_at(&mut self, catalog: &mut Catalog, kind: ResourceKind, viewer: &Viewer, id: StreamId, name: &Arc<str>) {
        let target = catalog.target(kind, name, viewer);
        self.attach(catalog, kind, viewer, id, name, target.as_ref());
        let current = target.and_then(|target| Some((catalog.resource(kind, &target, viewer)?, target)));
        let resumed = self.resumed.get(&**name);
        let Some(subscription) = self.names.get_mut(name) else {
            return;
        };
        let Some((compiled, target)) = current else {
            if subscription.told != Told::Missing {
                subscription.told = Told::Missing;
                self.gone.insert(Arc::clone(name));
            }
            if let Some(held) = subscription.target.as_ref().and_then(|target| self.held.get_mut(target)) {
                (held.sent, held.answer) = (None, None);
            }
            return;
        };
        self.gone.remove(name);
        let held = self.held.entry(Arc::clone(&target)).or_default();
        let known = |version: Option<&String>| version.is_some_and(|version| **version == *compiled.version);
        if held.sent.is_none() && known(self.resumed.get(&*target)) {
            held.sent = Some(Arc::clone(&compiled.version));
            held.answer = Some(Ok(()));
        }
        if subscription.told != Told::Resource && held.sent.as_ref() == Some(&compiled.version) && known(resumed) {
            subscription.told = Told::Resource;
        }
        // What was brought along counts once: a later subscription of the same name means "send it".
        self.resumed.remove(&**name);
        if subscription.told != Told::Resource || held.sent.as_ref() != Some(&compiled.version) {
            self.outgoing.insert(target);
        }
    }

    /// Notes what a subscribed name stands for.
    fn attach(
        &mut self,
        catalog: &mut Catalog,
        kind: ResourceKind,
        viewer: &Viewer,
        id: StreamId,
        name: &Arc<str>,
        target: Option<&Arc<str>>,
    ) {
        let Some(subscription) = self.names.get_mut(name) else {
            return;
        };
        if subscription.target.as_ref() == target {
            return;
        }
        let before = std::mem::replace(&mut subscription.target, target.cloned());
        subscription.told = match subscription.told {
            Told::Resource => Told::Nothing,
            told => told,
        };
        if let Some(before) = before {
            self.detach(catalog, kind, name, &before, id);
            if !self.held.contains_key(&before) && !catalog.exists(kind, &before, viewer) {
                self.gone.insert(before);
            }
        }
        if let Some(target) = target {
            self.held.entry(Arc::clone(target)).or_default().names.insert(Arc::clone(name));
            catalog.watch(kind, target, id);
        }
    }

    fn detach(&mut self, catalog: &mut Catalog, kind: ResourceKind, name: &Arc<str>, target: &Arc<str>, id: StreamId) {
        if let Some(held) = self.held.get_mut(target) {
            held.names.remove(name);
            if held.names.is_empty() {
                self.held.remove(target);
                self.outgoing.remove(target);
                catalog.unwatch(kind, target, id);
            }
        }
    }

    fn take_outgoing(&mut self, catalog: &mut Catalog, kind: ResourceKind, viewer: &Viewer) -> Vec<Outgoing> {
        let mut resources = Vec::new();
        let mut bytes = 0;
        while resources.len() < MAX_RESOURCES && bytes < FULL_BYTES {
            let Some(target) = self.outgoing.pop_first() else {
                break;
            };
            let Some(held) = self.held.get_mut(&target) else {
                continue;
            };
            let Some(compiled) = catalog.resource(kind, &target, viewer) else {
                // It went away since: its names are marked.
                continue;
            };
            held.sent = Some(Arc::clone(&compiled.version));
            held.answer = None;
            self.gone.remove(&target);
            for name in &held.names {
                if let Some(subscription) = self.names.get_mut(name) {
                    subscription.told = Told::Resource;
                }
            }
            let aliases = held.names.iter().filter(|name| **name != target).map(ToString::to_string).collect();
            bytes += compiled.body.len();
            resources.push(Outgoing { name: target, aliases, compiled });
        }
        resources
    }

    fn take_gone(&mut self) -> Vec<String> {
        let mut removed = Vec::new();
        while removed.len() < MAX_RESOURCES {
            let Some(name) = self.gone.pop_first() else {
                break;
            };
            removed.push(name.to_string());
        }
        removed
    }

    /// The proxy's answer to a response. One to a response that was never sent says nothing.
    fn answered(&mut self, nonce: &str, error: Option<&Status>, handled: &mut Handled) {
        let Some(position) = self.in_flight.iter().position(|sent| *sent.nonce == *nonce) else {
            return;
        };
        let Some(sent) = self.in_flight.remove(position) else {
            return;
        };
        let rejections = error.map(|error| rejections(&error.message, &sent.resources));
        handled.acknowledged = rejections.is_none();
        handled.rejected = rejections.is_some();
        for name in sent.resources {
            if let Some(held) = self.held.get_mut(&name)
                && held.nonce.as_ref() == Some(&sent.nonce)
            {
                let reason = rejections.as_ref().and_then(|rejections| rejections.get(&name));
                held.answer = Some(reason.map_or(Ok(()), |reason| Err(reason.clone())));
            }
        }
    }
}

/// Which resources of a response were rejected and why: one line for each, `<name>: <reason>`; if no
/// line says so, all of them.
fn rejections(message: &str, resources: &[Arc<str>]) -> HashMap<Arc<str>, String> {
    const MAX_REASON: usize = 1024;
    let clip = |text: &str| text.chars().take(MAX_REASON).collect::<String>();
    let sent: BTreeSet<&str> = resources.iter().map(|name| &**name).collect();
    let named: HashMap<Arc<str>, String> = (message.lines())
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(name, reason)| Some((Arc::from(*sent.get(name)?), clip(reason))))
        .collect();
    if named.is_empty() {
        return resources.iter().map(|name| (Arc::clone(name), clip(message))).collect();
    }
    named
}

fn alias_host(kind: ResourceKind, name: &str) -> Option<Arc<str>> {
    is_alias(kind, name).then(|| parse_alias(name))?.map(|(host, _)| host.into())
}
