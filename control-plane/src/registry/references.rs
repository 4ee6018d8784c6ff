//! Whether objects hold together: what refers to what, and what excludes what.
//!
//! Checked is what a transaction changes, in the view that it would make, and what refers to services
//! that it changes or removes.

mod conflicts;
mod inherited;
mod limits;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use heddle_api::{
    problem::Fault,
    resource::{
        AnyObject, AuthorizationPolicySpec, BackendRef, MeshConfigSpec, Name, Object, ObjectKind, OperationSpec,
        ParentRef, PortProtocol, ServiceSpec, TargetRef, TrafficPolicySpec, WorkloadSpec,
    },
};

use self::ports::Speaks;
use super::{Change, View, apply::OperationFault};

/// Gathers what is wrong with one object.
struct Findings<'a> {
    view: &'a View,
    found: Vec<Fault>,
}

impl Findings<'_> {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push(Fault::new(path, message));
    }
}

/// Checks changes in the view that they make. Each comes with the index of its operation.
pub(super) fn check(view: &View, changes: &[(usize, Change)]) -> Vec<OperationFault> {
    let mut faults = Vec::new();
    for (operation, change) in changes {
        if let Some(object) = &change.after {
            let found = check_object(view, object);
            faults.extend(found.into_iter().map(|fault| OperationFault { operation: *operation, fault }));
        }
    }
    check_referrers(view, changes, &mut faults);
    // Too many rules are not compared, of which each could be at odds with each.
    if !limits::check(view, changes, &mut faults) {
        conflicts::check(view, changes, &mut faults);
    }
    faults
}

/// Everything that is wrong with an object in a view, but for conflicts with other routes.
fn check_object(view: &View, object: &AnyObject) -> Vec<Fault> {
    let mut findings = Findings { view, found: Vec::new() };
    let name = object.name();
    match object {
        AnyObject::MeshConfig(object) => findings.mesh_config(object),
        AnyObject::Service(object) => findings.service(object, &name),
        AnyObject::Workload(object) => findings.workload(object, &name),
        AnyObject::HttpRoute(object) => {
            findings.parents(&object.spec.parent_refs, &name, Speaks::Http);
            for (index, rule) in object.spec.rules.iter().enumerate() {
                findings.backends(&rule.backend_refs, &format!("spec.rules[{index}]"), &name, Speaks::Http);
            }
        }
        AnyObject::GrpcRoute(object) => {
            findings.parents(&object.spec.parent_refs, &name, Speaks::Grpc);
            for (index, rule) in object.spec.rules.iter().enumerate() {
                findings.backends(&rule.backend_refs, &format!("spec.rules[{index}]"), &name, Speaks::Grpc);
            }
        }
        AnyObject::TcpRoute(object) => {
            findings.parents(&object.spec.parent_refs, &name, Speaks::Tcp);
            for (index, rule) in object.spec.rules.iter().enumerate() {
                findings.backends(&rule.backend_refs, &format!("spec.rules[{index}]"), &name, Speaks::Tcp);
            }
        }
        AnyObject::TrafficPolicy(object) => findings.traffic_policy(object, &name),
        AnyObject::AuthorizationPolicy(object) => findings.authorization_policy(object, &name),
    }
    findings.found
}

/// What refers to services that were changed or removed, and is not itself part of the transaction.
fn check_referrers(view: &View, changes: &[(usize, Change)], faults: &mut Vec<OperationFault>) {
    let is_changed = |change: &Change| change.kind == ObjectKind::Service && change.before.is_some();
    if !changes.iter().any(|(_, change)| is_changed(change)) {
        return;
    }
    let mut checked: HashSet<_> = changes.iter().map(|(_, change)| (change.kind, change.name.clone())).collect();
    for (operation, change) in changes.iter().filter(|(_, change)| is_changed(change)) {
        for object in view.referrers(&change.name) {
            if !checked.insert((object.kind(), object.name())) {
                continue;
            }
            for fault in check_object(view, object) {
                let path = if change.after.is_none() { "" } else { "spec.ports" };
                let message = format!("{object} would be left with a fault at {}: {}", fault.path, fault.message);
                faults.push(OperationFault { operation: *operation, fault: Fault::new(path, message) });
            }
        }
    }
}

/// The service accounts that may serve a service.
fn accounts(service: &Object<ServiceSpec>) -> Vec<&str> {
    if service.spec.service_accounts.is_empty() {
        return vec![&service.metadata.name];
    }
    service.spec.service_accounts.iter().map(String::as_str).collect()
}

impl Findings<'_> {
    fn suffixes(&self) -> Vec<String> {
        let mesh = self.view.list::<MeshConfigSpec>().next();
        let mut suffixes = mesh.map_or_else(|| vec!["mesh".to_owned()], |mesh| mesh.spec.suffixes.clone());
        suffixes.extend(self.view.cluster_suffixes());
        suffixes
    }

    /// Extra hosts must not be names that belong to the mesh, nor another service's.
    fn service(&mut self, service: &Object<ServiceSpec>, name: &Name) {
        let suffixes = self.suffixes();
        for (index, host) in service.spec.hosts.iter().enumerate() {
            let path = format!("spec.hosts[{index}]");
            if let Some(suffix) = suffixes.iter().find(|suffix| ends_with_suffix(host, suffix)) {
                let message =
                    format!("{host:?} is in the mesh's own suffix {suffix:?}, whose names belong to services");
                self.add(path, message);
                continue;
            }
            if let Some((one, namespace)) = host.split_once('.') {
                let other = Name::new(namespace, one);
                if other != *name && self.view.service(&other).is_some() {
                    self.add(path, format!("{host:?} is the name of service {other}"));
                    continue;
                }
            }
            if let Some(other) = self.view.claimants(host).find(|other| *other != name) {
                self.add(path, format!("{host:?} is a host of service {other} already"));
            }
        }
        let own = format!("{}.{}", name.name, name.namespace);
        if let Some(other) = self.view.claimants(&own).find(|other| *other != name) {
            self.add("metadata.name", format!("{own:?} is a host of service {other} already"));
        }
    }

    fn mesh_config(&mut self, mesh: &Object<MeshConfigSpec>) {
        for (host, name) in self.view.extra_hosts() {
            if let Some(index) = mesh.spec.suffixes.iter().position(|suffix| ends_with_suffix(host, suffix)) {
                self.found.push(Fault::new(
                    format!("spec.suffixes[{index}]"),
                    format!("service {name} has the host {host:?}, which would be the mesh's own"),
                ));
            }
        }
    }

    fn workload(&mut self, workload: &Object<WorkloadSpec>, name: &Name) {
        for (index, served) in workload.spec.services.iter().enumerate() {
            let path = format!("spec.services[{index}]");
            let service_name = name.sibling(&served.name);
            let Some(service) = self.view.service(&service_name) else {
                self.add(format!("{path}.name"), format!("there is no service {service_name}"));
                continue;
            };
            for (index, port) in served.ports.iter().enumerate() {
                if service.spec.ports.iter().all(|known| known.port != *port) {
                    self.found.push(Fault::new(
                        format!("{path}.ports[{index}]"),
                        format!("service {service_name} has no port {port} ({})", ports::list(&service.spec)),
                    ));
                }
            }
            let accounts = accounts(service);
            if let Some(account) = &workload.spec.service_account
                && !accounts.contains(&account.as_str())
            {
                self.found.push(Fault::new(
                    "spec.serviceAccount",
                    format!(
                        "{account:?} may not serve {service_name}, whose service accounts are {}",
                        accounts.join(", ")
                    ),
                ));
            }
        }
    }

    fn parents(&mut self, parents: &[ParentRef], route: &Name, speaks: Speaks) {
        for (index, parent) in parents.iter().enumerate() {
            let path = format!("spec.parentRefs[{index}]");
            let name = route.sibling(&parent.name);
            let Some(service) = self.view.service(&name) else {
                self.add(format!("{path}.name"), format!("there is no service {name}"));
                continue;
            };
            match parent.port {
                Some(number) => match service.spec.ports.iter().find(|port| port.port == number) {
                    None => {
                        let ports = ports::list(&service.spec);
                        self.add(format!("{path}.port"), format!("service {name} has no port {number} ({ports})"));
                    }
                    Some(port) => {
                        if let Err(why) = speaks.check(port) {
                            self.add(format!("{path}.port"), why);
                        }
                    }
                },
                None if service.spec.ports.iter().all(|port| speaks.check(port).is_err()) => {
                    let ports = ports::list(&service.spec);
                    self.add(path, format!("no port of service {name} can follow {} ({ports})", speaks.route()));
                }
                None => {}
            }
        }
    }

    fn backends(&mut self, backends: &[BackendRef], rule: &str, route: &Name, speaks: Speaks) {
        for (index, backend) in backends.iter().enumerate() {
            let path = format!("{rule}.backendRefs[{index}]");
            let name = route.relative(backend.namespace.as_deref(), &backend.name);
            let Some(service) = self.view.service(&name) else {
                self.add(format!("{path}.name"), format!("there is no service {name}"));
                continue;
            };
            if !is_exported(&service.spec, &name, route) {
                let namespace = &route.namespace;
                self.add(
                    format!("{path}.namespace"),
                    format!("service {name} is not exported to namespace {namespace:?}"),
                );
            }
            let port = match (backend.port, service.spec.ports.as_slice()) {
                (None, [only]) => only,
                (None, _) => {
                    let ports = ports::list(&service.spec);
                    self.add(format!("{path}.port"), format!("is missing: service {name} has several ports ({ports})"));
                    continue;
                }
                (Some(number), known) => match known.iter().find(|port| port.port == number) {
                    Some(port) => port,
                    None => {
                        let ports = ports::list(&service.spec);
                        self.add(format!("{path}.port"), format!("service {name} has no port {number} ({ports})"));
                        continue;
                    }
                },
            };
            if let Err(why) = speaks.check(port) {
                self.add(if backend.port.is_some() { format!("{path}.port") } else { path }, why);
            }
        }
    }

    fn target(&mut self, target: Option<&TargetRef>, policy: &Name) -> Option<std::sync::Arc<Object<ServiceSpec>>> {
        let name = policy.sibling(&target?.name);
        let service = self.view.service(&name).cloned();
        if service.is_none() {
            self.add("spec.targetRef.name", format!("there is no service {name}"));
        }
        service
    }

    /// Of two policies on one target the one would be ignored.
    fn traffic_policy(&mut self, policy: &Object<TrafficPolicySpec>, name: &Name) {
        self.target(policy.spec.target_ref.as_ref(), name);
        let target = policy.spec.target_ref.as_ref().map(|target| target.name.as_str());
        let place = name.sibling(target.unwrap_or_default());
        let attached = self.view.referrers(&place);
        let mut policies = attached.filter(|object| object.kind() == ObjectKind::TrafficPolicy).map(AnyObject::name);
        if let Some(other) = policies.find(|other| other != name) {
            let (path, what) = match target {
                Some(target) => ("spec.targetRef", format!("service {target:?}")),
                None => ("spec", format!("namespace {:?}", name.namespace)),
            };
            self.add(path, format!("TrafficPolicy {other} is attached to {what} already"));
        }
    }

    fn authorization_policy(&mut self, policy: &Object<AuthorizationPolicySpec>, name: &Name) {
        let Some(service) = self.target(policy.spec.target_ref.as_ref(), name) else { return };
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            for (number, operation) in rule.to.iter().enumerate() {
                self.operation(operation, &format!("spec.rules[{index}].to[{number}]"), &service.spec);
            }
        }
    }

    /// A method or path of opaque bytes would match never, and a DENY by it would let all through.
    fn operation(&mut self, operation: &OperationSpec, path: &str, service: &ServiceSpec) {
        let is_request_level = !operation.methods.is_empty() || !operation.paths.is_empty();
        for (index, number) in operation.ports.iter().enumerate() {
            let path = format!("{path}.ports[{index}]");
            match service.ports.iter().find(|port| port.port == *number) {
                None => self.add(path, format!("the service has no port {number} ({})", ports::list(service))),
                Some(port) if is_request_level && port.protocol == Some(PortProtocol::Tcp) => {
                    self.add(path, format!("port {number} speaks tcp, which has no methods or paths"));
                }
                Some(_) => {}
            }
        }
        let all_tcp = service.ports.iter().all(|port| port.protocol == Some(PortProtocol::Tcp));
        if is_request_level && operation.ports.is_empty() && all_tcp {
            self.add(path, "the service speaks tcp only, which has no methods or paths");
        }
    }
}

fn ends_with_suffix(host: &str, suffix: &str) -> bool {
    host == suffix || host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}

fn is_exported(service: &ServiceSpec, name: &Name, to: &Name) -> bool {
    service.export_to.is_empty()
        || name.namespace == to.namespace
        || service.export_to.iter().any(|namespace| namespace == "*" || **namespace == *to.namespace)
}
