use axum::http::StatusCode;
use serde_json::json;

use crate::{
    orders::{NewOrder, OrderState},
    testing::{DECLINED_CARD, Fault, GOOD_CARD, TestShop, order},
};

const SOLD: [&str; 4] = ["placed", "reserved", "charged", "confirmed"];

#[tokio::test]
async fn a_good_order_is_sold_with_one_call_a_step() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let id = orders.place("key", &order("shuttle", 2, GOOD_CARD)).await;
    assert_eq!(orders.outcome(&id).await, ("confirmed".to_owned(), SOLD.map(str::to_owned).to_vec()));
    assert_eq!(
        shop.faults.calls(),
        [
            "POST /shop.inventory.v1.Inventory/Reserve".to_owned(),
            format!("PUT /charges/{id}"),
            "POST /shop.inventory.v1.Inventory/Confirm".to_owned(),
        ]
    );
    let books = shop.check_books().await;
    assert_eq!((books.takings(), books.orders[0].payments_version.as_deref()), (6900, Some("v1")));
}

#[tokio::test]
async fn a_refused_step_undoes_those_before_it_and_no_other() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let cases = [
        (order("dobby-antique", 2, GOOD_CARD), &["placed", "failed", "cancelled"][..], "out of stock"),
        (order("no-such-thing", 1, GOOD_CARD), &["placed", "failed", "cancelled"], "no product"),
        (order("bobbin", 1, DECLINED_CARD), &["placed", "reserved", "failed", "released", "cancelled"], "declined"),
        (order("floor-loom", 3, GOOD_CARD), &["placed", "reserved", "failed", "released", "cancelled"], "at once"),
    ];
    for (index, (order, events, reason)) in cases.into_iter().enumerate() {
        let id = orders.place(&format!("key {index}"), &order).await;
        assert_eq!(orders.outcome(&id).await.1, events, "{order}");
        let books = shop.check_books().await;
        let told = books.orders.iter().find(|order| order.id == id).unwrap().reason.clone().unwrap();
        assert!(told.contains(reason), "{told}");
    }
    assert_eq!(shop.books().await.takings(), 0);
}

#[tokio::test]
async fn a_step_that_fails_once_is_called_again_and_has_its_effect_once() {
    for failing in 0..3 {
        for fault in [Fault::FailBefore, Fault::FailAfter, Fault::HangAfter] {
            let shop = TestShop::start().await;
            shop.faults.plan(move |number, _| (number == failing).then_some(fault));
            let orders = shop.orders().await;
            let id = orders.place("key", &order("reed-10", 3, GOOD_CARD)).await;
            assert_eq!(orders.outcome(&id).await.1, SOLD, "{fault:?} of call {failing}");
            assert_eq!(shop.check_books().await.takings(), 3 * 5200);
            assert_eq!(shop.faults.calls().len(), 4);
        }
    }
}

#[tokio::test]
async fn a_step_that_goes_on_failing_is_undone_as_if_it_had_been_done() {
    let steps = [
        ("Reserve", &["placed", "failed", "released", "cancelled"][..]),
        ("PUT", &["placed", "reserved", "failed", "refunded", "released", "cancelled"]),
        ("Confirm", &["placed", "reserved", "charged", "failed", "refunded", "released", "cancelled"]),
    ];
    let case = async |step: &'static str, events: &[&str], fault: Fault| {
        let shop = TestShop::start().await;
        shop.faults.plan(move |_, call| call.contains(step).then_some(fault));
        let orders = shop.orders().await;
        let id = orders.place("key", &order("reed-10", 3, GOOD_CARD)).await;
        assert_eq!(orders.outcome(&id).await.1, events, "{fault:?} of {step}");
        assert_eq!(shop.check_books().await.takings(), 0);
    };
    let cases = steps.iter().flat_map(|&(step, events)| {
        [Fault::FailBefore, Fault::FailAfter].map(|fault| Box::pin(case(step, events, fault)))
    });
    futures_util::future::join_all(cases).await;
}

#[tokio::test]
async fn undoing_is_tried_until_it_works() {
    let shop = TestShop::start().await;
    shop.faults.plan(|number, call| match call {
        call if call.contains("Confirm") => Some(Fault::FailBefore),
        call if call.contains("DELETE") && number < 10 => Some(Fault::FailAfter),
        call if call.contains("Release") && number < 13 => Some(Fault::FailBefore),
        _ => None,
    });
    let orders = shop.orders().await;
    let id = orders.place("key", &order("reed-10", 3, GOOD_CARD)).await;
    assert_eq!(orders.outcome(&id).await.0, "cancelled");
    assert!(shop.faults.calls().len() > 12, "{:?}", shop.faults.calls());
    assert_eq!(shop.check_books().await.takings(), 0);
}

#[tokio::test]
async fn an_order_outlives_a_crash_at_any_call() {
    let sold = ("confirmed", order("reed-10", 3, GOOD_CARD), 3);
    let undone = ("cancelled", order("reed-10", 3, DECLINED_CARD), 3);
    for (end, order, calls) in [sold, undone] {
        for crashing in 0..calls {
            for fault in [Fault::HangBefore, Fault::HangAfter] {
                let shop = TestShop::start().await;
                shop.faults.plan(move |number, _| (number == crashing).then_some(fault));
                let orders = shop.orders().await;
                let id = orders.place("key", &order).await;
                shop.faults.hanging().await;
                orders.crash().await;
                let again = shop.orders().await;
                assert_eq!(again.outcome(&id).await.0, end, "{fault:?} of call {crashing}, then a crash");
                shop.check_books().await;
                assert_eq!(shop.faults.calls().len(), calls + 1);
            }
        }
    }
}

#[tokio::test]
async fn an_order_sent_again_is_the_same_order() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let wanted = order("reed-10", 3, GOOD_CARD);
    let answers = futures_util::future::join_all((0..10).map(|_| orders.post(Some("key"), &wanted))).await;
    let id = answers[0].1["id"].as_str().unwrap().to_owned();
    assert!(answers.iter().all(|(_, answer)| answer["id"] == id.as_str()), "{answers:?}");
    assert_eq!(answers.iter().filter(|(status, _)| *status == StatusCode::ACCEPTED).count(), 1);
    assert_eq!(orders.outcome(&id).await.0, "confirmed");
    let (status, answer) = orders.post(Some("key"), &wanted).await;
    assert_eq!((status, answer["id"].as_str()), (StatusCode::OK, Some(id.as_str())), "after its end too");
    let (status, answer) = orders.post(Some("key"), &order("reed-10", 4, GOOD_CARD)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let books = shop.check_books().await;
    assert_eq!((books.orders.len(), books.count(OrderState::Confirmed), books.takings()), (1, 1, 3 * 5200));
}

#[tokio::test]
async fn many_orders_at_once_never_sell_more_than_there_is() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let place = async |number: usize| {
        let id = orders.place(&number.to_string(), &order("dobby-antique", 1, GOOD_CARD)).await;
        orders.outcome(&id).await.0
    };
    let outcomes = futures_util::future::join_all((0..20).map(place)).await;
    assert_eq!(outcomes.iter().filter(|state| *state == "confirmed").count(), 1);
    assert_eq!(shop.check_books().await.takings(), 89000);
}

#[tokio::test]
async fn the_card_is_forgotten_at_an_orders_end() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let cards_kept = || {
        let database = rusqlite::Connection::open(shop.orders_db()).unwrap();
        let mut query = database.prepare("SELECT wanted ->> '$.card' FROM orders").unwrap();
        let cards = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
        cards.collect::<Result<Vec<_>, _>>().unwrap()
    };
    shop.faults.plan(|number, _| (number == 0).then_some(Fault::HangAfter));
    let sold = orders.place("good", &order("bobbin", 1, GOOD_CARD)).await;
    assert_eq!(cards_kept(), [GOOD_CARD], "until then it is needed");
    orders.outcome(&sold).await;
    let cancelled = orders.place("bad", &order("bobbin", 1, DECLINED_CARD)).await;
    orders.outcome(&cancelled).await;
    assert_eq!(cards_kept(), ["", ""]);
}

#[tokio::test]
async fn bad_orders_are_refused_by_field() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let item = json!({ "sku": "bobbin", "quantity": 1 });
    let cases = [
        (json!({ "customer": " ", "items": [item], "card": GOOD_CARD }), "customer"),
        (json!({ "customer": "Ada", "items": [], "card": GOOD_CARD }), "items"),
        (
            json!({ "customer": "Ada", "items": [item, { "sku": "A!", "quantity": 1 }], "card": GOOD_CARD }),
            "items[1].sku",
        ),
        (
            json!({ "customer": "Ada", "items": [{ "sku": "bobbin", "quantity": 0 }], "card": GOOD_CARD }),
            "items[0].quantity",
        ),
        (json!({ "customer": "Ada", "items": [item], "card": "4242424242424241" }), "card"),
        (json!({ "customer": "Ada", "items": [item], "card": GOOD_CARD, "discount": 100 }), "discount"),
        (json!({ "customer": "Ada", "items": [item] }), "card"),
        (json!({ "customer": "Ada", "items": [{ "sku": "bobbin", "quantity": -1 }], "card": GOOD_CARD }), "quantity"),
    ];
    for (order, named) in cases {
        let (status, answer) = orders.post(Some("key"), &order).await;
        assert!(status.is_client_error(), "{status} {order}");
        assert!(answer["error"].as_str().unwrap().contains(named), "{named}: {answer}");
    }
    let (status, answer) = orders.post(None, &order("bobbin", 1, GOOD_CARD)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"].as_str().unwrap().starts_with("idempotency-key"));
    assert!(shop.faults.calls().is_empty());
}

#[test]
fn card_numbers_check_themselves() {
    let checked = |card: &str| serde_json::from_value::<NewOrder>(order("bobbin", 1, card)).unwrap().check();
    for good in [GOOD_CARD, DECLINED_CARD, "5555555555554444", "378282246310005"] {
        assert_eq!(checked(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "0",
        "4242 4242 4242 4242",
        "4242424242424243",
        "00000000000",
        "42424242424242424242",
        "４２４２４２４２４２４２４２４２",
    ] {
        assert!(checked(bad).is_err(), "{bad}");
    }
}
