//! The CLI's context file: how the first admin token reaches its user.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;

/// Why the context file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It is there, and is no context file.
    #[error("{} is there and is no context file; move it away, or name another with --context-file", .0.display())]
    Malformed(PathBuf, #[source] serde_yaml_ng::Error),
    /// It could not be read or written.
    #[error("{} cannot be written", .0.display())]
    Io(PathBuf, #[source] std::io::Error),
}

/// The parts of the file that matter here; contexts of other control planes stay as they are.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContextFile {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<Value>,
    #[serde(flatten)]
    rest: serde_yaml_ng::Mapping,
}

/// What became of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenContext {
    /// The file.
    pub path: PathBuf,
    /// The context that was added.
    pub name: String,
    /// The current context, if it is another.
    pub current: Option<String>,
    /// How a context was called that had the same address, and how it is called now.
    pub renamed: Option<(String, String)>,
}

/// Adds a context for this control plane. One with the same address gives its name and, if it is the current one,
/// its place to it: it is of a control plane whose data are elsewhere, and may be needed again. Another current
/// context stays it. The file is only its owner's (0600), and replaced whole.
pub fn write_context(path: &Path, address: &str, ca_pem: &str, token: &str) -> Result<WrittenContext, ContextError> {
    let io = |error| ContextError::Io(path.to_owned(), error);
    let mut file = match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => ContextFile::default(),
        Ok(text) => serde_yaml_ng::from_str(&text).map_err(|error| ContextError::Malformed(path.to_owned(), error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => ContextFile::default(),
        Err(error) => return Err(io(error)),
    };
    let field = |context: &Value, name: &str| context.get(name).and_then(Value::as_str).map(str::to_owned);
    let names: Vec<_> = file.contexts.iter().filter_map(|context| field(context, "name")).collect();
    let free = |wanted: &str| {
        let numbered = (1..).map(|number| format!("{wanted}-{number}"));
        numbered.into_iter().find(|name| !names.contains(name)).unwrap_or_default()
    };
    // Of several the last is the one that was not renamed before.
    let old = file.contexts.iter_mut().rev().find(|context| field(context, "address").as_deref() == Some(address));
    let old_name = old.as_deref().and_then(|context| field(context, "name"));
    let renamed = old_name.map(|name| (name.clone(), free(&name)));
    if let (Some(Value::Mapping(old)), Some((_, name))) = (old, &renamed) {
        old.insert("name".into(), name.as_str().into());
    }
    let name = match &renamed {
        Some((name, _)) => name.clone(),
        None if names.iter().all(|name| name != "default") => "default".to_owned(),
        None => {
            let wanted = address.trim_start_matches("https://");
            if names.iter().any(|name| name == wanted) { free(wanted) } else { wanted.to_owned() }
        }
    };
    let text = |text: &str| Value::from(text);
    let context = [("name", name.as_str()), ("address", address), ("caPem", ca_pem), ("token", token)];
    file.contexts.push(Value::Mapping(context.into_iter().map(|(key, value)| (text(key), text(value))).collect()));
    let current = file.current_context.get_or_insert_with(|| name.clone());
    let current = (*current != name).then(|| current.clone());
    let yaml = serde_yaml_ng::to_string(&file).map_err(|error| ContextError::Malformed(path.to_owned(), error))?;
    replace(path, yaml.as_bytes()).map_err(io)?;
    Ok(WrittenContext { path: path.to_owned(), name, current, renamed })
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // A leftover of a crashed process with the same id may have another mode.
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}
