//! Child processes that do not outlive the demo.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a process may take to end when asked to.
const GRACE: Duration = Duration::from_secs(15);

/// A process, in a group of its own: so that Ctrl-C reaches the demo only, which then ends all in order.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it with its output in `<logs>/<name>.log`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        environment: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).context("cannot write logs")?;
        let mut command = Command::new(program);
        command
            .args(arguments.into_iter().map(Into::into))
            .envs(environment.into_iter().map(|(key, value)| (key.into(), value.into())))
            .current_dir(logs)
            // What one that is killed leaves behind goes with the demo's own folder.
            .env("TMPDIR", logs)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot write logs")?)
            .stderr(output)
            .process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// An error, with the end of its output, if it runs no more.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status}); its last words:\n{}", self.name, self.last_words()),
        }
    }

    /// The end of its output.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(8)..];
        last.iter().map(|line| format!("    {}\n", shorten(line))).collect()
    }

    /// Asks it to end, and after a while makes it.
    pub(crate) async fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let family = self.family();
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), self.pid()) {
            // An error means that it has just ended.
            let _ = kill_process(pid, Signal::TERM);
        }
        let status = match tokio::time::timeout(GRACE, self.child.wait()).await {
            Ok(status) => status?,
            Err(_elapsed) => {
                self.child.start_kill()?;
                self.child.wait().await?
            }
        };
        // Whatever it may have left behind.
        family.iter().for_each(Relative::kill);
        Ok(status)
    }

    /// Ends it and all that it started at once, as a crash of the machine would.
    pub(crate) async fn crash(&mut self) -> anyhow::Result<()> {
        let family = self.family();
        family.iter().for_each(Relative::kill);
        self.child.wait().await?;
        while family.iter().any(Relative::is_alive) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// The process and all that it and they have started, if it runs.
    fn family(&self) -> Vec<Relative> {
        self.pid().map(|pid| relatives(pid.as_raw_nonzero().get())).unwrap_or_default()
    }

    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.family().iter().for_each(Relative::kill);
    }
}

/// A line as far as it is worth reading.
pub(crate) fn shorten(line: &str) -> &str {
    &line[..line.floor_char_boundary(300)]
}

/// A process as it was seen; its start tells it from another one that got its number later.
#[derive(Clone, Copy, Debug)]
struct Relative {
    pid: i32,
    parent: i32,
    start: u64,
}

impl Relative {
    /// Reads `/proc/<pid>/stat`; nothing for a dead one that waits to be reaped.
    fn read(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it, in parentheses, may hold anything.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let is_dead = matches!(*fields.first()?, "Z" | "X");
        let relative = Self { pid, parent: fields.get(1)?.parse().ok()?, start: fields.get(19)?.parse().ok()? };
        (!is_dead).then_some(relative)
    }

    fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start == self.start)
    }

    fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            // An error means that it has just ended.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A process and its descendants, each after its parent.
fn relatives(root: i32) -> Vec<Relative> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: Vec<Relative> = pids.filter_map(Relative::read).collect();
    let mut family: Vec<Relative> = all.iter().filter(|process| process.pid == root).copied().collect();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(all.iter().filter(|process| process.parent == parent.pid));
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Process {
        let none: [(&str, &str); 0] = [];
        Process::start("shell", Path::new("/bin/sh"), ["-c", script], none, folder).unwrap()
    }

    async fn eventually(mut condition: impl FnMut() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s");
    }

    #[tokio::test]
    async fn ends_in_order_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done", folder.path());
        eventually(|| process.last_words().contains("up")).await;
        assert!(process.check().is_ok());
        assert_eq!(process.end().await.unwrap().code(), Some(7));
        assert!(process.last_words().contains("bye"));
        let fault = process.check().unwrap_err().to_string();
        assert!(fault.contains("shell ended by itself") && fault.contains("bye"), "{fault}");
    }

    #[tokio::test]
    async fn nothing_that_it_started_outlives_it() {
        for drop_it in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut process = shell("setsid sh -c 'sleep 1000 & echo $!; wait'; wait", folder.path());
            eventually(|| !process.last_words().is_empty()).await;
            let child = format!("/proc/{}", process.last_words().trim());
            assert!(Path::new(&child).exists());
            if drop_it {
                drop(process);
            } else {
                process.crash().await.unwrap();
            }
            let pid = child.trim_start_matches("/proc/").parse().unwrap();
            eventually(|| Relative::read(pid).is_none()).await;
        }
    }
}
