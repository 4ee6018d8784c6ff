//! Opaque and upgraded connections that are open: what each was made for, and whether it may go on.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::Arc,
};

use heddle_certs::SpiffeId;
use tokio::sync::Notify;

use super::Destination;
use crate::{
    cluster::Cluster,
    config::DialName,
    discovery::Discovery,
    exchange::Exchange,
    open::Open,
    outcome::{Error, ErrorKind},
    snapshot::{ClusterName, Endpoint},
    worker::Worker,
};

/// One of them.
pub(crate) struct Tunnel {
    name: DialName,
    outside: bool,
    cluster: ClusterName,
    endpoint: Arc<Endpoint>,
    /// Who the other end has proved to be.
    peer: Option<SpiffeId>,
    /// The request that became one, which is to end with it.
    exchange: Weak<Exchange>,
    ended: RefCell<Option<Error>>,
    has_ended: Notify,
}

/// Those of a worker.
pub(crate) type Tunnels = Open<Tunnel>;

/// What is believed has changed: what may not go on ends.
pub(crate) async fn recheck(tunnels: &Tunnels, discovery: &Discovery) {
    let recheck = |tunnel: &Tunnel| {
        if tunnel.recheck(discovery) {
            tunnels.count_ended();
        }
    };
    tunnels.each(recheck).await;
}

impl Tunnel {
    /// Begins, and is judged anew whenever what is believed changes.
    pub(super) fn open(
        worker: &Worker,
        name: &DialName,
        destination: &Destination,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        peer: Option<&SpiffeId>,
        exchange: Weak<Exchange>,
    ) -> Rc<Self> {
        let tunnel = Rc::new(Self {
            name: name.clone(),
            outside: matches!(destination, Destination::Outside(_)),
            cluster: cluster.name().clone(),
            endpoint: endpoint.clone(),
            peer: peer.cloned(),
            exchange,
            ended: RefCell::default(),
            has_ended: Notify::new(),
        });
        worker.tunnels.add(&tunnel);
        // What changed since the destination was looked up.
        tunnel.recheck(&worker.common.discovery);
        tunnel
    }

    /// Until it may not go on.
    pub(super) async fn end(&self) -> Error {
        loop {
            let ending = self.has_ended.notified();
            if let Some(error) = self.ended.borrow().clone() {
                return error;
            }
            ending.await;
        }
    }

    /// Says whether it has to end.
    fn recheck(&self, discovery: &Discovery) -> bool {
        if self.ended.borrow().is_some() {
            return false;
        }
        let Err(error) = self.judge(discovery) else { return false };
        let error = error.after_send();
        if let Some(exchange) = self.exchange.upgrade() {
            exchange.interrupt(error.clone());
        }
        *self.ended.borrow_mut() = Some(error);
        self.has_ended.notify_one();
        true
    }

    /// Whether it would be made again; but for what only says that it could not be made now: an instance that has
    /// left may be ending what it has begun.
    fn judge(&self, discovery: &Discovery) -> Result<(), Error> {
        discovery.still(&self.name, self.outside)?;
        let snapshot = discovery.snapshot();
        let address = self.endpoint.address;
        if self.outside {
            if snapshot.is_mesh_address(address.ip()) {
                let detail = format!("{} is {}, an address of the mesh now", self.name, address.ip());
                return Err(Error::new(ErrorKind::UnknownDestination, detail));
            }
            return Ok(());
        }
        let Some(endpoints) = snapshot.endpoints.get(&self.cluster.service) else { return Ok(()) };
        let is_meant = |endpoint: &Arc<Endpoint>| match &self.peer {
            Some(peer) => endpoint.meshed && endpoint.identities.contains(peer),
            None => !endpoint.meshed,
        };
        let mut here = endpoints.at_address(address).peekable();
        if here.peek().is_none() || here.any(is_meant) {
            return Ok(());
        }
        let who = self.peer.as_ref().map_or_else(|| "an app without a sidecar".to_owned(), ToString::to_string);
        let detail = format!("{address} of {} is no longer to be {who}", self.cluster);
        Err(Error::new(ErrorKind::PeerIdentity, detail))
    }
}
