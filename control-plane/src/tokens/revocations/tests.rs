use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use heddle_certs::verify;
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::store::{Outcome, Page, RedbOptions, RedbStore, Revision, Watch};

const HOUR: Duration = Duration::from_secs(3600);

/// A store in which commits can be made to wait.
#[derive(Debug)]
struct Slow {
    inner: RedbStore,
    /// One is taken by each commit.
    may_commit: Semaphore,
    /// Commits that were asked for.
    asked: watch::Sender<usize>,
}

impl Slow {
    /// Makes them wait, until they are let go.
    fn hold(&self) {
        self.may_commit.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn let_go(&self) {
        self.may_commit.add_permits(1_000_000);
    }

    /// Waits until so many were asked for.
    async fn asked(&self, count: usize) {
        self.asked.subscribe().wait_for(|asked| *asked >= count).await.unwrap();
    }
}

impl Store for Slow {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn read(&self, key: &str, at: Option<Revision>) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        self.inner.read(key, at)
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.inner.range(range)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        self.asked.send_modify(|asked| *asked += 1);
        async move {
            self.may_commit.acquire().await.unwrap().forget();
            self.inner.commit(transaction).await
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        self.inner.watch(prefix, from)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(revision)
    }
}

struct World {
    _folder: tempfile::TempDir,
    store: Arc<Slow>,
    revocations: Revocations,
    now: SystemTime,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inner = RedbStore::open(&folder.path().join("store.redb"), &RedbOptions::default()).unwrap();
        let store = Arc::new(Slow { inner, may_commit: Semaphore::new(0), asked: watch::Sender::new(0) });
        store.let_go();
        let revocations = Revocations::open(Arc::clone(&store) as _).await.unwrap();
        // In whole seconds.
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self { _folder: folder, store, revocations, now }
    }

    async fn reopened(&self) -> Revocations {
        Revocations::open(Arc::clone(&self.store) as _).await.unwrap()
    }

    async fn revoke(&self) -> Revocation {
        self.revocations.revoke("shop", "orders", "test", self.now).await.unwrap()
    }

    async fn issue(&self, certificate: &str, renews: Option<&Peer>) -> Result<(), NoteError> {
        let der = der(certificate);
        self.revocations.issued(&orders(), &der, self.now + HOUR, renews, self.now).await
    }

    /// Whether a certificate of orders was revoked.
    fn is_revoked(&self, certificate: &str) -> bool {
        self.revocations.is_revoked(&peer(certificate), self.now)
    }

    async fn noted(&self) -> Vec<KeyValue> {
        self.store.range(Range::prefix(ISSUED)).await.unwrap().entries
    }
}

fn orders() -> SpiffeId {
    "spiffe://heddle.local/ns/shop/sa/orders".parse().unwrap()
}

fn der(certificate: &str) -> CertificateDer<'static> {
    CertificateDer::from(certificate.as_bytes().to_vec())
}

fn peer(certificate: &str) -> Peer {
    Peer {
        address: "127.0.0.1:1".parse().unwrap(),
        certificate: Some(verify::Peer { id: orders(), not_after: SystemTime::now() + HOUR }),
        fingerprint: Some(fingerprint(&der(certificate)).into()),
        shown: None,
    }
}

#[tokio::test]
async fn a_renewal_that_races_with_a_revocation_makes_no_certificate_that_counts() {
    let world = World::start().await;
    world.revoke().await;
    world.issue("joined", None).await.unwrap();
    assert!(!world.is_revoked("joined"));
    let stolen = peer("joined");

    // Its renewal was signed while the identity is revoked once more.
    world.store.hold();
    let again = tokio::spawn({
        let (revocations, now) = (world.revocations.clone(), world.now);
        async move { revocations.revoke("shop", "orders", "test", now).await }
    });
    world.store.asked(3).await;
    let mut renewal = pin!(world.issue("renewed", Some(&stolen)));
    assert!((&mut renewal).now_or_never().is_none(), "it waits for the revocation");
    let joined = world.issue("joined anew", None);
    world.store.let_go();
    again.await.unwrap().unwrap();
    assert!(matches!(renewal.await, Err(NoteError::Revoked)));
    joined.await.unwrap();
    for (certificate, revoked) in [("joined", true), ("renewed", true), ("joined anew", false)] {
        assert_eq!(world.is_revoked(certificate), revoked, "{certificate}");
        assert_eq!(world.reopened().await.is_revoked(&peer(certificate), world.now), revoked, "{certificate}");
    }
}

#[tokio::test]
async fn what_is_begun_is_done_though_its_client_goes_away() {
    let world = World::start().await;
    world.store.hold();
    assert!(world.revoke().now_or_never().is_none());
    world.store.asked(1).await;
    assert!(!world.is_revoked("stolen"));
    world.store.let_go();
    let clock = heddle_certs::ManualClock::new(world.now);
    world.revocations.revoked(&peer("stolen"), &clock).await;

    world.store.hold();
    assert!(world.issue("joined", None).now_or_never().is_none());
    world.store.asked(2).await;
    world.store.let_go();
    // Alone only once that is done.
    drop(world.revocations.0.writing.write().await);
    assert!(!world.is_revoked("joined"));
}

#[tokio::test]
async fn a_revocation_is_kept_for_as_long_as_any_setting_lets_certificates_be_valid() {
    let world = World::start().await;
    world.revoke().await;
    let stolen = peer("stolen");
    for revocations in [world.revocations.clone(), world.reopened().await] {
        assert!(revocations.is_revoked(&stolen, world.now + LONGEST_TTL + HOUR));
        assert!(!revocations.is_revoked(&stolen, world.now + LONGEST_TTL + 25 * HOUR));
    }
    // The next one takes it out of the store.
    let later = world.now + LONGEST_TTL + 25 * HOUR;
    world.issue("joined", None).await.unwrap();
    world.revocations.revoke("shop", "payments", "test", later).await.unwrap();
    let listed = world.reopened().await.list(world.now);
    assert_eq!(listed.iter().map(|one| &*one.service_account).collect::<Vec<_>>(), ["payments"]);
    assert_eq!(world.noted().await, []);
}

#[tokio::test]
async fn a_certificate_is_noted_for_as_long_as_it_is_valid_and_wakes_nobody() {
    let world = World::start().await;
    world.issue("before", None).await.unwrap();
    assert_eq!(world.noted().await, [], "nothing is noted of identities that were not revoked");
    world.revoke().await;
    let watched = world.revocations.0.known.subscribe();
    for certificate in ["one", "two", "three"] {
        world.issue(certificate, None).await.unwrap();
    }
    assert_eq!(world.noted().await.len(), 3);
    let later = world.now + HOUR + Duration::from_secs(2);
    let der = der("four");
    world.revocations.issued(&orders(), &der, later + HOUR, Some(&peer("one")), later).await.unwrap();
    assert!(!watched.has_changed().unwrap());
    for revocations in [world.revocations.clone(), world.reopened().await] {
        assert!(!revocations.is_revoked(&peer("four"), later));
        assert!(revocations.is_revoked(&peer("two"), later), "it has expired and is forgotten");
    }
    let only = format!("{ISSUED}shop/orders/{}", fingerprint(&der));
    assert_eq!(world.noted().await.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), [only]);
}

#[tokio::test]
async fn certificates_of_one_revoked_identity_are_limited_in_number() {
    let mut world = World::start().await;
    world.revoke().await;
    let key = ("shop".to_owned(), "orders".to_owned());
    let end = seconds(world.now + HOUR);
    let many = (1..MAX_ISSUED)
        .fold(Transaction::new(), |all, one| all.put(issued_key(&key, &one.to_string()), end.to_string()));
    world.store.commit(many).await.unwrap();
    world.revocations = world.reopened().await;
    world.issue("last", None).await.unwrap();
    let error = world.issue("one too many", None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "40000 certificates of this identity that are valid were issued since its revocation"
    );
    assert!(world.is_revoked("one too many") && !world.is_revoked("last"));
    // Revoked again there is room, as there is once they have expired.
    let later = world.now + 2 * HOUR;
    world.revocations.issued(&orders(), &der("later"), later + HOUR, None, later).await.unwrap();
    world.revoke().await;
    assert_eq!(world.noted().await, []);
    world.issue("joined anew", None).await.unwrap();
    assert!(!world.is_revoked("joined anew"));
}
