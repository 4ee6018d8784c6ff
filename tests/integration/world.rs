//! The mesh that most tests start from: `client` calls `echo`, and `stranger` may not.

use heddle_tests::{
    app::App,
    mesh::{Mesh, Proxy, ProxySpec},
};

/// `echo` serves port 80, and lets `client` in.
pub(crate) const ECHO: &str = "
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: echo, namespace: test }
spec:
  ports: [{ port: 80, protocol: http }]
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: echo-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: ALLOW
  rules:
    - name: client
      from: [{ identities: [test/client] }]
";

/// A control plane, the app `echo` behind its proxy, and the proxy of `client`.
pub(crate) struct World {
    pub(crate) app: App,
    pub(crate) server: Proxy,
    pub(crate) client: Proxy,
    /// Last: its folder has the logs, which the others show when a test fails.
    pub(crate) mesh: Mesh,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(&[], ECHO).await
    }

    /// With further flags of the control plane, and other resources.
    pub(crate) async fn with(flags: &[&str], resources: &str) -> Self {
        let mut mesh = Mesh::start(flags).await;
        mesh.apply(resources).await;
        let app = App::start("echo").await;
        let server = mesh.proxy("test", serving("echo-1", "echo", &[format!("80:{}", app.address.port())])).await;
        let client = mesh.proxy("test", calling("client")).await;
        Self { mesh, app, server, client }
    }
}

/// The proxy of an instance of a service of namespace `test`.
pub(crate) fn serving(workload: &str, service: &str, ports: &[String]) -> ProxySpec {
    ProxySpec {
        workload: workload.to_owned(),
        account: service.to_owned(),
        service: Some(format!("{service}.test")),
        ports: ports.to_vec(),
        ..ProxySpec::default()
    }
}

/// The proxy of an app that only calls.
pub(crate) fn calling(account: &str) -> ProxySpec {
    ProxySpec { workload: format!("{account}-1"), account: account.to_owned(), ..ProxySpec::default() }
}
