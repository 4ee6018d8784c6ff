//! A directory for keys and other state of one process: private to this user (0700, files 0600),
//! written by atomic rename, and read back like anything untrusted: by whom it is owned, who else may
//! touch it, how large it is. What the content means is checked by those who use it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RawMode},
    io::Errno,
    process::geteuid,
};

/// Largest file that is read.
const MAX_FILE: u64 = 256 << 20;

/// An open private directory, locked against other processes.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    folder: OwnedFd,
    /// One write at a time: two of one file would be in each other's way.
    writing: Mutex<()>,
    _lock: OwnedFd,
}

/// A private directory or file that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateDirError {
    /// The system refused.
    #[error("{path}: {action}")]
    Io {
        /// Of the file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It may have been written or read by others.
    #[error("{path}: {reason}")]
    Unsafe {
        /// Of the file.
        path: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Another process has it.
    #[error("{0} is in use by another process: each process needs a folder of its own")]
    InUse(String),
}

impl PrivateDir {
    /// Opens the directory; makes it (not those above it) if it is not there.
    ///
    /// # Errors
    /// `Unsafe` if it is another user's, or if others have any right to it; `InUse` if another
    /// process has it open.
    pub fn open(path: &Path) -> Result<Self, PrivateDirError> {
        let failed = |action| {
            move |error: Errno| PrivateDirError::Io { path: path.display().to_string(), action, source: error.into() }
        };
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("cannot be made")(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = fs::open(path, flags, Mode::empty()).map_err(failed("cannot be opened as a folder"))?;
        private(&path.display().to_string(), &folder, FileType::Directory)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = fs::openat(&folder, "lock", flags, Mode::RUSR | Mode::WUSR).map_err(failed("cannot be locked"))?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), folder, writing: Mutex::new(()), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(PrivateDirError::InUse(path.display().to_string())),
            Err(error) => Err(failed("cannot be locked")(error)),
        }
    }

    /// Reads a file whole; `None` if there is none.
    ///
    /// # Errors
    /// `Unsafe` if it is no plain file of this user alone, or too large.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, PrivateDirError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.not_safe(name, "is a symbolic link; delete it")),
            Err(error) => return Err(self.failed(name, "cannot be opened", error.into())),
        };
        let size = private(&self.name(name), &file, FileType::RegularFile)?;
        if size > MAX_FILE {
            return Err(self.not_safe(name, &format!("has {size} bytes, more than {MAX_FILE}")));
        }
        let mut bytes = Vec::new();
        // It may grow while it is read.
        File::from(file)
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(name, "cannot be read", error))?;
        Ok(Some(bytes))
    }

    /// Replaces a file: after a crash at any moment it holds either what it did before or all of this.
    ///
    /// # Errors
    /// The old content stays.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PrivateDirError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = format!("{name}.new");
        let failed = |action: &'static str| move |error: Errno| self.failed(name, action, error.into());
        // Left over by a crash, or put there by someone else: not to be written through.
        match fs::unlinkat(&self.folder, &fresh, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("cannot be replaced")(error)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::openat(&self.folder, &fresh, flags, Mode::RUSR | Mode::WUSR).map_err(failed("cannot be made"))?;
        let mut file = File::from(file);
        file.write_all(bytes).map_err(|error| self.failed(name, "cannot be written", error))?;
        file.sync_all().map_err(|error| self.failed(name, "cannot be written", error))?;
        fs::renameat(&self.folder, &fresh, &self.folder, name).map_err(failed("cannot be replaced"))?;
        fs::fsync(&self.folder).map_err(failed("cannot be written"))
    }

    /// Deletes a file, if there is one.
    ///
    /// # Errors
    /// The system refused.
    pub fn remove(&self, name: &str) -> Result<(), PrivateDirError> {
        match fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed(name, "cannot be deleted", error.into())),
        }
    }

    fn name(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn failed(&self, name: &str, action: &'static str, source: io::Error) -> PrivateDirError {
        PrivateDirError::Io { path: self.name(name), action, source }
    }

    fn not_safe(&self, name: &str, reason: &str) -> PrivateDirError {
        PrivateDirError::Unsafe { path: self.name(name), reason: reason.to_owned() }
    }
}

/// Checks that something is of this type, this user's, and nobody else's to touch. Gives its size.
fn private(path: &str, file: &impl AsFd, expected: FileType) -> Result<u64, PrivateDirError> {
    let stat = fs::fstat(file).map_err(|error| PrivateDirError::Io {
        path: path.to_owned(),
        action: "cannot be examined",
        source: error.into(),
    })?;
    let wrong = |reason: String| Err(PrivateDirError::Unsafe { path: path.to_owned(), reason });
    if FileType::from_raw_mode(stat.st_mode as RawMode) != expected {
        return wrong("is not of the right type".to_owned());
    }
    let user = geteuid().as_raw();
    if stat.st_uid != user {
        return wrong(format!("belongs to user {}, not to {user} that this process runs as", stat.st_uid));
    }
    if stat.st_mode & 0o077 != 0 {
        let mode = stat.st_mode & 0o7777;
        return wrong(format!("has mode {mode:04o}: others may touch it; take their rights away (chmod go=)"));
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("state");
        (outer, path)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_written_is_private_and_read_back() {
        let (_outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        assert_eq!(dir.read("svid.pem").unwrap(), None);
        dir.write("svid.pem", b"one").unwrap();
        dir.write("svid.pem", b"two").unwrap();
        assert_eq!(dir.read("svid.pem").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("svid.pem")), 0o600);
        assert!(!path.join("svid.pem.new").exists());
        dir.remove("svid.pem").unwrap();
        dir.remove("svid.pem").unwrap();
        assert_eq!(dir.read("svid.pem").unwrap(), None);
    }

    #[test]
    fn one_process_has_it_at_a_time() {
        let (_outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        assert!(matches!(PrivateDir::open(&path), Err(PrivateDirError::InUse(_))));
        drop(dir);
        PrivateDir::open(&path).unwrap();
    }

    #[test]
    fn what_others_may_touch_is_refused() {
        let (_outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        dir.write("svid.pem", b"key").unwrap();
        for open in [0o640, 0o604, 0o620, 0o666] {
            std::fs::set_permissions(path.join("svid.pem"), PermissionsExt::from_mode(open)).unwrap();
            let error = dir.read("svid.pem").unwrap_err();
            assert!(matches!(&error, PrivateDirError::Unsafe { .. }), "{open:o}: {error}");
            assert!(error.to_string().contains("chmod"), "{error}");
        }
        drop(dir);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        assert!(matches!(PrivateDir::open(&path), Err(PrivateDirError::Unsafe { .. })));
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        let (outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        std::fs::write(outer.path().join("elsewhere"), "key").unwrap();
        std::fs::set_permissions(outer.path().join("elsewhere"), PermissionsExt::from_mode(0o600)).unwrap();
        symlink("../elsewhere", path.join("svid.pem")).unwrap();
        assert!(matches!(dir.read("svid.pem"), Err(PrivateDirError::Unsafe { .. })));
        std::fs::create_dir(path.join("bundle.json")).unwrap();
        std::fs::set_permissions(path.join("bundle.json"), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(matches!(dir.read("bundle.json"), Err(PrivateDirError::Unsafe { .. })));
        // A pipe without a writer must not hang the start.
        fs::mknodat(&dir.folder, "pipe", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(dir.read("pipe"), Err(PrivateDirError::Unsafe { .. })));
        // Writing replaces the link, not what it points to.
        dir.write("svid.pem", b"mine").unwrap();
        assert_eq!(std::fs::read(outer.path().join("elsewhere")).unwrap(), b"key");
        assert_eq!(dir.read("svid.pem").unwrap().as_deref(), Some(&b"mine"[..]));
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let (outer, path) = folder();
        std::fs::create_dir(outer.path().join("real")).unwrap();
        symlink("real", &path).unwrap();
        assert!(PrivateDir::open(&path).is_err());
    }

    #[test]
    fn writers_of_one_file_do_not_meet() {
        let (_outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        std::thread::scope(|scope| {
            for content in [[b'a'; 999], [b'b'; 999], [b'c'; 999]] {
                let dir = &dir;
                scope.spawn(move || (0..20).for_each(|_| dir.write("bundle.json", &content).unwrap()));
            }
        });
        let read = dir.read("bundle.json").unwrap().unwrap();
        assert!(read.len() == 999 && read.iter().all(|byte| *byte == read[0]));
    }

    #[test]
    fn what_a_crash_left_over_is_no_obstacle() {
        let (_outer, path) = folder();
        let dir = PrivateDir::open(&path).unwrap();
        std::fs::write(path.join("svid.pem.new"), "half").unwrap();
        dir.write("svid.pem", b"whole").unwrap();
        assert_eq!(dir.read("svid.pem").unwrap().as_deref(), Some(&b"whole"[..]));
    }
}
