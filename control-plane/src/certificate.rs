//! The control plane's own SVID, with which both of its TLS listeners prove who they are.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use heddle_certs::{
    AuthorityError, Clock, SignOptions, SpiffeId, TrustBundle, TrustDomain, rotation,
    tls::{self, ClientAuth, TlsError},
};
use heddle_runtime::drain;
use rustls::ServerConfig;

use crate::{
    authority::{Signer, seconds},
    config::Names,
    metrics::Metrics,
};

/// At least this long, however short workloads' SVIDs are: it is renewed without anybody's help.
const SHORTEST: Duration = Duration::from_secs(3600);
/// How often the time is looked at: the clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(20);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The authority cannot sign.
    #[error("the control plane's own certificate cannot be signed")]
    Sign(#[from] AuthorityError),
    /// rustls refuses it.
    #[error("the control plane's own certificate cannot be used")]
    Tls(#[from] TlsError),
}

/// The SVID, and the TLS configurations made of it.
#[derive(Debug)]
pub struct Certificate {
    signer: Arc<Signer>,
    id: SpiffeId,
    names: Names,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    current: ArcSwap<Current>,
    /// Held from when the authority is looked at until what it signed is in use: none replaces a later one.
    renewing: Mutex<()>,
}

#[derive(Debug)]
struct Current {
    api: Arc<ServerConfig>,
    mesh: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl Certificate {
    /// Signs the first one.
    pub fn issue(
        signer: Arc<Signer>,
        trust_domain: &TrustDomain,
        names: Names,
        ttl: Duration,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, CertificateError> {
        let id = SpiffeId::control_plane(trust_domain);
        let ttl = ttl.max(SHORTEST);
        let current = sign(&signer, &id, &names, ttl, &clock, &metrics)?;
        Ok(Self {
            signer,
            id,
            names,
            ttl,
            clock,
            metrics,
            current: ArcSwap::from_pointee(current),
            renewing: Mutex::default(),
        })
    }

    /// For the API: clients show no certificate.
    pub fn api(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().api)
    }

    /// For the mesh: a client shows its SVID, if it has one yet.
    pub fn mesh(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().mesh)
    }

    /// Renews it, and the authority above it, until drained. Tells of the roots of each new authority.
    pub async fn maintain(self: Arc<Self>, drain: drain::Watch, on_roots: impl Fn(TrustBundle)) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = drain.drained() => return,
            }
            let replaced = self.signer.maintain();
            if replaced {
                on_roots(self.signer.bundle());
            }
            self.renew_if_due(replaced);
        }
    }

    /// Under another authority it is due at once.
    fn renew_if_due(&self, replaced: bool) {
        if replaced || self.clock.now() >= self.current.load().renew_at {
            self.renew();
        }
    }

    /// Signs it anew, for connections made from now on; they are judged by the roots of now, too.
    pub fn renew(&self) {
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        match sign(&self.signer, &self.id, &self.names, self.ttl, &self.clock, &self.metrics) {
            Ok(current) => {
                self.current.store(Arc::new(current));
                tracing::info!("renewed the control plane's own certificate");
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "cannot renew the control plane's own certificate");
            }
        }
    }
}

fn sign(
    signer: &Signer,
    id: &SpiffeId,
    names: &Names,
    ttl: Duration,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Current, CertificateError> {
    let now = clock.now();
    let options =
        SignOptions { dns_names: names.dns.clone(), ip_addresses: names.ips.clone(), ..SignOptions::new(ttl, now) };
    let svid = signer.issue(id, &options)?;
    let bundle = signer.bundle();
    let config = |alpn: &[&[u8]], auth| tls::server_config(&svid, &bundle, alpn, auth, Arc::clone(clock)).map(Arc::new);
    metrics.certificate_expiry.with_label_values(&["own"]).set(seconds(svid.not_after()));
    Ok(Current {
        api: config(&[b"http/1.1"], ClientAuth::None)?,
        mesh: config(&[b"h2"], ClientAuth::Optional)?,
        renew_at: rotation::renew_at(svid.not_before(), svid.not_after(), 0.0),
    })
}
