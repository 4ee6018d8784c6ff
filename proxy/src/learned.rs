//! What connections to each destination were found to speak, and why: told in the config dump, and remembered where
//! the server spoke first, so that the app's next connection there need not wait for the client in vain. Nothing is
//! decided by it: first bytes are looked at all the same.

use std::{
    collections::HashMap,
    hash::Hash,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    config::DialName,
    outcome::ErrorKind,
    snapshot::{ClusterName, ServiceName},
};

/// Destinations that each worker remembers in each direction.
const MOST: usize = 1024;

/// What all workers have learnt. Cheap to clone; clones share all.
#[derive(Clone, Debug, Default)]
pub struct Learned(Arc<Mutex<Vec<Arc<Shard>>>>);

/// What one worker has learnt: locked by nobody else but for the config dump.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    outbound: Mutex<HashMap<DialName, Finding>>,
    inbound: Mutex<HashMap<SocketAddr, Finding>>,
}

/// Of the connections to one destination, what the last one was.
#[derive(Clone, Debug)]
struct Finding {
    leads_to: LeadsTo,
    found: Found,
    connections: u64,
    last: SystemTime,
}

/// What a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeadsTo {
    /// A port of a service; of this instance, where its own address was dialled.
    Service { service: ServiceName, port: u16, instance: Option<SocketAddr> },
    /// Nothing of the mesh.
    Outside,
    /// The app beside this proxy.
    App(Option<ClusterName>),
    /// Nowhere.
    Refused(ErrorKind),
}

/// What a connection was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) speaks: Speaks,
    pub(crate) because: Because,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    /// TLS of the app's own.
    Tls,
    /// mTLS between proxies.
    Mesh,
    Opaque,
}

/// How that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Because {
    /// The port is declared so.
    Declared,
    /// The client's first bytes say so.
    FirstBytes,
    /// The client was silent, and the server spoke.
    ServerSpokeFirst,
}

impl Learned {
    /// For one worker.
    pub(crate) fn shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::default());
        lock(&self.0).push(shard.clone());
        shard
    }

    /// Everything, in order of destination.
    pub(crate) fn dump(&self) -> Value {
        let shards: Vec<Arc<Shard>> = lock(&self.0).clone();
        let mut outbound = Vec::new();
        let mut inbound = Vec::new();
        for shard in shards {
            outbound.extend(lock(&shard.outbound).iter().map(|(name, finding)| (name.to_string(), finding.clone())));
            inbound.extend(lock(&shard.inbound).iter().map(|(at, finding)| (at.to_string(), finding.clone())));
        }
        json!({ "outbound": shown(outbound), "inbound": shown(inbound) })
    }
}

impl Shard {
    /// A connection of the app, decided.
    pub(crate) fn outbound(&self, name: &DialName, leads_to: LeadsTo, found: Found) {
        note(&mut lock(&self.outbound), name, leads_to, found);
    }

    /// A captured connection to the app, decided.
    pub(crate) fn inbound(&self, dialled: SocketAddr, port: Option<ClusterName>, found: Found) {
        note(&mut lock(&self.inbound), &dialled, LeadsTo::App(port), found);
    }

    /// Whether the server spoke first on the last connection of the app there.
    pub(crate) fn outbound_server_speaks_first(&self, name: &DialName) -> bool {
        let all = lock(&self.outbound);
        all.get(name).is_some_and(|finding| finding.found.because == Because::ServerSpokeFirst)
    }
}

impl LeadsTo {
    fn shown(&self) -> String {
        match self {
            Self::Service { service, port, instance: None } => format!("{service}:{port}"),
            Self::Service { service, port, instance: Some(at) } => format!("{service}:{port} at {at}"),
            Self::Outside => "outside the mesh".to_owned(),
            Self::App(Some(port)) => format!("the app, as {port}"),
            Self::App(None) => "the app".to_owned(),
            Self::Refused(kind) => format!("nowhere: {}", kind.row().reason),
        }
    }
}

/// What was there least recently makes room.
fn note<K: Clone + Eq + Hash>(all: &mut HashMap<K, Finding>, key: &K, leads_to: LeadsTo, found: Found) {
    let last = SystemTime::now();
    if let Some(known) = all.get_mut(key) {
        *known = Finding { leads_to, found, connections: known.connections + 1, last };
        return;
    }
    if all.len() >= MOST
        && let Some(oldest) = all.iter().min_by_key(|(_, finding)| finding.last).map(|(key, _)| key.clone())
    {
        all.remove(&oldest);
    }
    all.insert(key.clone(), Finding { leads_to, found, connections: 1, last });
}

/// Workers' findings put together: how many, and the last.
fn shown(mut findings: Vec<(String, Finding)>) -> Value {
    findings.sort_by(|a, b| (&a.0, a.1.last).cmp(&(&b.0, b.1.last)));
    let mut together: Vec<(String, Finding)> = Vec::new();
    for (name, finding) in findings {
        match together.last_mut().filter(|(known, _)| *known == name) {
            Some((_, known)) => *known = Finding { connections: known.connections + finding.connections, ..finding },
            None => together.push((name, finding)),
        }
    }
    let one = |(name, finding): (String, Finding)| {
        let speaks = match finding.found.speaks {
            Speaks::Http1 => "http1",
            Speaks::Http2 => "http2",
            Speaks::Tls => "tls of the app's own",
            Speaks::Mesh => "mtls between proxies",
            Speaks::Opaque => "opaque",
        };
        let because = match finding.found.because {
            Because::Declared => "declared",
            Because::FirstBytes => "first bytes",
            Because::ServerSpokeFirst => "server spoke first",
        };
        json!({
            "destination": name,
            "leadsTo": finding.leads_to.shown(),
            "speaks": speaks,
            "because": because,
            "connections": finding.connections,
            "last": Timestamp::try_from(finding.last).map(|at| at.to_string()).unwrap_or_default(),
        })
    };
    together.into_iter().map(one).collect()
}

/// What is behind it is whole whenever it is let go.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str) -> DialName {
        DialName::new(host, 25)
    }

    const GREETED: Found = Found { speaks: Speaks::Opaque, because: Because::ServerSpokeFirst };
    const TOLD: Found = Found { speaks: Speaks::Http1, because: Because::FirstBytes };

    #[test]
    fn only_the_last_connection_says_who_speaks_first() {
        let learned = Learned::default();
        let (one, other) = (learned.shard(), learned.shard());
        let mail = name("10.0.0.1");
        assert!(!one.outbound_server_speaks_first(&mail));
        one.outbound(&mail, LeadsTo::Outside, GREETED);
        assert!(one.outbound_server_speaks_first(&mail) && !one.outbound_server_speaks_first(&name("10.0.0.2")));
        one.outbound(&mail, LeadsTo::Outside, TOLD);
        assert!(!one.outbound_server_speaks_first(&mail));
        other.outbound(&mail, LeadsTo::Refused(ErrorKind::EgressDenied), GREETED);
        let dump = learned.dump();
        let found = &dump["outbound"][0];
        assert_eq!((&found["destination"], &found["connections"]), (&json!("10.0.0.1:25"), &json!(3)));
        assert_eq!(found["leadsTo"], "nowhere: egress-denied", "the last, of whichever worker: {dump:#}");
        assert_eq!(dump["outbound"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn no_more_is_remembered_than_that() {
        let learned = Learned::default();
        let shard = learned.shard();
        for number in 0..MOST + 10 {
            shard.outbound(&name(&format!("h{number}.x")), LeadsTo::Outside, TOLD);
        }
        assert_eq!(lock(&shard.outbound).len(), MOST);
        assert!(lock(&shard.outbound).contains_key(&name(&format!("h{}.x", MOST + 9))));
    }
}
