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

/// Adds a context for this control plane (in place of one with the same address) and makes it the
/// current one. The file is only its owner's (0600), and replaced whole.
pub fn write_context(path: &Path, address: &str, ca_pem: &str, token: &str) -> Result<(), ContextError> {
    let io = |error| ContextError::Io(path.to_owned(), error);
    let mut file = match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => ContextFile::default(),
        Ok(text) => serde_yaml_ng::from_str(&text).map_err(|error| ContextError::Malformed(path.to_owned(), error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => ContextFile::default(),
        Err(error) => return Err(io(error)),
    };
    let field = |context: &Value, name: &str| context.get(name).and_then(Value::as_str).map(str::to_owned);
    file.contexts.retain(|context| field(context, "address").as_deref() != Some(address));
    let taken = file.contexts.iter().any(|context| field(context, "name").as_deref() == Some("default"));
    let name = if taken { address.trim_start_matches("https://") } else { "default" };
    let text = |text: &str| Value::from(text);
    let context = [("name", name), ("address", address), ("caPem", ca_pem), ("token", token)];
    file.contexts.push(Value::Mapping(context.into_iter().map(|(key, value)| (text(key), text(value))).collect()));
    file.current_context = Some(name.to_owned());
    let yaml = serde_yaml_ng::to_string(&file).map_err(|error| ContextError::Malformed(path.to_owned(), error))?;
    replace(path, yaml.as_bytes()).map_err(io)
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
