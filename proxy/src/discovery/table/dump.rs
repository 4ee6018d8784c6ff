//! What the proxy believes, for the admin listener.

use serde_json::{Map, Value, json};

use super::{
    Dial, Table,
    kind::{Answer, Kind},
};
use crate::snapshot::{Balancing, Endpoints, InboundPolicy, Protocol, Service};

impl Table {
    /// Everything held, with versions, and what was refused. Holds no secret.
    pub(in crate::discovery) fn dump(&self) -> Value {
        let mesh = self.meshes.held("mesh").map(|mesh| {
            json!({
                "version": self.meshes.version("mesh"),
                "trustDomain": mesh.trust_domain.to_string(),
                "suffixes": mesh.suffixes,
                "cidrs": mesh.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "egressAllow": mesh.egress_allow,
                "namespaces": mesh.namespaces.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
                "samplingRatio": mesh.sampling_ratio,
                "accessLog": mesh.access_log,
            })
        });
        let destinations: Map<_, _> = self
            .dialled
            .iter()
            .map(|(name, dialled)| {
                let answer = match &dialled.answer {
                    None => json!({ "state": "waiting" }),
                    Some(Dial::Unknown) if self.former.had(name) => json!({ "state": "gone" }),
                    Some(Dial::Unknown) => json!({ "state": "unknown" }),
                    Some(Dial::Rejected(reason)) => json!({ "state": "rejected", "reason": reason.as_ref() }),
                    Some(Dial::Service(service)) => json!({ "state": "service", "service": service }),
                };
                (name.clone(), answer)
            })
            .collect();
        json!({
            "mesh": mesh,
            "destinations": destinations,
            "inbound": self.inbound.values().map(|policy| inbound(policy)).collect::<Vec<_>>(),
            "services": self.active.iter().map(|(name, active)| {
                let mut shown = service(active);
                let latest = self.services.version(name).unwrap_or_default();
                if latest != active.version {
                    shown["awaitingBackends"] = json!({ "version": latest });
                }
                shown
            }).collect::<Vec<_>>(),
            "endpoints": self.endpoints.values().map(|held| endpoints(held)).collect::<Vec<_>>(),
            "subscriptions": {
                "trustBundle": subscriptions(&self.bundles),
                "meshConfig": subscriptions(&self.meshes),
                "workload": subscriptions(&self.workloads),
                "inboundPolicy": subscriptions(&self.inbound),
                "service": subscriptions(&self.services),
                "endpoints": subscriptions(&self.endpoints),
            },
        })
    }
}

fn subscriptions<T>(kind: &Kind<T>) -> Value {
    let names = kind.wanted().map(|name| {
        let state = match kind.answer(name) {
            None => "waiting",
            Some(Answer::Held) => "held",
            Some(Answer::Missing) => "missing",
            Some(Answer::Rejected) => "rejected",
        };
        let mut shown = json!({ "state": state });
        if let Some(version) = kind.version(name) {
            shown["version"] = version.into();
        }
        if let Some(rejected) = kind.rejected().get(name) {
            shown["rejected"] = json!({ "version": rejected.version, "reason": rejected.reason });
        }
        (name.clone(), shown)
    });
    Value::Object(names.collect())
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http => "http",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    }
}

fn inbound(policy: &InboundPolicy) -> Value {
    let ports = policy.ports.iter().map(|(number, port)| {
        json!({
            "port": number,
            "protocol": protocol(port.protocol),
            "app": port.app.map(|app| app.to_string()),
            "permissive": port.permissive,
        })
    });
    json!({
        "service": policy.service.to_string(),
        "version": policy.version,
        "ports": ports.collect::<Vec<_>>(),
        "authorization": format!("{:?}", policy.authorizer),
        "probeExemptions": policy.probe_exemptions.iter().map(|(port, path)| json!({ "port": port, "path": path })).collect::<Vec<_>>(),
    })
}

fn service(service: &Service) -> Value {
    let backend = |backend: &crate::snapshot::Backend| json!({ "cluster": backend.cluster.to_string(), "weight": backend.weight, "invalid": backend.invalid.as_deref() });
    let ports = service.ports.iter().map(|(number, port)| {
        let rules = port.http_rules.iter().map(|rule| {
            json!({
                "route": rule.route.as_ref(),
                "rule": rule.rule.as_ref(),
                "hostnames": rule.hostnames.iter().map(|host| format!("{host:?}")).collect::<Vec<_>>(),
                "match": format!("{:?}", rule.matches),
                "filters": rule.filters.iter().map(|filter| format!("{filter:?}")).collect::<Vec<_>>(),
                "backends": rule.backends.iter().map(backend).collect::<Vec<_>>(),
            })
        });
        json!({
            "port": number,
            "protocol": protocol(port.protocol),
            "httpRules": rules.collect::<Vec<_>>(),
            "tcpBackends": port.tcp_backends.iter().map(backend).collect::<Vec<_>>(),
        })
    });
    let policy = &service.policy;
    let balancing = match policy.balancing {
        Balancing::PeakEwma => "peakEwma",
        Balancing::RoundRobin => "roundRobin",
        Balancing::Random => "random",
    };
    json!({
        "service": service.name.to_string(),
        "version": service.version,
        "hosts": service.hosts,
        "ports": ports.collect::<Vec<_>>(),
        "trafficPolicy": {
            "source": policy.source.as_ref(),
            "balancing": balancing,
            "requestTimeoutMs": policy.request_timeout.map(|d| d.as_millis() as u64),
            "perTryTimeoutMs": policy.per_try_timeout.map(|d| d.as_millis() as u64),
            "connectTimeoutMs": policy.connect_timeout.as_millis() as u64,
            "idleTimeoutMs": policy.idle_timeout.as_millis() as u64,
            "retry": format!("{:?}", policy.retry),
            "limits": format!("{:?}", policy.limits),
            "outlierDetection": format!("{:?}", policy.outlier),
        },
    })
}

fn endpoints(endpoints: &Endpoints) -> Value {
    let shown = endpoints.endpoints.iter().map(|endpoint| {
        json!({
            "address": endpoint.address.to_string(),
            "workload": endpoint.workload,
            "identities": endpoint.identities.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "meshed": endpoint.meshed,
            "ports": endpoint.ports.keys().collect::<Vec<_>>(),
            "zone": endpoint.zone,
            "weight": endpoint.weight,
            "ready": endpoint.ready,
        })
    });
    json!({ "service": endpoints.service.to_string(), "version": endpoints.version, "endpoints": shown.collect::<Vec<_>>() })
}
