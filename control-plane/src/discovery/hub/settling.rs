//! Who waits until endpoints are where everybody has them. Each answer is looked at once for each who waits,
//! however many there are to answer.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use heddle_api::resource::Name;
use tokio::{sync::Notify, time::Instant};

use super::{Hub, Inner};
use crate::{
    compile::ResourceKind,
    discovery::{
        catalog::{Key, StreamId},
        session::Standing,
    },
};

/// By number: whose answers somebody waits for, and how to wake it when all are there.
pub(super) type Waiters = BTreeMap<u64, (HashSet<StreamId>, Arc<Notify>)>;

impl Hub {
    /// Waits until every stream that holds the endpoints of these services now has answered to them as they
    /// are, or until `deadline`. Says whether all have.
    pub async fn endpoints_settled(&self, services: &[Name], deadline: Instant) -> bool {
        let waiting = Waiting::new(self, services);
        loop {
            if waiting.is_over() {
                return true;
            }
            if tokio::time::timeout_at(deadline, waiting.wake.notified()).await.is_err() {
                return waiting.is_over();
            }
        }
    }
}

impl Inner {
    /// A stream has answered to the endpoints of these services, or has them no more.
    pub(super) fn settle(&mut self, stream: StreamId, services: &[Arc<str>]) {
        for service in services {
            if !self.settling.contains_key(service) || self.is_pending(stream, service) {
                continue;
            }
            for (left, wake) in self.settling.get_mut(service).into_iter().flat_map(BTreeMap::values_mut) {
                if left.remove(&stream) && left.is_empty() {
                    wake.notify_one();
                }
            }
        }
    }

    /// A proxy that rejected the endpoints has answered; it cannot be waited for.
    fn is_pending(&mut self, stream: StreamId, service: &Arc<str>) -> bool {
        let key: Key = (ResourceKind::Endpoints, Arc::clone(service));
        self.standing(stream, &key) == Some(Standing::Pending)
    }
}

/// Wakes when endpoints of some services are settled, as long as it lives.
struct Waiting<'a> {
    hub: &'a Hub,
    id: u64,
    services: Vec<Arc<str>>,
    wake: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn new(hub: &'a Hub, services: &[Name]) -> Self {
        let services: Vec<Arc<str>> = services.iter().map(|service| service.to_string().into()).collect();
        let wake = Arc::new(Notify::new());
        let mut inner = hub.lock();
        inner.last_waiting += 1;
        let id = inner.last_waiting;
        for service in &services {
            let watchers: Vec<_> = inner.catalog.watchers(ResourceKind::Endpoints, service).collect();
            let left = watchers.into_iter().filter(|stream| inner.is_pending(*stream, service)).collect();
            inner.settling.entry(Arc::clone(service)).or_default().insert(id, (left, Arc::clone(&wake)));
        }
        drop(inner);
        Self { hub, id, services, wake }
    }

    fn is_over(&self) -> bool {
        let inner = self.hub.lock();
        let waits = |service| inner.settling.get(service).and_then(|waiting| waiting.get(&self.id));
        self.services.iter().filter_map(waits).all(|(left, _)| left.is_empty())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        for service in &self.services {
            if let Some(waiting) = inner.settling.get_mut(service) {
                waiting.remove(&self.id);
                if waiting.is_empty() {
                    inner.settling.remove(service);
                }
            }
        }
    }
}
