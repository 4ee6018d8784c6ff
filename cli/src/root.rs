//! `heddle root`.

use http::Method;
use serde_json::Value;

use crate::{
    args::{Global, RootCommand},
    commands::Session,
    error::{Error, exit, plural},
    output::{self, Format},
    table::Table,
};

/// Shows the roots, or takes a step from one to another.
pub(crate) async fn root(session: &Session, global: &Global, command: &RootCommand) -> Result<u8, Error> {
    let (step, force, format) = match command {
        RootCommand::Status { output } => (None, false, *output),
        RootCommand::Prepare => (Some("prepare"), false, Format::Table),
        RootCommand::Activate { force } => (Some("activate"), *force, Format::Table),
        RootCommand::Retire { force } => (Some("retire"), *force, Format::Table),
    };
    let query: &[(&str, &str)] = if force { &[("force", "true")] } else { &[] };
    let status: Value = match step {
        Some(step) => session.client.call(Method::POST, &["v1", "roots", step], query, None).await?,
        None => session.client.call(Method::GET, &["v1", "roots"], &[], None).await?,
    };
    match format {
        Format::Table => output::print(&render(&status))?,
        format => output::print_value(&status, format)?,
    }
    // The certificate of the API will be under the new root, too.
    let context = session.client.context();
    let anchors = status.get("trustAnchors").and_then(Value::as_str).unwrap_or_default();
    if !anchors.is_empty() {
        match global.overrides().trust(context, anchors) {
            Ok(true) => {
                let count = plural(roots(&status).len(), "root");
                output::complain(&format!("context {} trusts {count} now\n", context.name));
            }
            Ok(false) => {}
            // The step is taken: who waits for that is not to be told otherwise.
            Err(error) => output::complain(&format!(
                "warning: context {} cannot take up the roots, without which it reaches the control plane no more after \
                 `activate`: {}; put `trustAnchors` of `heddle root status -o json` into a file, and name it with \
                 HEDDLE_CA\n",
                context.name,
                error.report(&output::Paint::for_stderr(global.color)).trim_end()
            )),
        }
    }
    Ok(exit::OK)
}

fn render(status: &Value) -> String {
    let mut table = Table::new(&["ROOT (SHA-256)", "SIGNS"]);
    for root in roots(status) {
        let signs = root.get("signs").and_then(Value::as_bool).unwrap_or(false);
        let fingerprint = root.get("fingerprint").and_then(Value::as_str).unwrap_or("-");
        table.row([fingerprint.get(..16).unwrap_or(fingerprint), if signs { "yes" } else { "no" }]);
    }
    let mut out = table.to_string();
    let count = |field: &str| status.get(field).and_then(Value::as_u64).unwrap_or(0);
    let names = |field: &str| {
        let names = status.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let of = format!("of {}", plural(count("proxies") as usize, "proxy").replace("proxys", "proxies"));
    let behind = match count("behindCount") {
        0 => format!("every one {of} has applied these roots"),
        behind => format!("{behind} {of} have not applied these roots yet: {}", names("behind")),
    };
    let phase = status.get("phase").and_then(Value::as_str).unwrap_or("?");
    let (meaning, next) = match phase {
        "prepared" => (
            "a new root is trusted, and signs nothing yet",
            "`heddle root activate` once every proxy has applied it and the certificates of before have ended, and everybody who uses the API has said \
             `heddle root status`, which makes their context trust it; join files made before are useless then",
        ),
        "activated" => (
            "the new root signs, and what the old one signed is trusted still",
            "`heddle root retire` once the certificates of the old root have ended",
        ),
        _ => ("nothing is under way", "`heddle root prepare` begins to replace the root"),
    };
    out.push_str(&format!("\n{phase}, epoch {}: {meaning}\n{behind}\n", count("epoch")));
    if phase == "activated" {
        match (count("oldCertificatesCount"), status.get("oldCertificatesUntil").and_then(Value::as_str)) {
            (0, _) => out.push_str(&format!("none {of} has a certificate of the old root\n")),
            (old, until) => out.push_str(&format!(
                "{old} {of} may have a certificate of the old root, until {} at the latest: {}\n",
                until.unwrap_or("?"),
                names("oldCertificates")
            )),
        }
    }
    if let Some(until) = status.get("waitsUntil").and_then(Value::as_str) {
        out.push_str(&format!(
            "the next step waits until {until}: proxies that are away may have certificates of before\n"
        ));
    }
    out.push_str(&format!("next: {next}\n"));
    out
}

fn roots(status: &Value) -> &[Value] {
    status.get("roots").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_how_far_it_is_and_what_is_next() {
        let text = render(&json!({
            "phase": "prepared", "epoch": 2, "proxies": 3, "behindCount": 1, "behind": ["shop/late"],
            "roots": [{"fingerprint": "0123456789abcdef0123", "signs": true}, {"fingerprint": "ff", "signs": false}],
            "oldCertificatesCount": 0, "oldCertificates": [], "waitsUntil": "2026-02-03T00:00:00Z",
        }));
        assert!(text.contains("waits until 2026-02-03T00:00:00Z"), "{text}");
        assert!(
            text.starts_with("ROOT (SHA-256)     SIGNS\n0123456789abcdef   yes\nff                 no\n"),
            "{text}"
        );
        assert!(text.contains("prepared, epoch 2") && text.contains("1 of 3 proxies have not"), "{text}");
        assert!(text.contains("shop/late") && text.contains("heddle root activate"), "{text}");
        let text = render(&json!({
            "phase": "activated", "epoch": 2, "proxies": 1, "behindCount": 0, "roots": [],
            "oldCertificatesCount": 1, "oldCertificates": ["shop/a"], "oldCertificatesUntil": "2026-01-01T00:00:00Z",
        }));
        assert!(text.contains("1 of 1 proxy may have") && text.contains("2026") && text.contains("retire"), "{text}");
        let text = render(&json!({"phase": "steady", "epoch": 3, "proxies": 0, "roots": []}));
        assert!(text.contains("heddle root prepare"), "{text}");
    }
}
