//! `heddle apply` and `heddle diff`.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    args::{ApplyArgs, DiffArgs},
    client::Transacted,
    commands::Session,
    diff,
    error::{Error, exit},
    kind::Kind,
    manifest::{self, Document},
    object::Object,
    output::{self, Format},
};

/// How many objects are fetched at once.
const FETCHES: usize = 8;

/// How long to wait between two looks at an object's status.
const POLL: std::time::Duration = std::time::Duration::from_millis(150);

/// Creates or changes objects.
pub(crate) async fn apply(session: &Session, args: &ApplyArgs) -> Result<u8, Error> {
    let documents =
        manifest::read(&args.files.files, args.namespace.namespace.as_deref(), session.default_namespace())?;
    if args.diff {
        let planned = transact(session, &documents, true).await?;
        output::print(&changes(session, &documents, &planned).await?)?;
    }
    let done = transact(session, &documents, args.dry_run).await?;
    let printed = match args.output {
        Format::Table => output::print(&summary(&done, args.dry_run)),
        format => output::print_value(&json!({ "revision": done.revision, "results": done.results }), format),
    };
    if args.wait {
        // Also when nobody reads on: whether proxies take it is what was asked.
        wait(session, &done, args.timeout.0).await?;
    }
    printed.map(|()| exit::OK)
}

/// Shows what `apply` would change.
pub(crate) async fn diff(session: &Session, args: &DiffArgs) -> Result<u8, Error> {
    let documents =
        manifest::read(&args.files.files, args.namespace.namespace.as_deref(), session.default_namespace())?;
    let planned = transact(session, &documents, true).await?;
    let text = changes(session, &documents, &planned).await?;
    output::print(&text)?;
    Ok(if args.exit_code && !text.is_empty() { exit::DIFFERS } else { exit::OK })
}

async fn transact(session: &Session, documents: &[Document], dry_run: bool) -> Result<Transacted, Error> {
    let operations: Vec<Value> = documents.iter().map(operation).collect();
    let sources: Vec<String> = documents.iter().map(Document::source).collect();
    session.client.transact(&operations, &sources, dry_run).await
}

/// An object that was fetched, edited and is sent back carries the version that it was made from.
fn operation(document: &Document) -> Value {
    let mut operation = json!({ "apply": document.object.as_written() });
    if let Some(version) = document.object.resource_version() {
        operation["ifMatch"] = version.into();
    }
    operation
}

/// The differences between what is and what is planned.
async fn changes(session: &Session, documents: &[Document], planned: &Transacted) -> Result<String, Error> {
    let changed = documents.iter().zip(&planned.results).filter(|(_, result)| result.action != "unchanged");
    let diffs: Vec<String> = stream::iter(changed)
        .map(|(document, result)| async move {
            let old = session.client.find(document.kind, document.namespace(), document.object.name()).await?;
            diff::objects(old.as_ref(), Some(&result.object), &session.paint)
        })
        .buffered(FETCHES)
        .try_collect()
        .await?;
    Ok(diffs.concat())
}

/// One line per object, and one for all.
pub(crate) fn summary(done: &Transacted, dry_run: bool) -> String {
    let suffix = if dry_run { " (dry run)" } else { "" };
    let mut text = String::new();
    for result in &done.results {
        text.push_str(&format!("{} {}{suffix}\n", lower_reference(&result.object), result.action));
    }
    if done.results.len() > 1 {
        let counts: Vec<_> = ["created", "updated", "unchanged", "deleted"]
            .into_iter()
            .map(|action| (done.results.iter().filter(|result| result.action == action).count(), action))
            .filter(|(count, _)| *count > 0)
            .map(|(count, action)| format!("{count} {action}"))
            .collect();
        text.push_str(&format!("{}{suffix}", counts.join(", ")));
        if let (Value::Number(revision), false) = (&done.revision, dry_run) {
            text.push_str(&format!(", revision {revision}"));
        }
        text.push('\n');
    }
    text
}

/// `service shop/orders`.
fn lower_reference(object: &Object) -> String {
    let reference = object.reference();
    match reference.split_once(' ') {
        Some((kind, rest)) => format!("{} {rest}", kind.to_ascii_lowercase()),
        None => reference,
    }
}

/// Waits until no proxy lags behind.
async fn wait(session: &Session, done: &Transacted, timeout: std::time::Duration) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    let mut waiting: Vec<&Object> =
        done.results.iter().filter(|result| result.action != "deleted").map(|result| &result.object).collect();
    let mut rejected = Vec::new();
    let mut lagging = Vec::new();
    while !waiting.is_empty() {
        lagging.clear();
        let mut still = Vec::new();
        for object in waiting {
            let Some(kind) = Kind::named(object.kind()) else { continue };
            let now = session.client.get(kind, object.namespace().unwrap_or(""), object.name()).await?;
            match progress(object, &now) {
                Progress::Done => {}
                Progress::Rejected(reasons) => rejected.extend(reasons),
                Progress::Pending(count) => {
                    lagging.push(format!("{} ({count} pending)", object.reference()));
                    still.push(object);
                }
            }
        }
        waiting = still;
        if waiting.is_empty() || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    match (rejected.is_empty(), waiting.is_empty()) {
        (false, _) => Err(Error::Rejected(rejected)),
        (true, false) => Err(Error::TimedOut(lagging)),
        (true, true) => Ok(()),
    }
}

/// How far a change has come.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Done,
    Pending(u64),
    Rejected(Vec<String>),
}

/// Whether the proxies hold at least the generation that was applied.
fn progress(applied: &Object, now: &Object) -> Progress {
    let reasons: Vec<String> = now
        .list("/status/rejected")
        .iter()
        .map(|entry| {
            let field = |name| entry.get(name).and_then(Value::as_str).unwrap_or("?");
            format!("{} by {}: {}", now.reference(), field("proxy"), field("reason"))
        })
        .collect();
    let current = now.number("/status/observedGeneration") >= applied.number("/metadata/generation");
    let pending = now.number("/status/pending").unwrap_or(0);
    match (current, reasons.is_empty()) {
        (true, false) => Progress::Rejected(reasons),
        (true, true) if pending == 0 => Progress::Done,
        _ => Progress::Pending(pending),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;

    fn object(kind: &str, name: &str) -> Object {
        Object(json!({"kind": kind, "metadata": {"name": name, "namespace": "shop", "generation": 2}}))
    }

    #[test]
    fn a_line_for_each_and_a_sum() {
        let outcome =
            |action: &str, kind: &str, name: &str| Outcome { action: action.into(), object: object(kind, name) };
        let mut done = Transacted {
            revision: 12.into(),
            results: vec![outcome("created", "Service", "a"), outcome("unchanged", "HTTPRoute", "b")],
        };
        assert_eq!(
            summary(&done, false),
            "service shop/a created\nhttproute shop/b unchanged\n1 created, 1 unchanged, revision 12\n"
        );
        assert!(summary(&done, true).ends_with("1 created, 1 unchanged (dry run)\n"));
        done.results.pop();
        assert_eq!(summary(&done, true), "service shop/a created (dry run)\n");
    }

    #[test]
    fn a_fetched_object_is_sent_back_with_its_version_and_without_its_status() {
        let mut fetched = object("Service", "a");
        fetched.0["metadata"]["resourceVersion"] = "41".into();
        fetched.0["status"] = json!({"applied": 1});
        let document = Document { place: "x".into(), kind: Kind::named("Service").unwrap(), object: fetched };
        assert_eq!(
            operation(&document),
            json!({"apply": {"kind": "Service", "metadata": {"name": "a", "namespace": "shop"}}, "ifMatch": "41"})
        );
    }

    #[test]
    fn waits_for_the_generation_that_was_applied() {
        let applied = object("Service", "a");
        let now = |status: Value| {
            let mut now = applied.clone();
            now.0["status"] = status;
            progress(&applied, &now)
        };
        assert_eq!(now(json!({"observedGeneration": 2, "applied": 3, "pending": 0})), Progress::Done);
        assert_eq!(now(json!({"observedGeneration": 3, "applied": 3, "pending": 0})), Progress::Done);
        assert_eq!(now(json!({"observedGeneration": 2, "applied": 1, "pending": 2})), Progress::Pending(2));
        assert_eq!(now(json!({"observedGeneration": 1, "applied": 3, "pending": 0})), Progress::Pending(0));
        assert_eq!(now(Value::Null), Progress::Pending(0));
        assert_eq!(
            now(json!({"observedGeneration": 2, "rejected": [{"proxy": "shop/x", "reason": "no"}]})),
            Progress::Rejected(vec!["Service shop/a by shop/x: no".into()])
        );
    }
}
