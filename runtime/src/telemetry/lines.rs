//! Log lines on their way to standard error: whoever logs never waits for whoever reads.
//!
//! Lines are queued in memory, up to a bound, and written by a thread of their own. What does not fit is dropped,
//! counted, and told of in a line once there is room again.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use prometheus::IntCounter;

/// How many bytes may wait.
const CAPACITY: usize = 1 << 20;
/// How long the writer lets a standard error rest that takes nothing and does not wait either.
const PAUSE: Duration = Duration::from_millis(20);

/// Lines of this process that were not written.
pub(super) static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new("heddle_log_lines_dropped_total", "Log lines that standard error did not take in time")
        .expect("the name is valid")
});

/// The queue of this process, once there is one.
pub(super) static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// A bounded queue of lines. Each write is one of them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    queue: Mutex<Queue>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// What was taken out is being written.
    writing: bool,
    /// Dropped and not yet told of.
    dropped: u64,
}

impl Lines {
    /// A queue whose lines go to standard error.
    pub(super) fn to_stderr() -> io::Result<Arc<Self>> {
        // A descriptor of its own: the lock of `io::stderr` would be held for as long as nobody reads.
        let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start(out)
    }

    fn start(out: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let writer = Arc::clone(&lines);
        thread::Builder::new().name("heddle-log".to_owned()).spawn(move || writer.run(out))?;
        Ok(lines)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or drops it.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.bytes.len() + line.len() > CAPACITY {
            queue.dropped += 1;
            DROPPED.inc();
            return;
        }
        queue.bytes.extend_from_slice(line);
        self.filled.notify_one();
    }

    /// Waits until all that was queued is written, at most this long.
    pub(super) fn flush(&self, limit: Duration) {
        let unwritten = |queue: &mut Queue| queue.writing || !queue.bytes.is_empty();
        // Whether in time or not, there is nothing more to do.
        drop(self.written.wait_timeout_while(self.lock(), limit, unwritten));
    }

    fn run(&self, mut out: impl Write) {
        let mut bytes = Vec::new();
        loop {
            let dropped = {
                let mut queue = self.lock();
                queue.writing = false;
                if queue.bytes.is_empty() {
                    self.written.notify_all();
                }
                while queue.bytes.is_empty() {
                    queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                queue.writing = true;
                bytes.clear();
                mem::swap(&mut bytes, &mut queue.bytes);
                mem::take(&mut queue.dropped)
            };
            write(&mut out, &bytes);
            if dropped > 0 {
                // It takes the way of all lines, and so their form.
                tracing::warn!(dropped, "log lines were lost: standard error was not read");
            }
        }
    }
}

/// Writes all of it, unless the other end is gone: a log that cannot be written is no reason to end anything.
fn write(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares it may have set it so that writing does not wait.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => return,
        }
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn nobody_waits_for_a_reader_and_what_fits_arrives_in_order() {
        let (out, mut reader) = UnixStream::pair().unwrap();
        let lines = Lines::start(out).unwrap();
        // What the socket takes is less than this.
        let line = [b'x'; 1023];
        let (began, before) = (Instant::now(), DROPPED.get());
        for number in 0_u32..4096 {
            let mut line = line.to_vec();
            line[..4].copy_from_slice(&number.to_be_bytes());
            line.push(b'\n');
            lines.push(&line);
        }
        lines.flush(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(10));
        let dropped = DROPPED.get() - before;
        assert!(dropped > 1000, "{dropped}");

        let mut got = vec![0; (4096 - usize::try_from(dropped).unwrap()) * 1024];
        reader.read_exact(&mut got).unwrap();
        let numbers: Vec<u32> =
            got.chunks(1024).map(|line| u32::from_be_bytes(line[..4].try_into().unwrap())).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        lines.flush(Duration::from_secs(10));
        assert!(lines.lock().bytes.is_empty());
    }

    #[test]
    fn a_reader_that_is_gone_holds_up_nothing() {
        let (out, reader) = UnixStream::pair().unwrap();
        drop(reader);
        let lines = Lines::start(out).unwrap();
        for _ in 0..3 {
            lines.push(b"lost\n");
            let began = Instant::now();
            lines.flush(Duration::from_secs(10));
            assert!(began.elapsed() < Duration::from_secs(5));
        }
    }
}
