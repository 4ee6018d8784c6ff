//! Refusals: every answer that is no success, as problem details (RFC 9457).

use axum::response::{IntoResponse, Response};
use heddle_api::problem::{Fault, MEDIA_TYPE, Problem};
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::{
    registry::{ApplyError, OperationFault, RegistryError, RevisionError, RollbackError},
    store::StoreError,
    tokens::TokenError,
};

/// Kinds of refusal: one status each, and a name that programs can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The request cannot be read, or a document has not the form of its kind.
    Malformed,
    /// No token, or none that is known.
    Unauthenticated,
    /// The token's role does not allow it.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The thing is there; the method is not for it.
    MethodNotAllowed,
    /// No form of answer that the client accepts.
    NotAcceptable,
    /// The request did not come in time.
    TooSlow,
    /// It is at odds with what is there.
    Conflict,
    /// What was asked for is no longer kept.
    Gone,
    /// Somebody else made a change.
    PreconditionFailed,
    /// The body is too large.
    TooLarge,
    /// The body is in a form that is not read here.
    UnsupportedMediaType,
    /// The documents have the right form, but cannot be meant, or do not fit together.
    Invalid,
    /// Too many attempts.
    TooManyRequests,
    /// The server failed.
    Internal,
    /// The server cannot do it now.
    Unavailable,
}

impl Why {
    /// Status, name and title.
    fn row(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "A valid token is needed"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The token's role does not allow it"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Not with this method"),
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not-acceptable", "No acceptable form of answer"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too-slow", "The request did not come in time"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict", "It is at odds with what is there"),
            Self::Gone => (StatusCode::GONE, "gone", "It is no longer kept"),
            Self::PreconditionFailed => {
                (StatusCode::PRECONDITION_FAILED, "precondition-failed", "Somebody else made a change")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "A form that is not read here")
            }
            Self::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "It cannot be meant so"),
            Self::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many attempts"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The control plane failed"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not possible now"),
        }
    }

    /// Its HTTP status.
    pub(super) fn status(self) -> StatusCode {
        self.row().0
    }

    /// What it is, for people.
    pub(super) fn title(self) -> &'static str {
        self.row().2
    }
}

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    why: Why,
    detail: String,
    faults: Vec<Fault>,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    /// A refusal; `detail` says what to do about it, if that is not plain.
    pub(super) fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into(), faults: Vec::new(), header: None }
    }

    /// With everything that is wrong with what was sent.
    pub(super) fn faults(why: Why, faults: Vec<Fault>) -> Self {
        let detail = match &faults[..] {
            [only] => only.to_string(),
            more => format!("there are {} faults", more.len()),
        };
        Self { faults, ..Self::new(why, detail) }
    }

    /// 401, with how to authenticate.
    pub(super) fn unauthenticated(detail: &str) -> Self {
        let header = Some((WWW_AUTHENTICATE, "Bearer realm=\"heddle\""));
        Self { header, ..Self::new(Why::Unauthenticated, detail) }
    }

    /// 429, with when to try again.
    pub(super) fn too_many(detail: &str) -> Self {
        Self { header: Some((RETRY_AFTER, "1")), ..Self::new(Why::TooManyRequests, detail) }
    }

    /// Why a transaction was refused; `place` says where an operation stands in what was sent.
    pub(super) fn of_apply(error: ApplyError, place: impl Fn(usize) -> String) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Invalid(faults) => {
                let placed = |OperationFault { operation, fault }| Fault::under(fault, &place(operation));
                Self::faults(Why::Invalid, faults.into_iter().map(placed).collect())
            }
            ApplyError::NotFound(..) => Self::new(Why::NotFound, text),
            ApplyError::Registered(_) | ApplyError::Kubernetes(..) => Self::new(Why::Conflict, text),
            ApplyError::PreconditionFailed { .. } => Self::new(Why::PreconditionFailed, text),
            ApplyError::Contended => Self::new(Why::Conflict, text),
            ApplyError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Compacted { .. } => Self::new(Why::Gone, format!("{error}; list again, and go on from there")),
            StoreError::Future { .. } => Self::faults(
                Why::Invalid,
                vec![Fault::new("resourceVersion", format!("{error}; it may be of another control plane"))],
            ),
            StoreError::Invalid(_) | StoreError::Backend(_) | StoreError::Closed => {
                tracing::error!(error = ?error, "the store failed");
                Self::new(Why::Unavailable, "the store failed; the control plane's log says more")
            }
        }
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            RegistryError::Unreadable { .. } => {
                tracing::error!(%error, "the store holds something unreadable");
                Self::new(Why::Internal, "the store holds something unreadable; the control plane's log says more")
            }
        }
    }
}

impl From<RevisionError> for Refusal {
    fn from(error: RevisionError) -> Self {
        let text = error.to_string();
        match error {
            RevisionError::NotFound(_) => Self::new(Why::NotFound, text),
            RevisionError::Gone { .. } => Self::new(Why::Gone, text),
            RevisionError::TooMuch { .. } => Self::new(Why::Invalid, text),
            RevisionError::Registry(error) => error.into(),
        }
    }
}

impl From<ApplyError> for Refusal {
    fn from(error: ApplyError) -> Self {
        Self::of_apply(error, |_| String::new())
    }
}

impl From<RollbackError> for Refusal {
    fn from(error: RollbackError) -> Self {
        match error {
            RollbackError::Moved { .. } => Self::new(Why::PreconditionFailed, error.to_string()),
            RollbackError::Revision(error) => error.into(),
            RollbackError::Apply(error) => error.into(),
        }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let text = error.to_string();
        match error {
            TokenError::NotFound(_) => Self::new(Why::NotFound, text),
            TokenError::LastAdmin | TokenError::Contended => Self::new(Why::Conflict, text),
            TokenError::Store(error) => error.into(),
            TokenError::Unreadable(_) | TokenError::NoRandomness(_) => {
                tracing::error!(%error, "a token could not be read or made");
                Self::new(Why::Internal, text)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, name, title) = self.why.row();
        let problem = Problem {
            r#type: format!("/problems/{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            faults: self.faults,
        };
        let body = serde_json::to_vec(&problem).expect("a problem is JSON: it has no maps");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.extend(self.header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
