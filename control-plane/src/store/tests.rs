//! The store's semantics, and what is left of it after a crash.

mod crash;

use std::path::Path;

use ::redb as redb_crate;
use futures_util::StreamExt as _;

use super::*;

fn open(folder: &Path) -> RedbStore {
    open_keeping(folder, 10_000)
}

fn open_keeping(folder: &Path, keep_revisions: u64) -> RedbStore {
    let options = RedbOptions { cache_bytes: 1 << 20, keep_revisions, ..RedbOptions::default() };
    RedbStore::open(&folder.join("store.redb"), &options).unwrap()
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.to_owned())
}

async fn value(store: &dyn Store, key: &str, at: Option<Revision>) -> Option<String> {
    let found = store.read(key, at).await.unwrap()?;
    Some(String::from_utf8(found.value.to_vec()).unwrap())
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    store.range(range).await.unwrap().entries.iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test]
async fn keys_remember_their_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(store.revision(), 0);
    assert_eq!(store.commit(put("/a", "1")).await.unwrap(), Outcome::Committed(1));
    assert_eq!(store.commit(put("/b", "2")).await.unwrap(), Outcome::Committed(2));
    assert_eq!(store.commit(put("/a", "3")).await.unwrap(), Outcome::Committed(3));
    let a = store.read("/a", None).await.unwrap().unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (1, 3, 2));
    assert_eq!(value(&store, "/a", Some(2)).await.as_deref(), Some("1"));
    assert_eq!(value(&store, "/b", Some(1)).await, None);

    assert_eq!(store.commit(Transaction::new().delete("/a")).await.unwrap(), Outcome::Committed(4));
    assert_eq!(value(&store, "/a", None).await, None);
    assert_eq!(value(&store, "/a", Some(3)).await.as_deref(), Some("3"));
    store.commit(put("/a", "5")).await.unwrap();
    let a = store.read("/a", None).await.unwrap().unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (5, 5, 1), "it is a new key");

    assert_eq!(
        store.commit(Transaction::new().delete("/none")).await.unwrap(),
        Outcome::Committed(5),
        "nothing changed, so no revision passes"
    );
    assert!(matches!(store.read("/a", Some(9)).await, Err(StoreError::Future { requested: 9, newest: 5 })));
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.commit(put("/a", "1").put("/b", "1")).await.unwrap();
    let stale = Transaction::new().when("/a", 1).when("/b", 7).when("/c", 0).put("/a", "2").put("/c", "2");
    assert_eq!(store.commit(stale).await.unwrap(), Outcome::Conflict { key: "/b".into(), mod_revision: 1 });
    assert_eq!(value(&store, "/a", None).await.as_deref(), Some("1"));
    assert_eq!(value(&store, "/c", None).await, None);
    let fresh = Transaction::new().when("/a", 1).when("/b", 1).when("/c", 0).put("/a", "2").delete("/b");
    assert_eq!(store.commit(fresh).await.unwrap(), Outcome::Committed(2));
    assert_eq!(keys(&store, Range::default()).await, ["/a"]);

    for bad in [put("/x", "1").delete("/x"), put("", "1"), put(&"k".repeat(2000), "1")] {
        assert!(matches!(store.commit(bad).await, Err(StoreError::Invalid(_))));
    }
    assert_eq!(store.revision(), 2);
}

#[tokio::test]
async fn ranges_page_at_one_revision() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for name in ["/o/a", "/o/b", "/o/ba", "/o/c", "/p/a", "/o"] {
        store.commit(put(name, "1")).await.unwrap();
    }
    assert_eq!(keys(&store, Range::prefix("/o/")).await, ["/o/a", "/o/b", "/o/ba", "/o/c"]);
    let first = store.range(Range { limit: 2, ..Range::prefix("/o/") }).await.unwrap();
    assert!(first.more);
    store.commit(Transaction::new().delete("/o/ba").put("/o/bb", "2").put("/o/c", "2")).await.unwrap();
    let rest = Range { after: Some("/o/b".to_owned()), at: Some(first.revision), limit: 2, ..Range::prefix("/o/") };
    let page = store.range(rest).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["/o/ba", "/o/c"]);
    assert_eq!(page.entries[1].value, "1");
    assert!(!page.more);
    assert_eq!(keys(&store, Range { after: Some("/o/b".to_owned()), ..Range::prefix("/o/") }).await, ["/o/bb", "/o/c"]);
    assert_eq!(keys(&store, Range { after: Some("/a".to_owned()), ..Range::prefix("/p/") }).await, ["/p/a"]);
}

#[tokio::test]
async fn a_watch_sees_every_transaction_whole_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    // Far more than is kept in memory, so that the watch from 1 begins on disk and catches up.
    for n in 0..1500 {
        store.commit(put("/x/a", &n.to_string()).put("/x/b", n.to_string()).put("/y", "other")).await.unwrap();
    }
    let mut watch = store.watch("/x/", 1);
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 1500..2000 {
                store.commit(put("/x/a", &n.to_string()).put("/x/b", n.to_string())).await.unwrap();
                store.commit(put("/y", "other")).await.unwrap();
            }
        }
    });
    for n in 0..2000_u64 {
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!(batch.events.len(), 2, "only what was asked for, and all of it");
        let before = if n <= 1500 { n } else { 1500 + (n - 1500) * 2 - 1 };
        for event in &batch.events {
            assert_eq!(event.after.as_ref().unwrap().value, n.to_string());
            assert_eq!(event.after.as_ref().unwrap().mod_revision, batch.revision);
            assert_eq!(event.before.as_ref().map_or(0, |before| before.mod_revision), before);
        }
    }
    writer.await.unwrap();

    let mut later = store.watch("", store.revision() + 2);
    store.commit(put("/x/a", "not this")).await.unwrap();
    store.commit(Transaction::new().delete("/x/a")).await.unwrap();
    let batch = later.next().await.unwrap().unwrap();
    assert_eq!(batch.events[0].before.as_ref().unwrap().value, "not this");
    assert_eq!(batch.events[0].after, None);

    drop(store);
    assert!(later.next().await.is_none(), "ends with the store");
}

#[tokio::test]
async fn compaction_forgets_history_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 1..=10 {
        store.commit(put("/a", &n.to_string())).await.unwrap();
    }
    store.commit(Transaction::new().delete("/a").put("/b", "11")).await.unwrap();
    store.commit(put("/a", "12")).await.unwrap();
    let mut behind = store.watch("", 1);
    store.compact(11).await.unwrap();
    drop(store);

    let store = open(folder.path());
    assert!(matches!(store.read("/a", Some(10)).await, Err(StoreError::Compacted { requested: 10, oldest: 11 })));
    assert_eq!(value(&store, "/a", Some(11)).await, None);
    assert_eq!(value(&store, "/b", Some(11)).await.as_deref(), Some("11"));
    assert_eq!(value(&store, "/a", None).await.as_deref(), Some("12"));
    assert!(matches!(store.watch("", 11).next().await, Some(Err(StoreError::Compacted { requested: 11, oldest: 12 }))));
    let batch = store.watch("", 12).next().await.unwrap().unwrap();
    assert_eq!(batch.revision, 12);
    assert_eq!(batch.events[0].before, None);
    // The old watch belongs to the old instance; what it was given is still right.
    assert!(behind.next().await.is_none_or(|batch| batch.unwrap().revision == 1));
}

#[tokio::test]
async fn history_is_compacted_on_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_keeping(folder.path(), 100);
    for n in 0..1000 {
        store.commit(put(&format!("/k/{}", n % 7), &n.to_string())).await.unwrap();
    }
    let oldest = match store.read("/k/0", Some(1)).await {
        Err(StoreError::Compacted { oldest, .. }) => oldest,
        other => panic!("{other:?}"),
    };
    assert!((850..=900).contains(&oldest), "{oldest}");
    assert_eq!(store.range(Range { at: Some(oldest), ..Range::prefix("/k/") }).await.unwrap().entries.len(), 7);
    assert_eq!(value(&store, "/k/5", None).await.as_deref(), Some("999"));
}

#[tokio::test]
async fn a_reopened_store_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.commit(put("/a", "1")).await.unwrap();
    assert!(
        matches!(
            RedbStore::open(&folder.path().join("store.redb"), &RedbOptions::default()),
            Err(OpenError::Database { .. })
        ),
        "two processes cannot have one store"
    );
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.revision(), 1);
    assert_eq!(store.commit(put("/a", "2")).await.unwrap(), Outcome::Committed(2));
    assert_eq!(store.watch("", 1).next().await.unwrap().unwrap().revision, 1);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(folder.path().join("store.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_writers_share_commits() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    let begin = tokio::time::Instant::now();
    let writers: Vec<_> = (0..400)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..10 {
                    store.commit(put(&format!("/w/{writer}/{n}"), "x")).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    println!("4000 commits by 400 writers in {:?}", begin.elapsed());
    assert_eq!(store.revision(), 4000);
    assert_eq!(keys(&*store, Range::prefix("/w/")).await.len(), 4000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_of_one_key_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < 25 {
                    let found = store.read("/counter", None).await.unwrap();
                    let (count, at) = found.map_or((0, 0), |found| {
                        (std::str::from_utf8(&found.value).unwrap().parse::<u32>().unwrap(), found.mod_revision)
                    });
                    let next = put("/counter", &(count + 1).to_string()).when("/counter", at);
                    if let Outcome::Committed(_) = store.commit(next).await.unwrap() {
                        done += 1;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(value(&*store, "/counter", None).await.as_deref(), Some("200"));
}
