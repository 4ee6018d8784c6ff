//! The mesh that these tests start from: one client, and a proxy before each app.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use heddle_tests::mesh::{Mesh, Proxy, ProxySpec};

/// What a service is called by, speaks, and listens at.
pub(crate) struct Service {
    name: &'static str,
    protocol: &'static str,
    app: u16,
    permissive: bool,
}

impl Service {
    /// `protocol` as a port declares it; empty: to be found out.
    pub(crate) fn new(name: &'static str, protocol: &'static str, app: u16) -> Self {
        Self { name, protocol, app, permissive: false }
    }

    /// Callers without a sidecar may come in, too.
    pub(crate) fn permissive(self) -> Self {
        Self { permissive: true, ..self }
    }
}

/// Apps behind their proxies, and the proxy of the one who calls them.
pub(crate) struct World {
    pub(crate) client: Proxy,
    /// In the order of the services.
    pub(crate) servers: Vec<Proxy>,
    names: Vec<&'static str>,
    /// Last: its folder has the logs, which the others show when a test fails.
    pub(crate) mesh: Mesh,
}

impl World {
    pub(crate) async fn start(services: &[Service]) -> Self {
        Self::with(services, "").await
    }

    /// With further resources.
    pub(crate) async fn with(services: &[Service], resources: &str) -> Self {
        let mut mesh = Mesh::start(&[]).await;
        let described: String = services.iter().map(describe).collect();
        mesh.apply(&format!("{described}{resources}")).await;
        let mut servers = Vec::new();
        for Service { name, app, .. } in services {
            let spec = ProxySpec {
                workload: format!("{name}-1"),
                account: (*name).to_owned(),
                service: Some(format!("{name}.test")),
                ports: vec![format!("80:{app}")],
                ..ProxySpec::default()
            };
            servers.push(mesh.proxy("test", spec).await);
        }
        let spec = ProxySpec {
            workload: "client-1".to_owned(),
            account: "client".to_owned(),
            upstreams: services.iter().map(|service| format!("{}.test:80=0", service.name)).collect(),
            ..ProxySpec::default()
        };
        let client = mesh.proxy("test", spec).await;
        let names = services.iter().map(|service| service.name).collect();
        Self { client, servers, names, mesh }
    }

    /// Where the client's proxy takes connections for this service.
    pub(crate) fn upstream(&self, name: &str) -> SocketAddr {
        let upstreams = &self.client.addresses.upstreams;
        *upstreams.get(&format!("{name}.test:80")).unwrap_or_else(|| panic!("no {name} in {upstreams:?}"))
    }

    /// The proxy before this service's app.
    pub(crate) fn server(&self, name: &str) -> &Proxy {
        let index = self.names.iter().position(|known| *known == name).expect("a service of this world");
        &self.servers[index]
    }

    pub(crate) fn folder(&self) -> &Path {
        self.mesh.folder.path()
    }
}

fn describe(Service { name, protocol, permissive, .. }: &Service) -> String {
    let protocol = if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
    let (mtls, strangers) = if *permissive { (", mtls: permissive", ", { unauthenticated: true }") } else { ("", "") };
    format!(
        "
---
apiVersion: heddle.dev/v1
kind: Service
metadata: {{ name: {name}, namespace: test }}
spec: {{ ports: [{{ port: 80{protocol}{mtls} }}] }}
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: {{ name: {name}-callers, namespace: test }}
spec:
  targetRef: {{ kind: Service, name: {name} }}
  action: ALLOW
  rules: [{{ from: [{{ identities: [test/client] }}{strangers}] }}]
"
    )
}

/// Runs a program to its end, beside what else the test does, and gives what it wrote.
///
/// # Panics
/// When it takes longer than two minutes.
pub(crate) async fn run(mut command: Command) -> Output {
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
pub(crate) async fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {}\n{text}\n{errors}", output.status);
    text
}

/// A program beside these tests.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("protocols").join(name)
}
