//! The embedded backend: one redb file, one writing thread, every acknowledged commit on disk.

mod file;
mod format;
mod watching;
mod writer;

use std::{
    fmt,
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture, stream};
use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase as _};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    file::{File as StoreFile, Opener},
    format::{FORMAT, LOG, META, META_COMPACTED, META_FORMAT, META_REVISION, VERSIONS},
    watching::Watching,
    writer::Request,
};
use super::{KeyValue, Outcome, Page, Range, Revision, Store, StoreError, Transaction, Watch, Write, recent::Recent};

/// Longest key, bytes.
const MAX_KEY: usize = 1024;
/// How long a read waits for a file that is being opened again.
const REOPENED: Duration = Duration::from_secs(2);

/// How to open a [`RedbStore`].
#[derive(Clone, Debug)]
pub struct RedbOptions {
    /// Pages kept in memory, bytes.
    pub cache_bytes: usize,
    /// Revisions of history that are kept at least; older ones are compacted away now and then.
    pub keep_revisions: u64,
    /// How long the file is opened again and again after a write failed; then the store shuts.
    pub give_up_after: Duration,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self { cache_bytes: 24 << 20, keep_revisions: 10_000, give_up_after: Duration::from_secs(600) }
    }
}

/// A store in one redb file.
pub struct RedbStore {
    path: PathBuf,
    shared: Arc<Shared>,
    // Both absent only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// How writing to the file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHealth {
    /// Whether the last write was possible.
    pub writable: bool,
    /// Writes that failed since the start.
    pub failures: u64,
}

/// What the writing thread tells readers.
#[derive(Debug)]
struct Shared {
    file: StoreFile,
    health: watch::Sender<WriteHealth>,
    head: watch::Sender<Revision>,
    recent: Recent,
    /// The oldest revision that can be read.
    compacted: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
    }

    /// Lets the file go, and ends all watches.
    fn close(&self) {
        self.file.close();
        self.closed.store(true, Ordering::Release);
        self.head.send_modify(|_| {});
    }

    fn set_compacted(&self, revision: Revision) {
        self.compacted.store(revision, Ordering::Release);
    }
}

/// Any error of redb.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct WriteError(Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for WriteError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        Self::backend(*error.0)
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder could not be made or opened.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// redb refused it: it is damaged, no database, or in use by another process.
    #[error("cannot open the store {}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// It was written by another version.
    #[error("the store {} has layout {found}; this version reads layout {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
}

impl RedbStore {
    /// Opens the store in this file, and makes it (0600, its folder 0700) when it is not there.
    /// Blocks; after a crash until the file is checked.
    pub fn open(path: &Path, options: &RedbOptions) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let refused = |error: WriteError| OpenError::Database { path: path.to_owned(), source: error.0 };
        open_private(path).map_err(io)?;
        let (file, cache_bytes) = (path.to_owned(), options.cache_bytes);
        let opener = move || -> Result<Database, redb::Error> {
            let file = open_private(&file).map_err(redb::Error::Io)?;
            Ok(Builder::new().set_cache_size(cache_bytes).create_file(file)?)
        };
        let database = opener().map_err(|error| refused(error.into()))?;
        Self::start(path, database, Box::new(opener), options)
    }

    /// Begins with a database; `opener` opens it anew after it failed.
    pub(super) fn start(
        path: &Path,
        database: Database,
        opener: Opener,
        options: &RedbOptions,
    ) -> Result<Self, OpenError> {
        let (format, revision, compacted) =
            prepare(&database).map_err(|error| OpenError::Database { path: path.to_owned(), source: error.0 })?;
        if format != FORMAT {
            return Err(OpenError::Format { path: path.to_owned(), found: format });
        }
        let shared = Arc::new(Shared {
            file: StoreFile::new(database),
            health: watch::Sender::new(WriteHealth { writable: true, failures: 0 }),
            head: watch::Sender::new(revision),
            recent: Recent::default(),
            compacted: AtomicU64::new(compacted),
            closed: AtomicBool::new(false),
        });
        let (requests, received) = mpsc::channel(1024);
        let (keep, give_up_after) = (options.keep_revisions.max(1), options.give_up_after);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || writer::Writer::new(shared, opener, keep, give_up_after).run(received)
            })
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), shared, requests: Some(requests), writer: Some(writer) })
    }

    /// How writing goes, for readiness and metrics.
    pub fn write_health(&self) -> watch::Receiver<WriteHealth> {
        self.shared.health.subscribe()
    }

    /// Runs a read off the async threads, on one snapshot of the file.
    async fn reading<T: Send + 'static>(
        &self,
        at: Option<Revision>,
        read: impl FnOnce(&ReadTable, Revision) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = tokio::time::timeout(REOPENED, self.shared.file.opened());
        let database = database.await.map_err(|_| StoreError::backend(file::Reopening))?.ok_or(StoreError::Closed)?;
        let work = move || {
            let (versions, newest, oldest) = snapshot(&database)?;
            match at.unwrap_or(newest) {
                at if at > newest => Err(StoreError::Future { requested: at, newest }),
                at if at < oldest => Err(StoreError::Compacted { requested: at, oldest }),
                at => Ok(read(&versions, at)?),
            }
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))
    }

    async fn ask<T>(
        &self,
        request: Request,
        answered: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(request).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for RedbStore {
    /// Finishes what is under way and lets the file go, so that it can be opened again.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: whoever waited for it was told by the channel.
            let _ = writer.join();
        }
        self.shared.close();
    }
}

type ReadTable = ReadOnlyTable<(&'static [u8], u64), &'static [u8]>;

/// The versions with the newest and the oldest revision, all as of one moment.
fn snapshot(database: &Database) -> Result<(ReadTable, Revision, Revision), WriteError> {
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let number = |key: &str| -> Result<Revision, WriteError> { Ok(read_number(&meta, key)?.unwrap_or(0)) };
    Ok((read.open_table(VERSIONS)?, number(META_REVISION)?, number(META_COMPACTED)?))
}

/// Opens a file that only its owner may read, and makes sure that its name survives a power cut.
fn open_private(path: &Path) -> std::io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// Makes the tables of a new file; returns layout, newest and oldest revision.
fn prepare(database: &Database) -> Result<(u64, Revision, Revision), WriteError> {
    let write = database.begin_write()?;
    let found = {
        write.open_table(VERSIONS)?;
        write.open_table(LOG)?;
        let mut meta = write.open_table(META)?;
        let number = |key: &str| -> Result<Option<u64>, WriteError> { read_number(&meta, key) };
        let (format, revision, compacted) =
            (number(META_FORMAT)?, number(META_REVISION)?.unwrap_or(0), number(META_COMPACTED)?.unwrap_or(0));
        if format.is_none() {
            meta.insert(META_FORMAT, FORMAT)?;
        }
        (format.unwrap_or(FORMAT), revision, compacted)
    };
    write.commit()?;
    Ok(found)
}

fn read_number(table: &impl redb::ReadableTable<&'static str, u64>, key: &str) -> Result<Option<u64>, WriteError> {
    Ok(table.get(key)?.map(|value| value.value()))
}

impl Store for RedbStore {
    fn revision(&self) -> Revision {
        *self.shared.head.borrow()
    }

    fn read(&self, key: &str, at: Option<Revision>) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let key = key.to_owned();
        self.reading(at, move |versions, at| Ok(format::read_key(versions, &key, at)?)).boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.reading(range.at, move |versions, at| Ok(format::read_range(versions, &range, at)?)).boxed()
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            check(&transaction)?;
            let (answer, answered) = oneshot::channel();
            self.ask(Request::Commit(transaction, answer), answered).await
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let watch = Watching::new(Arc::clone(&self.shared), prefix, from);
        Box::pin(stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (answer, answered) = oneshot::channel();
            self.ask(Request::Compact(revision, answer), answered).await
        }
        .boxed()
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).field("revision", &self.revision()).finish()
    }
}

/// Refuses what no backend could write.
fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let mut keys: Vec<&str> = transaction.writes.iter().map(Write::key).map(AsRef::as_ref).collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(StoreError::Invalid(format!("key {:?} is written twice", twice[0])));
    }
    let compared = transaction.compares.iter().map(|compare| compare.key.as_ref());
    for key in keys.iter().copied().chain(compared) {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(StoreError::Invalid(format!("a key has 1 to {MAX_KEY} bytes, not {}", key.len())));
        }
    }
    Ok(())
}
