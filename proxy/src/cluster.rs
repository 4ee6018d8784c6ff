//! A balanced group of endpoints as this worker treats it: which endpoint, how often, how much at once.
//!
//! A `Cluster` is state (latencies, ejections, budget, what is in use, connections) and outlives every
//! change of the policy and endpoints that it follows. What happens to a request is `stack`.

pub mod balance;
pub mod budget;
pub mod limit;
pub mod outlier;
mod outside;
pub mod retry;
pub(crate) mod stack;
pub mod totals;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::{Duration, Instant};

use self::{
    balance::{Balancer, Picked},
    budget::Budget,
    limit::Limit,
    outside::Outside,
    totals::{Total, Totals},
};
use crate::{
    config,
    connect::{Dial, Pool, Slot, Slots, Target},
    discovery::Discovery,
    identity::Identity,
    outcome::Error,
    snapshot::{ClusterName, Endpoint, Endpoints, Service, TrafficPolicy},
    timer::Timers,
};

/// A cluster that nobody asked for in this time is forgotten, with all that was learnt of it.
const FORGET: Duration = Duration::from_secs(900);

/// The clusters that this worker has sent to.
pub(crate) struct Clusters {
    all: RefCell<HashMap<ClusterName, Rc<Cluster>>>,
    discovery: Discovery,
    identity: Identity,
    limits: config::Limits,
    totals: Totals,
    outside: Outside,
}

/// One of them.
pub(crate) struct Cluster {
    name: ClusterName,
    believed: RefCell<Believed>,
    balancer: RefCell<Balancer>,
    budget: Budget,
    limit: Limit,
    slots: Rc<Slots>,
    pools: RefCell<HashMap<SocketAddr, Rc<Pool>>>,
    rng: RefCell<SmallRng>,
    timers: Timers,
    used: Cell<Instant>,
    /// The version of what is known of the mesh that it follows.
    followed: Cell<Option<u64>>,
    identity: Identity,
    limits: config::Limits,
    /// Kept as long as this is.
    _total: Arc<Total>,
}

/// What discovery last said.
struct Believed {
    service: Arc<Service>,
    endpoints: Arc<Endpoints>,
}

impl Clusters {
    pub(crate) fn new(
        discovery: &Discovery,
        identity: &Identity,
        limits: config::Limits,
        totals: &Totals,
        own_listeners: Arc<[SocketAddr]>,
    ) -> Self {
        Self {
            all: RefCell::default(),
            discovery: discovery.clone(),
            identity: identity.clone(),
            limits,
            totals: totals.clone(),
            outside: Outside::new(discovery, identity, limits, totals, own_listeners),
        }
    }

    /// The cluster, as discovery now describes it.
    pub(crate) async fn find(&self, name: &ClusterName) -> Result<Rc<Cluster>, Error> {
        // Before the question: what changes meanwhile is asked for the next time.
        let version = self.discovery.version();
        if let Some(cluster) = self.all.borrow().get(name)
            && cluster.followed.get() == Some(version)
        {
            cluster.used.set(Instant::now());
            return Ok(cluster.clone());
        }
        let (service, endpoints) = self.discovery.cluster(name).await?;
        let cluster = self.update(name, service, endpoints);
        cluster.followed.set(Some(version));
        Ok(cluster)
    }

    fn update(&self, name: &ClusterName, service: Arc<Service>, endpoints: Arc<Endpoints>) -> Rc<Cluster> {
        let now = Instant::now();
        if let Some(cluster) = self.all.borrow().get(name) {
            cluster.follow(service, endpoints, now);
            return cluster.clone();
        }
        let cluster = Rc::new(Cluster::new(name, service, endpoints, &self.identity, self.limits, &self.totals));
        self.all.borrow_mut().insert(name.clone(), cluster.clone());
        cluster
    }

    /// Drops connections and clusters that are not used.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.all.borrow_mut().retain(|_, cluster| cluster.sweep() || now - cluster.used.get() < FORGET);
        self.outside.sweep(now);
    }
}

impl Cluster {
    fn new(
        name: &ClusterName,
        service: Arc<Service>,
        endpoints: Arc<Endpoints>,
        identity: &Identity,
        limits: config::Limits,
        totals: &Totals,
    ) -> Self {
        let now = Instant::now();
        let total = totals.of(name, now);
        let policy = service.policy.clone();
        let mut rng = SmallRng::from_os_rng();
        let mut balancer = Balancer::new(policy.balancing, policy.outlier, rng.random());
        balancer.update(&endpoints, name.port, now);
        let limit = Limit::of(policy.limits, total.used.clone());
        Self {
            name: name.clone(),
            believed: RefCell::new(Believed { service, endpoints }),
            balancer: RefCell::new(balancer),
            budget: Budget::of(policy.retry.budget_percent, policy.retry.budget_min_per_second, total.account.clone()),
            slots: Slots::new(limit.clone()),
            limit,
            pools: RefCell::default(),
            rng: RefCell::new(rng),
            timers: Timers::default(),
            used: Cell::new(now),
            followed: Cell::new(None),
            identity: identity.clone(),
            limits,
            _total: total,
        }
    }

    /// Takes what changed; what was learnt of what did not, stays.
    fn follow(&self, service: Arc<Service>, endpoints: Arc<Endpoints>, now: Instant) {
        self.used.set(now);
        let mut believed = self.believed.borrow_mut();
        if !Arc::ptr_eq(&believed.service, &service) {
            let TrafficPolicy { balancing, outlier, limits, retry, .. } = &*service.policy;
            self.balancer.borrow_mut().set_policy(*balancing, *outlier);
            self.limit.set(*limits);
            self.budget.set(retry.budget_percent, retry.budget_min_per_second);
            believed.service = service;
        }
        if !Arc::ptr_eq(&believed.endpoints, &endpoints) {
            self.balancer.borrow_mut().update(&endpoints, self.name.port, now);
            self.pools.borrow_mut().retain(|address, pool| {
                let stays = endpoints.endpoints.iter().any(|endpoint| endpoint.address == *address);
                if !stays {
                    pool.retire();
                }
                stays
            });
            believed.endpoints = endpoints;
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Drops connections that are not used. Says whether anything is left, or under way.
    fn sweep(&self) -> bool {
        let idle = self.policy().idle_timeout;
        let pools = self.pools.borrow();
        pools.values().for_each(|pool| pool.sweep(idle));
        self.slots.make_room_for_others();
        self.limit.in_use() != [0; 3] || pools.values().any(|pool| pool.len() > 0)
    }

    fn service(&self) -> Arc<Service> {
        self.believed.borrow().service.clone()
    }

    fn endpoints(&self) -> Arc<Endpoints> {
        self.believed.borrow().endpoints.clone()
    }

    /// How it is to be treated now.
    pub(crate) fn policy(&self) -> Arc<TrafficPolicy> {
        self.believed.borrow().service.policy.clone()
    }

    /// The endpoint `instance`, or if none is meant any, if possible none of `tried`.
    pub(crate) fn pick(
        &self,
        instance: Option<SocketAddr>,
        tried: &[SocketAddr],
        now: Instant,
    ) -> Result<Picked, Error> {
        match instance {
            Some(address) => self.balancer.borrow().pick_only(address, now),
            None => self.balancer.borrow_mut().pick(now, tried),
        }
    }

    /// A place for one connection, if the limit has one.
    pub(crate) fn connection_slot(&self) -> Option<Slot> {
        self.slots.take_or_make_room()
    }

    /// The connections to an endpoint.
    fn pool(&self, endpoint: &Arc<Endpoint>) -> Result<Rc<Pool>, Error> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(&endpoint.address) {
            if pool.target().leads_to(endpoint, self.name.port) {
                return Ok(pool.clone());
            }
            pool.retire();
        }
        let pool = Pool::new(Target::endpoint(endpoint, &self.name)?, &self.identity);
        self.slots.register(&pool);
        pools.insert(endpoint.address, pool.clone());
        Ok(pool)
    }

    /// How connections are made, as policy now says.
    fn dial(&self) -> Dial {
        let believed = self.believed.borrow();
        let policy = &believed.service.policy;
        Dial {
            timeout: policy.connect_timeout,
            idle: policy.idle_timeout,
            slots: Some(self.slots.clone()),
            max_header_bytes: self.limits.max_header_bytes,
            max_headers: self.limits.max_headers,
        }
    }
}
