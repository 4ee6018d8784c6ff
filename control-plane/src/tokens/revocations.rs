//! Identities whose certificates were revoked: a certificate that others got hold of is not renewed, and opens
//! nothing here any more. Workloads of the identity join anew, with a join token.
//!
//! Which certificates were issued since is kept for as long as one from before could still be valid; then the
//! revocation is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_certs::{CertificateDer, Clock, SpiffeId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::{TokenError, secret};
use crate::{
    peer::Peer,
    store::{Range, Store, Transaction},
};

const KEYS: &str = "/revocations/";

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

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    revocation: Revocation,
    /// Fingerprints of the certificates that were issued since.
    #[serde(default)]
    issued: BTreeSet<String>,
}

/// By namespace and service account.
type Known = BTreeMap<(String, String), Stored>;

/// All revocations. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Revocations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    /// For how long a certificate may be valid.
    longest: Duration,
    known: watch::Sender<Known>,
    /// Held by whoever writes.
    writing: Mutex<()>,
}

impl Revocations {
    /// Those in this store, where certificates are valid for `ttl`.
    pub async fn open(store: Arc<dyn Store>, ttl: Duration) -> Result<Self, TokenError> {
        let mut known = Known::new();
        for entry in store.range(Range::prefix(KEYS)).await?.entries {
            let stored: Stored =
                serde_json::from_slice(&entry.value).map_err(|_| TokenError::Unreadable(Arc::clone(&entry.key)))?;
            known.insert(identity(&stored.revocation), stored);
        }
        // Twice: clocks differ, and it may have been longer before.
        let longest = ttl * 2;
        Ok(Self(Arc::new(Shared { store, longest, known: watch::Sender::new(known), writing: Mutex::new(()) })))
    }

    /// Revokes all certificates that an identity has now.
    pub async fn revoke(
        &self,
        namespace: &str,
        service_account: &str,
        now: SystemTime,
    ) -> Result<Revocation, TokenError> {
        let revocation = Revocation {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            revoked: text_of(now),
            until: text_of(now + self.0.longest),
        };
        let _turn = self.0.writing.lock().await;
        self.write(Stored { revocation: revocation.clone(), issued: BTreeSet::new() }, now).await?;
        Ok(revocation)
    }

    /// All that still matter.
    pub fn list(&self, now: SystemTime) -> Vec<Revocation> {
        let known = self.0.known.borrow();
        known.values().filter(|stored| !is_over(stored, now)).map(|stored| stored.revocation.clone()).collect()
    }

    /// Whether the certificate of a connection was revoked.
    pub fn is_revoked(&self, peer: &Peer, now: SystemTime) -> bool {
        let Some(certificate) = &peer.certificate else { return false };
        let Some(key) = key_of(&certificate.id) else { return false };
        let known = self.0.known.borrow();
        let Some(stored) = known.get(&key).filter(|stored| !is_over(stored, now)) else { return false };
        !peer.fingerprint.as_ref().is_some_and(|fingerprint| stored.issued.contains(&**fingerprint))
    }

    /// A certificate is issued: if that identity's were revoked, this one counts.
    pub async fn issued(
        &self,
        id: &SpiffeId,
        certificate: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<(), TokenError> {
        let Some(key) = key_of(id) else { return Ok(()) };
        if !self.0.known.borrow().contains_key(&key) {
            return Ok(());
        }
        let _turn = self.0.writing.lock().await;
        let stored = self.0.known.borrow().get(&key).cloned();
        if let Some(mut stored) = stored.filter(|stored| !is_over(stored, now)) {
            stored.issued.insert(fingerprint(certificate));
            self.write(stored, now).await?;
        }
        Ok(())
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
    async fn write(&self, stored: Stored, now: SystemTime) -> Result<(), TokenError> {
        let value = serde_json::to_vec(&stored).expect("a revocation is JSON: it has no maps");
        let mut transaction = Transaction::new().put(store_key(&stored.revocation), value);
        let over: Vec<_> = self.0.known.borrow().values().filter(|known| is_over(known, now)).cloned().collect();
        for old in over.iter().filter(|old| identity(&old.revocation) != identity(&stored.revocation)) {
            transaction = transaction.delete(store_key(&old.revocation));
        }
        self.0.store.commit(transaction).await?;
        self.0.known.send_modify(|known| {
            known.retain(|_, known| !is_over(known, now));
            known.insert(identity(&stored.revocation), stored);
        });
        Ok(())
    }
}

/// What a certificate is known by.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    secret::hex(&digest.as_ref()[..16])
}

fn key_of(id: &SpiffeId) -> Option<(String, String)> {
    id.as_workload().map(|(namespace, account)| (namespace.to_owned(), account.to_owned()))
}

fn identity(revocation: &Revocation) -> (String, String) {
    (revocation.namespace.clone(), revocation.service_account.clone())
}

fn store_key(revocation: &Revocation) -> String {
    format!("{KEYS}{}/{}", revocation.namespace, revocation.service_account)
}

fn text_of(time: SystemTime) -> String {
    format!("{:.0}", Timestamp::try_from(time).unwrap_or(Timestamp::MAX))
}

/// One whose end cannot be read is never over.
fn is_over(stored: &Stored, now: SystemTime) -> bool {
    stored.revocation.until.parse::<Timestamp>().is_ok_and(|until| SystemTime::from(until) <= now)
}
