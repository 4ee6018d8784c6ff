//! Inbound policy of a service that this workload serves.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use heddle_api::proto::discovery as proto;
use heddle_certs::TrustDomain;

use super::{At, Reason, cidr, each, is_label, port, protocol, same_name};
use crate::{
    authorize::{Authorizer, IdentityPattern, Operation, PathPattern, Rule, Source},
    config::ServedPort,
    listener,
    snapshot::{InboundPolicy, InboundPort},
};

/// `served` is what the proxy's own settings say of the service, `trust_domain` the one that
/// namespaces in rules are of.
pub(in crate::discovery) fn inbound(
    name: &str,
    version: &str,
    sent: proto::InboundPolicy,
    served: &[ServedPort],
    own: &[SocketAddr],
    trust_domain: &TrustDomain,
) -> Result<InboundPolicy, Reason> {
    let service = same_name(name, &sent.service)?;
    let mut ports = BTreeMap::new();
    let mut targets = BTreeMap::new();
    for (number, target, compiled) in each("ports", sent.ports, inbound_port)? {
        if ports.insert(number, compiled).is_some() {
            return Err(format!("ports: {number} is there twice"));
        }
        targets.insert(number, target);
    }
    for (number, app) in apps(&targets, served) {
        // Peers would come to the admin listener, or go out again as this workload.
        if listener::is_own(own, app, None) {
            tracing::warn!(service = name, ?number, %app, "the app is said to be where this proxy itself listens: not served");
            continue;
        }
        match number.and_then(|number| ports.get_mut(&number)) {
            Some(port) => port.app = Some(app),
            // The settings' fault, not the resource's: the rest of it is good.
            None => {
                let ports: Vec<_> = targets.keys().collect();
                tracing::warn!(service = name, ?number, %app, ?ports, "the service has no such port, or it is not clear which one; name it");
            }
        }
    }
    let rules = each("rules", sent.rules, |sent| rule(sent, trust_domain))?;
    let probe_exemptions = each("probe_exemptions", sent.probe_exemptions, |probe| {
        if !probe.path.starts_with('/') {
            return Err(format!("path: {:?} does not begin with a slash", probe.path));
        }
        Ok((port(probe.port).at(|| "port".to_owned())?, probe.path))
    })?;
    let authorizer = Authorizer::new(rules, sent.default_allow);
    Ok(InboundPolicy { service, ports, authorizer, probe_exemptions, version: version.to_owned() })
}

fn inbound_port(sent: proto::InboundPort) -> Result<(u16, u16, InboundPort), Reason> {
    let number = port(sent.port).at(|| "port".to_owned())?;
    let target = match sent.target_port {
        0 => number,
        target => port(target).at(|| "target_port".to_owned())?,
    };
    let protocol = protocol(sent.protocol).at(|| "protocol".to_owned())?;
    Ok((number, target, InboundPort { protocol, app: None, permissive: sent.permissive }))
}

/// Which service port leads to which address of the application. Without settings every port does,
/// at its target port; a setting without a service port means the one whose target port is the
/// application's, or else the only one; `None` where that is none.
fn apps(targets: &BTreeMap<u16, u16>, served: &[ServedPort]) -> Vec<(Option<u16>, SocketAddr)> {
    if served.is_empty() {
        let at_target = |(port, target): (&u16, &u16)| (Some(*port), SocketAddr::from((Ipv4Addr::LOCALHOST, *target)));
        return targets.iter().map(at_target).collect();
    }
    let by_target = |app: SocketAddr| targets.iter().find(|(_, target)| **target == app.port()).map(|(port, _)| *port);
    let only = || if targets.len() == 1 { targets.keys().next().copied() } else { None };
    served.iter().map(|served| (served.port.or_else(|| by_target(served.app)).or_else(only), served.app)).collect()
}

fn rule(sent: proto::AuthorizationRule, trust_domain: &TrustDomain) -> Result<Rule, Reason> {
    let origin = format!("{} rule {}", sent.policy, sent.rule);
    let sources = each("sources", sent.sources, |sent| source(sent, trust_domain));
    let operations = each("operations", sent.operations, operation);
    let named = |reason| format!("{reason} ({origin})");
    Ok(Rule {
        sources: sources.map_err(named)?,
        operations: operations.map_err(named)?,
        policy: sent.policy.into(),
        name: sent.rule.into(),
        deny: sent.deny,
    })
}

fn source(sent: proto::Source, trust_domain: &TrustDomain) -> Result<Source, Reason> {
    Ok(Source {
        identities: each("identities", sent.identities, |text| {
            text.parse().map_err(|error| format!(": {text:?}: {error}"))
        })?,
        namespaces: each("namespaces", sent.namespaces, |text| {
            if is_label(&text) {
                Ok(IdentityPattern::namespace(trust_domain, &text))
            } else {
                Err(format!(": {text:?} is no namespace"))
            }
        })?,
        cidrs: each("cidrs", sent.cidrs, |text| cidr(&text))?,
        unauthenticated: sent.unauthenticated,
    })
}

fn operation(sent: proto::Operation) -> Result<Operation, Reason> {
    Ok(Operation {
        ports: each("ports", sent.ports, |number| port(number).map_err(|reason| format!(": {reason}")))?,
        methods: each("methods", sent.methods, |text| super::service::method(&text))?,
        paths: each("paths", sent.paths, |text| {
            text.parse::<PathPattern>().map_err(|error| format!(": {text:?}: {error}"))
        })?,
    })
}
