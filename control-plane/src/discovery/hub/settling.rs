//! Who waits until endpoints are where everybody has them, and is woken by their answers alone.

use std::sync::Arc;

use heddle_api::resource::Name;
use tokio::{sync::Notify, time::Instant};

use super::{Hub, Inner};
use crate::{
    compile::ResourceKind,
    discovery::{catalog::Key, session::Standing},
};

impl Hub {
    /// Waits until every stream that holds the endpoints of these services has acknowledged them as
    /// they are now, or until `deadline`. Says whether all have.
    pub async fn endpoints_settled(&self, services: &[Name], deadline: Instant) -> bool {
        let waiting = Waiting::new(self, services);
        loop {
            if self.lock().is_settled(services) {
                return true;
            }
            // What was answered since is kept for it.
            if tokio::time::timeout_at(deadline, waiting.wake.notified()).await.is_err() {
                return false;
            }
        }
    }
}

impl Inner {
    /// Wakes who waits for the endpoints of these services.
    pub(super) fn settle(&self, services: &[Arc<str>]) {
        for (_, wake) in services.iter().filter_map(|service| self.settling.get(service)).flatten() {
            wake.notify_one();
        }
    }

    fn is_settled(&mut self, services: &[Name]) -> bool {
        for service in services {
            let key: Key = (ResourceKind::Endpoints, service.to_string().into());
            let watchers: Vec<_> = self.catalog.watchers(key.0, &key.1).collect();
            // A proxy that rejected the endpoints has answered; it cannot be waited for.
            if watchers.into_iter().any(|id| self.standing(id, &key) == Some(Standing::Pending)) {
                return false;
            }
        }
        true
    }
}

/// Wakes when endpoints of some services are answered, as long as it lives.
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
            inner.settling.entry(Arc::clone(service)).or_default().push((id, Arc::clone(&wake)));
        }
        Self { hub, id, services, wake }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        for service in &self.services {
            if let Some(waiting) = inner.settling.get_mut(service) {
                waiting.retain(|(id, _)| *id != self.id);
                if waiting.is_empty() {
                    inner.settling.remove(service);
                }
            }
        }
    }
}
