//! Callers that policy does not allow: what they try, and what they are told.

use anyhow::{Context as _, bail};
use tonic::transport::Endpoint;

use super::{
    customers::HOST,
    mesh::Mesh,
    script::{INTERN, STOREFRONT},
};
use crate::inventory::proto::{Line, ReserveRequest, inventory_client::InventoryClient};

/// Somebody who was refused.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Who tried what.
    pub(super) attempt: String,
    /// The whole answer in one line.
    pub(super) answer: String,
    /// Of whom it was refused: a workload.
    pub(super) by: &'static str,
    /// The kind that its metrics count it under.
    pub(super) reason: String,
    /// What the answer has to name, so that one knows why.
    pub(super) names: &'static str,
}

/// Everybody tries.
pub(super) async fn knock(mesh: &Mesh) -> anyhow::Result<Vec<Refusal>> {
    let intern = mesh.member_named(INTERN.name)?.sidecar.http_proxy;
    let storefront = mesh.member_named(STOREFRONT.name)?;
    let payments = mesh.member_named("payments-v1-1")?.sidecar.inbound;
    let charge = |host: &str| format!("PUT http://{host}/charges/stolen");
    Ok(vec![
        Attempt {
            who: "the intern (spiffe://heddle.local/ns/shop/sa/intern), through its own sidecar",
            what: charge("payments-v1"),
            through: Some(intern),
            by: "payments-v1-1",
            names: "not-the-intern",
        }
        .http()
        .await?,
        Attempt {
            who: "storefront, for whom payments has no rule",
            what: charge("payments-v1"),
            through: Some(storefront.sidecar.http_proxy),
            by: "payments-v1-1",
            names: "no rule",
        }
        .http()
        .await?,
        Attempt {
            who: "somebody without a sidecar, at the sidecar of payments",
            what: charge(&payments.to_string()),
            through: None,
            by: "payments-v1-1",
            names: "plaintext",
        }
        .http()
        .await?,
        Attempt {
            who: "a customer, at the shop's open port",
            what: format!("DELETE http://{}/orders/ord-1", storefront.sidecar.inbound),
            through: None,
            by: STOREFRONT.name,
            names: "no rule",
        }
        .http()
        .await?,
        reserve(storefront.inventory.context("storefront does not call inventory")?).await?,
    ])
}

struct Attempt {
    who: &'static str,
    /// Method and URL.
    what: String,
    /// HTTP proxy.
    through: Option<std::net::SocketAddr>,
    by: &'static str,
    names: &'static str,
}

impl Attempt {
    async fn http(self) -> anyhow::Result<Refusal> {
        let mut client = reqwest::Client::builder().no_proxy();
        if let Some(proxy) = self.through {
            client = client.proxy(reqwest::Proxy::http(format!("http://{proxy}"))?);
        }
        let (method, url) = self.what.split_once(' ').context("a method and a URL")?;
        let mut request = client.build()?.request(method.parse()?, url);
        request = request.json(&serde_json::json!({ "card": "4242424242424242", "amount_cents": 1 }));
        if self.by == STOREFRONT.name {
            request = request.header("host", HOST);
        }
        let response = request.send().await.with_context(|| format!("{} {}", self.who, self.what))?;
        let status = response.status();
        let reason = response.headers().get("heddle-error").and_then(|value| value.to_str().ok());
        let reason = reason.unwrap_or_default().to_owned();
        let body = response.text().await?;
        if status.is_success() {
            bail!("{} may {}: {status} {body}", self.who, self.what);
        }
        Ok(Refusal {
            attempt: format!("{}: {}", self.who, self.what),
            answer: format!("{status}, heddle-error: {reason}: {}", body.trim()),
            by: self.by,
            reason,
            names: self.names,
        })
    }
}

/// Storefront may list what inventory has, and not take it.
async fn reserve(inventory: std::net::SocketAddr) -> anyhow::Result<Refusal> {
    let channel = Endpoint::from_shared(format!("http://{inventory}"))?.connect_lazy();
    let lines = vec![Line { sku: "bobbin".to_owned(), quantity: 1 }];
    let call = InventoryClient::new(channel).reserve(ReserveRequest { reservation: "stolen".to_owned(), lines }).await;
    let Err(status) = call else { bail!("storefront may reserve goods at inventory") };
    let reason = status.metadata().get("heddle-error").and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(Refusal {
        attempt: "storefront, which may only look: gRPC shop.inventory.v1.Inventory/Reserve".to_owned(),
        answer: format!("{:?}, heddle-error: {reason}: {}", status.code(), status.message()),
        by: "inventory-1",
        reason: reason.to_owned(),
        names: "no rule",
    })
}
