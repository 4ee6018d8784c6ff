//! The `heddle-proxy` process beside the command.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde::Deserialize;
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::{
    RunArgs, RunError,
    plan::Plan,
    signals::{self, Signals},
};
use crate::{client, error::Error, output};

/// Between two looks at whether it is ready.
const POLL: Duration = Duration::from_millis(25);

/// After this long in silence, what it waits for is said.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long peers have to stop calling before the command is told to end.
const WITHDRAW: Duration = Duration::from_secs(8);

/// How long a word to it may take.
const SAY: Duration = Duration::from_secs(1);

/// How long a sidecar without a command may take to end.
const DRAIN: Duration = Duration::from_secs(35);

/// How much of the end of a log is shown.
const TAIL: u64 = 4_096;

/// A running sidecar, and its temporary files.
pub(super) struct Sidecar {
    program: PathBuf,
    plan: Plan,
    child: Child,
    addresses: Addresses,
    http: reqwest::Client,
}

/// Where a sidecar listens, as it writes it into its state directory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Addresses {
    /// From peers.
    #[serde(default)]
    inbound: Option<SocketAddr>,
    /// For the command.
    #[serde(default)]
    http_proxy: Option<SocketAddr>,
    /// Likewise, by name.
    #[serde(default)]
    pub(super) upstreams: BTreeMap<String, SocketAddr>,
    #[serde(default)]
    admin: Option<SocketAddr>,
    #[serde(default)]
    health: Option<SocketAddr>,
}

impl Addresses {
    /// For `http_proxy`.
    pub(super) fn http_proxy_url(&self) -> String {
        self.http_proxy.map(|address| format!("http://{address}")).unwrap_or_default()
    }
}

impl Sidecar {
    /// Starts it; it is not ready yet.
    pub(super) fn start(plan: Plan, args: &RunArgs) -> Result<Self, Error> {
        let program = find_proxy()?;
        create_private(&plan.state_dir)?;
        let http = client::local(WITHDRAW).map_err(RunError::Prepare)?;
        if let Some(path) = &plan.log {
            let failed = |source| Error::File { doing: "cannot write", path: path.clone(), source };
            OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(args.state_dir.is_none())
                .open(path)
                .map_err(failed)?;
        }
        let child = spawn(&program, &plan.arguments, &plan)?;
        Ok(Self { program, plan, child, addresses: Addresses::default(), http })
    }

    /// Waits until it is ready, and says what it waits for when that takes long.
    pub(super) async fn ready(&mut self, timeout: heddle_api::resource::Duration) -> Result<(), RunError> {
        let start = Instant::now();
        let mut said = String::new();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(RunError::Ended { status, log: self.tail() });
            }
            let Some(missing) = self.look().await else { return Ok(()) };
            if start.elapsed() >= timeout.0 {
                return Err(RunError::NotReady { after: timeout, missing, log: self.tail() });
            }
            if start.elapsed() >= PATIENCE && missing != said {
                output::complain(&format!("heddle: waiting for the sidecar: {missing}\n"));
                said = missing;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What is still missing, if anything.
    async fn look(&mut self) -> Option<String> {
        let Ok(text) = std::fs::read_to_string(self.plan.state_dir.join("addresses.json")) else {
            return Some("it has not started to listen".to_owned());
        };
        match serde_json::from_str(&text) {
            Ok(addresses) => self.addresses = addresses,
            Err(error) => return Some(format!("its addresses are unreadable: {error}")),
        }
        let Some(health) = self.addresses.health else {
            return Some("it has no health address".to_owned());
        };
        match self.http.get(format!("http://{health}/ready")).send().await {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => {
                let text = response.text().await.unwrap_or_default();
                Some(text.trim().replace(['\n', '\r'], " "))
            }
            Err(_) => Some("it does not answer yet".to_owned()),
        }
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        match self.child.wait().await {
            Ok(status) => status,
            Err(_) => std::future::pending().await,
        }
    }

    /// Starts it again where it was, so that the command's settings go on being right. Its certificate
    /// is in its state directory.
    pub(super) fn restart(&mut self) -> Result<(), RunError> {
        let arguments = pinned(&self.plan.arguments, &self.addresses);
        self.child = spawn(&self.program, &arguments, &self.plan)?;
        Ok(())
    }

    /// Tells peers to call elsewhere, while what they have called goes on.
    pub(super) async fn withdraw(&self) {
        if let Some(admin) = self.addresses.admin {
            // One that does not answer will be told by a signal in the end.
            let _ = self.http.post(format!("http://{admin}/drain/inbound")).send().await;
        }
    }

    /// Ends it: tidily, or at a second signal or after a while by force.
    pub(super) async fn stop(&mut self, signals: &mut Signals) {
        signals::send(Signal::TERM, &self.child);
        tokio::select! {
            _ = self.child.wait() => return,
            () = tokio::time::sleep(DRAIN) => {}
            _ = signals.next_end() => {}
        }
        let _ = self.child.kill().await;
    }

    /// Tells it that the command is gone: else it would look whether anything still listens there.
    pub(super) async fn command_gone(&self) {
        if let Some(admin) = self.addresses.admin {
            let _ = self.http.post(format!("http://{admin}/drain/application-gone")).timeout(SAY).send().await;
        }
    }

    /// The end of its log.
    fn tail(&self) -> String {
        self.plan.log.as_deref().map(tail_of).unwrap_or_default()
    }
}

fn tail_of(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect::<String>()
        .trim_end()
        .to_owned()
}

fn spawn(program: &Path, arguments: &[OsString], plan: &Plan) -> Result<Child, RunError> {
    let failed = |source| RunError::Spawn { program: program.to_owned(), source };
    // What an earlier sidecar has left there is not where this one listens.
    let _ = std::fs::remove_file(plan.state_dir.join("addresses.json"));
    let mut command = Command::new(program);
    command.args(arguments).arg("--parent").arg(std::process::id().to_string());
    command.stdin(Stdio::null()).kill_on_drop(true);
    // Ctrl-C is for the command: the sidecar outlives it.
    command.process_group(0);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        // These would override what is decided here, or are none of the sidecar's business.
        if name_text.starts_with("HEDDLE_PROXY_") || ["HEDDLE_TOKEN", "HEDDLE_CONFIG"].contains(&name_text.as_ref()) {
            command.env_remove(&name);
        }
    }
    match &plan.log {
        Some(path) => {
            let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
            command.stdout(file.try_clone().map_err(failed)?).stderr(file);
        }
        None => {
            // Standard output belongs to the command.
            let stderr = std::io::stderr();
            let copy = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned().map_err(failed)?;
            command.stdout(copy);
        }
    }
    command.spawn().map_err(failed)
}

/// The same arguments, with the addresses that were free ones before.
fn pinned(arguments: &[OsString], addresses: &Addresses) -> Vec<OsString> {
    let mut list = arguments.to_vec();
    for index in 0..list.len().saturating_sub(1) {
        let address = match list[index].to_str() {
            Some("--inbound") => addresses.inbound,
            Some("--http-proxy") => addresses.http_proxy,
            Some("--admin") => addresses.admin,
            Some("--health") => addresses.health,
            Some("--upstream") => {
                let text = list[index + 1].to_string_lossy().into_owned();
                if let Some(name) = text.strip_suffix("=0")
                    && let Some(address) = addresses.upstreams.get(name)
                {
                    list[index + 1] = format!("{name}={}", address.port()).into();
                }
                None
            }
            _ => None,
        };
        if let Some(address) = address {
            list[index + 1] = address.to_string().into();
        }
    }
    list
}

fn create_private(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| Error::File {
        doing: "cannot make",
        path: folder.to_owned(),
        source,
    })
}

/// `HEDDLE_PROXY`, else the one beside this binary, else the one in `PATH`.
fn find_proxy() -> Result<PathBuf, RunError> {
    const NAME: &str = "heddle-proxy";
    if let Some(path) = std::env::var_os("HEDDLE_PROXY").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(|folder| folder.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(NAME)))
        .find(|candidate| candidate.is_file())
        .ok_or(RunError::NoProxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_sidecar_keeps_its_addresses() {
        let addresses: Addresses = serde_json::from_str(
            r#"{"inbound":"127.0.0.1:1","httpProxy":"127.0.0.1:2","admin":"127.0.0.1:3","health":"127.0.0.1:4",
                "upstreams":{"db:1":"127.0.0.1:5"}}"#,
        )
        .unwrap();
        let typed = "--inbound 127.0.0.1:0 --captured off --http-proxy 127.0.0.1:0 --admin 127.0.0.1:0 --health 127.0.0.1:0 --upstream db:1=0 --upstream x=7";
        let arguments: Vec<OsString> = typed.split(' ').map(OsString::from).collect();
        let pinned: Vec<_> = pinned(&arguments, &addresses).into_iter().map(|one| one.into_string().unwrap()).collect();
        assert_eq!(
            pinned.join(" "),
            "--inbound 127.0.0.1:1 --captured off --http-proxy 127.0.0.1:2 --admin 127.0.0.1:3 --health 127.0.0.1:4 --upstream db:1=5 --upstream x=7"
        );
    }

    #[test]
    fn the_end_of_a_log() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..1000).map(|index| format!("line {index}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        let tail = tail_of(file.path());
        assert!(tail.starts_with("    line 992\n") && tail.ends_with("line 999"), "{tail}");
        assert_eq!(tail_of(Path::new("/nonexistent")), "");
    }
}
