use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{feed::Upstream, *};
use crate::testing::{self, GOOD_CARD, TestShop, order};

#[tokio::test]
async fn customers_list_order_and_watch() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let url = shop.storefront(&orders).await;
    let http = reqwest::Client::new();

    let products: Value = http.get(format!("{url}/products")).send().await.unwrap().json().await.unwrap();
    assert!(
        products.as_array().unwrap().iter().any(|product| product["sku"] == "bobbin" && product["in_stock"] == true)
    );

    let (mut feed, _) = tokio_tungstenite::connect_async(format!("{}/feed", url.replace("http", "ws"))).await.unwrap();
    let (status, placed) = testing::post(&http, &url, None, &order("bobbin", 1, GOOD_CARD)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{placed}");
    let mut events = Vec::new();
    while events.last().map(String::as_str) != Some("confirmed") {
        let message = feed.next().await.unwrap().unwrap().into_text().unwrap();
        let event: Value = serde_json::from_str(&message).unwrap();
        assert_eq!(event["order"], placed["id"]);
        events.push(event["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(events, ["placed", "reserved", "charged", "confirmed"]);

    let id = placed["id"].as_str().unwrap();
    let order: Value = http.get(format!("{url}/orders/{id}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(order["state"], "confirmed");
    let page = http.get(&url).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("WebSocket"));
}

#[tokio::test]
async fn a_customers_key_makes_sending_again_harmless() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let url = shop.storefront(&orders).await;
    let http = reqwest::Client::new();
    let wanted = order("bobbin", 1, GOOD_CARD);
    let first = testing::post(&http, &url, Some("mine"), &wanted).await.1;
    let again = testing::post(&http, &url, Some("mine"), &wanted).await.1;
    let other = testing::post(&http, &url, None, &wanted).await.1;
    assert_eq!(first["id"], again["id"]);
    assert_ne!(first["id"], other["id"]);
}

#[tokio::test]
async fn refusals_say_whose_they_are() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let url = shop.storefront(&orders).await;
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        let response = http.get(format!("{url}{path}")).send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        (status, answer["error"].as_str().unwrap().to_owned())
    };
    let (status, error) = get("/orders/ord-unknown").await;
    assert_eq!((status, error.as_str()), (StatusCode::NOT_FOUND, "there is no order \"ord-unknown\""));
    assert_eq!(get("/orders/..%2Ffeed").await.0, StatusCode::BAD_REQUEST);
    let (status, answer) = testing::post(&http, &url, None, &order("bobbin", 0, GOOD_CARD)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"].as_str().unwrap().starts_with("items[0].quantity"));
    orders.crash().await;
    let (status, error) = get("/orders/ord-1").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(error.starts_with("orders did not answer"), "{error}");
}

/// An HTTP proxy that knows CONNECT, once, and names the target that it was asked for.
async fn connect_proxy(upstream: String, answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        client.write_all(answer.as_bytes()).await.unwrap();
        if answer.contains("200") {
            let mut server = TcpStream::connect(upstream).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
        String::from_utf8(head).unwrap().lines().next().unwrap().to_owned()
    });
    (url, asked)
}

#[tokio::test]
async fn the_feed_goes_through_an_http_proxy() {
    let shop = TestShop::start().await;
    let orders = shop.orders().await;
    let upstream = orders.url.strip_prefix("http://").unwrap().to_owned();
    let (proxy, asked) = connect_proxy(upstream.clone(), "HTTP/1.1 200 OK\r\n\r\n").await;
    let trace = TraceHeaders::default();
    let mut feed = Upstream::new("http://orders.shop", Some(&proxy)).unwrap().connect(&trace).await.unwrap();
    assert_eq!(asked.await.unwrap(), "CONNECT orders.shop:80 HTTP/1.1");
    orders.place("key", &order("bobbin", 1, GOOD_CARD)).await;
    assert!(feed.next().await.unwrap().unwrap().into_text().unwrap().contains("placed"));

    let (proxy, _asked) = connect_proxy(upstream, "HTTP/1.1 403 Forbidden\r\n\r\n").await;
    let refused = Upstream::new("http://orders.shop", Some(&proxy)).unwrap().connect(&trace).await.unwrap_err();
    assert!(format!("{refused:#}").contains("HTTP/1.1 403 Forbidden"), "{refused:#}");
}

#[test]
fn a_proxy_is_not_asked_for_what_is_local() {
    for local in ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"] {
        let upstream = format!("{:?}", Upstream::new(local, Some("http://127.0.0.1:15002")).unwrap());
        assert!(upstream.contains("proxy: None"), "{upstream}");
    }
    assert!(Upstream::new("no url", None).is_err());
}
