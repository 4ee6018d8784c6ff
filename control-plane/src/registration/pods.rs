//! Proxies of pods: Kubernetes says where they are and what they serve, and they say when they leave.

use heddle_api::{proto::registration::RegisterRequest, resource::Name};
use heddle_certs::SpiffeId;
use tonic::Status;

use super::{Registrations, check, not_yours};
use crate::peer::Peer;

impl Registrations {
    /// Whether this is the proxy of a pod that is known. There is nothing to write then: it stays, if it has said
    /// before that it leaves.
    pub(super) fn is_pod(
        &self,
        peer: &Peer,
        identity: &SpiffeId,
        namespace: &str,
        request: &RegisterRequest,
    ) -> Result<bool, Status> {
        let name = check::workload_name(namespace, &request.workload)?;
        if !self.is_own_pod(peer, identity, &name)? {
            return Ok(false);
        }
        if self.0.hub.read(|mesh| mesh.is_leaving(&name)) {
            self.0.hub.change(0, |mesh| mesh.leave(&name, false));
        }
        Ok(true)
    }

    /// If this is the proxy of a pod: it takes no more traffic, and these are the services of which others are told so.
    pub(super) fn pod_leaves(
        &self,
        peer: &Peer,
        identity: &SpiffeId,
        name: &Name,
    ) -> Result<Option<Vec<Name>>, Status> {
        if !self.is_own_pod(peer, identity, name)? {
            return Ok(None);
        }
        self.0.hub.change(0, |mesh| mesh.leave(name, true));
        Ok(self.0.hub.read(|mesh| mesh.pod(name).map(|pod| pod.services.keys().cloned().collect())))
    }

    /// Of several pods with one service account, each speaks for itself.
    fn is_own_pod(&self, peer: &Peer, identity: &SpiffeId, name: &Name) -> Result<bool, Status> {
        let Some(pod) = self.0.hub.read(|mesh| mesh.pod(name).cloned()) else { return Ok(false) };
        if !self.0.hub.read(|mesh| mesh.is_pod_of(name, identity)) {
            return Err(not_yours(name));
        }
        let source = peer.address.ip().to_canonical();
        if !pod.ips.contains(&source) {
            return Err(Status::permission_denied(format!("{source} is no address of pod {name}")));
        }
        Ok(true)
    }
}
