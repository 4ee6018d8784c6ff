//! Who is at the other end of a connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use heddle_certs::{
    CertificateDer, SpiffeId, TrustBundle,
    verify::{self, Side, Verifier, VerifyError},
};
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
    /// That certificate with what leads to a root.
    pub shown: Option<Arc<Shown>>,
}

/// The chain that a client showed.
#[derive(Debug)]
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    /// Of the trust bundle by which it was found good last; none has 0.
    epoch: AtomicU64,
}

impl Shown {
    /// A chain, leaf first.
    pub fn new(chain: &[CertificateDer<'_>]) -> Self {
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self { chain, epoch: AtomicU64::new(0) }
    }

    /// Whether it is good by this trust bundle; worked out once for each.
    pub fn verify(&self, bundle: &TrustBundle, now: SystemTime) -> Result<(), VerifyError> {
        if self.epoch.load(Ordering::Relaxed) == bundle.epoch() {
            return Ok(());
        }
        let (leaf, intermediates) = self.chain.split_first().ok_or(VerifyError::NoCertificate)?;
        Verifier::new(bundle.clone()).verify(leaf, intermediates, Side::Client, now)?;
        self.epoch.store(bundle.epoch(), Ordering::Relaxed);
        Ok(())
    }
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
