//! One request on its way to a handler: everything that all operations check alike.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, RawPathParams, Request, rejection::RawPathParamsRejection},
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
    request::Parts,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::Value;

use super::{
    Api, media,
    operation::{Operation, check_param, path_param},
    refusal::{Refusal, Why},
};
use crate::{
    registry::{Author, Expected},
    tokens::ApiToken,
};

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a body is read that is not wanted, bytes.
const DISCARDED: usize = 256 << 10;
/// And for how long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
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
        path: Result<RawPathParams, RawPathParamsRejection>,
        request: Request,
    ) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let mut call = match Self::check(api, operation, path, parts).await {
            Ok(call) => call,
            Err(refusal) => {
                discard(body).await;
                return Err(refusal);
            }
        };
        if let Some(wanted) = &operation.body {
            let sent = match media::sent(&call.headers, operation.method == Method::PATCH) {
                Ok(sent) => sent,
                Err(refusal) => {
                    discard(body).await;
                    return Err(refusal);
                }
            };
            call.body = Some(parse(read(body, wanted.limit).await?, sent).await?);
        }
        Ok(call)
    }

    /// All checks but those of the body.
    async fn check(
        api: Arc<Api>,
        operation: &Operation,
        path: Result<RawPathParams, RawPathParamsRejection>,
        parts: Parts,
    ) -> Result<Self, Refusal> {
        let token = api.doorkeeper.authenticate(&parts.headers).await?;
        if token.role < operation.role {
            let (needed, has) = (operation.role.as_str(), token.role.as_str());
            let detail = format!("this needs the role {needed}; the token {:?} has {has}", token.name);
            return Err(Refusal::new(Why::Forbidden, detail));
        }
        let path = path.map_err(|_| Refusal::new(Why::Malformed, "the path does not decode to UTF-8"))?;
        let path: Vec<_> = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        check_path(&path)?;
        let query = query(&parts.uri, operation)?;
        let watches = operation.watchable && query.get("watch").is_some_and(|value| value == "true");
        let format = if watches {
            media::accepts_lines(&parts.headers)?;
            Format::Json
        } else {
            media::accepted(&parts.headers)?
        };
        Ok(Self { api, kind: operation.kind, token, headers: parts.headers, path, query, body: None, format })
    }

    /// The kind of object that the path names.
    pub(super) fn kind(&self) -> ObjectKind {
        self.kind.expect("operations on objects have a kind")
    }

    /// A part of the path.
    pub(super) fn part(&self, name: &str) -> &str {
        self.path.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A part of the path that is a number; its form was checked.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.part(name).parse().unwrap_or_default()
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

    /// A query parameter that is `true` or `false`; false when absent.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.param(name) == Some("true")
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
            (Some(_), Some(_)) => {
                Err(Refusal::new(Why::PreconditionFailed, "If-Match and If-None-Match exclude one another"))
            }
            (Some("*"), None) => Ok(Some(Expected::Exists)),
            (Some(tag), None) => {
                let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
                let is_number = (1..=18).contains(&bare.len()) && bare.bytes().all(|byte| byte.is_ascii_digit());
                let revision = bare.parse().ok().filter(|_| is_number);
                revision.map(|revision| Some(Expected::Revision(revision))).ok_or_else(|| {
                    Refusal::new(Why::Malformed, format!("If-Match is \"<resourceVersion>\" or *, not {tag:?}"))
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

/// Refuses a query parameter that has the right form, and cannot be meant.
pub(super) fn bad_param(name: &str, message: impl Into<String>) -> Refusal {
    Refusal::faults(Why::Invalid, vec![Fault::new(name, message)])
}

/// Refuses parts of the path that can be the name of nothing.
fn check_path(path: &[(String, String)]) -> Result<(), Refusal> {
    let faults: Vec<_> = path
        .iter()
        .filter_map(|(name, value)| {
            check_param(&path_param(name), value).err().map(|message| Fault::new(name, message))
        })
        .collect();
    if faults.is_empty() { Ok(()) } else { Err(Refusal::faults(Why::Malformed, faults)) }
}

fn query(uri: &http::Uri, operation: &Operation) -> Result<BTreeMap<String, String>, Refusal> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Refusal::new(Why::Malformed, "the query cannot be read"))?;
    let mut query = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, value) in pairs.0 {
        let Some(param) = operation.query.iter().find(|known| known.name == name) else {
            let hint = Suggest::for_word(&name, operation.query.iter().map(|known| known.name));
            let message = format!("is no parameter of this operation{hint}");
            faults.push(Fault::new(name, message));
            continue;
        };
        if let Err(message) = check_param(&(param.schema)(), &value) {
            faults.push(Fault::new(name, message));
        } else if query.insert(name.clone(), value).is_some() {
            faults.push(Fault::new(name, "is there twice; which of the two is meant?"));
        }
    }
    if faults.is_empty() { Ok(query) } else { Err(Refusal::faults(Why::Malformed, faults)) }
}

/// Reads on where a request is refused unread: a client of HTTP/1.1 that still sends when the
/// connection closes may never see the answer.
async fn discard(body: Body) {
    let read = Limited::new(body, DISCARDED).collect();
    // Whatever comes of it, the refusal is sent.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
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
