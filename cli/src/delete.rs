//! `heddle delete`.

use serde_json::{Value, json};

use crate::{
    apply,
    args::DeleteArgs,
    client::Scope,
    commands::Session,
    error::{Error, exit},
    get::names_of,
    kind::Kind,
    manifest,
    object::reference,
    output,
    table::{DECLARED, source},
};

/// One object to delete, and where that was said.
struct Target {
    kind: Kind,
    namespace: String,
    name: String,
    source: String,
}

/// Deletes objects, in one transaction.
pub(crate) async fn delete(session: &Session, args: &DeleteArgs) -> Result<u8, Error> {
    let mut targets = targets(session, args).await?;
    if args.ignore_not_found {
        let mut found = Vec::new();
        for target in targets {
            if session.client.find(target.kind, &target.namespace, &target.name).await?.is_some() {
                found.push(target);
            }
        }
        targets = found;
    }
    if targets.is_empty() {
        output::complain("nothing to delete\n");
        return Ok(exit::OK);
    }
    // What refers to others goes before what it refers to.
    targets.sort_by_key(|target| std::cmp::Reverse(target.kind.order));
    let operations: Vec<Value> = targets.iter().map(operation).collect();
    let sources: Vec<String> = targets.iter().map(|target| target.source.clone()).collect();
    let done = session.client.transact(&operations, &sources, args.dry_run).await?;
    output::print(&apply::summary(&done, args.dry_run))?;
    Ok(exit::OK)
}

async fn targets(session: &Session, args: &DeleteArgs) -> Result<Vec<Target>, Error> {
    let namespace = session.namespace(&args.selection.namespace);
    let Some(kind) = &args.kind else {
        let typed = args.selection.namespace.namespace.as_deref();
        let documents = manifest::read(&args.files, typed, session.default_namespace())?;
        return Ok(documents
            .into_iter()
            .map(|document| Target {
                kind: document.kind,
                namespace: document.namespace().to_owned(),
                name: document.object.name().to_owned(),
                source: document.source(),
            })
            .collect());
    };
    let (mut kinds, names) = names_of(kind, &args.names)?;
    if kind.eq_ignore_ascii_case("all") {
        // Everything of a namespace; what is the whole mesh's goes only by its own name.
        kinds.retain(|kind| kind.namespaced);
    }
    let mut targets = Vec::new();
    for kind in kinds {
        let names = if names.is_empty() {
            if args.selection.selector.is_none() && !args.all {
                return Err(Error::Usage(format!("which {}? give names, -l SELECTOR or --all", kind.plural)));
            }
            let scope = Scope::Namespace(namespace.to_owned());
            let listing = session.client.list(kind, &scope, args.selection.selector.as_deref()).await?;
            // Those that proxies registered go when their proxies go, and those of Kubernetes are its to remove.
            let declared = listing.items.iter().filter(|object| source(object) == DECLARED);
            declared.map(|object| object.name().to_owned()).collect()
        } else {
            names.clone()
        };
        targets.extend(names.into_iter().map(|name| Target {
            kind,
            namespace: namespace.to_owned(),
            source: reference(kind.name, kind.namespaced.then_some(namespace), &name),
            name,
        }));
    }
    Ok(targets)
}

fn operation(target: &Target) -> Value {
    let mut operation = json!({ "delete": { "kind": target.kind.name, "name": target.name } });
    if target.kind.namespaced {
        operation["delete"]["namespace"] = target.namespace.as_str().into();
    }
    operation
}
