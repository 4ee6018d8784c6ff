//! Everything as of one revision, immutable and cheap to keep.

mod index;

use std::{collections::BTreeSet, net::SocketAddr, ops::Bound, sync::Arc};

use heddle_api::resource::{AnyObject, Kind, Name, Object, ObjectKind};
use rpds::RedBlackTreeMapSync;

use self::index::Index;
use super::{
    ChangeSet, Registration, RegistryError,
    change::Change,
    codec::{self, Subject},
    kubernetes::Cluster,
};
use crate::{
    mesh::MESH_NAMESPACE,
    store::{Batch, Range, Revision, Store},
};

/// How many keys are read from the store at once.
const LOAD_CHUNK: usize = 2_000;

/// All objects and registrations as of one revision. Views share what did not change between them.
#[derive(Clone, Debug, Default)]
pub struct View {
    revision: Revision,
    /// Number of the newest user-visible revision, and where it was written.
    head: (u64, Revision),
    objects: RedBlackTreeMapSync<(ObjectKind, Name), AnyObject>,
    index: Index,
    registered: RedBlackTreeMapSync<Name, Arc<Registration>>,
    /// Registrations by identity and address.
    placed: RedBlackTreeMapSync<(Arc<str>, SocketAddr, Name), ()>,
    /// What comes from Kubernetes.
    pub(super) cluster: Cluster,
    /// How many registrations an identity has.
    held: RedBlackTreeMapSync<Arc<str>, usize>,
}

impl View {
    /// Reads everything from the store.
    pub(super) async fn load(store: &dyn Store) -> Result<Self, RegistryError> {
        let mut view = Self::default();
        let mut at = None;
        for prefix in [codec::OBJECTS, codec::REGISTERED, codec::HEAD] {
            let mut after = None;
            loop {
                let range = Range { prefix: prefix.to_owned(), after, limit: LOAD_CHUNK, at };
                let page = store.range(range).await?;
                // All pages are of one revision: that of the first.
                at = Some(page.revision);
                view.revision = page.revision;
                for entry in &page.entries {
                    match Subject::of(&entry.key) {
                        Subject::Object(kind, name) => {
                            view.with(kind, name, Some(codec::decode_object(kind, entry)?));
                        }
                        Subject::Registration(name) => {
                            let registration = codec::decode_registration(&name, entry)?;
                            view.put_registration(name, Arc::new(registration));
                        }
                        Subject::Head => view.head = (codec::decode_number(entry)?, entry.mod_revision),
                        Subject::Other => {}
                    }
                }
                after = page.entries.last().map(|entry| entry.key.to_string());
                if !page.more {
                    break;
                }
            }
        }
        Ok(view)
    }

    /// The view after a batch, and what changed. What cannot be read is left out and logged: one bad
    /// entry must not stop the rest.
    pub(super) fn advance(&self, batch: &Batch) -> (Self, ChangeSet) {
        let mut next = Self { revision: batch.revision, ..self.clone() };
        let mut changes = ChangeSet { revision: batch.revision, ..ChangeSet::default() };
        for event in &batch.events {
            if let Err(error) = next.advance_key(event, &mut changes) {
                tracing::error!(%error, "a change was left out");
            }
        }
        (next, changes)
    }

    fn advance_key(&mut self, event: &crate::store::Event, changes: &mut ChangeSet) -> Result<(), RegistryError> {
        match Subject::of(&event.key) {
            Subject::Object(kind, name) => {
                let before = self.object(kind, &name).cloned();
                let after = event.after.as_ref().map(|entry| codec::decode_object(kind, entry)).transpose()?;
                self.with(kind, name.clone(), after.clone());
                changes.objects.push(Change { kind, name, before, after });
            }
            Subject::Registration(name) => {
                let after = match &event.after {
                    Some(entry) => {
                        let registration = Arc::new(codec::decode_registration(&name, entry)?);
                        self.put_registration(name.clone(), Arc::clone(&registration));
                        Some(registration)
                    }
                    None => {
                        self.remove_registration(&name);
                        None
                    }
                };
                changes.registrations.push((name, after));
            }
            Subject::Head => {
                if let Some(entry) = &event.after {
                    self.head = (codec::decode_number(entry)?, entry.mod_revision);
                    changes.number = Some(self.head.0);
                }
            }
            Subject::Other => {}
        }
        Ok(())
    }

    fn put_registration(&mut self, name: Name, registration: Arc<Registration>) {
        self.remove_registration(&name);
        let identity: Arc<str> = registration.identity.as_str().into();
        self.placed.insert_mut((Arc::clone(&identity), registration.address, name.clone()), ());
        let held = self.held_by(&identity) + 1;
        self.held.insert_mut(identity, held);
        self.registered.insert_mut(name, registration);
    }

    fn remove_registration(&mut self, name: &Name) {
        let Some(registration) = self.registered.get(name).cloned() else { return };
        self.registered.remove_mut(name);
        let identity: Arc<str> = registration.identity.as_str().into();
        self.placed.remove_mut(&(Arc::clone(&identity), registration.address, name.clone()));
        match self.held_by(&identity) {
            0 | 1 => {
                self.held.remove_mut(&identity);
            }
            held => self.held.insert_mut(identity, held - 1),
        }
    }

    /// How many registrations an identity has.
    pub fn held_by(&self, identity: &str) -> usize {
        self.held.get(identity).copied().unwrap_or_default()
    }

    /// Registrations of an identity at an address.
    pub fn placed_at(&self, identity: &str, address: SocketAddr) -> impl Iterator<Item = &Arc<Registration>> {
        let start = (Arc::<str>::from(identity), address, Name::new("", ""));
        let identity = Arc::clone(&start.0);
        self.placed
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |((of, at, _), ())| *of == identity && *at == address)
            .filter_map(|((_, _, name), ())| self.registered.get(name))
    }

    /// The store's revision that this is as of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Number of the newest user-visible revision; 0 before the first.
    pub fn number(&self) -> u64 {
        self.head.0
    }

    /// Where [`View::number`] was written.
    pub(super) fn head_revision(&self) -> Revision {
        self.head.1
    }

    /// An object by name.
    pub fn object(&self, kind: ObjectKind, name: &Name) -> Option<&AnyObject> {
        self.objects.get(&(kind, name.clone()))
    }

    /// An object of a known kind by name.
    pub fn get<K: Kind>(&self, name: &Name) -> Option<&Arc<Object<K>>> {
        self.object(K::KIND, name)?.as_kind()
    }

    /// All objects, by kind and name.
    pub fn objects(&self) -> impl Iterator<Item = &AnyObject> {
        self.objects.values()
    }

    /// All objects of a known kind, by namespace and name.
    pub fn list<K: Kind>(&self) -> impl Iterator<Item = &Arc<Object<K>>> {
        self.list_any(K::KIND, None, None).filter_map(AnyObject::as_kind)
    }

    /// All objects of a kind (in a namespace), by namespace and name, after a name.
    pub fn list_any<'a>(
        &'a self,
        kind: ObjectKind,
        namespace: Option<&'a str>,
        after: Option<Name>,
    ) -> impl Iterator<Item = &'a AnyObject> + use<'a> {
        let start = match after {
            Some(after) => Bound::Excluded((kind, after)),
            None => Bound::Included((kind, Name::new(namespace.unwrap_or_default(), ""))),
        };
        self.objects
            .range((start, Bound::Unbounded))
            .take_while(move |((of, name), _)| {
                *of == kind && namespace.is_none_or(|namespace| *name.namespace == *namespace)
            })
            .map(|(_, object)| object)
    }

    /// How many objects and registrations there are.
    pub fn len(&self) -> usize {
        self.objects.size() + self.registered.size()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A registration by name.
    pub fn registration(&self, name: &Name) -> Option<&Arc<Registration>> {
        self.registered.get(name)
    }

    /// All registrations (in a namespace), by namespace and name, after a name.
    pub fn registrations<'a>(
        &'a self,
        namespace: Option<&'a str>,
        after: Option<Name>,
    ) -> impl Iterator<Item = &'a Arc<Registration>> + use<'a> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(Name::new(namespace.unwrap_or_default(), "")),
        };
        self.registered
            .range((start, Bound::Unbounded))
            .take_while(move |(name, _)| namespace.is_none_or(|namespace| *name.namespace == *namespace))
            .map(|(_, registration)| registration)
    }

    /// With an object put in or taken out: what a transaction would make.
    pub(super) fn with(&mut self, kind: ObjectKind, name: Name, object: Option<AnyObject>) {
        let key = (kind, name);
        if let Some(before) = self.objects.get(&key) {
            self.index.remove(before);
            self.objects.remove_mut(&key);
        }
        if let Some(object) = object {
            self.index.add(&object);
            self.objects.insert_mut(key, object);
        }
    }

    /// Names of the objects of a kind that refer to a service, policies for its namespace and the mesh among them.
    pub fn referring(&self, kind: ObjectKind, service: &Name) -> BTreeSet<Name> {
        let places = [service.clone(), service.sibling(""), Name::new(MESH_NAMESPACE, "")];
        let referrers = places.iter().flat_map(|place| self.index.referrers(place));
        referrers.filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }

    /// What refers to a service. Policies for a whole namespace refer to its service without a name.
    pub(super) fn referrers(&self, service: &Name) -> impl Iterator<Item = &AnyObject> {
        self.index.referrers(service).filter_map(|(kind, name)| self.object(*kind, name))
    }

    /// Services that claim an extra host.
    pub(super) fn claimants(&self, host: &str) -> impl Iterator<Item = &Name> {
        self.index.claimants(host)
    }

    /// All extra hosts, with the services that claim them.
    pub(super) fn extra_hosts(&self) -> impl Iterator<Item = (&str, &Name)> {
        self.index.hosts()
    }
}
