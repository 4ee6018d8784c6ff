//! The certificate that this side proves itself with, for as long as it is valid.

use std::sync::Arc;

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{Clock, Svid};

#[derive(Debug)]
pub(super) struct OwnCertificate {
    svid: Svid,
    clock: Arc<dyn Clock>,
}

impl OwnCertificate {
    pub(super) fn new(svid: Svid, clock: Arc<dyn Clock>) -> Self {
        Self { svid, clock }
    }

    fn resolve(&self) -> Option<Arc<CertifiedKey>> {
        self.svid.check_validity(self.clock.now()).ok()?;
        Some(Arc::clone(self.svid.certified()))
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.resolve()
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.resolve()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
