//! InboundPolicy: who may call a service. Its DENY rules are its own, and those that come with routes.

use heddle_api::{
    proto::discovery as proto,
    resource::{
        Action, AuthorizationPolicySpec, MtlsMode, Object, OperationSpec, RuleSpec, ServicePortSpec, SourceSpec,
    },
};
use heddle_certs::TrustDomain;

use super::{inherited, oldest_first, service::protocol};
use crate::mesh::Mesh;
use heddle_api::resource::Name;

pub(super) fn compile(mesh: &Mesh, name: &Name) -> Option<proto::InboundPolicy> {
    let service = mesh.service(name)?;
    let scopes = inherited::scopes(name);
    let policies: Vec<_> = scopes.iter().flat_map(|scope| oldest_first(mesh.authorization_policies(scope))).collect();
    let of = |action| policies.iter().filter(move |policy| policy.spec.action == action);
    let own = |action| of(action).flat_map(|policy| rules(mesh.trust_domain(), policy));
    let inherited = inherited::of(mesh, name);
    let inherited = inherited.values().map(|inherited| {
        rule(mesh.trust_domain(), inherited.policy, inherited.index, inherited.rule, &inherited.operations)
    });
    let rules = own(Action::Deny).chain(inherited).chain(own(Action::Allow));
    Some(proto::InboundPolicy {
        service: name.to_string(),
        ports: service.spec.ports.iter().map(port).collect(),
        rules: rules.collect(),
        default_allow: mesh.default_allow(),
        probe_exemptions: (service.spec.probe_exemptions.iter())
            .map(|probe| proto::ProbeExemption { port: probe.port.into(), path: probe.path.clone() })
            .collect(),
    })
}

fn port(port: &ServicePortSpec) -> proto::InboundPort {
    proto::InboundPort {
        port: port.port.into(),
        protocol: protocol(port.protocol).into(),
        target_port: port.target_port.unwrap_or(port.port).into(),
        permissive: port.mtls == MtlsMode::Permissive,
        request_timeout_ms: 0,
    }
}

fn rules(trust_domain: &TrustDomain, policy: &Object<AuthorizationPolicySpec>) -> Vec<proto::AuthorizationRule> {
    let each = policy.spec.rules.iter().enumerate();
    each.map(|(index, own)| rule(trust_domain, policy, index, own, &own.to)).collect()
}

fn rule(
    trust_domain: &TrustDomain,
    policy: &Object<AuthorizationPolicySpec>,
    index: usize,
    rule: &RuleSpec,
    operations: &[OperationSpec],
) -> proto::AuthorizationRule {
    proto::AuthorizationRule {
        policy: format!("AuthorizationPolicy {}", Name::of(&policy.metadata)),
        rule: rule.name.clone().unwrap_or_else(|| index.to_string()),
        deny: policy.spec.action == Action::Deny,
        sources: rule.from.iter().map(|source| compile_source(trust_domain, source)).collect(),
        operations: operations.iter().map(compile_operation).collect(),
    }
}

fn compile_source(trust_domain: &TrustDomain, source: &SourceSpec) -> proto::Source {
    proto::Source {
        identities: source.identities.iter().map(|identity| full_identity(trust_domain, identity)).collect(),
        namespaces: source.namespaces.clone(),
        cidrs: source.cidrs.clone(),
        unauthenticated: source.unauthenticated,
    }
}

/// `<namespace>/<service account>` as a SPIFFE ID of the mesh; anything else stays as it is, and the
/// proxy refuses what it cannot read.
fn full_identity(trust_domain: &TrustDomain, identity: &str) -> String {
    match identity.split_once('/') {
        Some((namespace, account)) if !identity.contains(':') && !account.contains('/') => {
            format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
        }
        _ => identity.to_owned(),
    }
}

fn compile_operation(operation: &OperationSpec) -> proto::Operation {
    proto::Operation {
        ports: operation.ports.iter().copied().map(u32::from).collect(),
        methods: operation.methods.clone(),
        paths: operation.paths.clone(),
    }
}
