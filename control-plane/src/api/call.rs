//! One request on its way to a handler: everything that all operations check alike.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use heddle_api::{
    document::{self, Format},
    problem::Fault,
    resource::{AnyObject, Name, ObjectKind},
    validate::Suggest,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::Value;

use super::{
    Api, media,
    operation::Operation,
    refusal::{Refusal, Why},
};
use crate::{
    registry::{Author, Expected},
    tokens::ApiToken,
};

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Larger bodies are parsed off the async threads.
const PARSED_AT_ONCE: usize = 256 << 10;

/// A request that was let in, taken apart.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) kind: Option<ObjectKind>,
    pub(super) token: ApiToken,
    pub(super) headers: HeaderMap,
    path: Vec<(String, String)>,
    query: BTreeMap<String, String>,
    body: Option<Value>,
    format: Format,
}

impl Call {
    /// Checks, in this order: who asks and whether they may, the query, the form of the answer, the
    /// body.
    pub(super) async fn admit(
        api: Arc<Api>,
        operation: &Operation,
        path: Result<RawPathParams, axum::extract::rejection::RawPathParamsRejection>,
        request: Request,
    ) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let token = api.doorkeeper.authenticate(&parts.headers).await?;
        if token.role < operation.role {
            let needed = operation.role;
            return Err(Refusal::new(
                Why::Forbidden,
                format!(
                    "this needs the role {}; the token {:?} has {}",
                    needed.as_str(),
                    token.name,
                    token.role.as_str()
                ),
            ));
        }
        let path = path.map_err(|_| Refusal::new(Why::Malformed, "the path does not decode to UTF-8"))?;
        let path = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let query = query(&parts.uri, operation)?;
        let watches = operation.watchable && query.get("watch").is_some_and(|value| value == "true");
        let format = if watches {
            media::accepts_lines(&parts.headers)?;
            Format::Json
        } else {
            media::accepted(&parts.headers)?
        };
        let body = match &operation.body {
            Some(wanted) => {
                let merge_patch = operation.method == Method::PATCH;
                let sent = media::sent(&parts.headers, merge_patch)?;
                let bytes = read(body, wanted.limit).await?;
                Some(parse(bytes, sent).await?)
            }
            None => None,
        };
        Ok(Self { api, kind: operation.kind, token, headers: parts.headers, path, query, body, format })
    }

    /// The kind of object that the path names.
    pub(super) fn kind(&self) -> ObjectKind {
        self.kind.expect("operations on objects have a kind")
    }

    /// A part of the path.
    pub(super) fn part(&self, name: &str) -> &str {
        self.path.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A part of the path that is a number.
    pub(super) fn number(&self, name: &str) -> Result<u64, Refusal> {
        let text = self.part(name);
        text.parse().map_err(|_| Refusal::new(Why::Malformed, format!("{text:?} in the path is no number")))
    }

    /// The name of the object that the path names.
    pub(super) fn name(&self) -> Name {
        if self.kind.is_some_and(|kind| !kind.is_namespaced()) {
            return Name::new("", heddle_api::resource::MESH_CONFIG_NAME);
        }
        Name::new(self.part("namespace"), self.part("name"))
    }

    /// A query parameter.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A query parameter that is `true` or `false`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.param(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(bad_param(name, format!("{other:?} is neither true nor false"))),
        }
    }

    /// The body, where the operation has one.
    pub(super) fn body(&mut self) -> Value {
        self.body.take().unwrap_or_default()
    }

    /// Who is named in the list of revisions.
    pub(super) fn author(&self) -> Author {
        Author { name: self.token.name.clone(), reason: None }
    }

    /// What `If-Match` and `If-None-Match` ask for.
    pub(super) fn expected(&self) -> Result<Option<Expected>, Refusal> {
        let one = |name: HeaderName| -> Result<Option<&str>, Refusal> {
            let mut values = self.headers.get_all(&name).iter();
            let (first, more) = (values.next(), values.next());
            let text = first.map(HeaderValue::to_str).transpose().ok().filter(|_| more.is_none());
            text.ok_or_else(|| Refusal::new(Why::Malformed, format!("the header {name} cannot be read")))
        };
        match (one(IF_MATCH)?, one(IF_NONE_MATCH)?) {
            (None, None) => Ok(None),
            (None, Some("*")) => Ok(Some(Expected::Absent)),
            (None, Some(_)) => Err(Refusal::new(Why::Malformed, "If-None-Match is * here, or absent")),
            (Some(_), Some(_)) => Err(Refusal::new(Why::Malformed, "If-Match and If-None-Match exclude one another")),
            (Some("*"), None) => Ok(Some(Expected::Exists)),
            (Some(tag), None) => {
                let quoted = tag.trim().strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                let revision = quoted.and_then(|tag| tag.parse().ok());
                revision.map(|revision| Some(Expected::Revision(revision))).ok_or_else(|| {
                    Refusal::new(
                        Why::Malformed,
                        format!("If-Match is \"<resourceVersion>\" in quotes, or *; not {tag}"),
                    )
                })
            }
        }
    }

    /// An answer in the form that the client accepts.
    pub(super) fn answer(&self, status: StatusCode, value: &impl Serialize) -> Result<Response, Refusal> {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "an answer could not be written");
            Refusal::new(Why::Internal, "the answer could not be written")
        };
        let bytes = match self.format {
            Format::Json => serde_json::to_vec(value).map_err(|error| failed(&error))?,
            Format::Yaml => serde_yaml_ng::to_string(value).map_err(|error| failed(&error))?.into_bytes(),
        };
        let mut response = (status, bytes).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media::name(self.format)));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// An answer with an object, its version, and its place if it is new.
    pub(super) fn answer_object(&self, status: StatusCode, object: &AnyObject) -> Result<Response, Refusal> {
        let mut response = self.answer(status, object)?;
        let version = object.metadata().resource_version.as_deref();
        if let Some(tag) = version.and_then(|version| HeaderValue::try_from(format!("\"{version}\"")).ok()) {
            response.headers_mut().insert(ETAG, tag);
        }
        if status == StatusCode::CREATED
            && let Ok(place) = HeaderValue::try_from(place(object.kind(), &object.name()))
        {
            response.headers_mut().insert(LOCATION, place);
        }
        Ok(response)
    }
}

/// The path of an object.
pub(super) fn place(kind: ObjectKind, name: &Name) -> String {
    if kind.is_namespaced() {
        format!("/v1/namespaces/{}/{}/{}", name.namespace, kind.plural(), name.name)
    } else {
        format!("/v1/{}/{}", kind.plural(), name.name)
    }
}

/// 400 for a query parameter.
pub(super) fn bad_param(name: &str, message: impl Into<String>) -> Refusal {
    Refusal::faults(Why::Malformed, vec![Fault::new(name, message)])
}

fn query(uri: &http::Uri, operation: &Operation) -> Result<BTreeMap<String, String>, Refusal> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Refusal::new(Why::Malformed, "the query cannot be read"))?;
    let mut query = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, value) in pairs.0 {
        if !operation.query.iter().any(|known| known.name == name) {
            let hint = Suggest::for_word(&name, operation.query.iter().map(|known| known.name));
            let message = format!("is no parameter of this operation{hint}");
            faults.push(Fault::new(name, message));
        } else if query.insert(name.clone(), value).is_some() {
            faults.push(Fault::new(name, "is there twice; which of the two is meant?"));
        }
    }
    if faults.is_empty() { Ok(query) } else { Err(Refusal::faults(Why::Malformed, faults)) }
}

async fn parse(bytes: bytes::Bytes, format: Format) -> Result<Value, Refusal> {
    let parsed = if bytes.len() <= PARSED_AT_ONCE {
        document::parse(&bytes, format)
    } else {
        let work = tokio::task::spawn_blocking(move || document::parse(&bytes, format));
        work.await.map_err(|_| Refusal::new(Why::Internal, "the body could not be read"))?
    };
    parsed.map_err(|faults| Refusal::faults(Why::Malformed, faults))
}

async fn read(body: Body, limit: usize) -> Result<bytes::Bytes, Refusal> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Err(_) => Err(Refusal::new(Why::TooSlow, "the body did not come in time")),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(Why::TooLarge, format!("the body has more than {limit} bytes, which is the most here")))
        }
        Ok(Err(_)) => Err(Refusal::new(Why::Malformed, "the body broke off")),
    }
}
