//! `heddle token` and `heddle api-token`.

use std::path::Path;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    args::{ApiTokenCommand, Namespace, Role, TokenCommand},
    client::Client,
    commands::Session,
    context::{Context, ContextFile, PrivateFile, read_text},
    error::{Error, exit},
    output::{self, Format},
    revisions::items,
    table::Table,
    time,
};

/// The fields of a join file; what else an answer holds is not for the proxy.
const JOIN_FIELDS: [&str; 5] = ["controlPlane", "trustDomain", "identity", "trustAnchors", "token"];

/// Join tokens.
pub(crate) async fn join(session: &Session, command: TokenCommand) -> Result<u8, Error> {
    let client = &session.client;
    match command {
        TokenCommand::Create { account, namespace, ttl, uses, file } => {
            let (account, namespace) = qualified(session, &account, &namespace)?;
            let target = file.as_deref().map(join_target).transpose()?;
            let (id, join) = ask_join(client, &namespace, &account, &ttl.to_string(), uses).await?;
            let text = output::render(&join, Format::Json)?;
            match file.zip(target) {
                Some((path, target)) => {
                    keep(client, "join-tokens", &id, target, &text).await?;
                    output::print(&format!(
                        "{} joins as {} within {ttl}{}\n",
                        path.display(),
                        join.get("identity").and_then(Value::as_str).unwrap_or("?"),
                        if uses == 1 { String::new() } else { format!(", {uses} times") }
                    ))?;
                }
                None => output::print(&text)?,
            }
        }
        TokenCommand::List { output } => {
            let tokens = items(client.call(Method::GET, &["v1", "join-tokens"], &[], None).await?);
            list(&tokens, output, &["ID", "ACCOUNT", "USED", "EXPIRES"], |token, now| {
                let account = format!("{}.{}", text(token, "serviceAccount"), text(token, "namespace"));
                vec![
                    text(token, "id"),
                    account,
                    used(token),
                    time::until(token.get("expires").and_then(Value::as_str), now),
                ]
            })?;
        }
        TokenCommand::Delete { ids } => delete(client, "join-tokens", &ids).await?,
    }
    Ok(exit::OK)
}

/// Revokes the certificates of an identity.
pub(crate) async fn revoke(
    session: &Session,
    account: &str,
    namespace: &Namespace,
    output: Format,
) -> Result<u8, Error> {
    let (account, namespace) = qualified(session, account, namespace)?;
    let body = json!({ "namespace": namespace, "serviceAccount": account });
    let made: Value = session.client.call(Method::POST, &["v1", "revocations"], &[], Some(&body)).await?;
    match output {
        Format::Table => output::print(&format!(
            "certificates of {account}.{namespace} from before {} are renewed no more; to other workloads they are good \
             until they expire, {} at the latest\nits workloads need a new join file each: `heddle token create \
             {account}.{namespace} -o FILE`\n",
            text(&made, "revoked"),
            text(&made, "until"),
        ))?,
        output => output::print_value(&made, output)?,
    }
    Ok(exit::OK)
}

/// Shows what was revoked, as long as it may matter.
pub(crate) async fn revoked(session: &Session, output: Format) -> Result<u8, Error> {
    let items = items(session.client.call(Method::GET, &["v1", "revocations"], &[], None).await?);
    list(&items, output, &["ACCOUNT", "REVOKED", "UNTIL"], |item, now| {
        let account = format!("{}.{}", text(item, "serviceAccount"), text(item, "namespace"));
        vec![account, text(item, "revoked"), time::until(item.get("until").and_then(Value::as_str), now)]
    })?;
    Ok(exit::OK)
}

/// API tokens.
pub(crate) async fn api(session: &Session, command: ApiTokenCommand) -> Result<u8, Error> {
    let client = &session.client;
    match command {
        ApiTokenCommand::Create { name, role, file } => {
            let role = match role {
                Role::Admin => "admin",
                Role::Operator => "operator",
                Role::Viewer => "viewer",
            };
            let target = file.as_deref().map(|path| context_target(&name, path)).transpose()?;
            let body = json!({ "name": name, "role": role });
            let made: Value = client.call(Method::POST, &["v1", "api-tokens"], &[], Some(&body)).await?;
            let token = made.get("token").and_then(Value::as_str).ok_or_else(|| Error::Answer {
                request: "POST /v1/api-tokens".to_owned(),
                reason: "it has no `token`".to_owned(),
            })?;
            match file.zip(target) {
                Some((path, (mut contexts, target))) => {
                    let context = Context { name: name.clone(), token: token.to_owned(), ..client.context().clone() };
                    contexts.current_context.get_or_insert_with(|| name.clone());
                    contexts.contexts.push(context);
                    let id = made.get("id").and_then(Value::as_str).unwrap_or_default();
                    keep(client, "api-tokens", id, target, &contexts.text()?).await?;
                    output::print(&format!("{} has a context for {name} ({role})\n", path.display()))?;
                }
                None => output::print(&format!("{token}\n"))?,
            }
        }
        ApiTokenCommand::List { output } => {
            let tokens = items(client.call(Method::GET, &["v1", "api-tokens"], &[], None).await?);
            list(&tokens, output, &["ID", "NAME", "ROLE", "AGE"], |token, now| {
                let age = time::age(token.get("created").and_then(Value::as_str), now);
                vec![text(token, "id"), text(token, "name"), text(token, "role"), age]
            })?;
        }
        ApiTokenCommand::Delete { ids } => delete(client, "api-tokens", &ids).await?,
    }
    Ok(exit::OK)
}

/// Asks for a join token; the answer is the join file.
pub(crate) async fn create_join(
    client: &Client,
    namespace: &str,
    account: &str,
    ttl: &str,
    uses: u32,
) -> Result<Value, Error> {
    Ok(ask_join(client, namespace, account, ttl, uses).await?.1)
}

/// The same, with the token's id.
async fn ask_join(
    client: &Client,
    namespace: &str,
    account: &str,
    ttl: &str,
    uses: u32,
) -> Result<(String, Value), Error> {
    let body = json!({ "namespace": namespace, "serviceAccount": account, "ttl": ttl, "uses": uses });
    let answer: Value = client.call(Method::POST, &["v1", "join-tokens"], &[], Some(&body)).await?;
    Ok((answer.get("id").and_then(Value::as_str).unwrap_or_default().to_owned(), join_file(&answer)?))
}

/// Where a join file is to be written. One that is there already is replaced; anything else is not.
fn join_target(path: &Path) -> Result<PrivateFile, Error> {
    if path.exists() {
        let there = serde_json::from_str::<Value>(&read_text(path)?).unwrap_or_default();
        if !JOIN_FIELDS.iter().all(|field| there.get(field).is_some()) {
            return Err(Error::Usage(format!("{} is there, and is no join file; name another", path.display())));
        }
    }
    PrivateFile::create(path)
}

/// Where a context is to be written, with the contexts that are there: they stay.
fn context_target(name: &str, path: &Path) -> Result<(ContextFile, PrivateFile), Error> {
    let there = ContextFile::read(path)?.unwrap_or_default();
    if there.contexts.iter().any(|context| context.name == name) {
        let path = path.display();
        return Err(Error::Usage(format!("{path} has a context {name:?} already; choose another name or file")));
    }
    Ok((there, PrivateFile::create(path)?))
}

/// Writes a new token to its file. If that fails nobody has the token, and it is deleted.
async fn keep(client: &Client, plural: &str, id: &str, target: PrivateFile, text: &str) -> Result<(), Error> {
    let written = target.write(text);
    if written.is_err() {
        client.call::<Value>(Method::DELETE, &["v1", plural, id], &[], None).await?;
    }
    written
}

fn join_file(answer: &Value) -> Result<Value, Error> {
    let mut join = json!({});
    for field in JOIN_FIELDS {
        join[field] = answer.get(field).filter(|value| value.is_string()).cloned().ok_or_else(|| Error::Answer {
            request: "POST /v1/join-tokens".to_owned(),
            reason: format!("it has no `{field}`"),
        })?;
    }
    Ok(join)
}

/// `orders.shop` as (`orders`, `shop`); the namespace of `-n` or the default one where it is not said.
pub(crate) fn qualified(session: &Session, typed: &str, namespace: &Namespace) -> Result<(String, String), Error> {
    split_name(typed, namespace.namespace.as_deref(), session.default_namespace())
}

/// `NAME[.NS]`, of which the name may have dots as well: then the namespace has to be there. With the namespace that is typed beside it or else the default.
pub(crate) fn split_name(typed: &str, namespace: Option<&str>, default: &str) -> Result<(String, String), Error> {
    let (name, own) = match typed.rsplit_once('.') {
        Some((name, own)) => (name, Some(own)),
        None => (typed, None),
    };
    if name.split('.').any(str::is_empty) || own.is_some_and(str::is_empty) {
        return Err(Error::Usage(format!("{typed:?} is not NAME or NAME.NAMESPACE")));
    }
    if let (Some(own), Some(namespace)) = (own, namespace)
        && own != namespace
    {
        return Err(Error::Usage(format!("{typed:?} names another namespace than --namespace {namespace}")));
    }
    Ok((name.to_owned(), own.or(namespace).unwrap_or(default).to_owned()))
}

fn list(
    tokens: &[Value],
    format: Format,
    headings: &[&str],
    cells: impl Fn(&Value, Timestamp) -> Vec<String>,
) -> Result<(), Error> {
    if format != Format::Table {
        return output::print_value(&tokens, format);
    }
    let now = Timestamp::now();
    let mut table = Table::new(headings);
    for token in tokens {
        table.row(cells(token, now));
    }
    output::print(&table.to_string())
}

async fn delete(client: &Client, plural: &str, ids: &[String]) -> Result<(), Error> {
    for id in ids {
        client.call::<Value>(Method::DELETE, &["v1", plural, id], &[], None).await?;
        output::print(&format!("{} {id} deleted\n", plural.trim_end_matches('s')))?;
    }
    Ok(())
}

fn text(token: &Value, field: &str) -> String {
    token.get(field).and_then(Value::as_str).unwrap_or("-").to_owned()
}

fn used(token: &Value) -> String {
    let number = |field: &str| token.get(field).and_then(Value::as_u64).unwrap_or(0);
    format!("{} of {}", number("used"), number("uses"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_namespace() {
        let split = |typed: &str, namespace: Option<&str>| {
            split_name(typed, namespace, "default").map(|(name, namespace)| format!("{name} {namespace}"))
        };
        assert_eq!(split("orders", None).unwrap(), "orders default");
        assert_eq!(split("orders.shop", None).unwrap(), "orders shop");
        assert_eq!(split("orders", Some("shop")).unwrap(), "orders shop");
        assert_eq!(split("orders.shop", Some("shop")).unwrap(), "orders shop");
        assert_eq!(split("ci.bot.shop", None).unwrap(), "ci.bot shop");
        for (typed, namespace) in [("orders.shop", Some("x")), ("a..c", None), ("", None), (".b", None), ("a.", None)] {
            assert_eq!(split(typed, namespace).unwrap_err().exit_code(), 2, "{typed}");
        }
    }

    #[test]
    fn what_is_there_is_never_written_over_by_another_kind_of_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        let known = "currentContext: admin\ncontexts: [{name: admin, address: 'https://a:1', caPem: x, token: t}]\n";
        std::fs::write(&path, known).unwrap();
        let error = |result: Result<(), Error>| result.unwrap_err().report(&output::Paint::plain());
        let join = error(join_target(&path).map(drop));
        assert!(join.contains("no join file"), "{join}");
        let taken = error(context_target("admin", &path).map(drop));
        assert!(taken.contains("already"), "{taken}");
        let (contexts, target) = context_target("bob", &path).unwrap();
        assert_eq!((contexts.contexts.len(), contexts.current_context.as_deref()), (1, Some("admin")));
        drop(target);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), known);
        let join = folder.path().join("join.json");
        std::fs::write(
            &join,
            json!({"controlPlane": "", "trustDomain": "", "identity": "", "trustAnchors": "", "token": ""}).to_string(),
        )
        .unwrap();
        assert!(join_target(&join).is_ok(), "an older join file");
        assert!(context_target("bob", &join).is_err());
        assert!(join_target(&folder.path().join("none/join.json")).is_err(), "before a token is made");
        assert!(context_target("bob", folder.path()).is_err());
    }

    #[test]
    fn a_join_file_holds_what_the_proxy_reads_and_no_more() {
        let answer = json!({"id": "x", "controlPlane": "127.0.0.1:9701", "trustDomain": "heddle.local",
            "identity": "spiffe://heddle.local/ns/shop/sa/orders", "trustAnchors": "PEM", "token": "hjt_x_y", "uses": 1});
        let join = join_file(&answer).unwrap();
        assert_eq!(join.as_object().unwrap().len(), JOIN_FIELDS.len());
        assert!(join_file(&json!({"token": "x"})).unwrap_err().to_string().contains("controlPlane"));
    }
}
