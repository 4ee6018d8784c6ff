//! The mutating webhook of Kubernetes: the API server sends pods that are being made, and each that asks for it gets
//! its proxy. What becomes of a pod is decided by the same code as `heddle inject`.
//!
//! The certificate is the control plane's own, under the mesh's roots; `authority` keeps those in the webhook's
//! configuration, so that replacing a root needs nobody's hand here.

mod authority;
mod review;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use heddle_kubernetes::{inject::Injector, names};
use heddle_runtime::drain;
use http::{StatusCode, header};

use self::review::{Answer, Review};
use crate::{
    authority::Signer,
    certificate::Certificate,
    config::Config,
    kubernetes::Cluster,
    listener::{self, BindError, Http, Listener, Room},
    metrics::Metrics,
};

/// The API server keeps a few connections; a cluster has a few API servers.
const ROOM: Room = Room { connections: 512, unverified: 512, staying: 512, per_source: 256 };
/// Largest review: an object in etcd has 1.5 MiB at most, and a review holds it once, or twice.
const MAX_REVIEW: usize = 4 << 20;
/// Pods of these namespaces are never changed, whatever the webhook's configuration sends: the cluster must come up
/// without Heddle, and Heddle without itself.
const EXEMPT: [&str; 2] = ["kube-system", "kube-node-lease"];

/// What the webhook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Image of the proxy.
    pub proxy_image: String,
    /// Image that sets capture's rules; absent: the proxy's.
    pub capture_image: Option<String>,
    /// When they are pulled; absent: as Kubernetes decides.
    pub image_pull_policy: Option<String>,
    /// Where proxies send spans; absent: nowhere.
    pub tracing_endpoint: Option<String>,
}

/// What the webhook works with.
#[derive(Debug)]
struct Webhook {
    /// All but what changes: roots, and the key of hooks.
    injector: Injector,
    signer: Arc<Signer>,
    /// The control plane's own namespace.
    namespace: String,
    metrics: Metrics,
}

/// Listens, if the settings say so; returns where.
///
/// # Errors
/// The address cannot be bound.
pub async fn start(
    config: &Config,
    signer: &Arc<Signer>,
    certificate: &Arc<Certificate>,
    cluster: Option<&Cluster>,
    metrics: &Metrics,
    drain: &drain::Watch,
) -> Result<Option<SocketAddr>, BindError> {
    let Some(settings) = config.webhook.clone() else { return Ok(None) };
    let socket = listener::bind("webhook", settings.listen).await?;
    let address = socket.local_addr().unwrap_or(settings.listen);
    let own = || names::CONTROL_PLANE_ADDRESS.to_owned();
    let injector = Injector {
        image: settings.proxy_image,
        capture_image: settings.capture_image,
        image_pull_policy: settings.image_pull_policy,
        control_plane: config.advertise_mesh.clone().unwrap_or_else(own),
        trust_domain: config.trust_domain.to_string(),
        trust_roots: String::new(),
        tracing_endpoint: settings.tracing_endpoint,
        hook_key: String::new(),
    };
    let namespace = cluster.map_or(names::NAMESPACE, |cluster| cluster.client().default_namespace()).to_owned();
    let webhook = Webhook { injector, signer: Arc::clone(signer), namespace, metrics: metrics.clone() };
    let certificate = Arc::clone(certificate);
    let listener = Listener {
        name: "webhook",
        socket,
        tls: move || certificate.api(),
        http: Http::One,
        room: ROOM,
        deadlines: None,
        metrics: metrics.clone(),
    };
    drain.spawn(listener.serve(router(webhook), drain.clone()));
    match cluster {
        Some(cluster) => {
            let (client, drain) = (cluster.client().clone(), drain.clone());
            let keep = authority::keep(client, Arc::clone(signer), drain.clone());
            drain.spawn(keep);
        }
        None => tracing::warn!(
            "setting webhook: without kubernetes or kubeconfig, the roots must be put into the webhook's configuration by hand"
        ),
    }
    Ok(Some(address))
}

fn router(webhook: Webhook) -> Router {
    let inject = |State(webhook): State<Arc<Webhook>>, body: Bytes| async move { webhook.answer(&body, false) };
    let strict = |State(webhook): State<Arc<Webhook>>, body: Bytes| async move { webhook.answer(&body, true) };
    Router::new()
        .route(names::WEBHOOK_PATH, post(inject))
        .route(names::WEBHOOK_STRICT_PATH, post(strict))
        .layer(DefaultBodyLimit::max(MAX_REVIEW))
        .with_state(Arc::new(webhook))
}

impl Webhook {
    /// To pods of strict namespaces, whose Pod Security level refuses what capture needs, it says so.
    fn answer(&self, body: &[u8], strict: bool) -> Response {
        let review = match Review::parse(body) {
            Ok(review) => review,
            Err(problem) => {
                self.count("malformed");
                tracing::warn!(%problem, "an admission review cannot be read");
                return (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response();
            }
        };
        let answer = if EXEMPT.contains(&&*review.namespace) || review.namespace == self.namespace {
            Answer::Left("its namespace is exempt".to_owned())
        } else {
            let injector = Injector {
                trust_roots: self.signer.bundle().to_pem(),
                // Whoever may read one pod must not know the key of another's.
                hook_key: format!("{:032x}", rand::random::<u128>()),
                ..self.injector.clone()
            };
            review.decide(&injector, strict)
        };
        let pod = format!("{}/{}", review.namespace, review.name);
        match &answer {
            Answer::Changed(_) => tracing::info!(pod, "injected"),
            Answer::Left(reason) => tracing::debug!(pod, reason, "not injected"),
            Answer::Refused(problem) => tracing::warn!(pod, problem, "refused"),
        }
        self.count(answer.label());
        let text = review.response(&answer).to_string();
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }

    fn count(&self, result: &str) {
        self.metrics.admissions.with_label_values(&[result]).inc();
    }
}
