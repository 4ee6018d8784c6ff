//! Which control plane to talk to, and as whom: the context file, and the variables that override it.

use std::{
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The context file. The control plane writes the first one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// The name of the context that is used unless `--context` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current_context: Option<String>,
    /// All of them.
    #[serde(default)]
    pub(crate) contexts: Vec<Context>,
}

/// One control plane and one user of it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Context {
    /// Unique in the file.
    pub(crate) name: String,
    /// `https://host:port`.
    pub(crate) address: String,
    /// The certificates that the control plane's must be issued under.
    pub(crate) ca_pem: String,
    /// Bearer token.
    pub(crate) token: String,
    /// Used where a command names no namespace; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
}

/// Never shows the token.
impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// What is typed or set besides the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `--context`, `HEDDLE_CONTEXT`.
    pub(crate) context: Option<String>,
    /// `--config`, `HEDDLE_CONFIG`.
    pub(crate) file: Option<PathBuf>,
    /// `HEDDLE_ADDRESS`.
    pub(crate) address: Option<String>,
    /// `HEDDLE_CA`: a file.
    pub(crate) ca: Option<PathBuf>,
    /// `HEDDLE_TOKEN`.
    pub(crate) token: Option<String>,
}

/// No usable context.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    /// Neither a file nor all variables.
    #[error("no context file at {}", .0.display())]
    NoFile(PathBuf),
    /// A file with no context chosen.
    #[error("{} names no current context", .0.display())]
    NoCurrent(PathBuf),
    /// No such context.
    #[error("there is no context {name:?} in {}; there are: {known}", path.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// Names in it.
        known: String,
    },
    /// Not a context file.
    #[error("{} is no context file", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml_ng::Error,
    },
    /// Not `https://host[:port]`.
    #[error("{0:?} is no address of a control plane; write one such as https://127.0.0.1:9700")]
    Address(String),
    /// No certificate, or a broken one.
    #[error("the CA certificates of context {context:?} are unusable: {reason}")]
    Ca {
        /// Which context.
        context: String,
        /// Why.
        reason: String,
    },
    /// A token with characters that no header can carry.
    #[error("the token of context {0:?} is empty or has characters that a token cannot have")]
    Token(String),
    /// No home directory.
    #[error("HOME is not set, so there is no default place for the context file")]
    NoHome,
}

impl ContextError {
    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoFile(_) | Self::NoHome => Some(
                "heddle-control-plane writes it at its first start; or point HEDDLE_CONFIG (--config) to it, or set HEDDLE_ADDRESS, HEDDLE_CA and HEDDLE_TOKEN"
                    .to_owned(),
            ),
            Self::NoCurrent(_) | Self::Unknown { .. } => {
                Some("`heddle context list` shows them, `heddle context use NAME` chooses one".to_owned())
            }
            _ => None,
        }
    }
}

impl Overrides {
    /// Where the context file is.
    pub(crate) fn path(&self) -> Result<PathBuf, ContextError> {
        if let Some(path) = &self.file {
            return Ok(path.clone());
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or(ContextError::NoHome)?;
        Ok(Path::new(&home).join(".config/heddle/config.yaml"))
    }

    /// The context to use: the file's, with what is set besides it.
    pub(crate) fn resolve(&self) -> Result<Context, Error> {
        let ca_pem = self.ca.as_deref().map(read_text).transpose()?;
        let mut context = match (&self.address, &ca_pem, &self.token, &self.context) {
            // With all three there is no need for a file.
            (Some(_), Some(_), Some(_), None) => Context {
                name: "environment".to_owned(),
                address: String::new(),
                ca_pem: String::new(),
                token: String::new(),
                namespace: None,
            },
            _ => self.chosen()?,
        };
        if let Some(address) = &self.address {
            context.address.clone_from(address);
        }
        if let Some(pem) = ca_pem {
            context.ca_pem = pem;
        }
        if let Some(token) = &self.token {
            context.token = token.trim().to_owned();
        }
        Ok(context)
    }

    /// Has a context of the file trust these certificates, PEM, from now on. Says whether that changed anything;
    /// what does not come from the file stays as it is.
    pub(crate) fn trust(&self, context: &Context, pem: &str) -> Result<bool, Error> {
        if self.ca.is_some() || context.ca_pem.trim() == pem.trim() {
            return Ok(false);
        }
        let path = self.path()?;
        let Some(mut file) = ContextFile::read(&path)? else { return Ok(false) };
        let same = |known: &&mut Context| known.name == context.name && known.ca_pem == context.ca_pem;
        let Some(known) = file.contexts.iter_mut().find(same) else { return Ok(false) };
        pem.clone_into(&mut known.ca_pem);
        file.write(&path)?;
        Ok(true)
    }

    fn chosen(&self) -> Result<Context, Error> {
        let path = self.path()?;
        let file = ContextFile::read(&path)?.ok_or_else(|| ContextError::NoFile(path.clone()))?;
        let name = match self.context.clone().or_else(|| file.current_context.clone()) {
            Some(name) => name,
            None => match file.contexts.as_slice() {
                [only] => only.name.clone(),
                _ => return Err(ContextError::NoCurrent(path).into()),
            },
        };
        Ok(file.find(&name, &path)?.clone())
    }
}

impl ContextFile {
    /// The file, or nothing if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let text = read_text(path)?;
        if let Ok(metadata) = path.metadata()
            && metadata.mode() & 0o077 != 0
        {
            crate::output::complain(&format!(
                "warning: others can read the tokens in {}; `chmod 600` it\n",
                path.display()
            ));
        }
        serde_yaml_ng::from_str(&text)
            .map(Some)
            .map_err(|source| ContextError::Malformed { path: path.to_owned(), source }.into())
    }

    /// The context of this name.
    pub(crate) fn find(&self, name: &str, path: &Path) -> Result<&Context, ContextError> {
        self.contexts.iter().find(|context| context.name == name).ok_or_else(|| ContextError::Unknown {
            name: name.to_owned(),
            path: path.to_owned(),
            known: self.contexts.iter().map(|context| context.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Replaces the file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.text()?)
    }

    /// As it is written.
    pub(crate) fn text(&self) -> Result<String, Error> {
        crate::output::render(self, crate::output::Format::Yaml)
    }
}

/// Writes a file that only its owner can read, all or nothing.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    PrivateFile::create(path)?.write(text)
}

/// A file to be that only its owner can read: made first, so that what is to be in it is not had in vain.
pub(crate) struct PrivateFile {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl PrivateFile {
    /// Makes it, beside the one whose place it will take.
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        let failed = |source| cannot_write(path, source);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        // Temporary files are made with mode 0600; said again, since it is what this promises.
        let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.as_file().set_permissions(PermissionsExt::from_mode(0o600)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Puts it into its place, with this text.
    pub(crate) fn write(mut self, text: &str) -> Result<(), Error> {
        let failed = |source| cannot_write(&self.path, source);
        self.file.write_all(text.as_bytes()).map_err(failed)?;
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&self.path).map_err(|error| cannot_write(&self.path, error.error))?;
        Ok(())
    }
}

fn cannot_write(path: &Path, source: std::io::Error) -> Error {
    Error::File { doing: "cannot write", path: path.to_owned(), source }
}

/// A file as text.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { doing: "cannot read", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("config.yaml");
        write_private(&path, text).unwrap();
        path
    }

    const TWO: &str = "currentContext: b\ncontexts:\n\
        - {name: a, address: 'https://a:1', caPem: pem-a, token: token-a}\n\
        - {name: b, address: 'https://b:2', caPem: pem-b, token: token-b, namespace: shop}\n";

    #[test]
    fn current_named_and_overridden() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), TWO);
        let overrides = Overrides { file: Some(path.clone()), ..Overrides::default() };
        let context = overrides.resolve().unwrap();
        assert_eq!((context.address.as_str(), context.namespace.as_deref()), ("https://b:2", Some("shop")));
        let named = Overrides { context: Some("a".into()), ..overrides.clone() };
        assert_eq!(named.resolve().unwrap().token, "token-a");
        let part = Overrides { token: Some("other\n".into()), ..overrides.clone() };
        let context = part.resolve().unwrap();
        assert_eq!((context.address.as_str(), context.token.as_str()), ("https://b:2", "other"));
        let unknown = Overrides { context: Some("c".into()), ..overrides };
        let error = unknown.resolve().unwrap_err();
        assert!(error.to_string().contains("there are: a, b"), "{error}");
    }

    #[test]
    fn variables_alone_are_enough_and_a_missing_file_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, "pem").unwrap();
        let mut overrides =
            Overrides { file: Some(folder.path().join("none.yaml")), ca: Some(ca), ..Overrides::default() };
        let error = overrides.resolve().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let report = error.report(&crate::output::Paint::plain());
        assert!(report.contains("HEDDLE_CONFIG") && report.contains("first start"), "{report}");
        overrides.address = Some("https://c:3".into());
        overrides.token = Some("t".into());
        assert_eq!(overrides.resolve().unwrap().ca_pem, "pem");
    }

    #[test]
    fn a_context_takes_up_other_roots_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), TWO);
        let overrides = Overrides { file: Some(path.clone()), ..Overrides::default() };
        let context = overrides.resolve().unwrap();
        assert!(!overrides.trust(&context, "pem-b\n").unwrap());
        assert!(overrides.trust(&context, "pem-b pem-c").unwrap());
        let file = ContextFile::read(&path).unwrap().unwrap();
        let pems: Vec<_> = file.contexts.iter().map(|context| context.ca_pem.as_str()).collect();
        assert_eq!(pems, ["pem-a", "pem-b pem-c"]);
        assert_eq!(file.contexts[1].token, "token-b");
        let other = Overrides { ca: Some(path), ..overrides.clone() };
        assert!(!other.trust(&overrides.resolve().unwrap(), "x").unwrap(), "HEDDLE_CA is the user's affair");
    }

    #[test]
    fn unknown_fields_are_refused_and_tokens_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "contexts: [{name: a, adress: x, caPem: '', token: ''}]");
        let overrides = Overrides { file: Some(path), ..Overrides::default() };
        let report = overrides.resolve().unwrap_err().report(&crate::output::Paint::plain());
        assert!(report.contains("adress"), "{report}");
        let context: ContextFile = serde_yaml_ng::from_str(TWO).unwrap();
        assert!(!format!("{context:?}").contains("token-a"));
    }

    #[test]
    fn written_files_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_text(&path).unwrap(), "new");
    }
}
