//! What happens in the demo, act by act.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::{
    Args,
    collector::Collector,
    customers::{Bought, Customers, DECLINED_CARD, End, HOST, Wish, count},
    evidence::{self, Evidence},
    mesh::{Member, MemberSpec, Mesh},
    metrics::Metrics,
    report::{Claims, Progress},
    strangers::{self, Refusal},
};
use crate::{
    books::{Books, INVENTORY_DB, ORDERS_DB, PAYMENTS_DB},
    orders::OrderState,
};

/// Applied by mistake.
const MISTAKE: &str = include_str!("../../mistake/no-confirm.yaml");
/// Customers at once.
const AT_ONCE: usize = 8;
/// How long the mesh may take to notice something.
const PATIENCE: Duration = Duration::from_secs(20);

const INVENTORY: MemberSpec = MemberSpec {
    name: "inventory-1",
    service: Some("inventory"),
    account: "inventory",
    command: "inventory",
    database: Some(INVENTORY_DB),
    calls_inventory: false,
    environment: &[],
};
const PAYMENTS_V1: MemberSpec = MemberSpec {
    name: "payments-v1-1",
    service: Some("payments-v1"),
    account: "payments",
    command: "payments",
    database: Some(PAYMENTS_DB),
    calls_inventory: false,
    environment: &[("SHOP_VERSION", "v1")],
};
const PAYMENTS_V2: MemberSpec = MemberSpec {
    name: "payments-v2-1",
    service: Some("payments-v2"),
    environment: &[("SHOP_VERSION", "v2")],
    ..PAYMENTS_V1
};
/// One that answers everything with 500.
pub(super) const SICK: MemberSpec = MemberSpec {
    name: "payments-v1-2",
    environment: &[("SHOP_VERSION", "v1"), ("SHOP_SICK", "errors")],
    ..PAYMENTS_V1
};
pub(super) const ORDERS: MemberSpec = MemberSpec {
    name: "orders-1",
    service: Some("orders"),
    account: "orders",
    command: "orders",
    database: Some(ORDERS_DB),
    calls_inventory: true,
    environment: &[("PAYMENTS_URL", "http://payments")],
};
pub(super) const STOREFRONT: MemberSpec = MemberSpec {
    name: "storefront-1",
    service: Some("storefront"),
    account: "storefront",
    command: "storefront",
    database: None,
    calls_inventory: true,
    environment: &[("ORDERS_URL", "http://orders")],
};
/// A workload that serves nothing, and may do nothing.
pub(super) const INTERN: MemberSpec = MemberSpec {
    name: "intern-1",
    service: None,
    account: "intern",
    command: "",
    database: None,
    calls_inventory: false,
    environment: &[],
};

/// What happened, as those saw it who made it happen.
pub(super) struct Seen {
    /// Every order, in order.
    pub(super) bought: Vec<Bought>,
    /// Those of them before the crash.
    pub(super) bought_before_crash: Vec<Bought>,
    /// Everybody who was refused.
    pub(super) refusals: Vec<Refusal>,
    /// What all sidecars together counted of refusals and failures meanwhile.
    pub(super) refusals_counted: Metrics,
    /// Calls that the sick instance had got when it was ejected, and at the end.
    pub(super) sick_calls: (u64, u64),
    /// Orders that the crash left in the middle.
    pub(super) unfinished: usize,
    /// Metrics of the sidecar of orders that crashed, taken just before.
    pub(super) before_crash: Metrics,
    /// Products on the shop's page.
    pub(super) products: usize,
}

/// Plays the demo; an error if anything that is claimed at its end does not hold.
pub(super) async fn play(mesh: &mut Mesh, collector: Option<&Collector>, progress: Progress) -> anyhow::Result<()> {
    open_the_shop(mesh, progress).await?;
    let address = mesh.member_named(STOREFRONT.name)?.sidecar.inbound;
    let customers = Customers::new(address)?;
    customers.watch(address).await?;
    let products = customers.products().await?;

    progress.act("Customers");
    let mut bought = ordinary_day(&customers, progress).await?;

    progress.act("Callers who may not");
    let counted = mesh.errors().await?;
    let refusals = strangers(mesh, progress).await?;
    let refusals_counted = mesh.errors().await?.since(&counted);

    progress.act("A mistake");
    mistake(mesh, &customers, &mut bought, progress).await?;

    progress.act("A sick instance of payments");
    let sick_calls = sick_instance(mesh, &customers, &mut bought, progress).await?;

    progress.act("A crash in the middle");
    let before_crash = mesh.metrics(ORDERS.name).await?;
    let bought_before_crash = bought.clone();
    if let Some(collector) = collector {
        // What a sidecar has not sent yet when it is killed is lost.
        evidence::whole_traces(collector, &bought).await;
    }
    let unfinished = crash(mesh, &customers, &mut bought, progress).await?;

    mesh.check()?;
    let seen = Seen {
        bought,
        bought_before_crash,
        refusals,
        refusals_counted,
        sick_calls,
        unfinished,
        before_crash,
        products,
    };
    prove(mesh, collector, &customers, &seen, progress).await
}

async fn open_the_shop(mesh: &mut Mesh, progress: Progress) -> anyhow::Result<()> {
    mesh.apply_resources().await?;
    progress.step("has the shop's services, routes, traffic and authorization policies (heddle apply -f mesh/)");
    progress.act("The shop, each service by `heddle run --service NAME --port APP_PORT -- shop NAME`");
    mesh.add_all(vec![INVENTORY, PAYMENTS_V1, PAYMENTS_V2, ORDERS, STOREFRONT, INTERN]).await?;
    let names: Vec<&str> = mesh.members.keys().map(String::as_str).collect();
    progress.step(format!("{} are up", names.join(", ")));
    Ok(())
}

async fn ordinary_day(customers: &Customers, progress: Progress) -> anyhow::Result<Vec<Bought>> {
    let mut wishes = Vec::new();
    for round in 0..10 {
        wishes.push(Wish::new("bobbin", 10));
        wishes.push(Wish::new("shuttle", 1 + round % 3));
        wishes.push(Wish::new("yarn-wool", 4));
        wishes.push(Wish::new("heddles-100", 2).beta());
    }
    // The card is declined, more than payments takes at once, three want the only one there is.
    wishes.extend(vec![Wish::new("reed-10", 1).card(DECLINED_CARD).end(End::Cancelled("declined")); 4]);
    wishes.extend(vec![Wish::new("floor-loom", 3).end(End::Cancelled("at once")); 2]);
    wishes.extend(vec![Wish::new("dobby-antique", 1).end(End::FirstComeFirstServed); 3]);
    let bought = customers.buy_all(wishes, AT_ONCE).await?;
    tell(&bought, progress);
    Ok(bought)
}

fn tell(bought: &[Bought], progress: Progress) {
    let cancelled = count(bought, OrderState::Cancelled);
    progress.step(format!(
        "{} orders: {} sold, {cancelled} cancelled and compensated",
        bought.len(),
        count(bought, OrderState::Confirmed)
    ));
    let mut reasons: Vec<&str> = bought.iter().filter_map(|bought| bought.order.reason.as_deref()).collect();
    reasons.sort_unstable();
    while let Some(reason) = reasons.first().copied() {
        let same = reasons.iter().take_while(|other| **other == reason).count();
        progress.detail(format!("{same} x {reason}"));
        reasons.drain(..same);
    }
}

async fn strangers(mesh: &Mesh, progress: Progress) -> anyhow::Result<Vec<Refusal>> {
    let refusals = strangers::knock(mesh).await?;
    for refusal in &refusals {
        progress.step(&refusal.attempt);
        progress.detail(&refusal.answer);
    }
    Ok(refusals)
}

/// A policy that forbids the last step of every order, and its rollback.
async fn mistake(
    mesh: &Mesh,
    customers: &Customers,
    bought: &mut Vec<Bought>,
    progress: Progress,
) -> anyhow::Result<()> {
    let revision = mesh.revision().await?;
    mesh.apply("mistake.yaml", MISTAKE).await?;
    progress.step("a policy is applied by which nobody may confirm a sale");
    let wishes = vec![Wish::new("yarn-wool", 1).end(End::Undone); 4];
    let undone = customers.buy_all(wishes, AT_ONCE).await?;
    tell(&undone, progress);
    bought.extend(undone);
    mesh.heddle(&["rollback", "--to", &revision.to_string()]).await?;
    progress.step(format!("it is rolled back: heddle rollback --to {revision}"));
    let after = customers.buy_all(vec![Wish::new("yarn-wool", 1); 4], AT_ONCE).await?;
    tell(&after, progress);
    bought.extend(after);
    Ok(())
}

/// Lets customers buy until the sick instance is ejected, and then some more.
async fn sick_instance(
    mesh: &mut Mesh,
    customers: &Customers,
    bought: &mut Vec<Bought>,
    progress: Progress,
) -> anyhow::Result<(u64, u64)> {
    mesh.add(SICK).await?;
    progress.step(format!("{} is up; it answers every charge with 500", SICK.name));
    let deadline = Instant::now() + PATIENCE;
    let before = bought.len();
    loop {
        bought.extend(customers.buy_all(vec![Wish::new("bobbin", 1); AT_ONCE], AT_ONCE).await?);
        if mesh.metrics(ORDERS.name).await?.sum("heddle_ejections_total", &[]) > 0 {
            break;
        }
        if Instant::now() > deadline {
            bail!("it is not ejected after {} orders", bought.len() - before);
        }
    }
    let at_ejection = mesh.inbound_requests(SICK.name).await?;
    progress.step(format!("ejected after {at_ejection} failed calls, in {} orders", bought.len() - before));
    let more = customers.buy_all(vec![Wish::new("bobbin", 1); 24], AT_ONCE).await?;
    progress.step(format!("{} more orders", more.len()));
    bought.extend(more);
    Ok((at_ejection, mesh.inbound_requests(SICK.name).await?))
}

/// Kills orders with work in its hands, and starts it again.
async fn crash(
    mesh: &mut Mesh,
    customers: &Customers,
    bought: &mut Vec<Bought>,
    progress: Progress,
) -> anyhow::Result<usize> {
    let wish = Wish::new("shuttle", 1);
    let placing = futures_util::future::try_join_all((0..AT_ONCE).map(|_| customers.place(&wish)));
    let mut placing = std::pin::pin!(placing);
    // At the first order's first step, so that there is something to resume.
    let begun = async {
        while customers.feed().len() == bought.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut placed = None;
    tokio::select! {
        done = &mut placing => placed = Some(done?),
        () = begun => {}
    }
    mesh.crash(ORDERS.name).await?;
    let unfinished = Books::read(&mesh.databases()).await?.unfinished();
    progress.step(format!("orders and its sidecar are killed with {unfinished} orders in the middle"));
    mesh.add(ORDERS).await?;
    progress.step("they are started again");
    customers.watch(mesh.member_named(STOREFRONT.name)?.sidecar.inbound).await?;
    let placed = match placed {
        Some(placed) => placed,
        None => placing.await?,
    };
    let mut late = Vec::new();
    for (id, sent) in placed {
        let order = customers.outcome(&id).await?;
        late.push(Bought { wish: wish.clone(), order, sent });
    }
    let again = late.iter().filter(|bought| bought.sent > 1).count();
    progress.step(format!(
        "all {} orders came to their end; of {again} the customer had to send it again, under the same key",
        late.len()
    ));
    bought.extend(late);
    Ok(unfinished)
}

async fn prove(
    mesh: &Mesh,
    collector: Option<&Collector>,
    customers: &Customers,
    seen: &Seen,
    progress: Progress,
) -> anyhow::Result<()> {
    progress.act("What the components report");
    let evidence = Evidence::gather(mesh, collector, seen).await.context("the evidence cannot be gathered")?;
    evidence.show(seen, progress);
    let mut claims = Claims::default();
    evidence.claim(seen, customers.feed(), &mut claims);
    progress.act("Therefore");
    claims.print(progress);
    let broken = claims.broken();
    if broken.is_empty() {
        println!("\nAll {} claims hold.", claims.count());
        Ok(())
    } else {
        bail!("{} of {} claims do not hold: {}", broken.len(), claims.count(), broken.join("; "))
    }
}

/// Where to look, with `--keep`.
pub(super) fn show_around(mesh: &Mesh, args: &Args, progress: Progress) {
    progress.act("Everything runs on, until Ctrl-C");
    let address = |name: &str, of: fn(&Member) -> String| mesh.member_named(name).map(of).unwrap_or_default();
    let shop = address(STOREFRONT.name, |member| member.sidecar.inbound.to_string());
    println!("  the shop            http://{shop}/");
    println!("                      curl -H 'Host: {HOST}' http://{shop}/products");
    println!("  the CLI             export HEDDLE_CONFIG={}", mesh.context_file().display());
    println!("                      {} status", mesh.cli().display());
    if let Some(url) = &args.otlp {
        println!("  the traces          went to {url}");
    }
    for (name, member) in &mesh.members {
        println!(
            "  {name:<18}  http_proxy=http://{}, metrics http://{}/metrics, http://{}/config_dump",
            member.sidecar.http_proxy, member.sidecar.health, member.sidecar.admin
        );
    }
    println!("  logs                {}", mesh.logs().display());
}
