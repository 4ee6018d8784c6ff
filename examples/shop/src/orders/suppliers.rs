//! The services that orders calls: inventory over gRPC, payments over HTTP.

use std::{error::Error as _, time::Duration};

use anyhow::Context as _;
use reqwest::StatusCode;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::store::Work;
use crate::{
    inventory::proto::{ConfirmRequest, Line, ReleaseRequest, ReserveRequest, inventory_client::InventoryClient},
    payments::{Charge, ChargeRequest, ChargeState},
};

/// Where they are.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SuppliersArgs {
    /// URL of payments; called through `http_proxy`, where that is set.
    #[arg(long, env = "PAYMENTS_URL", default_value = "http://payments")]
    pub(crate) payments: String,
    /// URL of inventory.
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:9001")]
    pub(crate) inventory: String,
    /// Give a call up after so many milliseconds.
    #[arg(long, env = "SHOP_CALL_TIMEOUT_MS", default_value_t = 10_000)]
    pub(crate) call_timeout_ms: u64,
}

/// What is known of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// It took effect.
    Done(T),
    /// It was refused on its merits, and did not take effect; asking again changes nothing.
    Refused(String),
    /// It may have taken effect, or may yet.
    Unknown(String),
}

/// Clients of inventory and payments.
#[derive(Clone, Debug)]
pub(crate) struct Suppliers {
    inventory: InventoryClient<Channel>,
    payments: String,
    http: reqwest::Client,
}

impl Suppliers {
    pub(crate) fn new(args: &SuppliersArgs) -> anyhow::Result<Self> {
        let timeout = Duration::from_millis(args.call_timeout_ms);
        let inventory = Endpoint::from_shared(args.inventory.clone())
            .with_context(|| format!("{:?} is no URL of inventory", args.inventory))?
            .connect_timeout(timeout)
            .timeout(timeout)
            .connect_lazy();
        let http = reqwest::Client::builder().timeout(timeout).build().context("no HTTP client")?;
        Ok(Self {
            inventory: InventoryClient::new(inventory),
            payments: args.payments.trim_end_matches('/').to_owned(),
            http,
        })
    }

    /// Total in cents.
    pub(crate) async fn reserve(&self, order: &Work) -> Outcome<u64> {
        let lines = order.wanted.items.iter();
        let lines = lines.map(|item| Line { sku: item.sku.clone(), quantity: item.quantity }).collect();
        let call = order.trace.call(ReserveRequest { reservation: order.id.clone(), lines });
        match self.inventory.clone().reserve(call).await {
            Ok(reply) => Outcome::Done(reply.into_inner().total_cents),
            Err(status) => failed_call(&status),
        }
    }

    pub(crate) async fn confirm(&self, order: &Work) -> Outcome<()> {
        let call = order.trace.call(ConfirmRequest { reservation: order.id.clone() });
        match self.inventory.clone().confirm(call).await {
            Ok(_) => Outcome::Done(()),
            Err(status) => failed_call(&status),
        }
    }

    pub(crate) async fn release(&self, order: &Work) -> Outcome<()> {
        let call = order.trace.call(ReleaseRequest { reservation: order.id.clone() });
        match self.inventory.clone().release(call).await {
            Ok(_) => Outcome::Done(()),
            Err(status) => failed_call(&status),
        }
    }

    pub(crate) async fn charge(&self, order: &Work) -> Outcome<Charge> {
        let body = ChargeRequest { card: order.wanted.card.clone(), amount_cents: order.total_cents };
        let request = self.http.put(self.charge_url(order)).json(&body);
        match self.send(order, request).await {
            Ok(charge) => match charge.state {
                ChargeState::Charged => Outcome::Done(charge),
                ChargeState::Declined => Outcome::Refused(charge.reason.unwrap_or_else(|| "declined".to_owned())),
                ChargeState::Refunded => Outcome::Refused("it was refunded before".to_owned()),
            },
            Err(reason) => Outcome::Unknown(reason),
        }
    }

    pub(crate) async fn refund(&self, order: &Work) -> Outcome<()> {
        match self.send(order, self.http.delete(self.charge_url(order))).await {
            Ok(_) => Outcome::Done(()),
            Err(reason) => Outcome::Unknown(reason),
        }
    }

    fn charge_url(&self, order: &Work) -> String {
        format!("{}/charges/{}", self.payments, order.id)
    }

    /// Only a charge in an answer of payments itself says anything about the charge.
    async fn send(&self, order: &Work, request: reqwest::RequestBuilder) -> Result<Charge, String> {
        let mut request = request.headers(order.trace.headers());
        if order.wanted.beta {
            request = request.header("x-beta", "true");
        }
        let response = request.send().await.map_err(|error| format!("payments: {}", chain(&error)))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| format!("payments: {}", chain(&error)))?;
        let decided = matches!(status, StatusCode::OK | StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT);
        match serde_json::from_slice::<Charge>(&body) {
            Ok(charge) if decided && charge.id == order.id => Ok(charge),
            _ => {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                Err(format!("payments answered {status}: {}", text.trim()))
            }
        }
    }
}

fn failed_call<T>(status: &Status) -> Outcome<T> {
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument => Outcome::Refused(status.message().to_owned()),
        code => Outcome::Unknown(format!("inventory answered {code:?}: {}", status.message())),
    }
}

/// An error with all its causes.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
