//! What refers to what in a view, so that checking a change costs what it touches.

use std::{ops::Bound, sync::Arc};

use heddle_api::resource::{AnyObject, BackendRef, Name, ObjectKind, ParentRef};
use rpds::RedBlackTreeMapSync;

/// Indices over the objects of a view.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Each service with what refers to it. (`None` is in no entry; a search begins there.)
    referrers: RedBlackTreeMapSync<(Name, Option<(ObjectKind, Name)>), ()>,
    /// Each extra host with the services that claim it.
    hosts: RedBlackTreeMapSync<(Arc<str>, Option<Name>), ()>,
}

impl Index {
    pub(super) fn add(&mut self, object: &AnyObject) {
        let name = object.name();
        for_each_service(object, &mut |namespace, service| {
            let key = (Name::new(namespace, service), Some((object.kind(), name.clone())));
            self.referrers.insert_mut(key, ());
        });
        for host in hosts(object) {
            self.hosts.insert_mut((host.as_str().into(), Some(name.clone())), ());
        }
    }

    pub(super) fn remove(&mut self, object: &AnyObject) {
        let name = object.name();
        for_each_service(object, &mut |namespace, service| {
            self.referrers.remove_mut(&(Name::new(namespace, service), Some((object.kind(), name.clone()))));
        });
        for host in hosts(object) {
            self.hosts.remove_mut(&(host.as_str().into(), Some(name.clone())));
        }
    }

    /// What refers to a service, by kind and name.
    pub(super) fn referrers(&self, service: &Name) -> impl Iterator<Item = &(ObjectKind, Name)> {
        let (start, service) = ((service.clone(), None), service.clone());
        self.referrers
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |((of, _), ())| *of == service)
            .filter_map(|((_, referrer), ())| referrer.as_ref())
    }

    /// Services that claim an extra host.
    pub(super) fn claimants(&self, host: &str) -> impl Iterator<Item = &Name> {
        let host: Arc<str> = host.into();
        self.hosts
            .range((Bound::Included((Arc::clone(&host), None)), Bound::Unbounded))
            .take_while(move |((of, _), ())| *of == host)
            .filter_map(|((_, service), ())| service.as_ref())
    }

    /// All extra hosts, with the services that claim them.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (&str, &Name)> {
        self.hosts.keys().filter_map(|(host, service)| Some((&**host, service.as_ref()?)))
    }
}

fn hosts(object: &AnyObject) -> &[String] {
    match object {
        AnyObject::Service(service) => &service.spec.hosts,
        _ => &[],
    }
}

/// Calls back for each service that an object refers to, by namespace and name. A policy for a whole
/// namespace refers to the one without a name.
fn for_each_service<'a>(object: &'a AnyObject, found: &mut dyn FnMut(&'a str, &'a str)) {
    let own = object.metadata().namespace.as_deref().unwrap_or_default();
    let mut route = |parents: &'a [ParentRef], backends: &mut dyn Iterator<Item = &'a BackendRef>| {
        parents.iter().for_each(|parent| found(own, &parent.name));
        backends.for_each(|backend| found(backend.namespace.as_deref().unwrap_or(own), &backend.name));
    };
    match object {
        AnyObject::MeshConfig(_) | AnyObject::Service(_) => {}
        AnyObject::Workload(object) => object.spec.services.iter().for_each(|service| found(own, &service.name)),
        AnyObject::HttpRoute(object) => {
            route(&object.spec.parent_refs, &mut object.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
        }
        AnyObject::GrpcRoute(object) => {
            route(&object.spec.parent_refs, &mut object.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
        }
        AnyObject::TcpRoute(object) => {
            route(&object.spec.parent_refs, &mut object.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
        }
        AnyObject::TrafficPolicy(object) => {
            found(own, object.spec.target_ref.as_ref().map_or("", |target| &target.name));
        }
        AnyObject::AuthorizationPolicy(object) => {
            found(own, object.spec.target_ref.as_ref().map_or("", |target| &target.name));
        }
    }
}
