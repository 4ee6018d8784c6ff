//! A real Kubernetes API server with etcd and the controller that makes EndpointSlices, on loopback: pods are objects
//! that nobody runs, whose status is written here, as a kubelet would.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Longest wait for it to start.
const PATIENCE: Duration = Duration::from_secs(120);
const NODE: &str = "n1";

pub struct ApiServer {
    folder: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    etcd_port: u16,
    etcd: Child,
    server: Option<Child>,
    controllers: Option<Child>,
    pub client: Client,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(folder: &Path, program: &Path, arguments: &[String]) -> Child {
    let log = fs::File::create(folder.join(format!("{}.log", program.file_name().unwrap().display()))).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

impl ApiServer {
    /// Absent where its programs are, and nobody demands that they be there.
    pub async fn start() -> Option<Self> {
        let home = std::env::var_os("HEDDLE_K8S").map_or_else(|| "/var/tmp/heddle-k8s".into(), PathBuf::from);
        let programs = home.join("bin");
        let etcd = PathBuf::from("/usr/bin/etcd");
        let needed = [programs.join("kube-apiserver"), programs.join("kube-controller-manager"), etcd.clone()];
        if let Some(missing) = needed.iter().find(|program| !program.exists()) {
            let required = std::env::var("HEDDLE_REQUIRE_CLUSTER").is_ok_and(|value| value == "1");
            assert!(!required, "{} is missing; tests/peers/cluster.sh gets it", missing.display());
            eprintln!("SKIPPED: {} is missing; tests/peers/cluster.sh gets it", missing.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let arguments = [
            format!("--data-dir={}", folder.path().join("etcd").display()),
            format!("--listen-client-urls={}", url(etcd_port)),
            format!("--advertise-client-urls={}", url(etcd_port)),
            format!("--listen-peer-urls={}", url(peer_port)),
            format!("--initial-advertise-peer-urls={}", url(peer_port)),
            format!("--initial-cluster=default={}", url(peer_port)),
        ];
        let etcd = spawn(folder.path(), &etcd, &arguments);
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.path().join("sa.key"), key.serialize_pem()).unwrap();
        fs::write(folder.path().join("sa.pub"), key.public_key_pem()).unwrap();
        fs::write(folder.path().join("tokens.csv"), "secret,admin,1,\"system:masters\"\n").unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true,
            } }],
            "users": [{ "name": "u", "user": { "token": "secret" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        });
        fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let server = Some(Self::serve(folder.path(), &programs, etcd_port, port));
        let access = heddle_control_plane::kubernetes::Access::Kubeconfig(folder.path().join("kubeconfig"));
        let client = heddle_control_plane::kubernetes::connect(&access).await.unwrap().client().clone();
        let mut started = Self { folder, programs, port, etcd_port, etcd, server, controllers: None, client };
        started.answers().await;
        let arguments = [
            "--kubeconfig=kubeconfig",
            "--controllers=endpointslice-controller",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ];
        let controllers = spawn(
            started.folder.path(),
            &started.programs.join("kube-controller-manager"),
            &arguments.map(str::to_owned),
        );
        started.controllers = Some(controllers);
        started.send("POST", "/api/v1/namespaces", json!({ "metadata": { "name": "shop" } })).await;
        let labels = json!({ "topology.kubernetes.io/zone": "zone-a" });
        started.send("POST", "/api/v1/nodes", json!({ "metadata": { "name": NODE, "labels": labels } })).await;
        Some(started)
    }

    fn serve(folder: &Path, programs: &Path, etcd_port: u16, port: u16) -> Child {
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=10.255.255.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--cert-dir=certificates".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_owned(),
            "--authorization-mode=AlwaysAllow".to_owned(),
            "--token-auth-file=tokens.csv".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-account-key-file=sa.pub".to_owned(),
            "--service-account-signing-key-file=sa.key".to_owned(),
        ];
        spawn(folder, &programs.join("kube-apiserver"), &arguments)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Ends the API server at once. What it knows is in etcd.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it again.
    pub async fn start_again(&mut self) {
        self.server = Some(Self::serve(self.folder.path(), &self.programs, self.etcd_port, self.port));
        self.answers().await;
    }

    async fn answers(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            match self.client.request_text(request).await {
                Ok(_) => return,
                Err(error) => {
                    let log = fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
                    assert!(Instant::now() < end, "the API server does not answer: {error}\n{log}");
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Sends a document.
    pub async fn send(&self, method: &str, path: &str, document: Value) -> Value {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", media);
        let request = request.body(serde_json::to_vec(&document).unwrap()).unwrap();
        self.client.request(request).await.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A Service of pods labelled `app: <name>`, port 80 at the pods' port `web`.
    pub async fn service(&self, name: &str, spec: Value) {
        let mut document = json!({
            "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": "web" }] },
        });
        for (key, value) in spec.as_object().unwrap() {
            document["spec"][key] = value.clone();
        }
        self.send("POST", "/api/v1/namespaces/shop/services", document).await;
    }

    /// A pod with a proxy, or without, that its kubelet has started.
    pub async fn pod(&self, app: &str, name: &str, ip: &str, meshed: bool) {
        let sidecar = json!([{ "name": "heddle-proxy", "image": "proxy", "restartPolicy": "Always" }]);
        let port = json!([{ "name": "web", "containerPort": 8080 }]);
        let document = json!({
            "metadata": { "name": name, "labels": { "app": app } },
            "spec": {
                "nodeName": NODE, "serviceAccountName": app, "hostname": name, "subdomain": app,
                "containers": [{ "name": "app", "image": "app", "ports": port }],
                "initContainers": if meshed { sidecar } else { json!([]) },
            },
        });
        self.send("POST", "/api/v1/namespaces/shop/pods", document).await;
        self.status(name, ip, true).await;
    }

    /// What a kubelet says of a pod.
    pub async fn status(&self, name: &str, ip: &str, ready: bool) {
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        } });
        self.send("PATCH", &format!("/api/v1/namespaces/shop/pods/{name}/status"), status).await;
    }

    /// Removes a pod at once.
    pub async fn delete_pod(&self, name: &str) {
        let now = json!({ "gracePeriodSeconds": 0 });
        self.send("DELETE", &format!("/api/v1/namespaces/shop/pods/{name}"), now).await;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [self.controllers.as_mut(), self.server.as_mut(), Some(&mut self.etcd)].into_iter().flatten() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
