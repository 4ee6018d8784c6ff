//! A mesh on loopback: the control plane and proxies as a user would start them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    eventually,
    ports::free_port,
    process::{Process, binary},
};

/// Longest wait for a process to be ready.
const READY: Duration = Duration::from_secs(30);

/// A control plane with a folder of its own, and a client for its API.
pub struct Mesh {
    /// The process; `None` while it is away.
    pub control_plane: Option<Process>,
    /// Everything of this mesh lives below.
    pub folder: TempDir,
    /// Flags that it was started with.
    flags: Vec<String>,
    addresses: Option<ControlPlaneAddresses>,
    client: Option<(reqwest::Client, String)>,
}

#[derive(Clone, Debug)]
struct ControlPlaneAddresses {
    api: String,
    mesh: String,
    health: String,
}

/// A proxy process.
pub struct Proxy {
    /// The process.
    pub process: Process,
    /// Its state directory.
    pub state: PathBuf,
    /// Its bound addresses.
    pub addresses: ProxyAddresses,
    arguments: Vec<String>,
    line: Vec<String>,
    name: String,
}

/// Where a proxy listens.
#[derive(Clone, Debug)]
pub struct ProxyAddresses {
    /// mTLS from peers.
    pub inbound: SocketAddr,
    /// The HTTP proxy port.
    pub http_proxy: Option<SocketAddr>,
    /// Upstream ports by name.
    pub upstreams: BTreeMap<String, SocketAddr>,
    /// Admin.
    pub admin: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
}

/// A proxy to start.
#[derive(Clone, Debug, Default)]
pub struct ProxySpec {
    /// Instance name, unique in the namespace.
    pub workload: String,
    /// Service account.
    pub account: String,
    /// `name.namespace`; `None` for a client only.
    pub service: Option<String>,
    /// `SERVICE_PORT:APP_PORT`.
    pub ports: Vec<String>,
    /// `NAME=PORT`.
    pub upstreams: Vec<String>,
    /// More flags; they stand in the place of those of the same name that all proxies get.
    pub flags: Vec<String>,
    /// A program with arguments that runs the proxy, such as `ip netns exec NAME`.
    pub wrapper: Vec<String>,
    /// Runs as this user.
    pub uid: Option<u32>,
    /// The proxy's program, where it is not that of the test's own build.
    pub program: Option<PathBuf>,
}

impl Mesh {
    /// Starts a control plane with these further flags.
    pub async fn start(flags: &[&str]) -> Self {
        let mut mesh = Self {
            folder: tempfile::Builder::new().prefix("heddle-test-").tempdir().expect("a temporary folder"),
            control_plane: None,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            addresses: None,
            client: None,
        };
        mesh.start_control_plane().await;
        mesh
    }

    /// Starts the control plane (again), at the same addresses as before.
    ///
    /// # Panics
    /// When it is not ready in time.
    pub async fn start_control_plane(&mut self) {
        let data = self.folder.path().join("control-plane");
        let mut command = Command::new(binary("heddle-control-plane"));
        let address = |of: fn(&ControlPlaneAddresses) -> &String| {
            self.addresses.as_ref().map_or_else(anywhere, |addresses| of(addresses).clone())
        };
        let has_own = |flag: &str| self.flags.iter().any(|own| own == flag);
        if !has_own("--mesh") {
            command.args(["--mesh", &address(|a| &a.mesh)]);
        }
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--api", &address(|a| &a.api)])
            .args(["--health", &address(|a| &a.health)])
            .arg("--context-file")
            .arg(self.context_file())
            .args(&self.flags);
        let mut process = Process::start("control-plane", command, self.folder.path());
        let addresses = eventually("the control plane's addresses", READY, || {
            let read = read_json(&data.join("addresses.json"));
            async move {
                let value = read?;
                let text = |key: &str| value[key].as_str().map(str::to_owned).ok_or(format!("no {key} in {value}"));
                Ok(ControlPlaneAddresses { api: text("api")?, mesh: text("mesh")?, health: text("health")? })
            }
        })
        .await;
        let http = reqwest_client(client_builder());
        eventually("the control plane to be ready", READY, || {
            let request = http.get(format!("http://{}/ready", addresses.health)).send();
            async move {
                match request.await {
                    Ok(response) if response.status().is_success() => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        })
        .await;
        assert!(process.is_running(), "{}", process.output());
        self.addresses = Some(addresses);
        self.control_plane = Some(process);
    }

    /// `kill -9`.
    pub fn kill_control_plane(&mut self) {
        if let Some(mut process) = self.control_plane.take() {
            process.kill();
        }
    }

    /// The context file that the first start wrote.
    pub fn context_file(&self) -> PathBuf {
        self.folder.path().join("context.yaml")
    }

    /// `heddle` with this mesh's context.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("heddle"));
        command.env("HEDDLE_CONFIG", self.context_file()).args(arguments);
        command
    }

    /// A client of the API, and its base URL.
    pub fn api(&mut self) -> (reqwest::Client, String) {
        if self.client.is_none() {
            let text = std::fs::read_to_string(self.context_file()).expect("the context file");
            let file: Value = serde_yaml_ng::from_str(&text).expect("YAML");
            let context = &file["contexts"][0];
            let text = |key: &str| context[key].as_str().unwrap_or_else(|| panic!("no {key} in {context}")).to_owned();
            let ca = reqwest::Certificate::from_pem(text("caPem").as_bytes()).expect("a CA");
            let mut headers = http::HeaderMap::new();
            let mut token: http::HeaderValue = format!("Bearer {}", text("token")).parse().expect("a token");
            token.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, token);
            let builder = client_builder().tls_certs_only([ca]).default_headers(headers);
            self.client = Some((reqwest_client(builder), text("address")));
        }
        self.client.clone().expect("made above")
    }

    /// Applies objects (a YAML stream) in one transaction and returns the revision.
    ///
    /// # Panics
    /// When the control plane refuses.
    pub async fn apply(&mut self, yaml: &str) -> u64 {
        let (status, body) = self.try_apply(yaml).await;
        assert!(status.is_success(), "{status}: {body:#}");
        body["revision"].as_u64().unwrap_or_else(|| panic!("no revision in {body}"))
    }

    /// Applies objects (a YAML stream) in one transaction and returns the answer.
    pub async fn try_apply(&mut self, yaml: &str) -> (http::StatusCode, Value) {
        let operations: Vec<Value> = serde_yaml_ng::Deserializer::from_str(yaml)
            .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
            .filter(|object: &Value| !object.is_null())
            .map(|object: Value| json!({ "apply": object }))
            .collect();
        self.transaction(json!({ "operations": operations })).await
    }

    /// Runs a transaction.
    pub async fn transaction(&mut self, body: Value) -> (http::StatusCode, Value) {
        let (client, base) = self.api();
        let response =
            client.post(format!("{base}/v1/transactions")).json(&body).send().await.expect("the API answers");
        (response.status(), response.json().await.unwrap_or_default())
    }

    /// GET of an API path.
    pub async fn get(&mut self, path: &str) -> (http::StatusCode, Value) {
        let (client, base) = self.api();
        let response = client.get(format!("{base}{path}")).send().await.expect("the API answers");
        (response.status(), response.json().await.unwrap_or_default())
    }

    /// Makes a join file for an identity.
    ///
    /// # Panics
    /// When the control plane refuses.
    pub async fn join_file(&mut self, namespace: &str, account: &str) -> PathBuf {
        let (client, base) = self.api();
        let body = json!({ "namespace": namespace, "serviceAccount": account, "ttl": "1h", "uses": 100 });
        let response = client.post(format!("{base}/v1/join-tokens")).json(&body).send().await.expect("the API answers");
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        assert!(status.is_success(), "{status}: {text}");
        let path = self.folder.path().join(format!("join-{namespace}-{account}.json"));
        write_private(&path, &text);
        path
    }

    /// Starts a proxy and waits until it is ready.
    pub async fn proxy(&mut self, namespace: &str, spec: ProxySpec) -> Proxy {
        let join = self.join_file(namespace, &spec.account).await;
        let state = self.folder.path().join(format!("state-{}", spec.workload));
        let mut wrapper = spec.wrapper;
        if let Some(uid) = spec.uid {
            let own = |path: &Path| std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("root gives away");
            std::fs::create_dir(&state).expect("a state directory");
            open_to_others(self.folder.path(), 0o711);
            open_to_others(&state, 0o700);
            own(&state);
            own(&join);
            let user = ["setpriv", &format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"];
            wrapper.extend(user.map(str::to_owned));
        }
        let program = spec.program.unwrap_or_else(|| binary("heddle-proxy"));
        wrapper.push(program.into_os_string().into_string().expect("a path in UTF-8"));
        let mut arguments: Vec<String> = ["--workload", &spec.workload, "--state-dir"].map(str::to_owned).to_vec();
        arguments.push(state.display().to_string());
        arguments.extend(["--join".to_owned(), join.display().to_string()]);
        for (flag, value) in [
            ("--inbound", anywhere()),
            ("--captured", "off".to_owned()),
            ("--http-proxy", anywhere()),
            ("--admin", anywhere()),
            ("--health", anywhere()),
            // The apps of tests outlive their proxies, which wait for them until then.
            ("--drain-deadline", "5s".to_owned()),
        ] {
            if !spec.flags.iter().any(|own| own == flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        if let Some(service) = &spec.service {
            arguments.extend(["--service".to_owned(), service.clone()]);
        }
        for port in &spec.ports {
            arguments.extend(["--port".to_owned(), port.clone()]);
        }
        for upstream in &spec.upstreams {
            arguments.extend(["--upstream".to_owned(), upstream.clone()]);
        }
        arguments.extend(spec.flags);
        let mut proxy = Proxy::launch(&spec.workload, wrapper, arguments, state, self.folder.path()).await;
        proxy.wait_ready().await;
        proxy
    }
}

impl Proxy {
    /// `line`: a program, and what comes before its arguments.
    async fn launch(name: &str, line: Vec<String>, arguments: Vec<String>, state: PathBuf, folder: &Path) -> Self {
        let (program, rest) = line.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(rest);
        command.args(&arguments);
        let written = state.join("addresses.json");
        let _ = std::fs::remove_file(&written);
        let process = Process::start(name, command, folder);
        let addresses = eventually(&format!("the addresses of {name}"), READY, || {
            let read = read_json(&written);
            async move { ProxyAddresses::parse(&read?) }
        })
        .await;
        Self { process, state, addresses, arguments, line, name: name.to_owned() }
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn wait_ready(&mut self) {
        let client = reqwest_client(client_builder());
        let url = format!("http://{}/ready", self.addresses.health);
        eventually(&format!("{} to be ready", self.name), READY, || {
            let request = client.get(&url).send();
            async move {
                match request.await {
                    Ok(response) if response.status().is_success() => Ok(()),
                    Ok(response) => {
                        Err(format!("{}: {}", response.status(), response.text().await.unwrap_or_default()))
                    }
                    Err(error) => Err(format!("{error:?}")),
                }
            }
        })
        .await;
    }

    /// Starts it again after its process has ended, with the same settings and addresses.
    pub async fn restart(&mut self, folder: &Path) {
        self.process.kill();
        let mut arguments = self.arguments.clone();
        for (flag, address) in [
            ("--inbound", Some(self.addresses.inbound)),
            ("--http-proxy", self.addresses.http_proxy),
            ("--admin", Some(self.addresses.admin)),
            ("--health", Some(self.addresses.health)),
        ] {
            if let (Some(at), Some(address)) = (arguments.iter().position(|argument| argument == flag), address) {
                arguments[at + 1] = address.to_string();
            }
        }
        let line = self.line.clone();
        let fresh = Self::launch(&self.name, line, arguments.clone(), self.state.clone(), folder).await;
        *self = fresh;
        self.arguments = arguments;
        self.wait_ready().await;
    }

    /// Waits until its state directory names this, so that it will know it after a `kill -9`.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn wait_kept(&self, name: &str) {
        let file = self.state.join("resources.bin");
        eventually(&format!("{name} in {}", file.display()), READY, || {
            let bytes = std::fs::read(&file).unwrap_or_default();
            let kept = bytes.windows(name.len()).any(|window| window == name.as_bytes());
            async move { if kept { Ok(()) } else { Err(format!("{} bytes without it", bytes.len())) } }
        })
        .await;
    }

    /// A client that goes through the HTTP proxy port.
    ///
    /// # Panics
    /// When the proxy has no such port.
    pub fn client(&self) -> reqwest::Client {
        let address = self.addresses.http_proxy.expect("an HTTP proxy port");
        let proxy = reqwest::Proxy::http(format!("http://{address}")).expect("a URL");
        reqwest_client(client_builder().proxy(proxy).redirect(reqwest::redirect::Policy::none()))
    }

    /// The text of `/metrics`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn metrics(&self) -> String {
        let client = reqwest_client(client_builder());
        let url = format!("http://{}/metrics", self.addresses.health);
        client.get(url).send().await.expect("metrics").text().await.expect("text")
    }

    /// Sum of the series of a metric whose labels contain all of `labels` (`name="value"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.metrics()
            .await
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The admin port's config dump.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn config_dump(&self) -> Value {
        let client = reqwest_client(client_builder());
        let url = format!("http://{}/config_dump", self.addresses.admin);
        client.get(url).send().await.expect("a config dump").json().await.expect("JSON")
    }
}

impl ProxyAddresses {
    fn parse(value: &Value) -> Result<Self, String> {
        let address = |value: &Value| value.as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        let required = |key: &str| address(&value[key]).ok_or(format!("no {key} in {value}"));
        Ok(Self {
            inbound: required("inbound")?,
            http_proxy: address(&value["httpProxy"]),
            upstreams: value["upstreams"]
                .as_object()
                .map(|all| all.iter().filter_map(|(name, at)| Some((name.clone(), address(at)?))).collect())
                .unwrap_or_default(),
            admin: required("admin")?,
            health: required("health")?,
        })
    }
}

/// A client that asks no proxy on its way.
pub fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy()
}

/// A client with the workspace's TLS provider.
///
/// # Panics
/// Never, in practice: the settings are constant.
pub fn reqwest_client(builder: reqwest::ClientBuilder) -> reqwest::Client {
    // An error means that the process has one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    builder.build().expect("a client")
}

fn read_json(path: &Path) -> Result<Value, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

fn open_to_others(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a folder of one's own");
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).expect("a file");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("written");
}

/// Where a process listens, and will listen again after a restart.
fn anywhere() -> String {
    format!("127.0.0.1:{}", free_port())
}
