//! Keeps the mesh's roots in the webhook's configuration (`caBundle`): under them the API server checks whom it sends
//! pods to.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use heddle_kubernetes::names::WEBHOOK_CONFIGURATION;
use heddle_runtime::drain;
use http::{Method, Request, header};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::authority::Signer;

/// Until it is right: it may be installed after the control plane.
const SOON: Duration = Duration::from_secs(1);
/// From then on: somebody may have changed it, or the roots be others.
const LATER: Duration = Duration::from_secs(10);

/// Runs until drained.
pub(super) async fn keep(client: Client, signer: Arc<Signer>, drain: drain::Watch) {
    let mut said = None;
    loop {
        let roots = STANDARD.encode(signer.bundle().to_pem());
        let (pause, now) = match put(&client, &roots).await {
            Ok(true) => {
                tracing::info!(
                    configuration = WEBHOOK_CONFIGURATION,
                    "the webhook's configuration has the mesh's roots"
                );
                (LATER, None)
            }
            Ok(false) => (LATER, None),
            Err(error) => (SOON, Some(error.to_string())),
        };
        // Once for each reason: it is tried every second.
        if now.is_some() && now != said {
            let error = now.as_deref().unwrap_or_default();
            tracing::warn!(
                configuration = WEBHOOK_CONFIGURATION,
                error,
                "the mesh's roots cannot be put into the webhook's configuration; pods get no proxy"
            );
        }
        said = now;
        tokio::select! {
            () = sleep(pause) => {}
            () = drain.drained() => return,
        }
    }
}

/// Whether anything had to be changed.
async fn put(client: &Client, roots: &str) -> Result<bool, kube::Error> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK_CONFIGURATION}");
    let request = |method: Method, body: Vec<u8>| {
        let request = Request::builder().method(method).uri(&path);
        let request = request.header(header::CONTENT_TYPE, "application/json-patch+json");
        request.body(body).map_err(kube::Error::HttpError)
    };
    let configuration: Value = client.request(request(Method::GET, Vec::new())?).await?;
    let patch = patch(&configuration, roots);
    if patch.is_empty() {
        return Ok(false);
    }
    let _: Value = client.request(request(Method::PATCH, Value::from(patch).to_string().into_bytes())?).await?;
    Ok(true)
}

/// What is to be changed so that each webhook has the roots; nothing if they do. Refused by the API server if somebody
/// else changes it meanwhile.
pub(super) fn patch(configuration: &Value, roots: &str) -> Vec<Value> {
    let webhooks = configuration["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wrong = webhooks.iter().enumerate().filter(|(_, webhook)| webhook["clientConfig"]["caBundle"] != roots);
    let mut changes: Vec<_> = wrong
        .map(|(index, _)| {
            json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": roots })
        })
        .collect();
    if !changes.is_empty() {
        let version = &configuration["metadata"]["resourceVersion"];
        changes.insert(0, json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }));
    }
    changes
}
