use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::*;
use crate::store::{RedbOptions, RedbStore, Store};

fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&folder.path().join("store.redb"), &RedbOptions::default()).unwrap();
    (folder, Arc::new(store))
}

fn payments(uses: u32) -> NewJoinToken {
    NewJoinToken {
        namespace: "shop".to_owned(),
        service_account: "payments".to_owned(),
        ttl: Duration::from_secs(3600),
        uses,
    }
}

async fn everything(store: &Arc<dyn Store>) -> String {
    let page = store.range(crate::store::Range::default()).await.unwrap();
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).collect()
}

#[tokio::test]
async fn an_api_token_opens_until_it_is_deleted() {
    let (_folder, store) = store();
    let tokens = ApiTokens::new(Arc::clone(&store));
    let (admin, _) = tokens.create("root", Role::Admin).await.unwrap();
    let (viewer, text) = tokens.create("dashboard", Role::Viewer).await.unwrap();
    assert_eq!(tokens.authenticate(&text).await.unwrap(), Some(viewer.clone()));
    let secret = text.rsplit_once('_').unwrap().1;
    assert!(!everything(&store).await.contains(secret), "the secret is not stored");

    let mut other = text.clone();
    other.pop();
    for wrong in [
        other.clone(),
        format!("{other}{}", if text.ends_with('0') { '1' } else { '0' }),
        text.to_uppercase(),
        format!("heddle_{}_{secret}", admin.id),
        format!("heddle_0000000000000000_{secret}"),
        text.replace("heddle_", "hjt_"),
        String::new(),
        "heddle_../../x_y".to_owned(),
    ] {
        assert_eq!(tokens.authenticate(&wrong).await.unwrap(), None, "{wrong}");
    }

    assert!(matches!(tokens.delete(&admin.id).await, Err(TokenError::LastAdmin)));
    tokens.delete(&viewer.id).await.unwrap();
    assert_eq!(tokens.authenticate(&text).await.unwrap(), None);
    assert!(matches!(tokens.delete(&viewer.id).await, Err(TokenError::NotFound(_))));
    assert_eq!(tokens.list().await.unwrap(), [admin]);
}

#[tokio::test]
async fn the_first_start_makes_one_admin_token_and_only_the_first() {
    let (folder, store) = store();
    let tokens = ApiTokens::new(store);
    let path = folder.path().join("a/config.yaml");
    let failed = tokens.bootstrap(async |_: &str| Err(std::io::Error::other("disk full"))).await;
    assert!(matches!(failed, Err(BootstrapError::HandOver(_))));
    assert!(tokens.list().await.unwrap().is_empty());

    let write = async |text: &str| write_context(&path, "https://127.0.0.1:9700", "PEM\nPEM\n", text).map(drop);
    let made = tokens.bootstrap(write).await.unwrap().unwrap();
    assert_eq!(made.role, Role::Admin);
    let file: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(file["currentContext"], "default");
    assert_eq!(file["contexts"][0]["caPem"], "PEM\nPEM\n");
    let text = file["contexts"][0]["token"].as_str().unwrap();
    assert_eq!(tokens.authenticate(text).await.unwrap().unwrap().id, made.id);
    assert_eq!(tokens.bootstrap(async |_: &str| Ok::<_, ContextError>(())).await.unwrap(), None);
}

#[test]
fn the_context_file_keeps_other_contexts_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, "currentContext: prod\ncontexts:\n- {name: default, address: 'https://prod:9700', x: 1}\n")
        .unwrap();
    let one = write_context(&path, "https://127.0.0.1:1", "PEM", "one").unwrap();
    assert_eq!((one.name.as_str(), one.current.as_deref(), one.renamed), ("127.0.0.1:1", Some("prod"), None));
    let two = write_context(&path, "https://127.0.0.1:1", "PEM", "two").unwrap();
    assert_eq!(two.renamed, Some(("127.0.0.1:1".to_owned(), "127.0.0.1:1-1".to_owned())));
    let file: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(file["currentContext"], "prod", "another control plane does not become the current one");
    let contexts: Vec<_> =
        file["contexts"].as_array().unwrap().iter().map(|one| (&one["name"], &one["token"])).collect();
    assert_eq!(contexts[0].0, "default");
    assert_eq!(file["contexts"][0]["x"], 1);
    // The one before is kept under another name: its control plane's data may be elsewhere.
    assert_eq!((contexts[1].0.as_str(), contexts[1].1.as_str()), (Some("127.0.0.1:1-1"), Some("one")));
    assert_eq!((contexts[2].0.as_str(), contexts[2].1.as_str()), (Some("127.0.0.1:1"), Some("two")));
    assert_eq!(contexts.len(), 3);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");

    std::fs::write(&path, "- not a context file").unwrap();
    assert!(matches!(write_context(&path, "https://x", "PEM", "t"), Err(ContextError::Malformed(..))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "- not a context file");
}

#[tokio::test]
async fn a_join_token_is_limited_in_time_and_count() {
    let (_folder, store) = store();
    let tokens = JoinTokens::new(Arc::clone(&store));
    let now = SystemTime::now();
    let (token, text) = tokens.create(payments(2), now).await.unwrap();
    let secret = text.rsplit_once('_').unwrap().1;
    assert!(!everything(&store).await.contains(secret), "the secret is not stored");

    let redeemed = tokens.redeem(&text, b"key 1", now).await.unwrap();
    assert_eq!(redeemed, Redeemed { namespace: "shop".to_owned(), service_account: "payments".to_owned() });
    tokens.redeem(&text, b"key 1", now).await.expect("asking again counts once");
    tokens.redeem(&text, b"key 2", now).await.unwrap();
    assert!(matches!(tokens.redeem(&text, b"key 3", now).await, Err(RedeemError::UsedUp)));
    assert_eq!(tokens.list().await.unwrap()[0].used, 2);
    tokens.redeem(&text, b"key 1", now).await.expect("even when it is used up");

    let later = now + Duration::from_secs(3601);
    assert!(matches!(tokens.redeem(&text, b"key 1", later).await, Err(RedeemError::Expired)));
    assert!(matches!(tokens.redeem("hjt_x_y", b"key 1", now).await, Err(RedeemError::Unknown)));
    tokens.delete(&token.id).await.unwrap();
    assert!(matches!(tokens.redeem(&text, b"key 1", now).await, Err(RedeemError::Unknown)));

    let (old, _) = tokens.create(payments(1), now).await.unwrap();
    tokens.create(payments(1), now + Duration::from_secs(3 * 24 * 3600)).await.unwrap();
    assert!(tokens.list().await.unwrap().iter().all(|token| token.id != old.id), "expired ones are forgotten");
}

#[tokio::test]
async fn a_new_join_token_looks_only_at_those_that_have_expired() {
    let (_folder, store) = store();
    let tokens = JoinTokens::new(Arc::clone(&store));
    let now = SystemTime::now();
    let (one, _) = tokens.create(payments(1), now).await.unwrap();
    // What it need not look at may be anything.
    store.commit(crate::store::Transaction::new().put("/tokens/join/0000000000000000", "damaged")).await.unwrap();
    let (two, _) = tokens.create(payments(1), now).await.unwrap();
    let index = async || {
        let page = store.range(crate::store::Range::prefix("/tokens/join-expiry/")).await.unwrap();
        page.entries.iter().map(|entry| entry.key.rsplit_once('/').unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(index().await.len(), 2);
    tokens.delete(&one.id).await.unwrap();
    assert_eq!(index().await, [two.id]);
    let (three, _) = tokens.create(payments(1), now + Duration::from_secs(2 * 24 * 3600)).await.unwrap();
    assert_eq!(index().await, [three.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_workloads_never_join_more_often_than_the_token_allows() {
    let (_folder, store) = store();
    let tokens = JoinTokens::new(store);
    let now = SystemTime::now();
    let (_, text) = tokens.create(payments(5), now).await.unwrap();
    let racing: Vec<_> = (0..20_u8)
        .map(|workload| {
            let (tokens, text) = (tokens.clone(), text.clone());
            tokio::spawn(async move { tokens.redeem(&text, &[workload], now).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for one in racing {
        joined += usize::from(one.await.unwrap());
    }
    assert_eq!(joined, 5);
}

#[test]
fn starting_over_at_the_same_address_keeps_the_old_context_and_uses_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for token in ["one", "two", "three"] {
        assert_eq!(write_context(&path, "https://127.0.0.1:9700", "PEM", token).unwrap().current, None);
    }
    let file: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(file["currentContext"], "default");
    let contexts: Vec<_> =
        file["contexts"].as_array().unwrap().iter().map(|one| (&one["name"], &one["token"])).collect();
    assert_eq!(contexts.len(), 3);
    assert!(contexts.iter().any(|(name, token)| *name == "default" && *token == "three"), "{file}");
    assert!(contexts.iter().any(|(_, token)| *token == "one"), "{file}");
}
