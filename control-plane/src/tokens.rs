//! Tokens: who may use the API ([`ApiTokens`]), which workload may have its first SVID ([`JoinTokens`]), and
//! whose SVIDs count no more ([`Revocations`]). Of a secret only the SHA-256 is stored; it is shown once, when it is made.

mod api;
mod context;
mod join;
mod revocations;
mod secret;
#[cfg(test)]
mod tests;

pub(crate) use self::secret::hex;
pub use self::{
    api::{ApiToken, ApiTokens, BootstrapError, Role, TokenError},
    context::{ContextError, WrittenContext, write_context},
    join::{JoinToken, JoinTokens, NewJoinToken, RedeemError, Redeemed},
    revocations::{NoteError, Revocation, Revocations, fingerprint},
};
