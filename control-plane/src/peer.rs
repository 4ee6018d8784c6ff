//! Who is at the other end of a connection.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use heddle_certs::{SpiffeId, verify};
use tonic::{Request, Status};

/// The peer of a connection to the mesh listener, as the handshake left it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// What its certificate proved; absent if it sent none.
    pub certificate: Option<verify::Peer>,
    /// What that certificate is known by.
    pub fingerprint: Option<Arc<str>>,
}

impl Peer {
    /// The peer of a request; the listener put it there.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// The verified certificate, which must not have expired since the handshake.
    pub fn verified(&self, now: SystemTime) -> Result<&verify::Peer, Status> {
        let Some(certificate) = &self.certificate else {
            return Err(Status::unauthenticated("a client certificate of this mesh is required"));
        };
        if now > certificate.not_after {
            return Err(Status::unauthenticated(
                "the certificate of this connection has expired; connect with a new one",
            ));
        }
        Ok(certificate)
    }

    /// The verified identity with its namespace and service account: workloads only.
    pub fn workload(&self, now: SystemTime) -> Result<(&SpiffeId, &str, &str), Status> {
        let id = &self.verified(now)?.id;
        let (namespace, account) =
            id.as_workload().ok_or_else(|| Status::permission_denied(format!("{id} is not a workload's identity")))?;
        Ok((id, namespace, account))
    }
}
