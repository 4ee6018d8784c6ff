//! DENY rules that routes bring along to other services: how many a proxy takes, and where they are looked up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_api::{
    limits::{MAX_INHERITED_BYTES, MAX_INHERITED_OPERATIONS, MAX_INHERITED_RULES},
    resource::{AnyObject, AuthorizationPolicySpec, BackendRef, Name, Object, ObjectKind, ServiceSpec},
};

use super::{
    View,
    limits::{list, size},
};
use crate::{
    compile::inherited::{self, Inherited, Route},
    mesh::{MESH_NAMESPACE, Scope},
};

/// What is too much of the DENY rules that come to a service with routes, if anything.
pub(super) fn too_many_inherited(view: &View, backend: &Name) -> Option<String> {
    let found = inherited::of(view, backend);
    let sum = |of: &dyn Fn(&Inherited<'_>) -> usize| found.values().map(of).sum::<usize>();
    let checks = [
        ("rules", found.len(), MAX_INHERITED_RULES),
        ("operations", sum(&|one| one.operations.len()), MAX_INHERITED_OPERATIONS),
        ("bytes", sum(&|one| size(&one.rule.from) + size(&one.operations)), MAX_INHERITED_BYTES),
    ];
    let (what, count, most) = checks.into_iter().find(|(_, count, most)| count > most)?;
    let mut of: BTreeMap<String, usize> = BTreeMap::new();
    for (policy, _) in found.keys() {
        *of.entry(format!("AuthorizationPolicy {policy}")).or_default() += 1;
    }
    let of = list(of.into_iter().collect());
    Some(format!(
        "the DENY rules that hold for service {backend} because routes lead there from other services would have \
         {count} {what}; at most {most} (rules: {of})"
    ))
}

impl inherited::Objects for View {
    fn service(&self, name: &Name) -> Option<&Object<ServiceSpec>> {
        Self::service(self, name).map(Arc::as_ref)
    }

    fn routes_to(&self, backend: &Name) -> Vec<Route<'_>> {
        let routes = self.referrers(backend).filter(|object| backends_of(object).contains(backend));
        routes
            .filter_map(|object| match object {
                AnyObject::HttpRoute(route) => Some(Route::Http(route)),
                AnyObject::GrpcRoute(route) => Some(Route::Grpc(route)),
                AnyObject::TcpRoute(route) => Some(Route::Tcp(route)),
                _ => None,
            })
            .collect()
    }

    fn policies(&self, scope: &Scope) -> Vec<&Object<AuthorizationPolicySpec>> {
        let place = match scope {
            Scope::Mesh => Name::new(MESH_NAMESPACE, ""),
            Scope::Namespace(namespace) => Name::new(namespace, ""),
            Scope::Service(service) => service.clone(),
        };
        let attached = self.referrers(&place);
        attached.filter_map(|object| object.as_kind::<AuthorizationPolicySpec>()).map(Arc::as_ref).collect()
    }
}

impl View {
    /// Services that inherit denials from a place: a service, a namespace (no name), or the mesh (that of `heddle`).
    pub(super) fn denied_through(&self, place: &Name) -> BTreeSet<Name> {
        if !place.name.is_empty() {
            return self.referrers(place).flat_map(backends_of).collect();
        }
        let namespace = (*place.namespace != *MESH_NAMESPACE).then_some(&*place.namespace);
        let kinds = [ObjectKind::HttpRoute, ObjectKind::GrpcRoute, ObjectKind::TcpRoute];
        kinds.into_iter().flat_map(|kind| self.list_any(kind, namespace, None)).flat_map(backends_of).collect()
    }
}

/// Where a route leads.
pub(super) fn backends_of(object: &AnyObject) -> BTreeSet<Name> {
    let name = object.name();
    let names = |backends: &mut dyn Iterator<Item = &BackendRef>| {
        backends.map(|backend| name.relative(backend.namespace.as_deref(), &backend.name)).collect()
    };
    match object {
        AnyObject::HttpRoute(route) => names(&mut route.spec.rules.iter().flat_map(|rule| &rule.backend_refs)),
        AnyObject::GrpcRoute(route) => names(&mut route.spec.rules.iter().flat_map(|rule| &rule.backend_refs)),
        AnyObject::TcpRoute(route) => names(&mut route.spec.rules.iter().flat_map(|rule| &rule.backend_refs)),
        _ => BTreeSet::new(),
    }
}
