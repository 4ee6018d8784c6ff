use super::{proto::Line, store::Error, *};

async fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::open(&directory.path().join("inventory.db"), SCHEMA).await.unwrap();
    (directory, Store::new(database))
}

fn lines(lines: &[(&str, u32)]) -> Vec<Line> {
    lines.iter().map(|&(sku, quantity)| Line { sku: sku.to_owned(), quantity }).collect()
}

async fn row(store: &Store, sku: &str) -> StockRow {
    store.stock().await.unwrap().into_iter().find(|row| row.sku == sku).unwrap()
}

#[tokio::test]
async fn reserving_again_has_the_effect_of_once() {
    let (_directory, store) = store().await;
    let wanted = lines(&[("shuttle", 2), ("bobbin", 10), ("shuttle", 1)]);
    for _ in 0..3 {
        assert_eq!(store.reserve("a".to_owned(), wanted.clone()).await.unwrap(), 3 * 3450 + 10 * 120);
    }
    let shuttle = row(&store, "shuttle").await;
    assert_eq!((shuttle.stock, shuttle.held, shuttle.sold), (497, 3, 0));
    for _ in 0..2 {
        store.confirm("a".to_owned()).await.unwrap();
    }
    assert_eq!(store.reserve("a".to_owned(), wanted).await.unwrap(), 3 * 3450 + 10 * 120);
    let shuttle = row(&store, "shuttle").await;
    assert_eq!((shuttle.stock, shuttle.held, shuttle.sold), (497, 0, 3));
    assert!(matches!(store.reserve("a".to_owned(), lines(&[("shuttle", 1)])).await, Err(Error::Refused(_))));
}

#[tokio::test]
async fn a_line_that_cannot_be_had_leaves_the_others_in_stock() {
    let (_directory, store) = store().await;
    for missing in ["no-such-thing", "dobby-antique"] {
        let refused = store.reserve("a".to_owned(), lines(&[("bobbin", 1), (missing, 2)])).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
    assert_eq!(row(&store, "bobbin").await.stock, 5000);
    assert!(store.reservations().await.unwrap().is_empty());
}

#[tokio::test]
async fn releasing_puts_goods_back_once_in_any_state() {
    let (_directory, store) = store().await;
    for (reservation, confirm) in [("held", false), ("sold", true)] {
        store.reserve(reservation.to_owned(), lines(&[("reed-10", 5)])).await.unwrap();
        if confirm {
            store.confirm(reservation.to_owned()).await.unwrap();
        }
        for _ in 0..2 {
            store.release(reservation.to_owned()).await.unwrap();
            assert_eq!(row(&store, "reed-10").await.stock, 500);
        }
        assert!(matches!(store.confirm(reservation.to_owned()).await, Err(Error::Refused(_))));
    }
}

#[tokio::test]
async fn a_release_that_overtakes_its_reservation_wins() {
    let (_directory, store) = store().await;
    store.release("late".to_owned()).await.unwrap();
    assert!(matches!(store.reserve("late".to_owned(), lines(&[("reed-10", 5)])).await, Err(Error::Refused(_))));
    assert_eq!(row(&store, "reed-10").await.stock, 500);
}

#[tokio::test]
async fn bad_input_is_named() {
    let (_directory, store) = store().await;
    let too_many = vec![Line { sku: "bobbin".to_owned(), quantity: 1 }; 51];
    let cases = [
        (String::new(), lines(&[("bobbin", 1)]), "reservation"),
        ("a".to_owned(), Vec::new(), "lines"),
        ("a".to_owned(), too_many, "lines"),
        ("a".to_owned(), lines(&[("bobbin", 1), ("bobbin", 0)]), "lines[1].quantity"),
    ];
    for (reservation, lines, named) in cases {
        match store.reserve(reservation, lines).await {
            Err(Error::Invalid(message)) => assert!(message.starts_with(named), "{message}"),
            other => panic!("{named}: {other:?}"),
        }
    }
    assert!(matches!(store.confirm("unknown".to_owned()).await, Err(Error::Refused(_))));
}
