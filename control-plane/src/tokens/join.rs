//! Join tokens: a workload's first proof of who it is, limited in time and count.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    TokenError,
    secret::{self, Secret},
};
use crate::{
    store::{KeyValue, Outcome, Range, Store, StoreError, Transaction},
    turns::Turns,
};

const PREFIX: &str = "hjt";
const KEYS: &str = "/tokens/join/";
/// Tokens by the time at which they expire: `<RFC 3339>/<id>`, so that those to forget are found without a look
/// at all others.
const EXPIRY_KEYS: &str = "/tokens/join-expiry/";
/// Expired tokens that are forgotten with a new one.
const FORGOTTEN_AT_ONCE: usize = 32;
/// So long after its end a token is kept, so that until then its user is told what is wrong with it.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often a redemption is tried when others redeem the same token.
const TRIES: usize = 64;

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinToken {
    /// Part of the token's text; names it where it is listed or deleted.
    pub id: String,
    /// Namespace of the identity that it is good for.
    pub namespace: String,
    /// Service account of the identity that it is good for.
    pub service_account: String,
    /// How many workloads may join with it.
    pub uses: u32,
    /// How many have.
    pub used: u32,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Until when it can be used, RFC 3339.
    pub expires: String,
}

/// What a join token is to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJoinToken {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// How long.
    pub ttl: Duration,
    /// For how many workloads, at most [`JoinTokens::MAX_USES`].
    pub uses: u32,
}

/// Whom a join token attests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redeemed {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
}

/// Why a join token attests nobody.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// It is no join token of this mesh, or was deleted, or expired long ago.
    #[error("the join token is not known")]
    Unknown,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// As many workloads as it is good for have joined with it.
    #[error("the join token is used up")]
    UsedUp,
    /// Too many join with it at the same moment, or the store failed: try again.
    #[error("the join token cannot be checked now")]
    Unavailable(#[source] TokenError),
}

impl From<StoreError> for RedeemError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.into())
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    token: JoinToken,
    digest: String,
    /// Digests of the requesters that it was redeemed by.
    #[serde(default)]
    requesters: Vec<String>,
}

/// All join tokens.
#[derive(Clone, Debug)]
pub struct JoinTokens {
    store: Arc<dyn Store>,
    /// Who redeems a token has its turn, so that many at once need not try again and again.
    turns: Arc<Turns>,
}

impl JoinTokens {
    /// Most uses that a token can have.
    pub const MAX_USES: u32 = 1000;
    /// Longest life of a token.
    pub const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

    /// The tokens in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, turns: Arc::default() }
    }

    /// Makes a token; also returns its text, which is never shown again. Forgets those that have
    /// expired.
    pub async fn create(&self, new: NewJoinToken, now: SystemTime) -> Result<(JoinToken, String), TokenError> {
        let (secret, digest) = Secret::make(PREFIX)?;
        let token = JoinToken {
            id: secret.id,
            namespace: new.namespace,
            service_account: new.service_account,
            uses: new.uses.clamp(1, Self::MAX_USES),
            used: 0,
            created: text_of(now),
            expires: text_of(now + new.ttl.min(Self::MAX_TTL)),
        };
        let stored = Stored { token, digest, requesters: Vec::new() };
        let transaction = put(Transaction::new().when(key(&stored.token.id), 0), &stored);
        let mut transaction = transaction.put(expiry_key(&stored.token), "");
        let over = text_of(now.checked_sub(KEPT).unwrap_or(now));
        let oldest = Range { limit: FORGOTTEN_AT_ONCE, ..Range::prefix(EXPIRY_KEYS) };
        for entry in self.store.range(oldest).await?.entries {
            let Some((expires, id)) = entry.key[EXPIRY_KEYS.len()..].split_once('/') else { continue };
            if *expires > *over {
                break;
            }
            transaction = transaction.delete(key(id)).delete(Arc::clone(&entry.key));
        }
        match self.store.commit(transaction).await? {
            Outcome::Committed(_) => Ok((stored.token, secret.text)),
            Outcome::Conflict { .. } => Err(TokenError::Contended),
        }
    }

    /// All of them, oldest first.
    pub async fn list(&self) -> Result<Vec<JoinToken>, TokenError> {
        let page = self.store.range(Range::prefix(KEYS)).await?;
        let mut tokens =
            page.entries.iter().map(|entry| Ok(parse(entry)?.token)).collect::<Result<Vec<_>, TokenError>>()?;
        tokens.sort_by(|one, other| (&one.created, &one.id).cmp(&(&other.created, &other.id)));
        Ok(tokens)
    }

    /// Deletes a token; nobody can join with it from now on. Who has joined stays.
    pub async fn delete(&self, id: &str) -> Result<(), TokenError> {
        let not_found = || TokenError::NotFound(id.to_owned());
        let entry = self.store.read(&key(id), None).await?.ok_or_else(not_found)?;
        // Whatever it was at: a redemption at the same moment does not keep it.
        let expiry = expiry_key(&parse(&entry)?.token);
        self.store.commit(Transaction::new().delete(entry.key).delete(expiry)).await?;
        Ok(())
    }

    /// Uses a token up by one for a requester (e.g. the public key of its CSR). The same requester
    /// asking again, because an answer was lost, counts once. Nobody gets a use that another got.
    pub async fn redeem(&self, text: &str, requester: &[u8], now: SystemTime) -> Result<Redeemed, RedeemError> {
        let (id, secret) = secret::parse(PREFIX, text).ok_or(RedeemError::Unknown)?;
        let requester = secret::hex(&digest::digest(&digest::SHA256, requester).as_ref()[..16]);
        let _turn = self.turns.of(&id).await;
        for _ in 0..TRIES {
            let entry = self.store.read(&key(id), None).await?;
            let stored = entry.as_ref().map(parse).transpose().map_err(RedeemError::Unavailable)?;
            let digest = stored.as_ref().map_or("", |stored| &stored.digest);
            let known = secret::matches(secret, digest);
            let (Some(entry), Some(mut stored), true) = (entry, stored, known) else {
                return Err(RedeemError::Unknown);
            };
            if has_expired(&stored.token, now) {
                return Err(RedeemError::Expired);
            }
            let redeemed = Redeemed {
                namespace: stored.token.namespace.clone(),
                service_account: stored.token.service_account.clone(),
            };
            if stored.requesters.contains(&requester) {
                return Ok(redeemed);
            }
            if stored.token.used >= stored.token.uses {
                return Err(RedeemError::UsedUp);
            }
            stored.token.used += 1;
            stored.requesters.push(requester.clone());
            let transaction = Transaction::new().when(Arc::clone(&entry.key), entry.mod_revision);
            if let Outcome::Committed(_) = self.store.commit(put(transaction, &stored)).await? {
                return Ok(redeemed);
            }
        }
        Err(RedeemError::Unavailable(TokenError::Contended))
    }
}

/// A time as RFC 3339, in whole seconds; the last that there is, if it is later.
pub(super) fn text_of(time: SystemTime) -> String {
    format!("{:.0}", Timestamp::try_from(time).unwrap_or(Timestamp::MAX))
}

/// A time that cannot be read is over.
fn has_expired(token: &JoinToken, now: SystemTime) -> bool {
    token.expires.parse::<Timestamp>().map_or(true, |expires| SystemTime::from(expires) <= now)
}

fn put(transaction: Transaction, stored: &Stored) -> Transaction {
    let value = serde_json::to_vec(stored).expect("a token is JSON: it has no maps");
    transaction.put(key(&stored.token.id), value)
}

fn expiry_key(token: &JoinToken) -> String {
    format!("{EXPIRY_KEYS}{}/{}", token.expires, token.id)
}

fn key(id: &str) -> String {
    format!("{KEYS}{id}")
}

fn parse(entry: &KeyValue) -> Result<Stored, TokenError> {
    serde_json::from_slice(&entry.value).map_err(|_| TokenError::Unreadable(Arc::clone(&entry.key)))
}
