//! Spans put together to traces, and traces to orders.

use std::collections::BTreeMap;

use crate::{
    demo::{
        collector::{Kind, Span, tree},
        customers::Bought,
    },
    orders::OrderState,
};

/// Who takes part in an order that is sold.
const TAKES_PART: [&str; 4] = ["storefront", "orders", "payments", "inventory"];

/// All traces.
pub(in crate::demo) struct Traces {
    traces: BTreeMap<Vec<u8>, Vec<Span>>,
}

impl Traces {
    pub(in crate::demo) fn new(spans: Vec<Span>) -> Self {
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in spans {
            traces.entry(span.trace.clone()).or_default().push(span);
        }
        Self { traces }
    }

    pub(in crate::demo) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.traces.values().flatten()
    }

    pub(in crate::demo) fn count(&self) -> usize {
        self.traces.len()
    }

    /// Traces in which an order was charged.
    fn of_order(&self, order: &str) -> Vec<&Vec<Span>> {
        let path = format!("/charges/{order}");
        let charges = |span: &Span| span.attributes.get("url.path").is_some_and(|at| *at == path);
        self.traces.values().filter(|spans| spans.iter().any(charges)).collect()
    }

    /// Every order that was sold whose way is not one whole trace.
    pub(in crate::demo) fn faults(&self, bought: &[Bought]) -> Vec<String> {
        let sold = |bought: &&Bought| bought.order.state == OrderState::Confirmed;
        bought.iter().filter(sold).filter_map(|bought| self.fault(&bought.order.id)).collect()
    }

    fn fault(&self, order: &str) -> Option<String> {
        let traces = self.of_order(order);
        let [spans] = traces.as_slice() else {
            return Some(format!("order {order} is in {} traces", traces.len()));
        };
        let parent = |span: &Span| spans.iter().find(|other| other.id == span.parent);
        let roots: Vec<&Span> = spans.iter().filter(|span| parent(span).is_none()).collect();
        match roots.as_slice() {
            [root] if root.kind == Kind::Server && root.parent.is_empty() && takes_part(root, "storefront") => {}
            [root] => return Some(format!("the trace of order {order} begins with {}", describe(root))),
            _ => return Some(format!("the trace of order {order} falls into {} pieces", roots.len())),
        }
        let missing = |name: &&&str| !spans.iter().any(|span| takes_part(span, name));
        if let Some(name) = TAKES_PART.iter().find(missing) {
            return Some(format!("{name} is missing in the trace of order {order}"));
        }
        // The last call of an order. Once its span is there, so are all that the sidecar of orders has made of it before.
        let confirms = |span: &Span| span.kind == Kind::Client && span.name.ends_with("/Confirm") && !span.failed;
        if !spans.iter().any(confirms) {
            return Some(format!("nothing confirms order {order} in its trace"));
        }
        // Whoever was called was called by a try of the caller's sidecar.
        let served = |span: &&Span| span.kind == Kind::Server && !span.parent.is_empty();
        let stray =
            spans.iter().filter(served).find(|span| parent(span).is_none_or(|above| above.kind != Kind::Client));
        stray.map(|span| format!("in the trace of order {order} nobody called {}", describe(span)))
    }

    /// The trace with the most to see, as a tree: a retried one, if there is one.
    pub(in crate::demo) fn tree(&self, bought: &[Bought]) -> Option<String> {
        let sold = |bought: &&Bought| bought.order.state == OrderState::Confirmed;
        let whole = bought.iter().filter(sold);
        let whole = whole.filter(|bought| self.fault(&bought.order.id).is_none());
        let trace = whole.filter_map(|bought| self.of_order(&bought.order.id).first().copied());
        let trace = trace.max_by_key(|spans| spans.iter().filter(|span| span.failed).count())?;
        Some(tree(trace, describe))
    }
}

/// Whether a span was made by a service, in whichever version.
fn takes_part(span: &Span, name: &str) -> bool {
    span.service.strip_prefix(name).is_some_and(|version| version.is_empty() || version.starts_with("-v"))
}

fn describe(span: &Span) -> String {
    let attribute = |name: &str| span.attributes.get(name).map(String::as_str);
    let what = match attribute("rpc.method") {
        Some(_) => span.name.clone(),
        None => {
            let path = attribute("url.path").unwrap_or_default();
            format!("{} {path}", attribute("http.request.method").unwrap_or(&span.name))
        }
    };
    let who = match span.kind {
        Kind::Client => format!("{} calls {}", span.service, attribute("heddle.endpoint.workload").unwrap_or("nobody")),
        Kind::Server | Kind::Other => format!("{} serves", span.service),
    };
    let status = attribute("http.response.status_code").or(attribute("error.type")).unwrap_or("-");
    let again = attribute("http.request.resend_count").map(|count| format!(", try {count} again"));
    let millis = std::time::Duration::from_nanos(span.end.saturating_sub(span.start)).as_secs_f64() * 1000.0;
    format!("{who}: {what} -> {status} ({millis:.1} ms{})", again.unwrap_or_default())
}
