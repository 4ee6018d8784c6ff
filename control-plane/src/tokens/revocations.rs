//! Identities whose certificates were revoked: a certificate that others got hold of is not renewed, and opens
//! nothing here any more. Workloads of the identity join anew, with a join token.
//!
//! Which certificates were issued since is kept for as long as these are valid, and the revocation for as long as
//! one from before could be; then it is forgotten.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_certs::{CertificateDer, Clock, SpiffeId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};

use super::{TokenError, join::text_of, secret};
use crate::{
    config::LONGEST_TTL,
    peer::Peer,
    store::{KeyValue, Range, Store, StoreError, Transaction},
};

/// By namespace and service account.
const KEYS: &str = "/revocations/";
/// By namespace, service account and fingerprint: until when that certificate is valid, seconds since 1970.
const ISSUED: &str = "/issued/";
/// For how long a revoked certificate may be valid, whatever is set now: it may have been longer before. A day
/// more, as clocks differ.
const LONGEST: Duration = Duration::from_secs(LONGEST_TTL.as_secs() + 86_400);
/// Certificates of a revoked identity that are kept: a few for each workload that it may have.
const MAX_ISSUED: usize = 40_000;
/// Expired ones that are forgotten with each that is noted.
const FORGOTTEN: usize = 100;

/// A revocation of all certificates that an identity had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// Certificates from before count no more, RFC 3339.
    pub revoked: String,
    /// When none of them can be valid any longer, RFC 3339.
    pub until: String,
}

/// Why a certificate is not handed out to whom it was signed for.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The one that it renews was revoked meanwhile.
    #[error("the certificate that it renews was revoked meanwhile")]
    Revoked,
    /// Too many of the identity would have to be kept in mind.
    #[error("{MAX_ISSUED} certificates of this identity that are valid were issued since its revocation")]
    TooMany,
    /// It cannot be noted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug)]
struct Known {
    revocation: Revocation,
    /// The certificates that were issued since, by fingerprint: until when, seconds since 1970.
    issued: BTreeMap<Arc<str>, u64>,
}

/// Namespace and service account.
type Key = (String, String);

/// All revocations. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Revocations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    known: watch::Sender<BTreeMap<Key, Known>>,
    /// Held alone by who revokes; together by those who note what was issued.
    writing: RwLock<()>,
}

impl Revocations {
    /// Those in this store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, TokenError> {
        let mut known = BTreeMap::new();
        for entry in store.range(Range::prefix(KEYS)).await?.entries {
            let revocation: Revocation =
                serde_json::from_slice(&entry.value).map_err(|_| TokenError::Unreadable(Arc::clone(&entry.key)))?;
            known.insert(key_of(&revocation), Known { revocation, issued: BTreeMap::new() });
        }
        for entry in store.range(Range::prefix(ISSUED)).await?.entries {
            let (key, fingerprint, end) =
                read_issued(&entry).ok_or_else(|| TokenError::Unreadable(Arc::clone(&entry.key)))?;
            if let Some(known) = known.get_mut(&key) {
                known.issued.insert(fingerprint, end);
            }
        }
        Ok(Self(Arc::new(Shared { store, known: watch::Sender::new(known), writing: RwLock::new(()) })))
    }

    /// Revokes all certificates that an identity has now, and says in the log `by` whom. Once begun it is done, even
    /// if the future is dropped.
    pub async fn revoke(
        &self,
        namespace: &str,
        service_account: &str,
        by: &str,
        now: SystemTime,
    ) -> Result<Revocation, TokenError> {
        let revocation = Revocation {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            revoked: text_of(now),
            until: text_of(now + LONGEST),
        };
        let (this, by) = (self.clone(), by.to_owned());
        let done = async move {
            let _turn = this.0.writing.write().await;
            this.write(&revocation, now).await?;
            let Revocation { namespace, service_account, .. } = &revocation;
            tracing::warn!(by, namespace, service_account, "revoked all certificates of an identity");
            Ok(revocation)
        };
        to_its_end(done).await
    }

    /// All that still matter.
    pub fn list(&self, now: SystemTime) -> Vec<Revocation> {
        let known = self.0.known.borrow();
        known.values().map(|known| &known.revocation).filter(|one| !is_over(one, now)).cloned().collect()
    }

    /// Whether the certificate of a connection was revoked.
    pub fn is_revoked(&self, peer: &Peer, now: SystemTime) -> bool {
        let Some(certificate) = &peer.certificate else { return false };
        let Some(key) = workload(&certificate.id) else { return false };
        let known = self.0.known.borrow();
        let Some(known) = known.get(&key).filter(|known| !is_over(&known.revocation, now)) else { return false };
        !peer.fingerprint.as_ref().is_some_and(|fingerprint| known.issued.contains_key(fingerprint))
    }

    /// A certificate is signed that is valid until `end` at the latest: if that identity's were revoked, this one
    /// counts, unless the one that it `renews` was revoked too. It is handed out only then. Once begun it is done,
    /// even if the future is dropped.
    pub async fn issued(
        &self,
        id: &SpiffeId,
        certificate: &CertificateDer<'_>,
        end: SystemTime,
        renews: Option<&Peer>,
        now: SystemTime,
    ) -> Result<(), NoteError> {
        let Some(key) = workload(id) else { return Ok(()) };
        // If it is being revoked right now, this certificate will not count.
        if !self.0.known.borrow().contains_key(&key) {
            return Ok(());
        }
        let (this, renews, fingerprint) = (self.clone(), renews.cloned(), fingerprint(certificate).into());
        to_its_end(async move { this.note(key, fingerprint, seconds(end) + 1, renews, now).await }).await
    }

    async fn note(
        &self,
        key: Key,
        fingerprint: Arc<str>,
        end: u64,
        renews: Option<Peer>,
        now: SystemTime,
    ) -> Result<(), NoteError> {
        let _turn = self.0.writing.read().await;
        // Since that was asked before, the identity may have been revoked (again).
        if renews.is_some_and(|peer| self.is_revoked(&peer, now)) {
            return Err(NoteError::Revoked);
        }
        let Some(expired) = self.expired(&key, now)? else { return Ok(()) };
        let mut transaction = Transaction::new().put(issued_key(&key, &fingerprint), end.to_string());
        for old in &expired {
            transaction = transaction.delete(issued_key(&key, old));
        }
        self.0.store.commit(transaction).await?;
        // Nobody is woken: nothing is revoked by this.
        self.0.known.send_if_modified(|known| {
            if let Some(known) = known.get_mut(&key) {
                known.issued.retain(|one, _| !expired.contains(one));
                known.issued.insert(fingerprint, end);
            }
            false
        });
        Ok(())
    }

    /// Some of the certificates of a revoked identity that are not valid any longer; fails if too many are.
    fn expired(&self, key: &Key, now: SystemTime) -> Result<Option<BTreeSet<Arc<str>>>, NoteError> {
        let known = self.0.known.borrow();
        let Some(known) = known.get(key).filter(|known| !is_over(&known.revocation, now)) else { return Ok(None) };
        let now = seconds(now);
        let expired = known.issued.iter().filter(|(_, end)| **end < now).take(FORGOTTEN);
        let expired: BTreeSet<_> = expired.map(|(fingerprint, _)| Arc::clone(fingerprint)).collect();
        if known.issued.len() - expired.len() >= MAX_ISSUED { Err(NoteError::TooMany) } else { Ok(Some(expired)) }
    }

    /// Returns when the certificate of a connection is revoked.
    pub async fn revoked(&self, peer: &Peer, clock: &dyn Clock) {
        let mut changes = self.0.known.subscribe();
        while !self.is_revoked(peer, clock.now()) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Writes one, and forgets those that are over.
    async fn write(&self, revocation: &Revocation, now: SystemTime) -> Result<(), TokenError> {
        let key = key_of(revocation);
        self.0.store.commit(self.replacing(revocation, now)).await?;
        let known = Known { revocation: revocation.clone(), issued: BTreeMap::new() };
        self.0.known.send_modify(|all| {
            all.retain(|_, known| !is_over(&known.revocation, now));
            all.insert(key, known);
        });
        Ok(())
    }

    fn replacing(&self, revocation: &Revocation, now: SystemTime) -> Transaction {
        let value = serde_json::to_vec(revocation).expect("a revocation is JSON: it has no maps");
        let this = key_of(revocation);
        let mut transaction = Transaction::new().put(store_key(&this), value);
        for (key, known) in &*self.0.known.borrow() {
            if *key != this && !is_over(&known.revocation, now) {
                continue;
            }
            if *key != this {
                transaction = transaction.delete(store_key(key));
            }
            for fingerprint in known.issued.keys() {
                transaction = transaction.delete(issued_key(key, fingerprint));
            }
        }
        transaction
    }
}

/// Does something that must not end halfway, as what is on disk must be known in memory too: whoever waits for it
/// may go away.
async fn to_its_end<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    tokio::spawn(work).await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
}

/// What a certificate is known by.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    secret::hex(&digest.as_ref()[..16])
}

fn workload(id: &SpiffeId) -> Option<Key> {
    id.as_workload().map(|(namespace, account)| (namespace.to_owned(), account.to_owned()))
}

fn key_of(revocation: &Revocation) -> Key {
    (revocation.namespace.clone(), revocation.service_account.clone())
}

fn store_key((namespace, account): &Key) -> String {
    format!("{KEYS}{namespace}/{account}")
}

fn issued_key((namespace, account): &Key, fingerprint: &str) -> String {
    format!("{ISSUED}{namespace}/{account}/{fingerprint}")
}

/// Whose certificate it is, which, and until when.
fn read_issued(entry: &KeyValue) -> Option<(Key, Arc<str>, u64)> {
    let mut parts = entry.key.strip_prefix(ISSUED)?.splitn(3, '/');
    let (namespace, account, fingerprint) = (parts.next()?, parts.next()?, parts.next()?);
    let end = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
    Some(((namespace.to_owned(), account.to_owned()), fingerprint.into(), end))
}

/// Since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One whose end cannot be read is never over.
fn is_over(revocation: &Revocation, now: SystemTime) -> bool {
    revocation.until.parse::<Timestamp>().is_ok_and(|until| SystemTime::from(until) <= now)
}
