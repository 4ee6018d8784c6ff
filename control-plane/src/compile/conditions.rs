//! What is to be said of an object besides who applied it: findings that follow from other objects.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use heddle_api::resource::{Action, Condition, Name, ObjectKind, ServiceSpec};
use heddle_certs::SpiffeId;

use super::{inherited, routes::port_of};
use crate::mesh::{Mesh, Scope};

/// Names that a finding lists.
const SHOWN: usize = 10;

/// All findings about an object, as the mesh is now.
pub(crate) fn of(mesh: &Mesh, kind: ObjectKind, name: &Name) -> Vec<Condition> {
    let mut found = Vec::new();
    match kind {
        ObjectKind::Service => service(mesh, name, &mut found),
        ObjectKind::HttpRoute | ObjectKind::GrpcRoute | ObjectKind::TcpRoute => route(mesh, kind, name, &mut found),
        ObjectKind::AuthorizationPolicy => authorization(mesh, name, &mut found),
        ObjectKind::MeshConfig | ObjectKind::Workload | ObjectKind::TrafficPolicy => {}
    }
    found
}

fn add(found: &mut Vec<Condition>, r#type: &str, message: String) {
    let condition = Condition { r#type: r#type.to_owned(), message };
    // Several rules of a route may lead to one backend.
    if !found.contains(&condition) {
        found.push(condition);
    }
}

fn service(mesh: &Mesh, name: &Name, found: &mut Vec<Condition>) {
    let Some(service) = mesh.service(name) else { return };
    for account in &service.spec.service_accounts {
        if let Err(why) = SpiffeId::workload(mesh.trust_domain(), &name.namespace, account) {
            add(found, "ServiceAccountInvalid", format!("no workload can have the service account {account:?}: {why}"));
        }
    }
    if mesh.is_hidden(name) {
        let message = format!(
            "Kubernetes has a Service {}.{} too: this one is in effect, with its own instances only; delete it to have that of \
             Kubernetes in its place",
            name.name, name.namespace
        );
        add(found, "HidesKubernetesService", message);
    }
    plaintext(mesh, name, found);
    let inherited = inherited::of(mesh, name);
    let policies: BTreeSet<_> = inherited.keys().map(|(policy, _)| policy.clone()).collect();
    if !policies.is_empty() {
        let parents: BTreeSet<_> = inherited.values().flat_map(|inherited| &inherited.parents).collect();
        let message = format!(
            "DENY rules of AuthorizationPolicy {} hold here too, for routes lead here from {}",
            list(&policies),
            list(parents)
        );
        add(found, "InheritsDenials", message);
    }
}

/// Instances of a Kubernetes Service that have no proxy.
fn plaintext(mesh: &Mesh, name: &Name, found: &mut Vec<Condition>) {
    let instances = mesh.instances(name);
    let plain: Vec<_> = instances.iter().filter(|instance| instance.account.is_none()).collect();
    if !plain.is_empty() {
        let message = format!(
            "{} of {} instances have no proxy, and are called in plaintext: {}",
            plain.len(),
            instances.len(),
            list(plain.iter().map(|instance| &instance.workload))
        );
        add(found, "CalledInPlaintext", message);
    }
}

fn route(mesh: &Mesh, kind: ObjectKind, name: &Name, found: &mut Vec<Condition>) {
    let Some(links) = mesh.links(kind, name) else { return };
    let mut parents = Vec::new();
    for parent in &links.parents {
        match mesh.service(parent) {
            Some(service) => parents.push((parent, service)),
            None => add(found, "ParentNotFound", format!("service {parent} does not exist")),
        }
    }
    for (backend, port) in mesh.backends(kind, name) {
        let Some(service) = mesh.service(&backend) else {
            let message = format!("service {backend} does not exist: requests that go there are answered with 500");
            add(found, "BackendNotFound", message);
            continue;
        };
        if let Err(why) = port_of(service, &backend, port) {
            add(found, "BackendPortNotFound", format!("{why}: requests that go there are answered with 500"));
        }
        for (parent, exported) in &parents {
            if let Some(who) = cannot_follow((parent, &exported.spec), (&backend, &service.spec)) {
                let message = format!(
                    "service {backend} is not exported to {who}, where callers of {parent} may be: they get 503 if the \
                     route leads there"
                );
                add(found, "BackendNotExported", message);
            }
        }
    }
}

/// Namespaces to which a route's parent is exported and its backend is not.
fn cannot_follow(parent: (&Name, &ServiceSpec), backend: (&Name, &ServiceSpec)) -> Option<String> {
    let (from, to) = (exported_to(parent.0, parent.1), exported_to(backend.0, backend.1)?);
    match from {
        None => Some("all namespaces".to_owned()),
        Some(from) => {
            let missing: BTreeSet<_> = from.difference(&to).collect();
            (!missing.is_empty()).then(|| list(missing))
        }
    }
}

/// The namespaces that may discover a service; `None`: all.
fn exported_to<'a>(name: &'a Name, spec: &'a ServiceSpec) -> Option<BTreeSet<&'a str>> {
    if spec.export_to.is_empty() || spec.export_to.iter().any(|namespace| namespace == "*") {
        return None;
    }
    let own = &*name.namespace;
    Some(spec.export_to.iter().map(|namespace| if namespace == "." { own } else { namespace.as_str() }).collect())
}

fn authorization(mesh: &Mesh, name: &Name, found: &mut Vec<Condition>) {
    let Some((policy, scope)) = mesh.authorization_policy(name) else { return };
    if let Scope::Service(target) = &scope
        && mesh.service(target).is_none()
    {
        add(found, "TargetNotFound", format!("service {target} does not exist"));
    }
    if policy.spec.rules.is_empty() {
        return;
    }
    match (policy.spec.action, &scope) {
        (Action::Deny, _) => {
            let backends = mesh.inheriting(name);
            if !backends.is_empty() {
                let message = format!("its rules hold for {} too, for routes lead there", list(&backends));
                add(found, "HoldsForBackends", message);
            }
        }
        (Action::Allow, Scope::Service(target)) => {
            let mut backends = mesh.backends_of(target);
            backends.remove(target);
            if !backends.is_empty() {
                let message = format!(
                    "routes lead from {target} to {}: who is let in there is for the policies of these to say",
                    list(&backends)
                );
                add(found, "NotForBackends", message);
            }
        }
        (Action::Allow, _) => {}
    }
}

fn list(names: impl IntoIterator<Item = impl ToString>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
