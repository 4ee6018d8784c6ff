//! The mesh of the demo: a control plane, and services started through `heddle run` as a user would.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{process::Command, time::Instant};

use super::{build::Programs, metrics::Metrics, process::Process};

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(25);

/// The shop's resources, applied as they lie in `examples/shop/mesh`.
const RESOURCES: [(&str, &str); 5] = [
    ("00-mesh.yaml", include_str!("../../mesh/00-mesh.yaml")),
    ("10-services.yaml", include_str!("../../mesh/10-services.yaml")),
    ("20-routes.yaml", include_str!("../../mesh/20-routes.yaml")),
    ("30-traffic.yaml", include_str!("../../mesh/30-traffic.yaml")),
    ("40-authorization.yaml", include_str!("../../mesh/40-authorization.yaml")),
];

/// Everything that runs. Ended with [`Self::end`], or killed when dropped.
pub(crate) struct Mesh {
    programs: Programs,
    folder: PathBuf,
    otlp: String,
    http: reqwest::Client,
    control_plane: Process,
    pub(crate) api: ControlPlaneAddresses,
    pub(crate) members: BTreeMap<String, Member>,
}

/// Where a control plane listens, as it writes it into its data directory.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ControlPlaneAddresses {
    pub(crate) api: SocketAddr,
    pub(crate) mesh: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// Where a sidecar listens, as it writes it into its state directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SidecarAddresses {
    pub(crate) inbound: SocketAddr,
    pub(crate) http_proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// A sidecar, and the app beside it if there is one.
pub(crate) struct Member {
    process: Process,
    /// Where its sidecar leads to inventory.
    pub(crate) inventory: Option<SocketAddr>,
    pub(crate) sidecar: SidecarAddresses,
}

/// Who is to be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemberSpec {
    /// Its workload, and the name of its log.
    pub(crate) name: &'static str,
    /// What it serves; nothing: it only calls others, as `account`.
    pub(crate) service: Option<&'static str>,
    /// Service account, where it serves nothing.
    pub(crate) account: &'static str,
    /// Subcommand of `shop`, where it serves something.
    pub(crate) command: &'static str,
    /// Database, in the folder of databases.
    pub(crate) database: Option<&'static str>,
    /// Whether it calls inventory.
    pub(crate) calls_inventory: bool,
    /// More of the app's variables.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Mesh {
    /// Starts a control plane in a folder; sidecars will send their spans to `otlp`.
    pub(crate) async fn start(programs: Programs, folder: &Path, otlp: String) -> anyhow::Result<Self> {
        for name in ["logs", "databases", "resources"] {
            std::fs::create_dir(folder.join(name)).context("cannot write to the temporary folder")?;
        }
        let data = folder.join("control-plane");
        let context = folder.join("context.yaml");
        let mut arguments = vec!["--data-dir".into(), data.clone().into_os_string()];
        for listener in ["--api", "--mesh", "--health"] {
            arguments.extend([listener.into(), "127.0.0.1:0".into()]);
        }
        arguments.extend(["--context-file".into(), context.clone().into_os_string()]);
        let none: [(&str, &str); 0] = [];
        let mut control_plane =
            Process::start("control-plane", &programs.control_plane, arguments, none, &folder.join("logs"))?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let api: ControlPlaneAddresses = addresses(&mut control_plane, &data).await?;
        ready(&http, &mut control_plane, &format!("http://{}/ready", api.health)).await?;
        let members = BTreeMap::new();
        Ok(Self { programs, folder: folder.to_owned(), otlp, http, control_plane, api, members })
    }

    /// Where the services keep their databases.
    pub(crate) fn databases(&self) -> PathBuf {
        self.folder.join("databases")
    }

    /// Where everybody logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The CLI's context file.
    pub(crate) fn context_file(&self) -> PathBuf {
        self.folder.join("context.yaml")
    }

    /// The CLI.
    pub(crate) fn cli(&self) -> &Path {
        &self.programs.heddle
    }

    /// Applies the shop's resources through the API.
    pub(crate) async fn apply_resources(&self) -> anyhow::Result<()> {
        let folder = self.folder.join("resources");
        for (name, text) in RESOURCES {
            std::fs::write(folder.join(name), text).context("cannot write to the temporary folder")?;
        }
        self.heddle(&["apply", "-f", &folder.display().to_string()]).await?;
        Ok(())
    }

    /// Applies one more file, and waits until every sidecar that is concerned has taken it.
    pub(crate) async fn apply(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).context("cannot write to the temporary folder")?;
        self.heddle(&["apply", "--wait", "-f", &path.display().to_string()]).await?;
        Ok(())
    }

    /// The newest revision of all objects.
    pub(crate) async fn revision(&self) -> anyhow::Result<u64> {
        let revisions = self.heddle_json(&["revisions"]).await?;
        let numbers = revisions.as_array().into_iter().flatten().filter_map(|one| one["revision"].as_u64());
        numbers.max().with_context(|| format!("`heddle revisions` lists none: {revisions}"))
    }

    /// Runs `heddle`; what it printed.
    pub(crate) async fn heddle(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.programs.heddle)
            .args(arguments)
            .env("HEDDLE_CONFIG", self.context_file())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run heddle")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("heddle {} failed ({}): {}", arguments.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `heddle` with JSON as the form of its answer.
    pub(crate) async fn heddle_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.heddle(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("heddle {} printed no JSON", arguments.join(" ")))
    }

    /// Starts an app with its sidecar; several at once with [`Self::add_all`].
    pub(crate) async fn add(&mut self, spec: MemberSpec) -> anyhow::Result<()> {
        self.add_all(vec![spec]).await
    }

    /// Starts several, and waits for all of them.
    pub(crate) async fn add_all(&mut self, specs: Vec<MemberSpec>) -> anyhow::Result<()> {
        let starting = specs.into_iter().map(async |spec| {
            let member = self.member(&spec).await.with_context(|| format!("{} does not start", spec.name))?;
            Ok::<_, anyhow::Error>((spec.name.to_owned(), member))
        });
        let members = futures_util::future::try_join_all(starting.collect::<Vec<_>>()).await?;
        self.members.extend(members);
        self.settled().await
    }

    /// Waits until every proxy takes traffic and has applied what there is.
    async fn settled(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.heddle(&["status", "--check"]).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(4 * POLL).await,
            }
        }
    }

    async fn member(&self, spec: &MemberSpec) -> anyhow::Result<Member> {
        let state = self.folder.join("state").join(spec.name);
        // What an earlier run of the same name listened on says nothing about this one.
        let _ = std::fs::remove_file(state.join("addresses.json"));
        std::fs::create_dir_all(self.folder.join("state")).context("cannot write to the temporary folder")?;
        let sidecar_log = self.logs().join(format!("{}.sidecar.log", spec.name));
        let mut arguments: Vec<String> =
            ["run", "--namespace", "shop", "--workload", spec.name].map(str::to_owned).into();
        arguments.extend(["--state-dir".to_owned(), state.display().to_string()]);
        arguments.extend(["--proxy-log".to_owned(), sidecar_log.display().to_string()]);
        let mut environment = vec![
            ("HEDDLE_CONFIG".to_owned(), self.context_file().display().to_string()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), self.otlp.clone()),
        ];
        let mut app = None;
        let mut inventory = None;
        if let Some(service) = spec.service {
            let port = free_port()?;
            app = Some(SocketAddr::from(([127, 0, 0, 1], port)));
            arguments.extend(["--service".to_owned(), service.to_owned(), "--port".to_owned(), port.to_string()]);
            environment.push(("SHOP_LISTEN".to_owned(), format!("127.0.0.1:{port}")));
            if let Some(database) = spec.database {
                environment.push(("SHOP_DB".to_owned(), self.databases().join(database).display().to_string()));
            }
            if spec.calls_inventory {
                let port = free_port()?;
                inventory = Some(SocketAddr::from(([127, 0, 0, 1], port)));
                arguments.extend(["--upstream".to_owned(), format!("inventory={port}")]);
                environment.push(("INVENTORY_URL".to_owned(), format!("http://127.0.0.1:{port}")));
            }
            environment.extend(spec.environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
            let shop = self.programs.shop.display().to_string();
            arguments.extend(["--".to_owned(), shop, spec.command.to_owned()]);
        } else {
            arguments.extend(["--account".to_owned(), spec.account.to_owned()]);
        }
        let mut process = Process::start(spec.name, &self.programs.heddle, arguments, environment, &self.logs())?;
        let sidecar: SidecarAddresses = addresses(&mut process, &state).await?;
        ready(&self.http, &mut process, &format!("http://{}/ready", sidecar.health)).await?;
        if let Some(app) = app {
            ready(&self.http, &mut process, &format!("http://{app}/healthz")).await?;
        }
        Ok(Member { process, inventory, sidecar })
    }

    /// One of those that were added.
    pub(crate) fn member_named(&self, name: &str) -> anyhow::Result<&Member> {
        self.members.get(name).with_context(|| format!("{name} does not run"))
    }

    /// Ends an app and its sidecar as a crash would.
    pub(crate) async fn crash(&mut self, name: &str) -> anyhow::Result<()> {
        match self.members.remove(name) {
            Some(mut member) => member.process.crash().await,
            None => bail!("{name} does not run"),
        }
    }

    /// What a sidecar counted.
    pub(crate) async fn metrics(&self, name: &str) -> anyhow::Result<Metrics> {
        let health = self.member_named(name)?.sidecar.health;
        Ok(Metrics::parse(&self.get(health, "/metrics").await?))
    }

    /// What all sidecars counted of refusals and failures, with the label `sidecar`.
    pub(crate) async fn errors(&self) -> anyhow::Result<Metrics> {
        let mut all = Metrics::default();
        for name in self.members.keys() {
            all.add(&self.metrics(name).await?.labelled("sidecar", name));
        }
        Ok(all)
    }

    /// Requests that a sidecar took in for its app.
    pub(crate) async fn inbound_requests(&self, name: &str) -> anyhow::Result<u64> {
        Ok(self.metrics(name).await?.sum("http_server_request_duration_seconds_count", &[]))
    }

    /// GET of a sidecar's or the control plane's own address, as text.
    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{address}{path}");
        let response = self.http.get(&url).send().await.with_context(|| format!("GET {url}"))?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("GET {url}: {status}: {text}");
        }
        Ok(text)
    }

    /// An error if any process ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.control_plane.check()?;
        self.members.values_mut().try_for_each(|member| member.process.check())
    }

    /// Ends everything in order: first the services, then the control plane that their sidecars take
    /// leave of.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let ending = self.members.values_mut().map(|member| member.process.end());
        let ended = futures_util::future::join_all(ending).await;
        self.control_plane.end().await?;
        ended.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }
}

/// A port of loopback that is free just now. Not one of those that the system gives to connections: it
/// could be some connection's before the program that is told it listens there.
fn free_port() -> anyhow::Result<u16> {
    let candidates = std::iter::repeat_with(|| rand::random_range(10_000..32_000)).take(1_000);
    let mut free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().context("no free port between 10000 and 32000")
}

/// Waits for `addresses.json` in a folder.
async fn addresses<T: DeserializeOwned>(process: &mut Process, folder: &Path) -> anyhow::Result<T> {
    let path = folder.join("addresses.json");
    wait(process, async || {
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what it should be", path.display()))
    })
    .await
}

/// Waits until a URL answers with success.
async fn ready(http: &reqwest::Client, process: &mut Process, url: &str) -> anyhow::Result<()> {
    wait(process, async || {
        let response = http.get(url).send().await.with_context(|| format!("GET {url}"))?;
        let status = response.status();
        if !status.is_success() {
            bail!("GET {url}: {status}: {}", response.text().await.unwrap_or_default().trim());
        }
        Ok(())
    })
    .await
}

/// Looks again until it finds something, the process ends, or patience does.
async fn wait<T>(process: &mut Process, look: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = match look().await {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        process.check()?;
        if Instant::now() > deadline {
            bail!(
                "{} is not ready after {PATIENCE:?}: {missing:#}; its last words:\n{}",
                process.name,
                process.last_words()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}
