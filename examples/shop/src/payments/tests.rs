use super::*;

async fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::open(&directory.path().join("payments.db"), SCHEMA).await.unwrap();
    (directory, Store::new(database))
}

fn request(card: &str, amount_cents: u64) -> ChargeRequest {
    ChargeRequest { card: card.to_owned(), amount_cents }
}

async fn charge(store: &Store, id: &str, card: &str, amount_cents: u64) -> Charge {
    store.charge(id.to_owned(), request(card, amount_cents), "v1".to_owned()).await.unwrap()
}

#[tokio::test]
async fn charging_again_takes_the_money_once_even_through_another_instance() {
    let (directory, first) = store().await;
    let second = Store::new(Database::open(&directory.path().join("payments.db"), SCHEMA).await.unwrap());
    let charged = charge(&first, "a", "4242424242424242", 500).await;
    let again = second.charge("a".to_owned(), request("4242424242424242", 500), "v2".to_owned()).await.unwrap();
    assert_eq!((charged.state, &charged), (ChargeState::Charged, &again), "the first decision stands, its version too");
    assert_eq!(first.charges().await.unwrap().len(), 1);
    for other in [request("4242424242424242", 501), request("4242424242421111", 500)] {
        assert!(second.charge("a".to_owned(), other, "v2".to_owned()).await.is_err());
    }
}

#[tokio::test]
async fn instances_that_share_the_database_do_not_disturb_one_another() {
    let (directory, first) = store().await;
    let second = Store::new(Database::open(&directory.path().join("payments.db"), SCHEMA).await.unwrap());
    let charging = (0..100).map(|number| {
        let (store, version) = if number % 2 == 0 { (&first, "v1") } else { (&second, "v2") };
        store.charge((number / 2).to_string(), request("4242424242424242", 500), version.to_owned())
    });
    let charges = futures_util::future::join_all(charging).await;
    for pair in charges.chunks(2) {
        assert_eq!(pair[0].as_ref().unwrap(), pair[1].as_ref().unwrap());
    }
    assert_eq!(first.charges().await.unwrap().len(), 50);
}

#[tokio::test]
async fn declines_by_card_and_by_amount() {
    let (_directory, store) = store().await;
    assert_eq!(charge(&store, "card", "4000000000000002", 1).await.state, ChargeState::Declined);
    assert_eq!(charge(&store, "much", "4242424242424242", 1_000_001).await.state, ChargeState::Declined);
    assert_eq!(charge(&store, "enough", "4242424242424242", 1_000_000).await.state, ChargeState::Charged);
}

#[tokio::test]
async fn refunds_once_in_any_order() {
    let (_directory, store) = store().await;
    charge(&store, "a", "4242424242424242", 500).await;
    charge(&store, "declined", "4000000000000002", 500).await;
    for _ in 0..2 {
        assert_eq!(store.refund("a".to_owned(), "v1".to_owned()).await.unwrap().state, ChargeState::Refunded);
        let declined = store.refund("declined".to_owned(), "v1".to_owned()).await.unwrap();
        assert_eq!(declined.state, ChargeState::Declined, "nothing was taken, nothing is given back");
    }
    assert_eq!(store.refund("late".to_owned(), "v1".to_owned()).await.unwrap().state, ChargeState::Refunded);
    for id in ["a", "late"] {
        assert_eq!(charge(&store, id, "4242424242424242", 500).await.state, ChargeState::Refunded, "{id}");
    }
}
