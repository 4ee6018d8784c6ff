//! Attestation in Kubernetes: the API server says whose the token is that was projected into a pod.

use std::{sync::Arc, time::Duration};

use heddle_kubernetes::names::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};

/// Longest token; those of the API server have below 2 KiB.
const MAX_TOKEN: usize = 16 * 1024;
/// Reviews under way at once: whoever holds no certificate can ask for one.
const MAX_REVIEWS: usize = 32;
/// Longest wait for room, and then for the API server's answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// What an API server says of a token that it refuses is passed on, up to here.
const MAX_REASON: usize = 300;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Whom a token is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reviewed {
    /// Namespace of the pod and its service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod.
    pub pod: String,
    /// Which of all pods that ever had this name.
    pub uid: String,
}

/// Why a token attests nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReviewError {
    /// It is no token of a pod of this cluster for Heddle, or not any more.
    #[error("the service account's token is refused: {0}")]
    Refused(String),
    /// Nobody can say now: try again.
    #[error("the service account's token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct TokenReviewer {
    api: Api<TokenReview>,
    room: Arc<Semaphore>,
}

impl TokenReviewer {
    /// One that asks through this client, which may create TokenReviews.
    pub(crate) fn new(client: Client) -> Self {
        Self { api: Api::all(client), room: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }

    /// Whom a projected token is of.
    ///
    /// # Errors
    /// It is refused, or cannot be reviewed now.
    pub(crate) async fn review(&self, token: &str) -> Result<Reviewed, ReviewError> {
        if token.len() > MAX_TOKEN {
            return Err(ReviewError::Refused(format!("it has more than {MAX_TOKEN} bytes")));
        }
        let busy = || ReviewError::Unavailable("too many wait for it".to_owned());
        let _room = timeout(PATIENCE, self.room.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let asked = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]), token: token.to_owned() },
            ..TokenReview::default()
        };
        let answer = match timeout(PATIENCE, self.api.create(&PostParams::default(), &asked)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                let reason = "the control plane may not create tokenreviews.authentication.k8s.io";
                tracing::error!(said = status.message, "{reason}: apply the output of `heddle install` again");
                return Err(ReviewError::Unavailable(reason.to_owned()));
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a service account's token cannot be reviewed"
                );
                return Err(ReviewError::Unavailable("the API server does not answer as it should".to_owned()));
            }
            Err(_) => return Err(ReviewError::Unavailable("the API server does not answer".to_owned())),
        };
        verdict(answer.status.unwrap_or_default())
    }
}

impl std::fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviewer").finish_non_exhaustive()
    }
}

/// What an answer of the API server means.
fn verdict(status: TokenReviewStatus) -> Result<Reviewed, ReviewError> {
    let refused = |reason: String| Err(ReviewError::Refused(reason));
    if status.authenticated != Some(true) {
        let said = status.error.filter(|said| !said.is_empty()).unwrap_or_else(|| "it is no valid token".to_owned());
        return refused(said.chars().take(MAX_REASON).collect());
    }
    // An API server that knows of no audiences answers without any.
    if !status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return refused(format!("it is not for the audience {TOKEN_AUDIENCE}"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return refused("it is not of a service account".to_owned());
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (one(POD_NAME), one(POD_UID)) else {
        return refused("it is bound to no pod; only one that was projected into a pod ends with it".to_owned());
    };
    Ok(Reviewed { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod, uid })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The verdict on an answer, as the API server gives one for a pod's token, with this put over it.
    fn verdict_with(path: &str, value: serde_json::Value) -> Result<Reviewed, ReviewError> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["heddle.dev"],
            "user": {
                "username": "system:serviceaccount:shop:orders",
                "uid": "1",
                "groups": ["system:serviceaccounts"],
                "extra": { POD_NAME: ["orders-7"], POD_UID: ["abc"], "authentication.kubernetes.io/node-name": ["n"] },
            },
        });
        let (at, key) = path.rsplit_once('|').unwrap_or(("", path));
        let at = at.split('|').filter(|key| !key.is_empty()).fold(&mut status, |at, key| &mut at[key]);
        at[key] = value;
        verdict(serde_json::from_value(status).unwrap())
    }

    fn refused_with(path: &str, value: serde_json::Value) -> String {
        match verdict_with(path, value) {
            Err(ReviewError::Refused(reason)) => reason,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn a_token_of_a_pod_is_of_its_service_account() {
        let reviewed = verdict_with("user|uid", "2".into()).unwrap();
        assert_eq!((&*reviewed.namespace, &*reviewed.service_account), ("shop", "orders"));
        assert_eq!((&*reviewed.pod, &*reviewed.uid), ("orders-7", "abc"));
    }

    #[test]
    fn anything_less_is_refused_with_a_reason() {
        assert_eq!(refused_with("authenticated", false.into()), "it is no valid token");
        assert_eq!(refused_with("authenticated", serde_json::Value::Null), "it is no valid token");
        assert!(refused_with("audiences", json!([])).contains("audience heddle.dev"));
        assert!(refused_with("audiences", serde_json::Value::Null).contains("audience heddle.dev"));
        assert!(refused_with("audiences", json!(["https://kubernetes.default.svc"])).contains("audience heddle.dev"));
        for user in ["admin", "system:node:n", "system:serviceaccount:shop", ""] {
            assert!(refused_with("user|username", user.into()).contains("not of a service account"), "{user}");
        }
        assert!(refused_with("user|extra", json!({})).contains("bound to no pod"));
        assert!(refused_with("user|extra", json!({ POD_NAME: ["a"] })).contains("bound to no pod"));
        assert!(refused_with(&format!("user|extra|{POD_UID}"), json!(["a", "b"])).contains("bound to no pod"));
        assert!(refused_with("user", serde_json::Value::Null).contains("not of a service account"));
    }

    #[test]
    fn what_the_api_server_says_is_passed_on_in_short() {
        let said = verdict(TokenReviewStatus {
            error: Some("service account token has expired ".repeat(100)),
            ..TokenReviewStatus::default()
        });
        let Err(ReviewError::Refused(reason)) = said else { panic!("{said:?}") };
        assert!(reason.starts_with("service account token has expired") && reason.len() == MAX_REASON, "{reason}");
    }
}
