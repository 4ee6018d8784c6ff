//! From the name that an app dials to a service.

use std::{collections::BTreeSet, net::IpAddr};

use heddle_api::resource::{Name, Object, ServiceSpec};

use super::Mesh;
use crate::compile::{declared_app_ports, registered_app_ports};

/// The longest alias: a DNS name, a colon, a port.
pub const MAX_ALIAS: usize = 253 + 6;

impl Mesh {
    /// Which service a dialled name means to a workload of a namespace: `service.namespace`, the same
    /// with one of the mesh's suffixes, or a host that a service claims (the oldest one, if several
    /// do). Names of the first two forms cannot be claimed by others.
    ///
    /// Of an address: the service that an instance there serves with its app at this port, or a service
    /// that claims it as virtual address. An instance's address cannot be claimed by others.
    pub fn resolve(&self, host: &str, port: u16, viewer: &str) -> Option<Name> {
        let fits = |service: &Object<ServiceSpec>| {
            is_exported(service, viewer) && service.spec.ports.iter().any(|candidate| candidate.port == port)
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.resolve_address(address, port, viewer);
        }
        for name in self.canonical(host) {
            if let Some(service) = self.services.get(&name) {
                return fits(service).then_some(name);
            }
        }
        for (instance, name) in self.canonical_instance(host) {
            if self.derived(&name).is_some_and(|derived| derived.has_hostname(&instance)) {
                return self.services.get(&name).filter(|service| fits(service)).map(|_| name);
            }
        }
        let claims = self.extra_hosts.of(host).filter_map(|name| Some((name, self.services.get(name)?)));
        claims
            .filter(|(_, service)| fits(service))
            .min_by_key(|(name, service)| (crate::compile::age(&service.metadata), (*name).clone()))
            .map(|(name, _)| name.clone())
    }

    fn resolve_address(&self, address: IpAddr, port: u16, viewer: &str) -> Option<Name> {
        let mut instances = BTreeSet::new();
        for workload in self.registered_at.of(&address).filter_map(|name| self.registered.get(name)) {
            instances.extend(workload.services.iter().map(|(service, _)| service).filter(|service| {
                let object = self.services.get(*service);
                object.is_some_and(|object| registered_app_ports(object, service, workload).contains(&port))
            }));
        }
        let declared = self.workloads_at.of(&address).filter(|name| !self.registered.contains_key(*name));
        let declared = declared.filter_map(|name| self.workloads.get_key_value(name));
        let mut declared_services = BTreeSet::new();
        for (name, workload) in declared {
            declared_services.extend(super::workload_services(name, workload).into_iter().filter(|service| {
                let object = self.services.get(service);
                object.is_some_and(|object| declared_app_ports(self, object, service, workload).contains(&port))
            }));
        }
        instances.extend(&declared_services);
        let derived = self.instances_at.of(&address);
        instances
            .extend(derived.filter(|name| self.derived(name).is_some_and(|derived| derived.serves(address, port))));
        if !instances.is_empty() {
            return self.oldest(instances.into_iter(), viewer);
        }
        let serves = |name: &&Name| {
            self.services.get(*name).is_some_and(|service| service.spec.ports.iter().any(|own| own.port == port))
        };
        self.oldest(self.addresses.of(&address).filter(serves), viewer)
    }

    /// The oldest service of these that a workload of a namespace may discover.
    fn oldest<'a>(&self, names: impl Iterator<Item = &'a Name>, viewer: &str) -> Option<Name> {
        names
            .filter_map(|name| Some((name, self.services.get(name)?)))
            .filter(|(_, service)| is_exported(service, viewer))
            .min_by_key(|(name, service)| (crate::compile::age(&service.metadata), (*name).clone()))
            .map(|(name, _)| name.clone())
    }

    /// Whether a workload of a namespace may discover a service.
    pub fn is_visible(&self, service: &Name, viewer: &str) -> bool {
        self.services.get(service).is_some_and(|service| is_exported(service, viewer))
    }

    /// All host names that select a service, lower case, without port; none if it does not exist.
    pub fn hosts(&self, name: &Name) -> Vec<String> {
        let Some(service) = self.services.get(name) else {
            return vec![format!("{}.{}", name.name, name.namespace)];
        };
        let mut hosts = vec![format!("{}.{}", name.name, name.namespace)];
        for suffix in self.suffixes() {
            hosts.push(format!("{}.{}.{}", name.name, name.namespace, suffix.to_ascii_lowercase()));
        }
        hosts.extend(service.spec.hosts.iter().map(|host| host.to_ascii_lowercase()));
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// The names that a host can be short for.
    fn canonical(&self, host: &str) -> Vec<Name> {
        self.without_suffixes(host).into_iter().filter_map(two_labels).collect()
    }

    /// As [`Self::canonical`], of a single instance of a headless service: `instance.service.namespace`.
    fn canonical_instance(&self, host: &str) -> Vec<(String, Name)> {
        let split = |text: &str| {
            let (instance, service) = text.split_once('.')?;
            Some((instance.to_owned(), two_labels(service)?))
        };
        self.without_suffixes(host).into_iter().filter_map(split).collect()
    }

    /// A host, and what is left of it without each of the mesh's suffixes that it has.
    fn without_suffixes<'a>(&self, host: &'a str) -> Vec<&'a str> {
        let suffixes = self.suffixes();
        let rests = suffixes.iter().filter_map(|suffix| {
            host.strip_suffix(suffix.to_ascii_lowercase().as_str()).and_then(|rest| rest.strip_suffix('.'))
        });
        std::iter::once(host).chain(rests).collect()
    }
}

/// Reads an alias as a proxy subscribes it: `host:port`, `ip:port` or `[ip]:port`.
pub fn parse_alias(alias: &str) -> Option<(String, u16)> {
    if alias.len() > MAX_ALIAS {
        return None;
    }
    let (host, port) = alias.rsplit_once(':')?;
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some((address.to_canonical().to_string(), port));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), port))
}

/// `name.namespace`.
fn two_labels(text: &str) -> Option<Name> {
    let (name, namespace) = text.split_once('.')?;
    let is_one = |label: &str| !label.is_empty() && !label.contains('.');
    (is_one(name) && is_one(namespace)).then(|| Name::new(namespace, name))
}

fn is_exported(service: &Object<ServiceSpec>, viewer: &str) -> bool {
    let export_to = &service.spec.export_to;
    export_to.is_empty()
        || export_to.iter().any(|namespace| match namespace.as_str() {
            "*" => true,
            "." => service.metadata.namespace.as_deref() == Some(viewer),
            namespace => namespace == viewer,
        })
}
