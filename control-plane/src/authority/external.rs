//! Somebody else's authority: PEM files in a folder that others look after.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use heddle_certs::AuthorityPem;
use heddle_runtime::private_dir::{PrivateDir, PrivateDirError};
use serde::{Deserialize, Serialize};

use crate::tokens::hex;

const ROOTS: &str = "roots.pem";
const ISSUER_CHAIN: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer.key";
const MAX_FILE: u64 = 1 << 20;
/// In the data folder: which set of roots has which epoch.
const EPOCH: &str = "external-roots.json";

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// It cannot be read.
    #[error("{path}: cannot be read (--authority-dir needs {ROOTS}, {ISSUER_CHAIN} and {ISSUER_KEY})")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may have written or read it.
    #[error("{path}: {reason}")]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The epoch of the roots cannot be kept.
    #[error(transparent)]
    Data(#[from] PrivateDirError),
}

/// The folder. Its files may be links, as those of a mounted secret are.
#[derive(Clone, Copy, Debug)]
pub(super) struct External<'a> {
    pub(super) path: &'a Path,
}

/// The roots last seen.
#[derive(Serialize, Deserialize)]
struct Seen {
    epoch: u64,
    digest: String,
}

/// By which a change of the files is noticed: of each when it changed, its size, and which file it is.
pub(super) type Stamps = [(i64, i64, u64, u64); 3];

impl External<'_> {
    /// How the files are now; absent when one of them is.
    pub(super) fn stamps(&self) -> Option<Stamps> {
        let stamp = |name| {
            let metadata = std::fs::metadata(self.path.join(name)).ok()?;
            // Of the node, not the content: who sets the time back, or the mode right, is noticed, too.
            Some((metadata.ctime(), metadata.ctime_nsec(), metadata.size(), metadata.ino()))
        };
        Some([stamp(ROOTS)?, stamp(ISSUER_CHAIN)?, stamp(ISSUER_KEY)?])
    }

    pub(super) fn read(&self, data: &PrivateDir) -> Result<AuthorityPem, ExternalError> {
        let roots_pem = self.file(ROOTS, 0o022)?;
        Ok(AuthorityPem {
            epoch: epoch(data, &roots_pem)?,
            roots_pem,
            issuer_chain_pem: self.file(ISSUER_CHAIN, 0o022)?,
            issuer_key_pem: self.file(ISSUER_KEY, 0o077)?,
            root_key_pem: None,
            prepared: None,
        })
    }

    /// Reads a file that is this user's or root's, and has none of the `forbidden` mode bits.
    fn file(&self, name: &str, forbidden: u32) -> Result<String, ExternalError> {
        let path = self.path.join(name);
        let failed = |source| ExternalError::Io { path: path.clone(), source };
        let wrong = |reason: String| ExternalError::Unsafe { path: path.clone(), reason };
        let file = File::open(&path).map_err(failed)?;
        // Of the opened file: what the path names may change meanwhile.
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(wrong("is no plain file".to_owned()));
        }
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user && metadata.uid() != 0 {
            return Err(wrong(format!("belongs to user {}, neither to {user} nor to root", metadata.uid())));
        }
        if metadata.mode() & forbidden != 0 {
            let mode = metadata.mode() & 0o7777;
            return Err(wrong(format!(
                "has mode {mode:04o}: others may touch it; at most {:04o} is right",
                0o755 & !forbidden & 0o666
            )));
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        Ok(text)
    }
}

/// The epoch of a set of roots: one more than the last one's if it is another set. It must grow, or
/// proxies would not take the new roots for news.
fn epoch(data: &PrivateDir, roots_pem: &str) -> Result<u64, PrivateDirError> {
    let digest = digest::digest(&digest::SHA256, roots_pem.as_bytes());
    let digest = hex(digest.as_ref());
    let last: Option<Seen> = data.read(EPOCH)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let epoch = match last {
        Some(last) if last.digest == digest => return Ok(last.epoch),
        Some(last) => last.epoch + 1,
        None => 1,
    };
    let seen = serde_json::to_vec(&Seen { epoch, digest }).expect("text and numbers are JSON");
    data.write(EPOCH, &seen)?;
    Ok(epoch)
}
