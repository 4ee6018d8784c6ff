//! `heddle get`.

use std::collections::HashMap;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use tokio::time::Instant;

use crate::{
    args::GetArgs,
    client::{Client, Listing, Scope},
    commands::Session,
    error::{Error, exit},
    kind::Kind,
    object::{Object, list_value},
    output::{self, Format},
    revisions::items,
    table::{self, READY, Table},
};

/// How long to wait before a watch that ended is taken up again.
const RECONNECT: std::time::Duration = std::time::Duration::from_millis(500);
/// And at most, where the control plane cannot be reached.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
/// After so long without it, a watch gives up.
const AWAY: std::time::Duration = std::time::Duration::from_secs(60);

/// Shows objects.
pub(crate) async fn get(session: &Session, args: &GetArgs) -> Result<u8, Error> {
    let (kinds, names) = names_of(&args.kind, &args.names)?;
    let scope = if args.all_namespaces {
        Scope::All
    } else {
        Scope::Namespace(session.namespace(&args.selection.namespace).to_owned())
    };
    if args.watch {
        let [kind] = kinds.as_slice() else {
            return Err(Error::Usage("--watch takes one kind".to_owned()));
        };
        return watch(session, args, *kind, &names, &scope).await;
    }
    let mut found = Vec::new();
    for kind in &kinds {
        found.push((
            *kind,
            fetch(&session.client, *kind, &names, &scope, args.selection.selector.as_deref()).await?.items,
        ));
    }
    match args.output {
        Format::Table => {
            for (kind, objects) in &mut found {
                mark_ready(&session.client, *kind, objects).await?;
            }
            print_tables(&found, &scope)
        }
        format => {
            let mut objects: Vec<Object> = found.into_iter().flat_map(|(_, objects)| objects).collect();
            match objects.as_slice() {
                [_] if !names.is_empty() => output::print_value(&objects.remove(0), format)?,
                _ => output::print_value(&list_value(&objects), format)?,
            }
            Ok(exit::OK)
        }
    }
}

/// `svc/orders`, or kinds and names apart.
pub(crate) fn names_of(kind: &str, names: &[String]) -> Result<(Vec<Kind>, Vec<String>), Error> {
    if let Some((kind, name)) = kind.split_once('/') {
        let mut all = vec![name.to_owned()];
        for other in names {
            let same = other.split_once('/').filter(|(other, _)| *other == kind).map(|(_, name)| name.to_owned());
            all.push(same.ok_or_else(|| Error::Usage(format!("{other:?} is not {kind}/NAME")))?);
        }
        return Ok((vec![Kind::typed(kind)?], all));
    }
    let kinds = Kind::typed_list(kind)?;
    if kinds.len() > 1 && !names.is_empty() {
        return Err(Error::Usage("names need one kind".to_owned()));
    }
    Ok((kinds, names.to_vec()))
}

async fn fetch(
    client: &Client,
    kind: Kind,
    names: &[String],
    scope: &Scope,
    selector: Option<&str>,
) -> Result<Listing, Error> {
    if names.is_empty() {
        return client.list(kind, scope, selector).await;
    }
    if selector.is_some() {
        return Err(Error::Usage("give names or a selector, not both".to_owned()));
    }
    let Scope::Namespace(namespace) = scope else {
        return Err(Error::Usage("names need a namespace".to_owned()));
    };
    let mut items = Vec::new();
    for name in names {
        items.push(client.get(kind, namespace, name).await?);
    }
    Ok(Listing { items, resource_version: None })
}

/// Notes on workloads, for a table, whether they take traffic.
async fn mark_ready(client: &Client, kind: Kind, objects: impl IntoIterator<Item = &mut Object>) -> Result<(), Error> {
    let mut objects = objects.into_iter().peekable();
    if kind.name != "Workload" || objects.peek().is_none() {
        return Ok(());
    }
    let proxies = items(client.call(Method::GET, &["v1", "proxies"], &[], None).await?);
    let ready: HashMap<&str, &Value> =
        proxies.iter().filter_map(|proxy| Some((proxy.get("name")?.as_str()?, proxy.get("ready")?))).collect();
    for object in objects {
        let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name());
        if let (Some(ready), Some(fields)) = (ready.get(name.as_str()), object.0.as_object_mut()) {
            fields.insert(READY.trim_start_matches('/').to_owned(), (*ready).clone());
        }
    }
    Ok(())
}

fn print_tables(found: &[(Kind, Vec<Object>)], scope: &Scope) -> Result<u8, Error> {
    let now = Timestamp::now();
    let mut texts = Vec::new();
    for (kind, objects) in found {
        if objects.is_empty() {
            continue;
        }
        let mut table = Table::new(&table::headings(*kind, *scope == Scope::All));
        // One kind is clear from what was typed; of several, each names its own.
        let prefix = if found.len() > 1 { format!("{}/", kind.lower()) } else { String::new() };
        for object in objects {
            table.row(table::cells(*kind, *scope == Scope::All, &prefix, object, now));
        }
        texts.push(table.to_string());
    }
    if texts.is_empty() {
        let kinds: Vec<_> = found.iter().map(|(kind, _)| kind.plural).collect();
        let kinds = if kinds.len() > 3 { "objects".to_owned() } else { kinds.join(", ") };
        let namespaced = found.iter().any(|(kind, _)| kind.namespaced);
        output::complain(&match scope {
            Scope::Namespace(namespace) if namespaced => {
                format!("no {kinds} in namespace {namespace} (-n NS names another, -A means all)\n")
            }
            _ if kinds == "meshconfigs" => {
                "no meshconfig: the defaults hold, which `heddle explain meshconfig.spec` shows\n".to_owned()
            }
            _ => format!("no {kinds}\n"),
        });
    }
    output::print(&texts.join("\n"))?;
    Ok(exit::OK)
}

/// Shows what is, then each change as it happens, until interrupted.
async fn watch(session: &Session, args: &GetArgs, kind: Kind, names: &[String], scope: &Scope) -> Result<u8, Error> {
    let selector = args.selection.selector.as_deref();
    let wanted = |object: &Object| names.is_empty() || names.iter().any(|name| name == object.name());
    let mut listing = session.client.list(kind, scope, selector).await?;
    listing.items.retain(wanted);
    if args.output == Format::Table {
        mark_ready(&session.client, kind, &mut listing.items).await?;
    }
    let all = *scope == Scope::All;
    let mut table = Table::new(&table::headings(kind, all));
    for object in &listing.items {
        table.row(table::cells(kind, all, "", object, Timestamp::now()));
    }
    match args.output {
        Format::Table => output::print(&table.to_string())?,
        format => {
            for object in &listing.items {
                print_event("ADDED", object, format)?;
            }
        }
    }
    let mut position = listing.resource_version;
    let (mut pause, mut heard) = (RECONNECT, Instant::now());
    loop {
        let from = position.clone();
        let outcome = session
            .client
            .watch(kind, scope, selector, from.as_deref(), async |mut events| {
                (pause, heard) = (RECONNECT, Instant::now());
                if args.output == Format::Table {
                    let there = events.iter_mut().filter(|(event, _)| matches!(&**event, "ADDED" | "MODIFIED"));
                    mark_ready(&session.client, kind, there.map(|(_, object)| object)).await?;
                }
                for (event, object) in events {
                    if let Some(version) = object.resource_version() {
                        position = Some(version.to_owned());
                    }
                    if event == "BOOKMARK" || !wanted(&object) {
                        continue;
                    }
                    match args.output {
                        Format::Table => {
                            let mut cells = table::cells(kind, all, "", &object, Timestamp::now());
                            if event == "DELETED" {
                                cells.push("deleted".to_owned());
                            }
                            output::print(&table.line(cells))?;
                        }
                        format => print_event(&event, &object, format)?,
                    }
                }
                Ok(())
            })
            .await;
        match outcome {
            Ok(()) => {
                (pause, heard) = (RECONNECT, Instant::now());
                tokio::time::sleep(pause).await;
            }
            // It restarts, perhaps.
            Err(Error::Unreachable { .. }) if heard.elapsed() < AWAY => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            // The server no longer knows that point in time: what was missed can only be listed.
            Err(Error::Refused(problem)) if problem.status == 410 => {
                output::complain("the control plane has forgotten some changes; listing again\n");
                position = None;
                let mut listing = session.client.list(kind, scope, selector).await?;
                listing.items.retain(wanted);
                if args.output == Format::Table {
                    mark_ready(&session.client, kind, &mut listing.items).await?;
                }
                for object in &listing.items {
                    match args.output {
                        Format::Table => {
                            output::print(&table.line(table::cells(kind, all, "", object, Timestamp::now())))?;
                        }
                        format => print_event("MODIFIED", object, format)?,
                    }
                }
                position = listing.resource_version.or(position);
            }
            Err(error) => return Err(error),
        }
    }
}

/// JSON as one line per event, YAML as one document.
fn print_event(event: &str, object: &Object, format: Format) -> Result<(), Error> {
    let value = json!({ "type": event, "object": object });
    match format {
        Format::Json => output::print(&format!("{value}\n")),
        _ => output::print(&format!("---\n{}", output::render(&value, format)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_names() {
        let names = |kind: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            names_of(kind, &names).map(|(kinds, names)| (kinds.len(), names.join(" ")))
        };
        assert_eq!(names("svc/a", &[]).unwrap(), (1, "a".into()));
        assert_eq!(names("svc/a", &["svc/b"]).unwrap(), (1, "a b".into()));
        assert_eq!(names("svc,hr", &[]).unwrap(), (2, String::new()));
        assert_eq!(names("svc", &["a", "b"]).unwrap(), (1, "a b".into()));
        assert!(names("svc,hr", &["a"]).is_err());
        assert!(names("svc/a", &["hr/b"]).is_err());
        assert!(names("pods", &[]).is_err());
    }
}
