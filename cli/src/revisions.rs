//! `heddle revisions` and `heddle rollback`.

use std::collections::BTreeMap;

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
            let number = one.to_string();
            let revision: Value = session.client.call(Method::GET, &["v1", "revisions", &number], &[], None).await?;
            match args.output {
                Format::Table => {
                    let changes = revision.get("changes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                    let summary = table(std::slice::from_ref(&revision), Timestamp::now());
                    output::print(&format!("{summary}\n{}", render_changes(changes, &session.paint)?))?;
                }
                format => output::print_value(&revision, format)?,
            }
        }
        [from, to] => {
            let changes = difference(session, from, to).await?;
            match args.output {
                Format::Table => output::print(&render_changes(&changes, &session.paint)?)?,
                format => output::print_value(&changes, format)?,
            }
        }
        _ => {
            let mut revisions = list(session).await?;
            // The last one is looked for most.
            revisions.sort_by_key(|revision| std::cmp::Reverse(revision.get("revision").and_then(Value::as_u64)));
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
    let (to, newest) = match args.to {
        Some(to) => (to, args.if_revision),
        None => {
            let (to, newest) = one_back(&list(session).await?).ok_or_else(|| {
                Error::NotFound("there is no earlier revision to go back to (--to 0 is the empty mesh)".to_owned())
            })?;
            // What somebody else commits meanwhile is not what was to be undone.
            (to, Some(args.if_revision.unwrap_or(newest)))
        }
    };
    let query: &[(&str, &str)] = if args.dry_run { &[("dryRun", "true")] } else { &[] };
    let mut body = json!({ "revision": to });
    if let Some(newest) = newest {
        body["ifRevision"] = newest.into();
    }
    let done: Transacted = session.client.call(Method::POST, &["v1", "rollback"], query, Some(&body)).await?;
    if done.results.is_empty() {
        output::print(&format!("nothing differs from revision {to}\n"))?;
    } else {
        output::print(&apply::summary(&done, args.dry_run))?;
    }
    if !args.dry_run {
        let made = done.revision.as_u64().filter(|_| !done.results.is_empty());
        let made = made.map_or_else(String::new, |made| format!(", as revision {made}"));
        let left = newest.map_or_else(String::new, |newest| format!("; `heddle rollback --to {newest}` undoes this"));
        output::print(&format!("back at revision {to}{made}{left}\n"))?;
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

/// The revision before the one whose state is in force, and the newest. After a rollback the state in force is an
/// earlier revision's, so that going back once more goes further back, and not forward again.
fn one_back(revisions: &[Value]) -> Option<(u64, u64)> {
    let numbers: BTreeMap<u64, &Value> =
        revisions.iter().filter_map(|revision| Some((revision.get("revision")?.as_u64()?, revision))).collect();
    let newest = *numbers.last_key_value()?.0;
    let mut in_force = newest;
    while let Some(earlier) = numbers.get(&in_force).and_then(|revision| rolled_back_to(revision)) {
        if earlier >= in_force {
            break;
        }
        in_force = earlier;
    }
    Some((*numbers.range(..in_force).next_back()?.0, newest))
}

/// The revision whose state a rollback made again.
fn rolled_back_to(revision: &Value) -> Option<u64> {
    revision.get("reason")?.as_str()?.strip_prefix("rollback to revision ")?.parse().ok()
}

fn table(revisions: &[Value], now: Timestamp) -> String {
    let mut table = Table::new(&["REVISION", "AGE", "BY", "CHANGES", "REASON"]);
    for revision in revisions {
        let text = |name: &str| revision.get(name).and_then(Value::as_str);
        table.row([
            revision.get("revision").and_then(Value::as_u64).unwrap_or(0).to_string(),
            time::age(text("time"), now),
            text("author").unwrap_or("-").to_owned(),
            counts(revision),
            text("reason").unwrap_or("").to_owned(),
        ]);
    }
    table.to_string()
}

/// `2 created, 1 deleted`.
fn counts(revision: &Value) -> String {
    let count = |name: &str| revision.pointer(&format!("/counts/{name}")).and_then(Value::as_u64).unwrap_or(0);
    let parts: Vec<String> = ["created", "updated", "deleted"]
        .into_iter()
        .filter(|name| count(name) > 0)
        .map(|name| format!("{} {name}", count(name)))
        .collect();
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
    fn one_step_back_and_one_further_each_time() {
        let revisions = |numbers: &[u64]| numbers.iter().map(|n| json!({"revision": n})).collect::<Vec<_>>();
        assert_eq!(one_back(&revisions(&[9, 7, 4])), Some((7, 9)));
        assert_eq!(one_back(&revisions(&[4, 7, 9])), Some((7, 9)));
        assert_eq!(one_back(&revisions(&[4])), None);
        assert_eq!(one_back(&[]), None);

        let mut all = revisions(&[1, 2, 3, 4]);
        for (made, to) in [(5, 3), (6, 2), (7, 1)] {
            assert_eq!(one_back(&all), Some((to, made - 1)));
            all.push(json!({"revision": made, "reason": format!("rollback to revision {to}")}));
        }
        assert_eq!(one_back(&all), None, "the first is in force");
        all.push(json!({"revision": 8}));
        assert_eq!(one_back(&all), Some((7, 8)), "a change after it is undone first");
        all.push(json!({"revision": 9, "reason": "rollback to revision 9"}));
        assert_eq!(one_back(&all), Some((8, 9)), "nonsense ends");
    }

    #[test]
    fn a_line_per_revision() {
        let revisions = [
            json!({"revision": 8, "time": "2026-08-01T11:59:00Z", "author": "ci", "reason": "rollback to revision 6",
                "counts": {"created": 0, "updated": 0, "deleted": 1}}),
            json!({"revision": 7, "time": "2026-08-01T11:00:00Z", "author": "admin", "counts": {"created": 5, "updated": 1}}),
        ];
        assert_eq!(
            table(&revisions, "2026-08-01T12:00:00Z".parse().unwrap()),
            "REVISION   AGE   BY      CHANGES                REASON\n\
             8          60s   ci      1 deleted              rollback to revision 6\n\
             7          60m   admin   5 created, 1 updated\n"
        );
    }
}
