//! The shop's customers: they know a URL, and nothing of a mesh.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::Instant};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::orders::{Event, Order, OrderState};

/// How the shop is called.
pub(crate) const HOST: &str = "storefront.shop";
/// How long a customer waits for the end of an order.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a customer wants, and what should come of it.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) sku: &'static str,
    pub(crate) quantity: u32,
    pub(crate) card: &'static str,
    pub(crate) beta: bool,
    pub(crate) end: End,
}

/// What should come of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is sold.
    Sold,
    /// It is sold, or out of stock.
    FirstComeFirstServed,
    /// It is cancelled for a reason that has these words in it.
    Cancelled(&'static str),
    /// Its last step is refused: it is undone, last step first.
    Undone,
}

const GOOD_CARD: &str = "4242424242424242";
pub(crate) const DECLINED_CARD: &str = "4000000000000002";

impl Wish {
    pub(crate) const fn new(sku: &'static str, quantity: u32) -> Self {
        Self { sku, quantity, card: GOOD_CARD, beta: false, end: End::Sold }
    }

    pub(crate) const fn card(self, card: &'static str) -> Self {
        Self { card, ..self }
    }

    pub(crate) const fn end(self, end: End) -> Self {
        Self { end, ..self }
    }

    pub(crate) const fn beta(self) -> Self {
        Self { beta: true, ..self }
    }
}

/// What became of an order, as the customer saw it.
#[derive(Clone, Debug)]
pub(crate) struct Bought {
    pub(crate) wish: Wish,
    pub(crate) order: Order,
    /// How often it had to be sent until the shop took it.
    pub(crate) sent: u32,
}

/// All customers together.
#[derive(Clone)]
pub(crate) struct Customers {
    base: String,
    http: reqwest::Client,
    feed: Feed,
    keys: Arc<AtomicU64>,
}

/// What the WebSocket feed said, by order.
#[derive(Clone, Default)]
pub(crate) struct Feed {
    events: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
}

impl Feed {
    /// Events of an order so far.
    pub(crate) fn of(&self, order: &str) -> Vec<String> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).get(order).cloned().unwrap_or_default()
    }

    /// Orders that it named.
    pub(crate) fn len(&self) -> usize {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn has_ended(&self, order: &str) -> bool {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let last = events.get(order).and_then(|events| events.last());
        last.is_some_and(|event| event == "confirmed" || event == "cancelled")
    }

    fn add(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.entry(event.order).or_default().push(event.event);
    }
}

impl Customers {
    /// Customers of the storefront behind this address.
    pub(crate) fn new(address: SocketAddr) -> anyhow::Result<Self> {
        // Customers know the shop by name; that the name leads to this address is what DNS would do.
        let http = reqwest::Client::builder()
            .no_proxy()
            .resolve(HOST, address)
            .timeout(Duration::from_secs(15))
            .build()
            .context("no HTTP client")?;
        Ok(Self {
            base: format!("http://{HOST}:{}", address.port()),
            http,
            feed: Feed::default(),
            keys: Arc::default(),
        })
    }

    /// What the feed said.
    pub(crate) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Opens the feed and reads it until it ends.
    pub(crate) async fn watch(&self, address: SocketAddr) -> anyhow::Result<()> {
        let stream = TcpStream::connect(address).await.context("the shop is closed")?;
        let request = format!("ws://{HOST}:{}/feed", address.port()).into_client_request()?;
        let (mut socket, _) =
            tokio_tungstenite::client_async(request, stream).await.context("the shop gives no feed")?;
        let feed = self.feed.clone();
        tokio::spawn(async move {
            loop {
                match socket.next().await {
                    Some(Ok(message)) if message.is_text() => {
                        match serde_json::from_str(message.to_text().unwrap_or_default()) {
                            Ok(event) => feed.add(event),
                            Err(error) => return tracing::warn!(%error, "the feed told no event"),
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                }
            }
        });
        Ok(())
    }

    /// The shop's products.
    pub(crate) async fn products(&self) -> anyhow::Result<usize> {
        let response = self.http.get(format!("{}/products", self.base)).send().await?;
        let status = response.status();
        let products: Value = response.json().await.context("products are no JSON")?;
        match products.as_array() {
            Some(products) if status.is_success() => Ok(products.len()),
            _ => bail!("no products: {status} {products}"),
        }
    }

    /// Each wish a customer of its own, so many at once.
    pub(crate) async fn buy_all(&self, wishes: Vec<Wish>, at_once: usize) -> anyhow::Result<Vec<Bought>> {
        let buying = futures_util::stream::iter(wishes).map(|wish| self.buy(wish)).buffered(at_once);
        buying.collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Orders, sends again what was not answered, and waits for the order's end.
    pub(crate) async fn buy(&self, wish: Wish) -> anyhow::Result<Bought> {
        let (id, sent) = self.place(&wish).await?;
        let order = self.outcome(&id).await?;
        Ok(Bought { wish, order, sent })
    }

    /// Orders; the order's name, and how often it had to be sent.
    pub(crate) async fn place(&self, wish: &Wish) -> anyhow::Result<(String, u32)> {
        let body = json!({
            "customer": "Ada",
            "items": [{ "sku": wish.sku, "quantity": wish.quantity }],
            "card": wish.card,
            "beta": wish.beta,
        });
        let key = format!("customer-{}", self.keys.fetch_add(1, Ordering::Relaxed));
        let deadline = Instant::now() + PATIENCE;
        let mut sent = 0;
        loop {
            sent += 1;
            let request = self.http.post(format!("{}/orders", self.base)).header("idempotency-key", &key).json(&body);
            let failed = match request.send().await {
                Ok(response) if response.status().is_success() => {
                    let order: Order = response.json().await.context("the shop answered no order")?;
                    return Ok((order.id, sent));
                }
                Ok(response) if response.status().is_client_error() => {
                    bail!("the shop refused: {} {}", response.status(), response.text().await.unwrap_or_default());
                }
                Ok(response) => format!("{} {}", response.status(), response.text().await.unwrap_or_default()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("the shop took no order for {PATIENCE:?}: {failed}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for an order's end, told by the feed or, should that have a gap, found out by asking.
    pub(crate) async fn outcome(&self, id: &str) -> anyhow::Result<Order> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ask_anyway = Instant::now() + Duration::from_secs(1);
            while !self.feed.has_ended(id) && Instant::now() < ask_anyway {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let answer = match self.http.get(format!("{}/orders/{id}", self.base)).send().await {
                Ok(response) if response.status().is_success() => {
                    let order: Order = response.json().await.context("the shop answered no order")?;
                    if order.state.is_final() {
                        return Ok(order);
                    }
                    format!("it is {:?}", order.state)
                }
                Ok(response) => format!("{} {}", response.status(), response.text().await.unwrap_or_default()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("order {id} has not come to its end after {PATIENCE:?}: {answer}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How many came to this end.
pub(crate) fn count(bought: &[Bought], state: OrderState) -> usize {
    bought.iter().filter(|bought| bought.order.state == state).count()
}
