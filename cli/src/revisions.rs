//! `heddle revisions` and `heddle rollback`.

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    apply,
    args::{RevisionsArgs, RollbackArgs},
    client::Transacted,
    commands::Session,
    diff,
    error::{Error, exit},
    object::Object,
    output::{self, Format, Paint},
    table::Table,
    time,
};

/// Shows revisions, or one, or the difference of two.
pub(crate) async fn revisions(session: &Session, args: &RevisionsArgs) -> Result<u8, Error> {
    match *args.revisions.as_slice() {
        [one] => {
            let revision: Value =
                session.client.call(Method::GET, &["v1", "revisions", &one.to_string()], &[], None).await?;
            let format = if args.output == Format::Table { Format::Yaml } else { args.output };
            output::print_value(&revision, format)?;
        }
        [from, to] => {
            let changes = difference(session, from, to).await?;
            match args.output {
                Format::Table => output::print(&render_changes(&changes, &session.paint)?)?,
                format => output::print_value(&changes, format)?,
            }
        }
        _ => {
            let revisions = list(session).await?;
            match args.output {
                Format::Table => output::print(&table(&revisions, Timestamp::now()))?,
                format => output::print_value(&revisions, format)?,
            }
        }
    }
    Ok(exit::OK)
}

/// Goes back to an earlier revision; that makes a new one.
pub(crate) async fn rollback(session: &Session, args: &RollbackArgs) -> Result<u8, Error> {
    let to = match args.to {
        Some(to) => to,
        None => previous(&list(session).await?)
            .ok_or_else(|| Error::NotFound("there is no earlier revision to go back to".to_owned()))?,
    };
    let query: &[(&str, &str)] = if args.dry_run { &[("dryRun", "true")] } else { &[] };
    let body = json!({ "revision": to });
    let done: Transacted = session.client.call(Method::POST, &["v1", "rollback"], query, Some(&body)).await?;
    if done.results.is_empty() {
        output::print(&format!("nothing differs from revision {to}\n"))?;
    } else {
        output::print(&apply::summary(&done, args.dry_run))?;
    }
    if !args.dry_run {
        output::print(&format!("back at revision {to}\n"))?;
    }
    Ok(exit::OK)
}

async fn list(session: &Session) -> Result<Vec<Value>, Error> {
    let answer: Value = session.client.call(Method::GET, &["v1", "revisions"], &[], None).await?;
    Ok(items(answer))
}

/// A list, whether bare or under `items`.
pub(crate) fn items(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(items) => items,
        Value::Object(mut object) => match object.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

async fn difference(session: &Session, from: u64, to: u64) -> Result<Vec<Value>, Error> {
    let (from, to) = (from.to_string(), to.to_string());
    let answer: Value = session.client.call(Method::GET, &["v1", "revisions", &from, "diff", &to], &[], None).await?;
    Ok(items(answer))
}

/// The second highest revision number.
fn previous(revisions: &[Value]) -> Option<u64> {
    let mut numbers: Vec<u64> = revisions.iter().filter_map(|revision| revision.get("revision")?.as_u64()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len().checked_sub(2).map(|index| numbers[index])
}

fn table(revisions: &[Value], now: Timestamp) -> String {
    let mut table = Table::new(&["REVISION", "AGE", "BY", "CHANGES"]);
    for revision in revisions {
        let text = |name: &str| revision.get(name).and_then(Value::as_str);
        let number = revision.get("revision").and_then(Value::as_u64).unwrap_or(0).to_string();
        let changes = revision.get("changes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        table.row([number, time::age(text("time"), now), text("by").unwrap_or("-").to_owned(), short(changes)]);
    }
    table.to_string()
}

/// The first changes, and how many more.
fn short(changes: &[Value]) -> String {
    const SHOWN: usize = 3;
    let field = |change: &Value, name: &str| change.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut parts: Vec<String> = changes
        .iter()
        .take(SHOWN)
        .map(|change| {
            let kind = field(change, "kind").unwrap_or_default();
            let namespace = field(change, "namespace");
            let name = field(change, "name").unwrap_or_default();
            let action = field(change, "action").unwrap_or_default();
            format!("{} {action}", crate::object::reference(&kind, namespace.as_deref(), &name))
        })
        .collect();
    if changes.len() > SHOWN {
        parts.push(format!("{} more", changes.len() - SHOWN));
    }
    parts.join(", ")
}

fn render_changes(changes: &[Value], paint: &Paint) -> Result<String, Error> {
    let mut text = String::new();
    for change in changes {
        let side = |name: &str| change.get(name).filter(|value| !value.is_null()).cloned().map(Object);
        text.push_str(&diff::objects(side("before").as_ref(), side("after").as_ref(), paint)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_before_the_last() {
        let revisions = |numbers: &[u64]| numbers.iter().map(|n| json!({"revision": n})).collect::<Vec<_>>();
        assert_eq!(previous(&revisions(&[9, 7, 4])), Some(7));
        assert_eq!(previous(&revisions(&[4, 7, 9])), Some(7));
        assert_eq!(previous(&revisions(&[4])), None);
        assert_eq!(previous(&[]), None);
    }

    #[test]
    fn a_line_per_revision() {
        let change = |name: &str| json!({"action": "created", "kind": "Service", "namespace": "shop", "name": name});
        let revisions = [json!({"revision": 7, "time": "2026-08-01T11:00:00Z", "by": "admin",
            "changes": [change("a"), change("b"), change("c"), change("d"), change("e")]})];
        assert_eq!(
            table(&revisions, "2026-08-01T12:00:00Z".parse().unwrap()),
            "REVISION   AGE   BY      CHANGES\n7          60m   admin   Service shop/a created, Service shop/b created, Service shop/c created, 2 more\n"
        );
    }
}
