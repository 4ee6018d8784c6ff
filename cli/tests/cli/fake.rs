//! A control plane's API that answers by a closure and remembers what it was asked, and `heddle`
//! with a context for it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tempfile::TempDir;

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// `GET /v1/services?limit=500`.
    pub(crate) line: String,
    /// The `Authorization` header.
    pub(crate) authorization: String,
    /// JSON, or null.
    pub(crate) body: Value,
}

/// What a test wants as answer: a status and a body.
pub(crate) type Answer = (u16, String);

/// JSON as an answer.
pub(crate) fn json(status: u16, value: &Value) -> Answer {
    (status, value.to_string())
}

/// The fake, with a folder for the test.
pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    // Ends the server with the test.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    /// A TLS server and a context file for it.
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (address, stop) = serve(Some(Arc::new(tls)), {
            let asked = Arc::clone(&asked);
            move |request: Asked| {
                asked.lock().unwrap().push(request.clone());
                answer(&request)
            }
        });
        let context = serde_json::json!({"currentContext": "fake",
            "contexts": [{"name": "fake", "address": format!("https://{address}"), "caPem": ca_pem, "token": "heddle_secret"}]});
        let config = folder.path().join("config.yaml");
        write_private(&config, &context.to_string());
        Self { folder, address, asked, _stop: stop }
    }

    /// Everything that was asked so far, as request lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `heddle` with this context.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = heddle(arguments);
        command.env("HEDDLE_CONFIG", self.path("config.yaml"));
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments))
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// `heddle` with no environment but what it needs.
pub(crate) fn heddle(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn ended(mut command: Command) -> Ended {
    command.output().unwrap().into()
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Waits for something to become true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let mut left = Duration::from_secs(20);
    let step = Duration::from_millis(20);
    while !holds() {
        assert!(!left.is_zero(), "waited in vain: {what}");
        std::thread::sleep(step);
        left = left.saturating_sub(step);
    }
}

/// Serves on a thread of its own until the returned end is dropped.
pub(crate) fn serve(
    tls: Option<Arc<rustls::ServerConfig>>,
    answer: impl Fn(Asked) -> Answer + Send + Sync + 'static,
) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let accept = async {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (tls, answer) = (tls.clone(), Arc::clone(&answer));
                    tokio::spawn(async move {
                        match tls {
                            Some(tls) => {
                                if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
                                    connection(TokioIo::new(stream), answer).await;
                                }
                            }
                            None => connection(TokioIo::new(socket), answer).await,
                        }
                    });
                }
            };
            tokio::select! { () = accept => {} _ = stopped => {} }
        });
    });
    (address, stop)
}

async fn connection<I>(io: TokioIo<I>, answer: Arc<impl Fn(Asked) -> Answer + Send + Sync + 'static>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let header = request.headers().get("authorization");
            let authorization = header.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            // A test may make its answer wait.
            let (status, text) =
                tokio::task::spawn_blocking(move || answer(Asked { line, authorization, body })).await.unwrap();
            Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}
