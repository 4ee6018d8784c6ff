//! What a proxy subscribed to of one kind, and how it stands.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use heddle_api::{
    limits::MAX_RESOURCE,
    proto::{
        Any,
        ads::{Resource, Status},
    },
};

use super::{
    super::catalog::{Catalog, StreamId, Viewer, is_alias},
    Handled,
};
use crate::{
    compile::{Compiled, ResourceKind},
    mesh::parse_alias,
};

/// Names looked at in one go, so that the lock on the hub is held briefly.
const NAMES_AT_ONCE: usize = 256;
/// Resources in a response.
const MAX_RESOURCES: usize = 256;
/// A response is full from here on; one resource may be larger by itself.
const FULL_BYTES: usize = 512 * 1024;

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Whether the first request has been taken in: only that one brings versions along.
    pub(super) opened: bool,
    /// From `initial_resource_versions`: what the proxy brought along.
    resumed: HashMap<String, String>,
    pub(super) names: BTreeMap<Arc<str>, Subscription>,
    /// Aliases by their host.
    pub(super) hosts: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// By canonical name.
    pub(super) held: BTreeMap<Arc<str>, Held>,
    /// Subscribed names to look at again.
    pub(super) marked: BTreeSet<Arc<str>>,
    /// Canonical names to send.
    pub(super) outgoing: BTreeSet<Arc<str>>,
    /// Names to say "no such resource" of.
    pub(super) gone: BTreeSet<Arc<str>>,
    pub(super) in_flight: VecDeque<Sent>,
}

#[derive(Debug, Default)]
pub(super) struct Subscription {
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
pub(super) struct Held {
    /// Subscribed names that stand for it.
    pub(super) names: BTreeSet<Arc<str>>,
    /// The version sent last; answers to earlier ones count for nothing.
    pub(super) sent: Option<Arc<str>>,
    /// With which response; absent: the proxy brought it along.
    pub(super) nonce: Option<Arc<str>>,
    /// What the proxy made of that: why not, if it rejected it.
    pub(super) answer: Option<Result<(), String>>,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) nonce: Arc<str>,
    /// Canonical names.
    pub(super) resources: Vec<Arc<str>>,
}

/// A resource on its way.
pub(super) struct Outgoing {
    pub(super) name: Arc<str>,
    aliases: Vec<String>,
    compiled: Compiled,
}

impl Outgoing {
    pub(super) fn into_resource(self, kind: ResourceKind) -> Resource {
        Resource {
            version: self.compiled.version.to_string(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: self.compiled.body }),
            name: self.name.to_string(),
            aliases: self.aliases,
        }
    }
}

impl Subscriptions {
    pub(super) fn subscribe(&mut self, catalog: &mut Catalog, kind: ResourceKind, name: Arc<str>, id: StreamId) {
        if let Some(host) = alias_host(kind, &name) {
            catalog.watch_host(&host, id);
            self.hosts.entry(host).or_default().insert(Arc::clone(&name));
        }
        // Subscribed anew: the proxy may have dropped what it was told.
        self.names.entry(Arc::clone(&name)).or_default().told = Told::Nothing;
        self.gone.remove(&name);
        self.marked.insert(name);
    }

    pub(super) fn unsubscribe(&mut self, catalog: &mut Catalog, kind: ResourceKind, name: &str, id: StreamId) {
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
    pub(super) fn resume(
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
    pub(super) fn look(&mut self, catalog: &mut Catalog, kind: ResourceKind, viewer: &Viewer, id: StreamId) {
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
            if !catalog.exists(kind, &before, viewer) {
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

    pub(super) fn take_outgoing(
        &mut self,
        catalog: &mut Catalog,
        kind: ResourceKind,
        viewer: &Viewer,
    ) -> Vec<Outgoing> {
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
            let is_too_large = compiled.body.len() > MAX_RESOURCE;
            if is_too_large {
                // The proxy would refuse it, or be unable to read the message at all, and all others in it.
                let size = compiled.body.len();
                held.nonce = None;
                held.answer = Some(Err(format!("not sent: it has {size} bytes, and a proxy takes {MAX_RESOURCE}")));
            }
            for name in &held.names {
                if let Some(subscription) = self.names.get_mut(name) {
                    subscription.told = Told::Resource;
                }
            }
            if is_too_large {
                continue;
            }
            let aliases = held.names.iter().filter(|name| **name != target).map(ToString::to_string).collect();
            bytes += compiled.body.len();
            resources.push(Outgoing { name: target, aliases, compiled });
        }
        resources
    }

    pub(super) fn take_gone(&mut self) -> Vec<String> {
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
    pub(super) fn answered(&mut self, nonce: &str, error: Option<&Status>, handled: &mut Handled) {
        let Some(position) = self.in_flight.iter().position(|sent| *sent.nonce == *nonce) else {
            return;
        };
        let Some(sent) = self.in_flight.remove(position) else {
            return;
        };
        let rejections = error.map(|error| rejections(&error.message, &sent.resources));
        handled.acknowledged = rejections.is_none();
        handled.rejected = rejections.is_some();
        handled.settled.extend(sent.resources.iter().cloned());
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
