//! The discovery service: tells proxies what they ask about, and what became of it.
//!
//! Delta ADS, on demand: a proxy subscribes to names, gets each resource once, and again when it
//! changes. [`Hub`] keeps what there is and who holds it; a session per stream decides what is to be
//! said; the stream says it as fast as the proxy reads.

mod catalog;
mod hub;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use heddle_api::proto::ads::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use heddle_certs::Clock;
use heddle_runtime::drain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use self::hub::{Hub, Proxy, ProxyReport};
use crate::{authority::Signer, peer::Peer, tokens::Revocations};

/// The largest message of a proxy: names and versions only.
const MAX_MESSAGE: usize = 2 * 1024 * 1024;

/// The discovery service.
#[derive(Debug)]
pub struct Discovery {
    hub: Hub,
    signer: Arc<Signer>,
    revocations: Revocations,
    clock: Arc<dyn Clock>,
    drain: drain::Watch,
}

impl Discovery {
    /// The service, which ends its streams when `drain` is raised.
    pub fn service(
        hub: Hub,
        signer: Arc<Signer>,
        revocations: Revocations,
        clock: Arc<dyn Clock>,
        drain: drain::Watch,
    ) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(Self { hub, signer, revocations, clock, drain })
            .max_decoding_message_size(MAX_MESSAGE)
            // One resource may be large: a service with tens of thousands of endpoints.
            .max_encoding_message_size(usize::MAX)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = Peer::of(&request)?;
        peer.verified(self.clock.now())?;
        // One response waits here while the one before is being written.
        let (sender, receiver) = mpsc::channel(1);
        let trust = stream::Trust { signer: Arc::clone(&self.signer), revocations: self.revocations.clone() };
        let (hub, clock, drain) = (self.hub.clone(), Arc::clone(&self.clock), self.drain.clone());
        self.drain.spawn(Box::pin(stream::run(hub, trust, peer, clock, request.into_inner(), sender, drain)));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
