//! What the demo claims, each claim with what would speak against it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Evidence, SERVED};
use crate::{
    demo::{
        collector::Kind,
        customers::{Bought, End, Feed},
        report::Claims,
        script::{ORDERS, SICK, Seen},
    },
    orders::OrderState,
    payments::ChargeState,
};

/// Who may call whom.
const HOPS: [(&str, &str); 6] = [
    ("unauthenticated", "shop/storefront"),
    ("spiffe://heddle.local/ns/shop/sa/storefront", "shop/orders"),
    ("spiffe://heddle.local/ns/shop/sa/storefront", "shop/inventory"),
    ("spiffe://heddle.local/ns/shop/sa/orders", "shop/inventory"),
    ("spiffe://heddle.local/ns/shop/sa/orders", "shop/payments-v1"),
    ("spiffe://heddle.local/ns/shop/sa/orders", "shop/payments-v2"),
];

impl Evidence {
    /// Everything that is claimed.
    pub(in crate::demo) fn claim(&self, seen: &Seen, feed: &Feed, claims: &mut Claims) {
        self.claim_orders(seen, feed, claims);
        self.claim_identities(claims);
        self.claim_routes(seen, claims);
        self.claim_refusals(seen, claims);
        self.claim_resilience(seen, claims);
        self.claim_control_plane(claims);
        if let Some(traces) = &self.traces {
            claims.claim(
                "the way of every order that was sold is one whole trace",
                traces.faults(&seen.bought_before_crash),
            );
        }
    }

    fn claim_orders(&self, seen: &Seen, feed: &Feed, claims: &mut Claims) {
        let total = seen.bought.len();
        claims.claim(
            format!("all {total} orders came to the end that they should, and no customer was told of a failure"),
            unexpected_ends(&seen.bought),
        );
        let watched = seen.bought_before_crash.iter();
        let gaps = watched.filter_map(|bought| {
            let events: Vec<&str> = bought.order.history.iter().map(|event| event.event.as_str()).collect();
            let told = feed.of(&bought.order.id);
            (told != events).then(|| format!("order {}: {events:?} happened, {told:?} was told", bought.order.id))
        });
        claims.claim("the WebSocket feed told all that happened to them, in order", gaps.collect());
        claims.claim(
            "the databases agree: what is sold is paid and gone from stock, of what is cancelled nothing is",
            self.books.faults(),
        );
        claims.check(
            format!("orders that a crash left in the middle ({}) were resumed, none charged twice", seen.unfinished),
            seen.unfinished > 0 && self.books.unfinished() == 0 && self.books.faults().is_empty(),
            format!("{} were in the middle at the crash, {} are now", seen.unfinished, self.books.unfinished()),
        );
        let undone: Vec<&Bought> = seen.bought.iter().filter(|bought| bought.wish.end == End::Undone).collect();
        let in_reverse = ["placed", "reserved", "charged", "failed", "refunded", "released", "cancelled"];
        let not_undone = undone.iter().filter(|bought| {
            let events: Vec<&str> = bought.order.history.iter().map(|event| event.event.as_str()).collect();
            let charge = self.books.charges.get(&bought.order.id);
            events != in_reverse || charge.is_none_or(|charge| charge.state != ChargeState::Refunded)
        });
        claims.claim(
            format!("all {} orders that policy stopped at their last step were undone in reverse", undone.len()),
            not_undone.map(|bought| format!("{:?}", bought.order)).collect(),
        );
        claims.check(
            "storefront lists all products, over gRPC",
            seen.products == self.books.stock.len(),
            seen.products,
        );
    }

    fn claim_identities(&self, claims: &mut Claims) {
        let hops = self.hops();
        let seen: BTreeSet<(&str, &str)> =
            hops.keys().map(|(peer, service)| (peer.as_str(), service.as_str())).collect();
        let expected = BTreeSet::from(HOPS);
        let more = seen.difference(&expected).map(|hop| format!("not expected: {hop:?}"));
        let less = expected.difference(&seen).map(|hop| format!("not seen: {hop:?}"));
        claims.claim(
            "each service was called by those identities, and no others, that policy lets in",
            more.chain(less).collect(),
        );
        let Some(traces) = &self.traces else { return };
        let of = |workload: &str| self.proxies.iter().find(|proxy| proxy["name"].as_str() == Some(workload));
        let mut wrong: Vec<String> = Vec::new();
        let mut calls = 0;
        for span in traces.spans().filter(|span| span.kind == Kind::Client) {
            let Some(workload) = span.attributes.get("heddle.endpoint.workload") else { continue };
            let Some(peer) = span.attributes.get("heddle.peer.identity") else { continue };
            calls += 1;
            let identity = of(workload).and_then(|proxy| proxy["identity"].as_str());
            if identity != Some(peer) {
                wrong.push(format!("{workload} is {identity:?}, and proved to {} that it is {peer}", span.service));
            }
        }
        if calls == 0 {
            wrong.push("no span tells who answered".to_owned());
        }
        claims.claim(format!("in all {calls} calls between sidecars who answered was who should"), wrong);
    }

    fn claim_routes(&self, seen: &Seen, claims: &mut Claims) {
        let charged: BTreeMap<&str, &str> = self
            .books
            .charges
            .values()
            .filter(|charge| charge.state == ChargeState::Charged)
            .map(|charge| (charge.id.as_str(), charge.version.as_str()))
            .collect();
        let sold = seen.bought.iter().filter(|bought| bought.order.state == OrderState::Confirmed);
        let (beta, others): (Vec<&Bought>, Vec<&Bought>) = sold.partition(|bought| bought.wish.beta);
        let by = |bought: &&&Bought, version: &str| charged.get(bought.order.id.as_str()) == Some(&version);
        let beta_by_v2 = beta.iter().filter(|bought| by(bought, "v2")).count();
        claims.check(
            format!("header route: all {} beta customers were charged by payments v2", beta.len()),
            beta_by_v2 == beta.len() && !beta.is_empty(),
            format!("{beta_by_v2} were"),
        );
        let v2 = others.iter().filter(|bought| by(bought, "v2")).count();
        let v1 = others.iter().filter(|bought| by(bought, "v1")).count();
        // 25 % of about 110: four standard deviations are 17 points.
        let share = 100 * v2 / others.len().max(1);
        claims.check(
            format!("weighted route (75/25): of the others {v1} were charged by v1 and {v2} by v2"),
            (8..=42).contains(&share) && v1 + v2 == others.len(),
            format!("{share} % by v2, of {}", others.len()),
        );
        let told = seen.bought.iter().filter_map(|bought| Some((bought, bought.order.payments_version.as_deref()?)));
        let lies = told.filter(|(bought, version)| {
            self.books.charges.get(&bought.order.id).is_none_or(|charge| charge.version != *version)
        });
        let lies = lies.map(|(bought, version)| format!("order {} was told {version}", bought.order.id));
        claims.claim("what orders heard from payments is what payments wrote down", lies.collect());
    }

    fn claim_refusals(&self, seen: &Seen, claims: &mut Claims) {
        let mut unexplained = Vec::new();
        let mut by_sidecar: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for refusal in &seen.refusals {
            if !["denied", "plaintext-refused"].contains(&refusal.reason.as_str())
                || !refusal.answer.contains(refusal.names)
            {
                unexplained.push(format!("{} was told {}", refusal.attempt, refusal.answer));
            }
            *by_sidecar.entry((refusal.by, &refusal.reason)).or_default() += 1;
        }
        claims.claim(
            format!("all {} callers without permission were refused, and told by which rule", seen.refusals.len()),
            unexplained,
        );
        let uncounted = by_sidecar.iter().filter_map(|((by, reason), told)| {
            let labels = [("direction", "inbound"), ("sidecar", *by), ("reason", *reason)];
            let counted = seen.refusals_counted.sum("heddle_errors_total", &labels);
            (counted != *told).then(|| format!("{by} counted {counted} {reason}, {told} were told so"))
        });
        claims.claim("the sidecars that refused counted each refusal", uncounted.collect());
        let traceless = ["stolen"]
            .iter()
            .filter(|id| self.books.charges.contains_key(**id) || self.books.reservations.contains_key(**id));
        claims.claim("nothing of what they tried reached an app", traceless.map(|id| (*id).to_owned()).collect());
    }

    fn claim_resilience(&self, seen: &Seen, claims: &mut Claims) {
        let orders = self.of(ORDERS.name);
        let v1 = [("cluster", "shop/payments-v1:80")];
        let retries = orders.sum("heddle_retries_total", &v1);
        let failed = self.of(SICK.name).sum(SERVED, &[("http_response_status_code", "500")]);
        claims.check(
            format!(
                "each of the {failed} calls that the sick instance failed was tried again elsewhere ({retries} retries)"
            ),
            failed > 0 && retries >= failed,
            format!("{failed} failed, {retries} were retried"),
        );
        let ejections = orders.sum("heddle_ejections_total", &v1);
        let (at_ejection, at_end) = seen.sick_calls;
        claims.check(
            "the sick instance was ejected, and that sidecar called it no more",
            ejections >= 1 && at_end - at_ejection <= 1,
            format!("{ejections} ejections; it had got {at_ejection} calls then, and {at_end} in the end"),
        );
        let other = orders.sum("heddle_ejections_total", &[]) - ejections;
        claims.check("no instance of any other service was ejected", other == 0, format!("{other} were"));
    }

    fn claim_control_plane(&self, claims: &mut Claims) {
        let issued = self.control_plane.sum("heddle_control_plane_certificates_issued_total", &[]);
        let workloads = self.metrics.len() as u64;
        claims.check(
            format!("the control plane issued {issued} certificates, one for each of the {workloads} workloads"),
            issued == workloads,
            format!("{issued} certificates, {workloads} workloads"),
        );
        let identity = |workload: &str| {
            let account = workload.split("-v").next().unwrap_or_default().trim_end_matches("-1");
            format!("spiffe://heddle.local/ns/shop/sa/{account}")
        };
        let mut wrong = Vec::new();
        for workload in self.metrics.keys() {
            let name = format!("shop/{workload}");
            match self.proxies.iter().find(|proxy| proxy["name"] == name.as_str()) {
                None => wrong.push(format!("{name} is not known")),
                Some(proxy) => wrong.extend(proxy_faults(proxy, &identity(workload))),
            }
        }
        claims.claim("the control plane knows each of them by its identity; all applied what they were sent", wrong);
        let held = services(&self.dumps, ORDERS.name);
        let expected = ["shop/inventory", "shop/payments", "shop/payments-v1", "shop/payments-v2"];
        claims.check(
            "the sidecar of orders holds the services that orders calls, and no others",
            held == expected.map(str::to_owned).into(),
            format!("{held:?}"),
        );
    }
}

/// Orders that came to another end than their wish deserves.
fn unexpected_ends(bought: &[Bought]) -> Vec<String> {
    let antiques = bought.iter().filter(|bought| bought.wish.end == End::FirstComeFirstServed);
    let sold = antiques.filter(|bought| bought.order.state == OrderState::Confirmed).count();
    let mut faults = Vec::new();
    if sold != 1 {
        faults.push(format!("the only antique was sold {sold} times"));
    }
    faults.extend(bought.iter().filter_map(|Bought { wish, order, .. }| {
        let sold = order.state == OrderState::Confirmed;
        let cancelled = |words: &str| {
            order.state == OrderState::Cancelled && order.reason.as_ref().is_some_and(|reason| reason.contains(words))
        };
        let as_it_should = match wish.end {
            End::Sold => sold,
            End::FirstComeFirstServed => sold || cancelled("out of stock"),
            End::Cancelled(words) => cancelled(words),
            End::Undone => cancelled("no-confirm rule confirm"),
        };
        (!as_it_should).then(|| format!("order {} for {}: {:?} {:?}", order.id, wish.sku, order.state, order.reason))
    }));
    faults
}

fn proxy_faults(proxy: &Value, identity: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if proxy["identity"] != identity {
        faults.push(format!("{} is {}, not {identity}", proxy["name"], proxy["identity"]));
    }
    let rejected = proxy["resources"]["rejected"].as_array().is_some_and(|rejected| !rejected.is_empty());
    if proxy["connected"] != true || proxy["resources"]["pending"] != 0 || rejected {
        faults.push(format!("{}: {proxy}", proxy["name"]));
    }
    faults
}

/// Services in a sidecar's config dump.
fn services(dumps: &BTreeMap<String, Value>, workload: &str) -> BTreeSet<String> {
    let services =
        dumps.get(workload).and_then(|dump| dump["discovery"]["services"].as_array()).cloned().unwrap_or_default();
    services.iter().filter_map(|service| Some(service["service"].as_str()?.to_owned())).collect()
}
