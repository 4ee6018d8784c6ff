//! `heddle status`.

use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    args::StatusArgs,
    commands::Session,
    error::{Error, exit, plural},
    output::{self, Format, Paint},
    revisions::items,
    table::Table,
    time,
};

/// Shows the proxies.
pub(crate) async fn status(session: &Session, args: &StatusArgs) -> Result<u8, Error> {
    let mut proxies = items(session.client.call(Method::GET, &["v1", "proxies"], &[], None).await?);
    if let Some(wanted) = &args.proxy {
        proxies.retain(|proxy| text(proxy, "name").contains(wanted.as_str()));
        if proxies.is_empty() {
            return Err(Error::NotFound(format!("no proxy has {wanted:?} in its name")));
        }
    }
    let now = Timestamp::now();
    let troubles: Vec<String> = proxies.iter().flat_map(|proxy| troubles(proxy, now)).collect();
    match args.output {
        Format::Table => output::print(&render(&proxies, &troubles, now, &session.paint))?,
        format => output::print_value(&proxies, format)?,
    }
    Ok(if args.check && !troubles.is_empty() { exit::REFUSED } else { exit::OK })
}

fn render(proxies: &[Value], troubles: &[String], now: Timestamp, paint: &Paint) -> String {
    if proxies.is_empty() {
        return "no proxy is or was connected; `heddle run` starts one beside a command\n".to_owned();
    }
    let mut table =
        Table::new(&["PROXY", "SERVICES", "STATE", "VERSION", "CERTIFICATE", "APPLIED", "PENDING", "REJECTED"]);
    for proxy in proxies {
        let since = || time::age(proxy.get("since").and_then(Value::as_str), now);
        let state = if connected(proxy) { format!("connected {}", since()) } else { "away".to_owned() };
        table.row([
            text(proxy, "name").to_owned(),
            services(proxy),
            state,
            text(proxy, "version").to_owned(),
            time::until(proxy.get("certificateExpiry").and_then(Value::as_str), now),
            count(proxy, "applied").to_string(),
            count(proxy, "pending").to_string(),
            rejected(proxy).len().to_string(),
        ]);
    }
    let mut out = table.to_string();
    let present = proxies.iter().filter(|proxy| connected(proxy)).count();
    out.push_str(&format!("\n{}, {present} connected\n", plural(proxies.len(), "proxy").replace("proxys", "proxies")));
    for trouble in troubles {
        out.push_str(&format!("{} {trouble}\n", paint.bad("!")));
    }
    out
}

/// What is wrong with a proxy, a sentence each.
fn troubles(proxy: &Value, now: Timestamp) -> Vec<String> {
    let name = text(proxy, "name");
    let mut found = Vec::new();
    if !connected(proxy) {
        found.push(format!("{name} is away: it goes on with what it had"));
    }
    if connected(proxy) && proxy.get("ready").and_then(Value::as_bool) == Some(false) {
        found.push(format!("{name} takes no traffic: the command beside it accepts no connections"));
    }
    if proxy.get("contested").and_then(Value::as_bool) == Some(true) {
        found.push(format!(
            "{name} is the name of several proxies, which take turns; give each one of its own (--workload)"
        ));
    }
    let expiry = proxy.get("certificateExpiry").and_then(Value::as_str);
    if expiry.and_then(|text| text.parse::<Timestamp>().ok()).is_some_and(|expiry| expiry <= now) {
        found.push(format!("{name}: its certificate {}", time::until(expiry, now)));
    }
    let pending = count(proxy, "pending");
    if connected(proxy) && pending > 0 {
        found.push(format!("{name} has not answered yet about {}", plural(pending, "resource")));
    }
    for entry in rejected(proxy) {
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        let what = field("resource").unwrap_or("a resource");
        found.push(format!("{name} rejected {what}: {}", field("reason").unwrap_or("?")));
    }
    found
}

fn text<'a>(proxy: &'a Value, field: &str) -> &'a str {
    proxy.get(field).and_then(Value::as_str).unwrap_or("-")
}

fn connected(proxy: &Value) -> bool {
    proxy.get("connected").and_then(Value::as_bool).unwrap_or(false)
}

fn services(proxy: &Value) -> String {
    let services = proxy.get("services").and_then(Value::as_array);
    let names: Vec<&str> = services
        .into_iter()
        .flatten()
        .map(|service| service.as_str().or_else(|| service.get("name")?.as_str()).unwrap_or("?"))
        .collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// A number, or how many are listed.
fn count(proxy: &Value, field: &str) -> usize {
    match proxy.pointer(&format!("/resources/{field}")) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Number(number)) => number.as_u64().and_then(|number| number.try_into().ok()).unwrap_or(0),
        _ => 0,
    }
}

fn rejected(proxy: &Value) -> &[Value] {
    proxy.pointer("/resources/rejected").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_per_proxy_and_a_sentence_per_trouble() {
        let now: Timestamp = "2026-08-01T12:00:00Z".parse().unwrap();
        let proxies = [
            json!({"name": "shop/orders-1", "services": ["orders"], "connected": true, "since": "2026-08-01T11:00:00Z",
                "version": "0.1.0", "resources": {"applied": 5, "pending": 0, "rejected": []}, "certificateExpiry": "2026-08-02T03:00:00Z"}),
            json!({"name": "shop/web-1", "services": [], "connected": true, "ready": false, "since": "2026-08-01T11:59:55Z", "version": "0.1.0",
                "resources": {"applied": 4, "pending": 1, "rejected": [{"resource": "Service shop/orders", "reason": "bad regex"}]},
                "certificateExpiry": "2026-08-01T11:00:00Z"}),
            json!({"name": "shop/old", "connected": false, "contested": true}),
        ];
        let all: Vec<String> = proxies.iter().flat_map(|proxy| troubles(proxy, now)).collect();
        assert_eq!(
            render(&proxies, &all, now, &Paint::plain()),
            "PROXY           SERVICES   STATE           VERSION   CERTIFICATE       APPLIED   PENDING   REJECTED\n\
             shop/orders-1   orders     connected 60m   0.1.0     in 15h            5         0         0\n\
             shop/web-1      -          connected 5s    0.1.0     expired 60m ago   4         1         1\n\
             shop/old        -          away            -         -                 0         0         0\n\
             \n3 proxies, 2 connected\n\
             ! shop/web-1 takes no traffic: the command beside it accepts no connections\n\
             ! shop/web-1: its certificate expired 60m ago\n\
             ! shop/web-1 has not answered yet about 1 resource\n\
             ! shop/web-1 rejected Service shop/orders: bad regex\n\
             ! shop/old is away: it goes on with what it had\n\
             ! shop/old is the name of several proxies, which take turns; give each one of its own (--workload)\n"
        );
    }
}
