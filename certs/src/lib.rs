//! Identity for Heddle: SPIFFE IDs, trust bundles, an authority that signs X.509-SVIDs, and the rustls
//! verifiers that accept nothing else.
//!
//! The crate knows no network and spawns no task: everything here is a value or a function of its
//! arguments, and the time of day comes from a [`Clock`] that the caller passes.
//!
//! From the outside in:
//!
//! - [`TrustDomain`], [`SpiffeId`]: names that cannot be malformed.
//! - [`TrustBundle`]: the roots that speak for one trust domain, with an epoch.
//! - [`Authority`]: signs an [`Svid`] for a [`csr`] and an attested identity.
//! - [`verify`]: the rules of X.509-SVID; [`tls`]: rustls configurations that apply them.
//! - [`rotation`]: when to renew, as a pure function.

pub mod authority;
pub mod clock;
pub mod csr;
mod pem;
pub mod rotation;
pub mod spiffe_id;
pub mod svid;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trust_bundle;
pub mod trust_domain;
pub mod verify;

pub use authority::{Authority, AuthorityError, AuthorityPem, SignOptions, SlotPem};
pub use clock::{Clock, ManualClock, SystemClock};
pub use csr::CsrError;
pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use svid::{Svid, SvidError};
pub use trust_bundle::{TrustBundle, TrustBundleError};
pub use trust_domain::TrustDomain;
pub use verify::VerifyError;

pub use rustls_pki_types::{CertificateDer, PrivateKeyDer};
