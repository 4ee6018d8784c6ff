//! Child processes that end with the test, and the workspace's binaries.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

/// Path of a binary of this workspace, built before its first use in a test run.
///
/// # Panics
/// When the build fails.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            // target/debug/deps/integration-…: the profile's folder is two up.
            let test = std::env::current_exe().expect("the path of the test itself");
            let folder = test.ancestors().nth(2).expect("a test lives in target/<profile>/deps").to_path_buf();
            let mut build = Command::new(env!("CARGO"));
            build.args([
                "build",
                "--quiet",
                "-p",
                "heddle-control-plane",
                "-p",
                "heddle-proxy",
                "-p",
                "heddle-cli",
                "-p",
                "heddle-shop",
            ]);
            if folder.ends_with("release") {
                build.arg("--release");
            }
            build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"));
            build.env("CARGO_TARGET_DIR", folder.parent().expect("target"));
            assert!(build.status().expect("cargo runs").success(), "the binaries could not be built");
            folder
        })
        .join(name)
}

/// Path of the proxy as the profile `load` has it, built before its first use in a test run; that which `HEDDLE_PROXY`
/// names, if it does.
///
/// # Panics
/// When the build fails.
pub fn optimised_proxy() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("HEDDLE_PROXY") {
                return path.into();
            }
            let test = std::env::current_exe().expect("the path of the test itself");
            let target = test.ancestors().nth(3).expect("a test lives in target/<profile>/deps");
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--profile", "load", "-p", "heddle-proxy"]);
            build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"));
            build.env("CARGO_TARGET_DIR", target);
            assert!(build.status().expect("cargo runs").success(), "the proxy could not be built");
            target.join("load/heddle-proxy")
        })
        .clone()
}

/// A child process, killed when dropped. Its output goes to a file, shown when a test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `<folder>/<name>.log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGTERM and waits, as [`Self::ended`].
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended(limit).await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let start = SystemTime::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of this process") {
                return status;
            }
            assert!(
                start.elapsed().unwrap_or_default() < limit,
                "{} did not end within {limit:?}:\n{}",
                self.name,
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // An error means that it has ended already.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends it at once with SIGKILL.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Proportional set size, bytes.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn pss(&self) -> u64 {
        self.memory("Pss:")
    }

    /// What it allocated itself (heap and stacks), bytes: proportional set size without files.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn allocated(&self) -> u64 {
        self.memory("Pss_Anon:")
    }

    fn memory(&self, field: &str) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id())).expect("a running process");
        let line = rollup.lines().find(|line| line.starts_with(field)).expect("a line of it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(30).collect();
            eprintln!("--- {} (last lines)", self.name);
            for line in tail.into_iter().rev() {
                eprintln!("{}", line.chars().take(300).collect::<String>());
            }
        }
    }
}

/// Runs a program to its end, beside what else the test does, and gives what it wrote.
///
/// # Panics
/// When it takes longer than two minutes.
pub async fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), output).await;
    output.unwrap_or_else(|_| panic!("it does not end: {shown}")).unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Runs a program that must succeed, and gives its standard output.
///
/// # Panics
/// When it fails, showing what it wrote.
pub async fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {}\n{text}\n{errors}", output.status);
    text
}
