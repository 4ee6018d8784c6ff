//! What was acknowledged survives `kill -9` and a power cut; what was not is there whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// Names the folder of the store in the child's environment.
const CHILD: &str = "HEDDLE_TEST_STORE_CHILD";
/// Keys that each transaction writes.
const PARTS: [&str; 3] = ["/part/a", "/part/b", "/part/c"];

/// Writes until it is killed; each line on stdout is a transaction that was acknowledged. Runs only
/// as the child of [`kill_9_loses_nothing`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of kill_9_loses_nothing"]
async fn child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let store = Arc::new(open_keeping(Path::new(&folder), 500));
    let run = store.revision();
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0_u64.. {
                    let id = format!("{run}.{writer}.{n}");
                    store.commit(write_all_parts(&id, writer)).await.unwrap();
                    // One write, so that a line is never torn.
                    io::stdout().write_all(format!("ack {id}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Makes one key in each part, and overwrites one that all transactions of this writer share.
fn write_all_parts(id: &str, writer: u64) -> Transaction {
    let mut transaction = Transaction::new().put(format!("/last/{writer}"), id.to_owned());
    for part in PARTS {
        transaction = transaction.put(format!("{part}/{id}"), vec![b'x'; 200]);
    }
    transaction
}

/// Checks the store from outside: all that was acknowledged is there, and all that is there is whole.
async fn verify(store: &RedbStore, acknowledged: &BTreeSet<String>) {
    let mut revisions: BTreeMap<String, Vec<Revision>> = BTreeMap::new();
    for part in PARTS {
        let prefix = format!("{part}/");
        for entry in store.range(Range::prefix(&prefix)).await.unwrap().entries {
            let id = entry.key.strip_prefix(&prefix).unwrap().to_owned();
            revisions.entry(id).or_default().push(entry.mod_revision);
        }
    }
    for (id, at) in &revisions {
        assert_eq!(at.len(), PARTS.len(), "half of transaction {id} is there");
        assert!(at.iter().all(|revision| *revision == at[0] && *revision <= store.revision()));
    }
    for id in acknowledged {
        assert!(revisions.contains_key(id), "{id} was acknowledged and is lost");
    }
    for entry in store.range(Range::prefix("/last/")).await.unwrap().entries {
        let id = std::str::from_utf8(&entry.value).unwrap();
        assert_eq!(revisions[id][0], entry.mod_revision, "{} is of another transaction", entry.key);
    }
    let unique: BTreeSet<_> = revisions.values().map(|at| at[0]).collect();
    assert_eq!(unique.len(), revisions.len(), "one revision, one transaction");
    assert_eq!(unique.last().copied().unwrap_or(0), store.revision());
}

#[tokio::test]
async fn kill_9_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    let mut random = rand::rng();
    let rounds = 15;
    for _ in 0..rounds {
        let before = acknowledged.len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::child", "--ignored", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It writes now: kill it at a moment that it cannot know.
        let mut seen = 0;
        let wait_for = random.random_range(1..200);
        let mut read = |line: io::Result<String>| {
            if let Some((_, id)) = line.unwrap().split_once("ack ") {
                acknowledged.insert(id.to_owned());
                seen += 1;
            }
            seen
        };
        while read(lines.next().expect("the child went on writing")) < wait_for {}
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            read(line);
        }
        assert!(acknowledged.len() > before);
        verify(&open(folder.path()), &acknowledged).await;
    }
    println!("{} transactions acknowledged, killed {rounds} times", acknowledged.len());
}

/// A disk whose power can be cut: what was written and not synced since is there in part, torn at
/// random sector bounds.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Image>>);

#[derive(Debug, Default)]
struct Image {
    seen: Vec<u8>,
    synced: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Nothing can be written now.
    is_full: bool,
}

impl Disk {
    fn image(&self) -> std::sync::MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> io::Result<std::sync::MutexGuard<'_, Image>> {
        let image = self.image();
        if image.is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(image) }
    }

    /// What is left after the power went.
    fn cut(&self, random: &mut StdRng) -> Self {
        let image = self.image();
        let mut left = image.synced.clone();
        // The size of the file is metadata of its own, and goes its own way.
        let sizes = [image.synced.len().max(image.seen.len()), image.seen.len()];
        left.resize(sizes[random.random_range(0..2)], 0);
        for (offset, bytes) in &image.pending {
            for (index, sector) in bytes.chunks(512).enumerate() {
                let at = offset + index * 512;
                if random.random_bool(0.5)
                    && let Some(place) = left.get_mut(at..at + sector.len())
                {
                    place.copy_from_slice(sector);
                }
            }
        }
        Self(Arc::new(Mutex::new(Image { seen: left.clone(), synced: left, ..Image::default() })))
    }
}

impl redb_crate::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.image().seen[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut image = self.writable()?;
        image.seen.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.writable()?;
        image.synced = image.seen.clone();
        image.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.writable()?;
        let at = usize::try_from(offset).unwrap();
        image.seen[at..at + data.len()].copy_from_slice(data);
        image.pending.push((at, data.to_vec()));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing() {
    let mut random = StdRng::seed_from_u64(7);
    let mut disk = Disk::default();
    let mut acknowledged = BTreeSet::new();
    for round in 0..25_u64 {
        let acks = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::new(open_disk(&disk));
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let (store, acks) = (Arc::clone(&store), Arc::clone(&acks));
                tokio::spawn(async move {
                    for n in 0_u64.. {
                        let id = format!("{round}.{writer}.{n}");
                        if store.commit(write_all_parts(&id, writer)).await.is_err() {
                            break;
                        }
                        acks.lock().unwrap().push(id);
                    }
                })
            })
            .collect();
        let wanted = random.random_range(1..30);
        // Cut when so many were acknowledged, in the midst of whatever is being written.
        let cut = async {
            loop {
                tokio::task::yield_now().await;
                let known = acks.lock().unwrap().clone();
                if known.len() >= wanted {
                    return (disk.cut(&mut random), known);
                }
            }
        };
        let (left, known) = tokio::time::timeout(Duration::from_secs(60), cut).await.unwrap();
        for writer in &writers {
            writer.abort();
        }
        for writer in writers {
            let _ = writer.await;
        }
        acknowledged.extend(known);
        disk = left;
        verify(&open_disk(&disk), &acknowledged).await;
    }
    assert!(acknowledged.len() > 100);
}

fn open_disk(disk: &Disk) -> RedbStore {
    open_disk_for(disk, Duration::from_secs(600))
}

fn open_disk_for(disk: &Disk, give_up_after: Duration) -> RedbStore {
    let disk = disk.clone();
    let opener = move || Ok(redb_crate::Builder::new().create_with_backend(disk.clone())?);
    let options = RedbOptions { cache_bytes: 1 << 20, keep_revisions: 500, give_up_after };
    RedbStore::start(Path::new("disk"), opener().unwrap(), Box::new(opener), &options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_full_is_written_again() {
    let disk = Disk::default();
    let store = open_disk(&disk);
    store.commit(put("/a", "1")).await.unwrap();
    let mut watch = store.watch("/", 1);
    let mut health = store.write_health();
    assert!(health.borrow_and_update().writable);
    disk.image().is_full = true;
    store.commit(put("/a", "2")).await.unwrap_err();
    let health_is = async |health: &mut tokio::sync::watch::Receiver<WriteHealth>, writable| {
        let wait = health.wait_for(|health| health.writable == writable);
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap().unwrap().failures
    };
    assert_eq!(health_is(&mut health, false).await, 1);
    store.commit(put("/b", "1")).await.unwrap_err();
    disk.image().is_full = false;
    health_is(&mut health, true).await;

    store.commit(put("/a", "3")).await.unwrap();
    assert_eq!(value(&store, "/a", None).await.as_deref(), Some("3"));
    // Who watches misses nothing of what is in the store, also what was answered by an error.
    let mut seen = Vec::new();
    while seen.last() != Some(&store.revision()) {
        let batch = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap().unwrap();
        seen.push(batch.revision);
    }
    assert_eq!(seen, (1..=store.revision()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stays_full_ends_the_store() {
    let disk = Disk::default();
    let store = open_disk_for(&disk, Duration::from_millis(50));
    store.commit(put("/a", "1")).await.unwrap();
    let mut watch = store.watch("/", 2);
    disk.image().is_full = true;
    store.commit(put("/a", "2")).await.unwrap_err();
    let end = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap();
    assert!(end.is_none(), "{end:?}");
    assert!(matches!(store.commit(put("/a", "3")).await, Err(StoreError::Closed)));
    assert!(matches!(store.read("/a", None).await, Err(StoreError::Closed)));
}
