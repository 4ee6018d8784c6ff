//! API tokens: who may use the REST API, and for what.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::{self, NoRandomness, Secret};
use crate::store::{KeyValue, Outcome, Range, Store, StoreError, Transaction};

const PREFIX: &str = "heddle";
const KEYS: &str = "/tokens/api/";
/// Written with the first token, so that deleting all tokens never makes a new one by itself.
const BOOTSTRAPPED: &str = "/tokens/bootstrapped";

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything but secrets.
    Viewer,
    /// Writes objects and join tokens, too.
    Operator,
    /// Makes and deletes API tokens, too.
    Admin,
}

impl Role {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// An API token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiToken {
    /// Part of the token's text; names it where it is listed or deleted.
    pub id: String,
    /// Who uses it; shown in the list of revisions.
    pub name: String,
    /// What it may be used for.
    pub role: Role,
    /// When it was made, RFC 3339.
    pub created: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    token: ApiToken,
    digest: String,
}

/// Why a token could not be made, found or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no such token.
    #[error("there is no token {0}")]
    NotFound(String),
    /// The last admin token cannot be deleted: nobody could make another.
    #[error("this is the last admin token; make another one before deleting it")]
    LastAdmin,
    /// Somebody else changed tokens at the same moment.
    #[error("others changed tokens at the same moment; try again")]
    Contended,
    /// What is stored cannot be read.
    #[error("the stored token {0} cannot be read")]
    Unreadable(Arc<str>),
    /// No randomness for a secret.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the first admin token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The token could not be stored.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It could not be handed to its user.
    #[error("the context file cannot be written")]
    HandOver(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// All API tokens.
#[derive(Clone, Debug)]
pub struct ApiTokens {
    store: Arc<dyn Store>,
}

impl ApiTokens {
    /// The tokens in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Makes a token; also returns its text, which is never shown again.
    pub async fn create(&self, name: &str, role: Role) -> Result<(ApiToken, String), TokenError> {
        let (stored, text) = make(name, role)?;
        let transaction = put(Transaction::new().when(key(&stored.token.id), 0), &stored);
        match self.store.commit(transaction).await? {
            Outcome::Committed(_) => Ok((stored.token, text)),
            Outcome::Conflict { .. } => Err(TokenError::Contended),
        }
    }

    /// All of them, oldest first.
    pub async fn list(&self) -> Result<Vec<ApiToken>, TokenError> {
        let page = self.store.range(Range::prefix(KEYS)).await?;
        let mut tokens =
            page.entries.iter().map(|entry| Ok(parse(entry)?.token)).collect::<Result<Vec<_>, TokenError>>()?;
        tokens.sort_by(|one, other| (&one.created, &one.id).cmp(&(&other.created, &other.id)));
        Ok(tokens)
    }

    /// Deletes a token; it cannot be used from now on.
    pub async fn delete(&self, id: &str) -> Result<(), TokenError> {
        let page = self.store.range(Range::prefix(KEYS)).await?;
        let mut transaction = Transaction::new();
        let mut found = None;
        let mut other_admin = None;
        for entry in &page.entries {
            let token = parse(entry)?.token;
            if token.id == id {
                found = Some(token);
                transaction =
                    transaction.when(Arc::clone(&entry.key), entry.mod_revision).delete(Arc::clone(&entry.key));
            } else if token.role == Role::Admin {
                other_admin = Some(entry);
            }
        }
        match (found, other_admin) {
            (None, _) => return Err(TokenError::NotFound(id.to_owned())),
            (Some(found), None) if found.role == Role::Admin => return Err(TokenError::LastAdmin),
            // Two admins that delete each other at the same moment must not both succeed.
            (Some(_), Some(other)) => transaction = transaction.when(Arc::clone(&other.key), other.mod_revision),
            (Some(_), None) => {}
        }
        match self.store.commit(transaction).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict { .. } => Err(TokenError::Contended),
        }
    }

    /// The token of this text, if there is one.
    pub async fn authenticate(&self, text: &str) -> Result<Option<ApiToken>, TokenError> {
        let Some((id, secret)) = secret::parse(PREFIX, text) else { return Ok(None) };
        let stored = match self.store.read(&key(id), None).await? {
            Some(entry) => Some(parse(&entry)?),
            None => None,
        };
        // An id is no secret; the comparison is made in either case, so that both take as long.
        let digest = stored.as_ref().map_or("", |stored| &stored.digest);
        Ok(if secret::matches(secret, digest) { stored.map(|stored| stored.token) } else { None })
    }

    /// Whether there is a token of this id.
    pub async fn is_known(&self, id: &str) -> Result<bool, TokenError> {
        Ok(self.store.read(&key(id), None).await?.is_some())
    }

    /// At the first start, makes an admin token and hands its text over. The token is stored only
    /// after that: a crash between leaves a text that opens nothing, and the next start tries again.
    pub async fn bootstrap<E: std::error::Error + Send + Sync + 'static>(
        &self,
        hand_over: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> Result<Option<ApiToken>, BootstrapError> {
        if self.store.read(BOOTSTRAPPED, None).await.map_err(TokenError::from)?.is_some() {
            return Ok(None);
        }
        self.make_admin(Transaction::new().when(BOOTSTRAPPED, 0), hand_over).await.map(Some)
    }

    /// Makes one more admin token, in the same order, for whoever has lost the others, which stay valid.
    pub async fn another_admin<E: std::error::Error + Send + Sync + 'static>(
        &self,
        hand_over: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> Result<ApiToken, BootstrapError> {
        self.make_admin(Transaction::new(), hand_over).await
    }

    async fn make_admin<E: std::error::Error + Send + Sync + 'static>(
        &self,
        transaction: Transaction,
        hand_over: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> Result<ApiToken, BootstrapError> {
        let (stored, text) = make("admin", Role::Admin)?;
        hand_over(&text).await.map_err(|error| BootstrapError::HandOver(Box::new(error)))?;
        let transaction = put(transaction.put(BOOTSTRAPPED, "1"), &stored);
        match self.store.commit(transaction).await.map_err(TokenError::from)? {
            Outcome::Committed(_) => Ok(stored.token),
            Outcome::Conflict { .. } => Err(TokenError::Contended.into()),
        }
    }
}

fn make(name: &str, role: Role) -> Result<(Stored, String), TokenError> {
    let (secret, digest) = Secret::make(PREFIX)?;
    let created = format!("{:.0}", Timestamp::try_from(SystemTime::now()).unwrap_or_default());
    let token = ApiToken { id: secret.id, name: name.to_owned(), role, created };
    Ok((Stored { token, digest }, secret.text))
}

fn put(transaction: Transaction, stored: &Stored) -> Transaction {
    let value = serde_json::to_vec(stored).expect("a token is JSON: it has no maps");
    transaction.put(key(&stored.token.id), value)
}

fn key(id: &str) -> String {
    format!("{KEYS}{id}")
}

fn parse(entry: &KeyValue) -> Result<Stored, TokenError> {
    serde_json::from_slice(&entry.value).map_err(|_| TokenError::Unreadable(Arc::clone(&entry.key)))
}
