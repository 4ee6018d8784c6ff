//! The evidence as tables.

use std::collections::BTreeMap;

use super::{CALLED, Evidence};
use crate::{
    demo::{
        report::{Progress, money, table},
        script::{ORDERS, Seen},
    },
    orders::OrderState,
    payments::ChargeState,
};

impl Evidence {
    /// Prints what there is to see.
    pub(in crate::demo) fn show(&self, seen: &Seen, progress: Progress) {
        self.show_hops(progress);
        self.show_routes(progress);
        self.show_refusals(progress);
        self.show_certificates(progress);
        self.show_books(progress);
        if let Some(traces) = &self.traces {
            progress.step(format!("{} traces of {} spans; an order's:", traces.count(), traces.spans().count()));
            progress.detail(traces.tree(&seen.bought_before_crash).unwrap_or_default());
        }
    }

    fn show_hops(&self, progress: Progress) {
        progress.step("who called whom over mTLS, by the identities that the called sidecars verified:");
        let mut rows = vec![row(&["caller", "service", "requests"])];
        rows.extend(self.hops().iter().map(|((peer, service), count)| row(&[peer, service, &count.to_string()])));
        progress.detail(table(&rows));
    }

    fn show_routes(&self, progress: Progress) {
        progress.step("requests of orders, by route, version and answer:");
        let orders = self.of(ORDERS.name);
        let mut counts: BTreeMap<[String; 3], u64> = BTreeMap::new();
        for sample in orders.of(CALLED) {
            let labels = ["route", "cluster", "http_response_status_code"];
            *counts.entry(labels.map(|label| sample.label(label).to_owned())).or_default() += sample.value;
        }
        let mut rows = vec![row(&["route#rule", "version", "status", "requests"])];
        rows.extend(
            counts.iter().map(|([route, cluster, status], count)| row(&[route, cluster, status, &count.to_string()])),
        );
        progress.detail(table(&rows));
        let mut rows = vec![row(&["version", "tries", "failed", "retries", "ejections"])];
        let sum = |name: &str, labels: &[(&str, &str)]| orders.sum(name, labels).to_string();
        for cluster in ["shop/payments-v1:80", "shop/payments-v2:80", "shop/inventory:80"] {
            let of = ("cluster", cluster);
            rows.push(row(&[
                cluster,
                &sum("heddle_attempts_total", &[of]),
                &(orders.sum("heddle_attempts_total", &[of, ("result", "5xx")])).to_string(),
                &sum("heddle_retries_total", &[of]),
                &sum("heddle_ejections_total", &[of]),
            ]));
        }
        progress.detail(table(&rows));
    }

    fn show_refusals(&self, progress: Progress) {
        progress.step("refusals, with the rule that decided:");
        let mut rows = vec![row(&["sidecar", "service", "policy", "rule", "refused"])];
        for (workload, metrics) in &self.metrics {
            for sample in metrics.of("heddle_denials_total").filter(|sample| sample.value > 0) {
                let count = sample.value.to_string();
                let cells = [workload, sample.label("service"), sample.label("policy"), sample.label("rule"), &count];
                rows.push(row(&cells));
            }
            let plaintext = metrics.sum("heddle_errors_total", &[("reason", "plaintext-refused")]);
            if plaintext > 0 {
                rows.push(row(&[workload, "", "(no sidecar)", "", &plaintext.to_string()]));
            }
        }
        progress.detail(table(&rows));
    }

    fn show_certificates(&self, progress: Progress) {
        let issued = self.control_plane.sum("heddle_control_plane_certificates_issued_total", &[]);
        progress.step(format!("{issued} certificates issued; the proxies as the control plane knows them:"));
        let mut rows = vec![row(&["proxy", "identity", "certificate until", "applied"])];
        for proxy in &self.proxies {
            let text = |name: &str| proxy[name].as_str().unwrap_or("-");
            let applied = proxy["resources"]["applied"].to_string();
            rows.push(row(&[text("name"), text("identity"), text("certificateExpiry"), &applied]));
        }
        progress.detail(table(&rows));
    }

    fn show_books(&self, progress: Progress) {
        let books = &self.books;
        let charges = |state: ChargeState| books.charges.values().filter(|charge| charge.state == state).count();
        progress.step(format!(
            "the books: {} orders sold, {} cancelled; {} charges kept, {} declined, {} given back; {} taken, goods for {} sold",
            books.count(OrderState::Confirmed),
            books.count(OrderState::Cancelled),
            charges(ChargeState::Charged),
            charges(ChargeState::Declined),
            charges(ChargeState::Refunded),
            money(books.takings()),
            money(books.sales()),
        ));
        let mut rows = vec![row(&["product", "at first", "left", "sold", "held"])];
        for stock in &books.stock {
            let numbers = [stock.initial, stock.stock, stock.sold, stock.held].map(|number| number.to_string());
            rows.push(std::iter::once(stock.sku.clone()).chain(numbers).collect());
        }
        progress.detail(table(&rows));
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}
