//! The registration service: a workload's proxy makes it an endpoint of services, for as long as it
//! renews its lease.
//!
//! What is registered is kept in the store, so that a restart removes nobody, and makes nobody ready who is not;
//! that it is alive is kept in memory, so that a renewal writes nothing.

mod check;
mod contested;
mod leases;
mod pods;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use heddle_api::{
    proto::registration::{
        DeregisterRequest, DeregisterResponse, RegisterRequest, RegisterResponse,
        registration_server::{Registration as Service, RegistrationServer},
    },
    resource::Name,
};
use heddle_certs::{Clock, SpiffeId};
use heddle_runtime::drain;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use self::{contested::Contested, leases::Leases};
use crate::{
    discovery::Hub,
    mesh::Registered,
    metrics::Metrics,
    peer::Peer,
    registry::{Registration, Registry},
    store::StoreError,
    turns::Turns,
};

/// Largest request.
const MAX_MESSAGE: usize = 64 * 1024;
/// How often leases are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Registrations that are removed in one transaction.
const EXPIRED_AT_ONCE: usize = 500;
/// Longest wait of a Deregister.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Registered workloads. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Registrations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Arc<Registry>,
    hub: Hub,
    leases: Mutex<Leases>,
    contested: Mutex<Contested>,
    /// Who writes or removes a registration holds the turn of its name, so that a lease that ends and one
    /// that begins anew do not cross.
    turns: Turns,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl Registrations {
    /// No workloads yet; leases have this length.
    pub fn new(registry: Arc<Registry>, hub: Hub, lease: Duration, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let (leases, contested) = (Mutex::new(Leases::new(lease)), Mutex::new(Contested::new(lease)));
        let turns = Turns::default();
        Self(Arc::new(Shared { registry, hub, leases, contested, turns, clock, metrics }))
    }

    /// The service.
    pub fn service(&self) -> RegistrationServer<Self> {
        RegistrationServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A registration as the mesh sees it. One that was not heard of yet gets a full lease.
    pub fn admit(&self, registration: &Registration) -> Option<Arc<Registered>> {
        let mut leases = self.leases();
        leases.grant_unheard(&registration.name, registration.ready, Instant::now());
        self.0.metrics.leases.set(leases.count() as i64);
        registered(registration, leases.is_ready(&registration.name)).map(Arc::new)
    }

    /// Whether a registered workload takes traffic.
    pub fn is_ready(&self, name: &Name) -> bool {
        self.leases().is_ready(name)
    }

    /// Whether several proxies of one identity seem to call themselves this, and take turns.
    pub fn is_contested(&self, name: &Name) -> bool {
        self.contested().is_contested(name, Instant::now())
    }

    /// A registration is gone from the store.
    pub fn forget(&self, name: &Name) {
        let mut leases = self.leases();
        leases.end(name);
        self.0.metrics.leases.set(leases.count() as i64);
    }

    /// Ends leases that were not renewed, until drained.
    pub async fn expire(self, drain: drain::Watch) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.expire_once(Instant::now()).await,
                () = drain.drained() => return,
            }
        }
    }

    async fn expire_once(&self, now: Instant) {
        self.contested().sweep(now);
        let ended = self.leases().expire(now, LOOK);
        for some in ended.chunks(EXPIRED_AT_ONCE) {
            self.remove_expired(some, now).await;
        }
        let count = self.leases().count();
        self.0.metrics.leases.set(count as i64);
    }

    /// Removes registrations whose leases have ended, in one transaction.
    async fn remove_expired(&self, ended: &[(Name, bool)], now: Instant) {
        let names: Vec<_> = ended.iter().map(|(name, _)| name).collect();
        let _turns = self.0.turns.all_of(&names).await;
        let view = self.0.registry.view();
        // Who registered anew while this waited has another lease.
        let gone: Vec<_> = {
            let leases = self.leases();
            let without = names.into_iter().filter(|name| !leases.has(name));
            without.filter_map(|name| view.registration(name).cloned()).collect()
        };
        match self.0.registry.deregister(&gone).await {
            Ok(true) => {
                for registration in &gone {
                    tracing::info!(workload = %registration.name, "the lease has ended");
                }
                self.0.metrics.leases_expired.inc_by(gone.len() as u64);
                return;
            }
            Ok(false) => tracing::debug!("registrations changed while their leases ended"),
            Err(error) => tracing::warn!(count = gone.len(), %error, "registrations cannot be removed"),
        }
        // Known again with a full lease, and so tried again.
        let mut leases = self.leases();
        let known = ended.iter().filter(|(name, _)| view.registration(name).is_some());
        known.for_each(|(name, ready)| leases.grant_unheard(name, *ready, now));
    }

    async fn register(&self, peer: &Peer, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        let now = self.0.clock.now();
        let (identity, namespace, account) = peer.workload(now)?;
        if self.is_pod(peer, identity, namespace, &request)? {
            return Ok(self.response());
        }
        let ready = request.ready;
        let registration = self.check(peer, identity, namespace, account, request)?;
        let name = registration.name.clone();
        let view = self.0.registry.view();
        let known = view.registration(&name);
        let unchanged = known.is_some_and(|known| {
            Registration { revision: known.revision, ready: known.ready, ..registration.clone() } == **known
        });
        let renewed = if unchanged { self.leases().renew(&name, ready, Instant::now()) } else { None };
        let changed = match renewed {
            Some(changed) => changed,
            None => self.write(&registration, ready).await?,
        };
        if changed {
            self.publish(&name);
        }
        if renewed.is_some() && known.is_some_and(|known| known.ready != ready) {
            self.keep_ready(&name).await;
        }
        Ok(self.response())
    }

    fn response(&self) -> RegisterResponse {
        let lease = self.leases().length();
        RegisterResponse { lease_seconds: u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1) }
    }

    /// Writes down whether a workload takes traffic, for the next start. If that cannot be done now, its next
    /// renewal tries again: it has said so, and that counts.
    async fn keep_ready(&self, name: &Name) {
        let _turn = self.0.turns.of(name).await;
        let (view, ready) = (self.0.registry.view(), self.is_ready(name));
        let Some(known) = view.registration(name).filter(|known| known.ready != ready) else { return };
        let changed = Registration { ready, ..(**known).clone() };
        if let Err(error) = self.0.registry.register(&changed, Some(known)).await {
            tracing::warn!(workload = %name, %error, "whether a workload is ready cannot be written");
        }
    }

    /// Writes a new or changed registration, and begins its lease. Says whether readiness changed.
    async fn write(&self, registration: &Registration, ready: bool) -> Result<bool, Status> {
        let name = &registration.name;
        let turn = self.0.turns.of(name).await;
        let view = self.0.registry.view();
        let known = view.registration(name);
        // Somebody else may have taken the name since it was checked.
        if known.is_some_and(|known| known.identity != registration.identity) {
            return Err(not_yours(name));
        }
        let held = view.held_by(&registration.identity);
        if known.is_none() && held >= check::MAX_INSTANCES {
            let said = format!("{} has {held} registered workloads already", registration.identity);
            return Err(Status::resource_exhausted(said));
        }
        // The lease first: when the mesh learns of the workload, it must know whether it is ready.
        let changed = self.leases().grant(name, ready, Instant::now());
        let written = self.0.registry.register(registration, known.map(|known| &**known)).await;
        if !matches!(written, Ok(true)) && known.is_none() {
            self.leases().end(name);
        }
        if !written.map_err(|error| unavailable(&error))? {
            return Err(Status::aborted(format!("workload {name} changed meanwhile; try again")));
        }
        drop(turn);
        if let Some(known) = known.filter(|known| known.address != registration.address)
            && self.contested().moved(name, Instant::now())
        {
            tracing::warn!(
                workload = %name,
                addresses = %format_args!("{} and {}", known.address, registration.address),
                "several proxies call themselves this and take turns; give each a name of its own (--workload)"
            );
        }
        self.supersede(registration).await?;
        tracing::info!(
            workload = %registration.name,
            identity = registration.identity,
            address = %registration.address,
            "registered"
        );
        Ok(changed)
    }

    /// The listener at this address is the caller's: whoever was there before is gone. Of several that come
    /// at once, the one that was written last sees all others.
    async fn supersede(&self, registration: &Registration) -> Result<(), Status> {
        let view = self.0.registry.view();
        let Some(mine) = view.registration(&registration.name) else { return Ok(()) };
        let others = view.placed_at(&registration.identity, registration.address);
        let older: Vec<_> = others.filter(|other| other.revision < mine.revision).cloned().collect();
        for other in older {
            let _turn = self.0.turns.of(&other.name).await;
            let removed = self.0.registry.deregister(std::slice::from_ref(&other)).await;
            if removed.map_err(|error| unavailable(&error))? {
                self.leases().end(&other.name);
            }
        }
        Ok(())
    }

    /// Tells the mesh at once about readiness, which the store does not know. Looks again whether the
    /// workload is there: its removal may have passed this by, and what is removed then would stay for ever.
    fn publish(&self, name: &Name) {
        self.0.hub.change(0, |mesh| {
            let view = self.0.registry.view();
            let known = view.registration(name);
            let workload = known.and_then(|known| registered(known, self.is_ready(name)));
            workload.map(|workload| mesh.register(Arc::new(workload))).unwrap_or_default()
        });
    }

    async fn deregister(&self, peer: &Peer, request: DeregisterRequest) -> Result<DeregisterResponse, Status> {
        let (identity, namespace, _) = peer.workload(self.0.clock.now())?;
        let deadline = Instant::now() + Duration::from_millis(request.wait_milliseconds.into()).min(LONGEST_WAIT);
        let name = check::workload_name(namespace, &request.workload)?;
        if let Some(services) = self.pod_leaves(peer, identity, &name)? {
            tracing::info!(workload = %name, %identity, "the pod's proxy leaves");
            return Ok(DeregisterResponse { acknowledged: self.0.hub.endpoints_settled(&services, deadline).await });
        }
        let services = {
            let _turn = self.0.turns.of(&name).await;
            let view = self.0.registry.view();
            let Some(known) = view.registration(&name) else {
                return Ok(DeregisterResponse { acknowledged: true });
            };
            if *known.identity != *identity.as_str() {
                return Err(not_yours(&name));
            }
            let removed = self.0.registry.deregister(std::slice::from_ref(known)).await;
            if !removed.map_err(|error| unavailable(&error))? {
                return Err(Status::aborted(format!("workload {name} changed meanwhile; try again")));
            }
            self.forget(&name);
            known.services.keys().filter_map(|service| Name::parse(service)).collect::<Vec<_>>()
        };
        tracing::info!(workload = %name, %identity, "deregistered");
        let seen = self.0.registry.view().revision();
        let acknowledged =
            self.0.hub.reached(seen, deadline).await && self.0.hub.endpoints_settled(&services, deadline).await;
        Ok(DeregisterResponse { acknowledged })
    }

    fn contested(&self) -> MutexGuard<'_, Contested> {
        self.0.contested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` if the identity is none, which nothing but damage to the store can make it.
fn registered(registration: &Registration, ready: bool) -> Option<Registered> {
    let identity: SpiffeId = registration.identity.parse().ok()?;
    let services = registration.services.iter().filter_map(|(name, ports)| Some((Name::parse(name)?, ports.clone())));
    let app_ports = registration.app_ports.iter().filter_map(|(name, ports)| Some((Name::parse(name)?, ports.clone())));
    Some(Registered {
        name: registration.name.clone(),
        identity,
        address: registration.address,
        services: services.collect(),
        app_ports: app_ports.collect(),
        zone: registration.zone.clone(),
        ready,
    })
}

fn unavailable(error: &StoreError) -> Status {
    tracing::warn!(%error, "a registration cannot be written");
    Status::unavailable("the store cannot be written now; try again")
}

fn not_yours(name: &Name) -> Status {
    Status::permission_denied(format!("workload {name} belongs to another identity; choose another name"))
}

#[tonic::async_trait]
impl Service for Registrations {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let peer = Peer::of(&request)?;
        self.register(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn deregister(&self, request: Request<DeregisterRequest>) -> Result<Response<DeregisterResponse>, Status> {
        let peer = Peer::of(&request)?;
        self.deregister(&peer, request.into_inner()).await.map(Response::new)
    }
}
