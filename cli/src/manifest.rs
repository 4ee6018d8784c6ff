//! Files with objects: YAML and JSON, one or many documents each, folders, standard input.

use std::{
    collections::HashMap,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use heddle_api::resource::API_VERSION;
use serde::Deserialize as _;
use serde_json::{Map, Value};
use serde_yaml_ng::Value as Yaml;

use crate::{context::read_text, error::Error, kind::Kind, object::Object};

/// How deep folders may be nested.
const DEPTH: usize = 32;

/// An object and where it is written.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// `shop.yaml, document 2`.
    pub(crate) place: String,
    /// Its kind.
    pub(crate) kind: Kind,
    /// With its namespace filled in, if its kind has one.
    pub(crate) object: Object,
}

/// What is wrong with a file, found on this side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestFault {
    place: String,
    message: String,
}

impl fmt::Display for ManifestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl ManifestFault {
    /// What is wrong, and where.
    pub(crate) fn new(place: String, message: String) -> Self {
        Self { place, message }
    }
}

impl Document {
    /// Where it is and what it is.
    pub(crate) fn source(&self) -> String {
        format!("{} ({})", self.place, self.object.reference())
    }

    /// Its namespace; empty for kinds that have none.
    pub(crate) fn namespace(&self) -> &str {
        self.object.namespace().unwrap_or("")
    }
}

/// Reads everything that `-f` names, in the order in which it is to be applied. `typed` is the
/// namespace of `--namespace`, `default` the one where neither says it.
pub(crate) fn read(paths: &[PathBuf], typed: Option<&str>, default: &str) -> Result<Vec<Document>, Error> {
    let mut faults = Vec::new();
    let mut documents = Vec::new();
    for (name, text, json) in texts(paths)? {
        for (place, value) in split(&name, &text, json, &mut faults) {
            match complete(value, typed, default) {
                Ok((kind, object)) => documents.push(Document { place, kind, object }),
                Err(message) => faults.push(ManifestFault { place, message }),
            }
        }
    }
    duplicates(&documents, &mut faults);
    if !faults.is_empty() {
        return Err(Error::Manifest(faults));
    }
    if documents.is_empty() {
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::Usage(format!("there are no objects in {}", names.join(", "))));
    }
    documents.sort_by_key(|document| document.kind.order);
    Ok(documents)
}

/// The texts, as (name, text, whether the name says JSON).
pub(crate) fn texts(paths: &[PathBuf]) -> Result<Vec<(String, String, bool)>, Error> {
    let mut texts = Vec::new();
    let mut stdin_read = false;
    for path in paths {
        if path.as_os_str() == "-" {
            if std::mem::replace(&mut stdin_read, true) {
                return Err(Error::Usage("`-f -` can be given only once".to_owned()));
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|source| Error::File {
                doing: "cannot read",
                path: "standard input".into(),
                source,
            })?;
            let json = text.trim_start().starts_with(['{', '[']);
            texts.push(("standard input".to_owned(), text, json));
        } else {
            let mut files = Vec::new();
            if path.is_dir() {
                walk(path, DEPTH, &mut files)?;
            } else {
                files.push(path.clone());
            }
            for file in files {
                let json = file.extension().is_some_and(|extension| extension == "json");
                texts.push((file.display().to_string(), read_text(&file)?, json));
            }
        }
    }
    Ok(texts)
}

/// The `.yaml`, `.yml` and `.json` files below a folder, sorted by name, without hidden ones.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::File { doing: "cannot read the folder", path: folder.to_owned(), source };
    if depth == 0 {
        return Err(failed(std::io::Error::other("too deeply nested")));
    }
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    let mut entries: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        // Links to folders are not followed: they may lead round in a circle.
        if path.is_dir() {
            if !path.is_symlink() {
                walk(&path, depth - 1, files)?;
            }
        } else if path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The documents of a text with their places, lists taken apart, empty ones left out.
fn split(name: &str, text: &str, json: bool, faults: &mut Vec<ManifestFault>) -> Vec<(String, Value)> {
    let parsed = parse(text, json);
    let single = parsed.len() == 1;
    let mut found = Vec::new();
    for (index, document) in parsed.into_iter().enumerate() {
        let place = if single { name.to_owned() } else { format!("{name}, document {}", index + 1) };
        match document {
            Err(message) => faults.push(ManifestFault { place, message }),
            Ok(Value::Null) => {}
            Ok(Value::Array(items)) => found.extend(numbered(&place, items)),
            Ok(Value::Object(mut object)) if object.get("kind").and_then(Value::as_str) == Some("List") => {
                match object.remove("items") {
                    Some(Value::Array(items)) => found.extend(numbered(&place, items)),
                    _ => faults.push(ManifestFault { place, message: "a List needs `items`".to_owned() }),
                }
            }
            Ok(value) => found.push((place, value)),
        }
    }
    found
}

fn numbered(place: &str, items: Vec<Value>) -> impl Iterator<Item = (String, Value)> {
    items.into_iter().enumerate().map(move |(index, item)| (format!("{place}, item {}", index + 1), item))
}

/// Each document of a text, up to and with the first that is malformed: what follows it cannot be told apart.
fn parse(text: &str, json: bool) -> Vec<Result<Value, String>> {
    let mut documents = Vec::new();
    // Both go through the YAML value, since it refuses duplicate keys.
    if json {
        for value in serde_json::Deserializer::from_str(text).into_iter::<Yaml>() {
            documents.push(value.map_err(|error| error.to_string()).and_then(|value| to_json(value, "")));
        }
    } else {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value = Yaml::deserialize(document).and_then(|mut value| value.apply_merge().map(|()| value));
            let failed = value.is_err();
            documents.push(value.map_err(|error| error.to_string()).and_then(|value| to_json(value, "")));
            if failed {
                break;
            }
        }
    }
    documents
}

/// YAML as JSON; what JSON cannot say is refused, not bent.
fn to_json(value: Yaml, path: &str) -> Result<Value, String> {
    let at = |message: &str| {
        if path.is_empty() { message.to_owned() } else { format!("{}: {message}", path.trim_start_matches('.')) }
    };
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(flag),
        Yaml::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => number.into(),
            (_, Some(number), _) => number.into(),
            (_, _, Some(number)) => {
                serde_json::Number::from_f64(number).ok_or_else(|| at("not a finite number"))?.into()
            }
            _ => return Err(at("not a number")),
        },
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| to_json(item, &format!("{path}[{index}]")))
                .collect::<Result<_, _>>()?,
        ),
        Yaml::Mapping(mapping) => {
            let mut object = Map::new();
            for (key, value) in mapping {
                let Yaml::String(key) = key else {
                    return Err(at("a key is no text; put it in quotes"));
                };
                let value = to_json(value, &format!("{path}.{key}"))?;
                object.insert(key, value);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => return Err(at(&format!("the tag {} means nothing here", tagged.tag))),
    })
}

/// Checks what this command must know itself, and fills in the namespace. All else is the server's
/// to judge.
fn complete(mut value: Value, typed: Option<&str>, default: &str) -> Result<(Kind, Object), String> {
    let Value::Object(object) = &mut value else {
        return Err("this is no object; one has apiVersion, kind, metadata and spec".to_owned());
    };
    match object.get("apiVersion").and_then(Value::as_str) {
        Some(API_VERSION) => {}
        Some(other) => return Err(format!("apiVersion: {other:?} is not {API_VERSION:?}")),
        None => return Err(format!("apiVersion is missing; write `apiVersion: {API_VERSION}`")),
    }
    let name = object.get("kind").and_then(Value::as_str).ok_or("kind is missing")?;
    let kind = Kind::named(name).ok_or_else(|| {
        let known: Vec<_> = Kind::all().map(|kind| kind.name).collect();
        format!("kind: {name:?} is none of {}", known.join(", "))
    })?;
    let metadata =
        object.get_mut("metadata").and_then(Value::as_object_mut).ok_or("metadata is missing, with at least a name")?;
    if metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("metadata.name is missing".to_owned());
    }
    if kind.namespaced {
        match metadata.get("namespace") {
            None | Some(Value::Null) => {
                metadata.insert("namespace".to_owned(), typed.unwrap_or(default).into());
            }
            Some(Value::String(written)) => {
                if let Some(typed) = typed.filter(|typed| typed != written) {
                    return Err(format!("metadata.namespace: it is {written:?} here, but {typed:?} with --namespace"));
                }
            }
            Some(_) => return Err("metadata.namespace: not text".to_owned()),
        }
    }
    Ok((kind, Object(value)))
}

fn duplicates(documents: &[Document], faults: &mut Vec<ManifestFault>) {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for document in documents {
        let reference = document.object.reference();
        if let Some(first) = seen.get(&reference) {
            let message = format!("{reference} is already in {first}");
            faults.push(ManifestFault { place: document.place.clone(), message });
        } else {
            seen.insert(reference, &document.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> String {
        format!(
            "apiVersion: heddle.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    fn read_in(folder: &Path, name: &str, text: &str) -> Result<Vec<Document>, Error> {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        read(&[path], None, "default")
    }

    fn read_one(name: &str, text: &str) -> Result<Vec<Document>, Error> {
        read_in(tempfile::tempdir().unwrap().path(), name, text)
    }

    fn faults(name: &str, text: &str) -> Vec<String> {
        let temporary = tempfile::tempdir().unwrap();
        let folder = format!("{}/", temporary.path().display());
        match read_in(temporary.path(), name, text) {
            Err(Error::Manifest(faults)) => {
                faults.into_iter().map(|fault| fault.to_string().replace(&folder, "")).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn folders_are_read_recursively_in_order_and_kinds_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::create_dir(at(".git")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("a/loop")).unwrap();
        let route = "apiVersion: heddle.dev/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {}\n";
        std::fs::write(at("0.yaml"), format!("{route}---\n{}", service("two"))).unwrap();
        std::fs::write(at("a/b/1.yml"), service("one")).unwrap();
        std::fs::write(
            at("a/x.json"),
            r#"{"apiVersion":"heddle.dev/v1","kind":"MeshConfig","metadata":{"name":"mesh"},"spec":{}}"#,
        )
        .unwrap();
        std::fs::write(at("a/README.md"), "no").unwrap();
        std::fs::write(at(".git/x.yaml"), "no: no").unwrap();
        let documents = read(&[folder.path().to_owned()], None, "default").unwrap();
        let found: Vec<_> = documents.iter().map(|document| document.object.reference()).collect();
        assert_eq!(found, ["MeshConfig mesh", "Service default/two", "Service default/one", "HTTPRoute shop/r"]);
        assert!(documents[1].place.ends_with("0.yaml, document 2"), "{}", documents[1].place);
    }

    #[test]
    fn lists_and_many_json_documents_are_taken_apart() {
        let one = r#"{"apiVersion":"heddle.dev/v1","kind":"Service","metadata":{"name":"a"},"spec":{}}"#;
        let two = one.replace("\"a\"", "\"b\"");
        assert_eq!(read_one("x.json", &format!("{one}\n{two}")).unwrap().len(), 2);
        assert_eq!(read_one("x.json", &format!("[{one},{two}]")).unwrap().len(), 2);
        let list = format!(r#"{{"apiVersion":"heddle.dev/v1","kind":"List","items":[{one},{two}]}}"#);
        let documents = read_one("x.yaml", &list).unwrap();
        assert!(documents[1].place.ends_with("x.yaml, item 2"));
    }

    #[test]
    fn all_faults_are_named_with_their_place() {
        let text = format!(
            "{}---\n---\nkind: Service\n---\napiVersion: heddle.dev/v1\nkind: Pod\nmetadata: {{name: x}}\n---\n{}---\nhello\n",
            service("a"),
            service("a")
        );
        assert_eq!(
            faults("x.yaml", &text),
            [
                "x.yaml, document 3: apiVersion is missing; write `apiVersion: heddle.dev/v1`",
                "x.yaml, document 4: kind: \"Pod\" is none of MeshConfig, Service, Workload, HTTPRoute, GRPCRoute, TCPRoute, TrafficPolicy, AuthorizationPolicy",
                "x.yaml, document 6: this is no object; one has apiVersion, kind, metadata and spec",
                "x.yaml, document 5: Service default/a is already in x.yaml, document 1",
            ]
        );
    }

    #[test]
    fn ambiguous_yaml_is_refused() {
        for (text, message) in [
            ("apiVersion: heddle.dev/v1\nkind: Service\nkind: Service\n", "duplicate"),
            ("a: {1: x}\n", "a: a key is no text"),
            ("a: [.inf]\n", "a[0]: not a finite number"),
            ("a: !x y\n", "tag"),
            ("a: [\n", "x.yaml"),
        ] {
            let faults = faults("x.yaml", text);
            assert!(faults[0].contains(message), "{faults:?}");
        }
        assert!(faults("x.json", r#"{"a":1,"a":2}"#)[0].contains("duplicate"));
        assert!(faults("x.json", r#"{"a":1,}"#)[0].contains("line 1"));
    }

    #[test]
    fn merge_keys_and_json_escapes_are_understood() {
        let text = "apiVersion: heddle.dev/v1\nkind: Service\nmetadata: {name: x, annotations: {<<: {a: b}, c: d}}\n";
        let documents = read_one("x.yaml", text).unwrap();
        assert_eq!(documents[0].object.text("/metadata/annotations/a"), Some("b"));
        let json = r#"{"apiVersion":"heddle.dev\/v1","kind":"Service","metadata":{"name":"x","annotations":{"a":"\ud83d\ude00"}}}"#;
        assert_eq!(read_one("x.json", json).unwrap()[0].object.text("/metadata/annotations/a"), Some("😀"));
    }

    #[test]
    fn namespaces_are_filled_in_and_contradictions_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, service("a")).unwrap();
        let documents = read(std::slice::from_ref(&path), Some("shop"), "default").unwrap();
        assert_eq!(documents[0].namespace(), "shop");
        std::fs::write(&path, service("a").replace("name: a", "name: a, namespace: other")).unwrap();
        let error = read(&[path], Some("shop"), "default").unwrap_err().report(&crate::output::Paint::plain());
        assert!(error.contains("\"other\" here, but \"shop\""), "{error}");
    }

    #[test]
    fn nothing_to_apply_is_a_usage_error() {
        let error = read_one("x.yaml", "# only a comment\n").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let folder = tempfile::tempdir().unwrap();
        let error = read(&[folder.path().join("none.yaml")], None, "default").unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
