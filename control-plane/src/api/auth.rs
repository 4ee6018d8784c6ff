//! Who asks: bearer tokens.

use std::time::Duration;

use http::{HeaderMap, header::AUTHORIZATION};
use tokio::sync::Semaphore;

use super::refusal::Refusal;
use crate::tokens::{ApiToken, ApiTokens};

/// How long the answer to a wrong token takes.
const DELAY: Duration = Duration::from_millis(100);
/// How many such answers may be waiting; beyond, they are refused at once.
const WAITING: usize = 64;

/// Knows who may come in. A secret has 256 bits and cannot be guessed; the delay and the bound only
/// keep those who try from filling the log and the processor.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    tokens: ApiTokens,
    failures: Semaphore,
}

impl Doorkeeper {
    pub(super) fn new(tokens: ApiTokens) -> Self {
        Self { tokens, failures: Semaphore::new(WAITING) }
    }

    /// The token of a request.
    pub(super) async fn authenticate(&self, headers: &HeaderMap) -> Result<ApiToken, Refusal> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Refusal::unauthenticated("send one header Authorization: Bearer <token>"));
        };
        let text = value.to_str().ok().and_then(|text| text.split_once(' '));
        let Some((_, token)) = text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(Refusal::unauthenticated("send the header Authorization: Bearer <token>"));
        };
        if let Some(token) = self.tokens.authenticate(token.trim()).await? {
            return Ok(token);
        }
        // Right tokens never wait here, so that nobody can lock their users out.
        let Ok(_waiting) = self.failures.try_acquire() else {
            return Err(Refusal::too_many("too many wrong tokens at once"));
        };
        tokio::time::sleep(DELAY).await;
        Err(Refusal::unauthenticated("the token is not known; it may have been deleted"))
    }

    /// Whether a token that was good still is.
    pub(super) async fn is_valid(&self, token: &ApiToken) -> bool {
        self.tokens.is_known(&token.id).await.unwrap_or(false)
    }
}
