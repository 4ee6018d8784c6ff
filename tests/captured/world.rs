//! Clients in one namespace, servers in the other, a proxy in each, and traffic redirected to them.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

pub(crate) use heddle_tests::captured::{APP, PROXY, capture};
use heddle_tests::{
    captured::captured,
    mesh::{Mesh, Proxy, ProxySpec},
    netns::{Family, Namespace, Pair},
    peer,
    process::Process,
};

/// `echo` serves what nginx has on 8080, `private` what it has on 8081 of loopback alone, `open` what it has on 8082
/// and lets those without a sidecar in; 8083 is no service.
const RESOURCES: &str = "
apiVersion: heddle.dev/v1
kind: MeshConfig
metadata: { name: mesh }
spec: { egress: allow, cidrs: [10.88.0.0/24, 'fd88::/64', 10.99.0.0/16, 'fd99::/64'] }
---
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: echo, namespace: test }
spec:
  ports:
    - { port: 80, targetPort: 8080 }
    - { port: 81, targetPort: 8081, mtls: permissive }
    - { port: 82, targetPort: 8082, mtls: permissive }
    @PORT@
  addresses: [10.99.0.1, 'fd99::1']
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: echo-callers, namespace: test }
spec:
  targetRef: { kind: Service, name: echo }
  action: ALLOW
  rules:
    - { name: client, from: [{ identities: [test/client] }] }
    - { name: anybody, from: [{ unauthenticated: true }], to: [{ ports: [81, 82@MORE@] }] }
";

const NGINX: &str = "
daemon off; master_process off; pid @DIR@/nginx.pid; error_log stderr;
events {}
http {
  access_log off; client_body_temp_path @DIR@; proxy_temp_path @DIR@; fastcgi_temp_path @DIR@;
  uwsgi_temp_path @DIR@; scgi_temp_path @DIR@;
  add_header x-port $server_port always; add_header x-client $http_x_forwarded_client_cert always;
  add_header x-host $http_host always;
  server { listen 8080; listen [::]:8080; listen 8082; listen [::]:8082; listen 8083; listen [::]:8083; return 200 ok; }
  server { listen 127.0.0.1:8081; listen [::1]:8081; return 200 private; }
}
";

/// What there is in most tests.
pub(crate) struct World {
    pub(crate) client: Proxy,
    pub(crate) server: Proxy,
    pub(crate) family: Family,
    /// They end with the world.
    _nginx: Process,
    pub(crate) mesh: Mesh,
    pub(crate) pair: Pair,
}

/// An answer as curl tells it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of the answer, lower case, with the body after an empty line.
    pub(crate) text: String,
    /// curl's own verdict.
    pub(crate) exit: Option<i32>,
}

impl World {
    /// Makes one whose clients dial addresses of this family; `None` where it cannot be made.
    pub(crate) async fn start(family: Family) -> Option<Self> {
        Self::with(family, None, &[]).await
    }

    /// With one more port of `echo`, 90: what listens at this port of the server's pod.
    pub(crate) async fn serving(family: Family, port: u16) -> Option<Self> {
        Self::with(family, Some(port), &[]).await
    }

    /// With further flags of the server's proxy.
    pub(crate) async fn with(family: Family, more: Option<u16>, flags: &[&str]) -> Option<Self> {
        let pair = Pair::new()?;
        for program in ["curl", "nginx"] {
            peer::find(program)?;
        }
        pair.b.enter();
        let server_ip = pair.b.address(family);
        // Another subnet, of nobody in the mesh.
        pair.b.sh("ip addr add 10.77.0.1/24 dev eth0; ip addr add fd77::1/64 dev eth0 nodad");
        let at = SocketAddr::new(server_ip, 9701).to_string();
        let mut mesh = Mesh::start(&["--mesh", &at]).await;
        let port = more.map(|port| format!("- {{ port: 90, targetPort: {port}, mtls: permissive }}"));
        let resources = RESOURCES.replace("@MORE@", if port.is_some() { ", 90" } else { "" });
        mesh.apply(&resources.replace("@PORT@", &port.unwrap_or_default())).await;
        let nginx = nginx(&pair.b, &mesh);
        let mut ports = ["80:8080", "81:8081", "82:8082"].map(str::to_owned).to_vec();
        ports.extend(more.map(|port| format!("90:{port}")));
        let mut server = ProxySpec {
            workload: "echo-1".to_owned(),
            account: "echo".to_owned(),
            service: Some("echo.test".to_owned()),
            ports,
            ..captured(&pair.b, family)
        };
        for pair in flags.chunks(2) {
            if let Some(at) = server.flags.iter().position(|flag| flag == pair[0]) {
                server.flags.drain(at..at + 2);
            }
            server.flags.extend(pair.iter().map(|&flag| flag.to_owned()));
        }
        let server = mesh.proxy("test", server).await;
        let client = ProxySpec { workload: "client-1".into(), account: "client".into(), ..captured(&pair.a, family) };
        let client = mesh.proxy("test", client).await;
        // As a pod's init container would. The test itself looks into the proxies, from the server's side.
        capture(&pair.a, &[]);
        capture(&pair.b, &["--skip-inbound-ports", "15020,9701", "--skip-outbound-ports", "53,15020"]);
        Some(Self { family, client, server, _nginx: nginx, mesh, pair })
    }

    /// `http://` the server's address and this port.
    pub(crate) fn url(&self, port: u16) -> String {
        format!("http://{}/", SocketAddr::new(self.pair.b.address(self.family), port))
    }

    /// The server's inbound listener, as registered.
    pub(crate) fn inbound(&self) -> SocketAddr {
        SocketAddr::new(self.pair.b.address(self.family), 15006)
    }

    /// A proxy's config dump, asked for in its own pod.
    pub(crate) fn dump(&self, proxy: &Proxy, side: char) -> serde_json::Value {
        let namespace = if side == 'a' { &self.pair.a } else { &self.pair.b };
        let text = namespace.sh(&format!("curl -s --max-time 10 http://{}/config_dump", proxy.addresses.admin));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// How an app reaches what listens at this port of the server's pod, which is port 90 of the service: at the
    /// instance's address and at the service's, of both families.
    pub(crate) fn destinations(&self, port: u16) -> Vec<SocketAddr> {
        let instance = SocketAddr::new(self.pair.b.address(self.family), port);
        let service: [IpAddr; 2] = [[10, 99, 0, 1].into(), [0xfd99, 0, 0, 0, 0, 0, 0, 1].into()];
        service.into_iter().map(|ip| SocketAddr::new(ip, 90)).chain([instance]).collect()
    }

    /// An address by family.
    pub(crate) fn pick<'a>(&self, v4: &'a str, v6: &'a str) -> &'a str {
        if self.family == Family::V4 { v4 } else { v6 }
    }

    /// curl as an app of the client's pod.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Answer {
        curl(&self.pair.a, APP, arguments)
    }

    /// curl as an app of the server's pod.
    pub(crate) fn curl_in_server(&self, arguments: &[&str]) -> Answer {
        curl(&self.pair.b, APP, arguments)
    }

    /// curl as somebody whose traffic nobody captures.
    pub(crate) fn curl_without_sidecar(&self, arguments: &[&str]) -> Answer {
        curl(&self.pair.a, PROXY, arguments)
    }
}

impl Answer {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn nginx(namespace: &Namespace, mesh: &Mesh) -> Process {
    let folder = mesh.folder.path().join("nginx");
    std::fs::create_dir(&folder).expect("a folder");
    let config = folder.join("nginx.conf");
    std::fs::write(&config, NGINX.replace("@DIR@", &folder.display().to_string())).expect("a file");
    let mut command = namespace.command("nginx");
    command.arg("-c").arg(&config);
    Process::start("nginx", command, mesh.folder.path())
}

fn curl(namespace: &Namespace, uid: u32, arguments: &[&str]) -> Answer {
    let mut command: Command = namespace.command("setpriv");
    let user = [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()];
    command.args(user).args(["curl", "-si", "--max-time", "10", "--noproxy", "*"]).args(arguments);
    let output = command.output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, text, exit: output.status.code() }
}
