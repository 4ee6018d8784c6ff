//! Destinations outside the mesh, where policy lets them be called: one cluster for each name, its
//! endpoints what DNS says.

use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::{
    net::lookup_host,
    time::{Duration, Instant, timeout},
};

use super::{Cluster, Clusters};
use crate::{
    config::DialName,
    listener,
    outcome::{Error, ErrorKind},
    snapshot::{
        Balancing, ClusterName, Endpoint, Endpoints, Limits, OutlierDetection, Protocol, RetryPolicy, Service,
        ServiceName, ServicePort, TrafficPolicy,
    },
};

/// How long an answer of DNS is believed. Its own lifetime is not told by the system's resolver.
const BELIEVED: Duration = Duration::from_secs(15);
/// How long DNS may take.
const LOOKUP: Duration = Duration::from_secs(5);

impl Clusters {
    /// The cluster of a destination outside the mesh. Errors: `UnknownDestination` if DNS leads into the mesh, where
    /// nothing is ever sent in plaintext; `Loop` if it leads to this proxy.
    pub(crate) async fn outside(&self, name: &DialName) -> Result<Rc<Cluster>, Error> {
        let cluster_name = outside_name(name);
        if let Some(cluster) = self.all.borrow().get(&cluster_name) {
            let believed = cluster.believed.borrow();
            if believed.since.elapsed() < BELIEVED {
                cluster.used.set(Instant::now());
                return Ok(cluster.clone());
            }
        }
        let known = self.all.borrow().get(&cluster_name).cloned();
        match (self.look_up(name, &cluster_name).await, known) {
            (Ok(endpoints), Some(known)) => {
                let service = known.believed.borrow().service.clone();
                Ok(self.update(&cluster_name, service, Arc::new(endpoints)))
            }
            (Ok(endpoints), None) => {
                let service = Arc::new(outside_service(&cluster_name));
                Ok(self.update(&cluster_name, service, Arc::new(endpoints)))
            }
            // While DNS does not answer, what it said before is better than nothing.
            (Err(error), Some(known)) if error.kind == ErrorKind::ConnectFailed => Ok(known),
            (Err(error), _) => Err(error),
        }
    }

    async fn look_up(&self, name: &DialName, cluster: &ClusterName) -> Result<Endpoints, Error> {
        let failed = |why: String| Error::new(ErrorKind::ConnectFailed, format!("{name}: {why}"));
        let found = timeout(LOOKUP, lookup_host((name.host.as_str(), name.port))).await;
        let found = found.map_err(|_| failed(format!("DNS did not answer within {} s", LOOKUP.as_secs())))?;
        let mut addresses: Vec<SocketAddr> = found.map_err(|error| failed(error.to_string()))?.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let snapshot = self.discovery.snapshot();
        for address in &addresses {
            if self.is_own_listener(*address) {
                return Err(Error::new(ErrorKind::Loop, format!("{name} is a listener of this proxy")));
            }
            if snapshot.is_mesh_address(address.ip()) {
                let detail = format!("{name} is {}, an address of the mesh that no service has", address.ip());
                return Err(Error::new(ErrorKind::UnknownDestination, detail));
            }
        }
        let endpoints = addresses.into_iter().map(|address| {
            Arc::new(Endpoint {
                address,
                identities: Vec::new(),
                meshed: false,
                ports: BTreeMap::from([(name.port, address.port())]),
                zone: String::new(),
                weight: 1,
                ready: true,
                workload: String::new(),
            })
        });
        Ok(Endpoints { service: cluster.service.clone(), endpoints: endpoints.collect(), version: String::new() })
    }

    /// Whether a connection to this address would come back.
    pub(crate) fn is_own_listener(&self, address: SocketAddr) -> bool {
        listener::is_own(&self.own_listeners, address, None)
    }
}

/// No service has an empty namespace.
fn outside_name(name: &DialName) -> ClusterName {
    ClusterName { service: ServiceName { namespace: "".into(), name: name.host.as_str().into() }, port: name.port }
}

/// What is known of somebody who is not known: no retries but of connections, nobody is ejected.
fn outside_service(name: &ClusterName) -> Service {
    let policy = TrafficPolicy {
        balancing: Balancing::PeakEwma,
        request_timeout: None,
        per_try_timeout: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(60),
        retry: Arc::new(RetryPolicy {
            max_retries: 1,
            statuses: Vec::new(),
            grpc_statuses: Vec::new(),
            on_connect_failure: true,
            on_reset: false,
            on_refused_stream: true,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            replay_bytes: 64 << 10,
            budget_percent: 20,
            budget_min_per_second: 10,
            methods: Vec::new(),
        }),
        limits: Limits { max_connections: 1024, max_requests: 1024, max_pending: 1024 },
        outlier: OutlierDetection {
            consecutive_failures: 0,
            base_ejection: Duration::from_secs(1),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 0,
        },
        source: "outside the mesh".into(),
    };
    let port = ServicePort {
        protocol: Protocol::Detect,
        http_rules: Vec::new(),
        tcp_backends: Vec::new(),
        tcp_route: "".into(),
    };
    Service {
        name: name.service.clone(),
        hosts: Vec::new(),
        addresses: Vec::new(),
        ports: BTreeMap::from([(name.port, port)]),
        policy: Arc::new(policy),
        version: String::new(),
    }
}
