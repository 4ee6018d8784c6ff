//! One proxy's side of the protocol: what it subscribed to, what it was told, what it made of it.
//! Pure; [`super::stream`] does the talking.
//!
//! A change only marks a name; what is sent is looked up when the stream can take it. So a slow
//! reader costs one mark for each name, and gets the latest, never a queue of what is past.

mod subscriptions;

use std::{collections::BTreeMap, sync::Arc};

use heddle_api::proto::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use self::subscriptions::{Outgoing, Sent, Subscriptions};
use super::catalog::{Catalog, StreamId, Touched, Viewer};
use crate::{compile::ResourceKind, mesh::MAX_ALIAS};

/// Names that a stream may subscribe to, of all kinds; further ones are "no such resource".
pub(super) const MAX_NAMES: usize = 16_384;
/// A name longer than this names nothing.
const MAX_NAME: usize = MAX_ALIAS;
/// Responses of a kind on the way at once; the next one waits for an answer.
const MAX_IN_FLIGHT: usize = 16;
/// Names refused that are answered; beyond, the proxy is not listening anyway.
const MAX_REFUSED: usize = 1024;

/// A stream's state.
#[derive(Debug)]
pub(super) struct Session {
    id: StreamId,
    viewer: Viewer,
    nonces: u64,
    kinds: BTreeMap<ResourceKind, Subscriptions>,
    /// How many kinds have had their turn since there was last nothing to say: one that changes all the time must not
    /// hold up the others.
    told: usize,
}

/// What happened with a request, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handled {
    pub(super) acknowledged: bool,
    pub(super) rejected: bool,
    pub(super) refused_names: usize,
    /// Resources that were answered or are no longer subscribed to.
    pub(super) settled: Vec<Arc<str>>,
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

impl Session {
    pub(super) fn new(id: StreamId, viewer: Viewer) -> Self {
        let kinds = ResourceKind::ALL.into_iter().map(|kind| (kind, Subscriptions::default())).collect();
        Self { id, viewer, nonces: 0, kinds, told: 0 }
    }

    /// Names subscribed to, of all kinds.
    pub(super) fn names(&self) -> usize {
        self.kinds.values().map(|kind| kind.names.len()).sum()
    }

    /// Takes in a message of the proxy. At most `room` names more are subscribed to.
    pub(super) fn handle(
        &mut self,
        catalog: &mut Catalog,
        kind: ResourceKind,
        request: DeltaDiscoveryRequest,
        room: usize,
    ) -> Handled {
        let mut handled = Handled::default();
        let mut room = MAX_NAMES.saturating_sub(self.names()).min(room);
        let (id, viewer) = (self.id, self.viewer.clone());
        let subscriptions = self.kinds.entry(kind).or_default();
        let asks = !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        if asks || !subscriptions.opened || subscriptions.in_flight.len() >= MAX_IN_FLIGHT {
            self.told = 0;
        }
        if !request.response_nonce.is_empty() {
            subscriptions.answered(&request.response_nonce, request.error_detail.as_ref(), &mut handled);
        }
        if !std::mem::replace(&mut subscriptions.opened, true) {
            let versions = request.initial_resource_versions.into_iter().take(MAX_NAMES).collect();
            subscriptions.resume(catalog, kind, &viewer, versions);
        }
        for name in &request.resource_names_unsubscribe {
            subscriptions.unsubscribe(catalog, kind, name, id);
            handled.settled.push(name.as_str().into());
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
        for (turn, kind) in ResourceKind::ALL.into_iter().enumerate().skip(self.told) {
            let subscriptions = self.kinds.entry(kind).or_default();
            if subscriptions.in_flight.len() >= MAX_IN_FLIGHT {
                continue;
            }
            subscriptions.look(catalog, kind, &viewer, id);
            let resources = subscriptions.take_outgoing(catalog, kind, &viewer);
            let more = !subscriptions.marked.is_empty();
            self.told = turn + usize::from(!more && subscriptions.outgoing.is_empty());
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
        self.told = 0;
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
