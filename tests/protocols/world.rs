//! The mesh that these tests start from: one client, and a proxy before each app.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
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

/// A program beside these tests.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("protocols").join(name)
}
