//! An AdmissionReview (`admission.k8s.io/v1`) and what is answered.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use heddle_kubernetes::{
    inject::{Injector, Outcome},
    patch::{Change, json_patch},
    settings::Inject,
};
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// A name in the log of what has none yet.
const MAX_UID: usize = 256;

/// What the API server asks.
#[derive(Debug)]
pub(super) struct Review {
    uid: String,
    /// Of the pod; the API server fills it in.
    pub(super) namespace: String,
    /// Or what its name will begin with.
    pub(super) name: String,
    /// `None`: it is not about making a pod.
    pod: Option<Value>,
}

/// What becomes of a pod.
#[derive(Debug)]
pub(super) enum Answer {
    /// It gets a proxy.
    Changed(Vec<Change>),
    /// It stays as it is; why.
    Left(String),
    /// It must not be made; why.
    Refused(String),
}

/// What is no review.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("this is no JSON: {0}")]
    Json(String),
    #[error("{0} is not right: {1}")]
    Field(&'static str, &'static str),
}

impl Review {
    /// # Errors
    /// Anything but what an API server sends.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut review: Value = serde_json::from_slice(body).map_err(|error| Malformed::Json(error.to_string()))?;
        let wrong = |field, right| Err(Malformed::Field(field, right));
        if review["apiVersion"] != API_VERSION {
            return wrong("apiVersion", "it is admission.k8s.io/v1");
        }
        if review["kind"] != KIND {
            return wrong("kind", "it is AdmissionReview");
        }
        let request = review["request"].take();
        let text = |path: &str| request.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let uid = text("/uid").to_owned();
        if uid.is_empty() || uid.len() > MAX_UID {
            return wrong("request.uid", "it is text of at most 256 bytes");
        }
        let (namespace, operation) = (text("/namespace").to_owned(), text("/operation"));
        if !["CREATE", "UPDATE", "DELETE", "CONNECT"].contains(&operation) {
            return wrong("request.operation", "it is CREATE, UPDATE, DELETE or CONNECT");
        }
        let of = (text("/kind/group"), text("/kind/version"), text("/kind/kind"), text("/subResource"));
        let creates_pod = operation == "CREATE" && of == ("", "v1", "Pod", "");
        let metadata = |key: &str| text(&format!("/object/metadata/{key}")).to_owned();
        let name = Some(metadata("name")).filter(|name| !name.is_empty()).unwrap_or_else(|| metadata("generateName"));
        let mut pod = None;
        if creates_pod {
            let object = &request["object"];
            if object["apiVersion"] != "v1" || object["kind"] != "Pod" || !object["spec"].is_object() {
                return wrong("request.object", "it is the Pod that is made");
            }
            if namespace.is_empty() {
                return wrong("request.namespace", "it is the Pod's");
            }
            pod = Some(object.clone());
        }
        Ok(Self { uid, namespace, name, pod })
    }

    /// What becomes of the pod. Only what asks for a proxy is sent, so it gets one unless it says otherwise.
    pub(super) fn decide(&self, injector: &Injector, strict: bool) -> Answer {
        let Some(pod) = &self.pod else { return Answer::Left("no pod is made".to_owned()) };
        match injector.inject(pod, Some(Inject::Enabled)) {
            Err(error) => Answer::Refused(error.why.to_string()),
            Ok(mut pods) => match pods.pop().map(|pod| pod.outcome) {
                Some(Outcome::Changed(_)) if strict => Answer::Refused(format!(
                    "namespace {} has pod-security.kubernetes.io/enforce: baseline or restricted, which refuses injected \
                     pods: their init container heddle-capture needs NET_ADMIN. Set the level privileged for the \
                     namespace, or heddle.dev/inject: disabled for it or the pod",
                    self.namespace
                )),
                Some(Outcome::Changed(changes)) => Answer::Changed(changes),
                Some(Outcome::Left(reason)) => Answer::Left(format!("it {reason}")),
                None => Answer::Left("it is no pod".to_owned()),
            },
        }
    }

    /// The whole answer.
    pub(super) fn response(&self, answer: &Answer) -> Value {
        let mut response = json!({ "uid": self.uid, "allowed": !matches!(answer, Answer::Refused(_)) });
        match answer {
            Answer::Changed(changes) => {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = STANDARD.encode(json_patch(changes).to_string()).into();
            }
            Answer::Left(_) => {}
            Answer::Refused(problem) => {
                response["status"] =
                    json!({ "code": 422, "reason": "Invalid", "message": format!("heddle: {problem}") });
            }
        }
        json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response })
    }
}

impl Answer {
    /// For metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Changed(_) => "injected",
            Self::Left(_) => "left",
            Self::Refused(_) => "refused",
        }
    }
}
