//! The REST API.
//!
//! [`router`] makes it from an [`ApiState`]; TLS and the listener are the caller's. A request passes
//! `call` (token, role, query, form, body), then its handler, all by the row of its operation in
//! `operation`; every answer that is no success is a `refusal`.

mod auth;
mod call;
mod media;
mod objects;
mod openapi;
mod operation;
mod proxies;
mod refusal;
mod revisions;
mod roots;
mod selector;
mod status;
#[cfg(test)]
mod tests;
mod tokens;
mod transactions;
mod types;
mod watch;

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, get},
};
use heddle_api::{
    problem::Fault,
    schema::{Definitions, reference},
    validate::Shape,
};
use heddle_certs::TrustDomain;
use heddle_runtime::drain;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use self::roots::{RootInfo, RootKeeper, RootPhase, RootRefusal, RootStatus, RootStep};
pub use self::status::{ProxyResources, ProxyStatus, RejectedResource, StatusSource};
use self::{
    auth::Doorkeeper,
    call::Call,
    operation::Operation,
    refusal::{Refusal, Why},
};
use crate::{
    registry::Registry,
    tokens::{ApiTokens, JoinTokens, Revocations},
    turns::Turns,
};

/// What the API works on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Objects.
    pub registry: Arc<Registry>,
    /// Who may use the API.
    pub api_tokens: ApiTokens,
    /// Which workloads may join.
    pub join_tokens: JoinTokens,
    /// Whose certificates count no more.
    pub revocations: Revocations,
    /// What proxies made of the objects.
    pub status: Arc<dyn StatusSource>,
    /// What a join file says besides the token.
    pub join: Arc<dyn JoinInfo>,
    /// Under what certificates are.
    pub roots: Arc<dyn RootKeeper>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// When it is raised, watches end.
    pub drain: drain::Watch,
}

/// What a proxy needs besides its token to join.
pub trait JoinInfo: std::fmt::Debug + Send + Sync + 'static {
    /// `host:port` of the mesh listener, as proxies reach it.
    fn mesh_address(&self) -> String;

    /// The mesh's roots, PEM.
    fn trust_anchors(&self) -> String;
}

/// What all handlers share.
#[derive(Debug)]
struct Api {
    state: ApiState,
    doorkeeper: Doorkeeper,
    shapes: Shapes,
    watches: Arc<watch::Watches>,
    /// Patches of one object follow each other: who merges anew whenever others were faster might never be done.
    patching: Turns,
    drain: drain::Watch,
}

/// The forms of bodies that are no objects.
#[derive(Debug)]
struct Shapes {
    transaction: Shape,
    operation: Shape,
    rollback: Body,
    join_token: Body,
    api_token: Body,
    revocation: Body,
}

/// The form of a body, and how to read it.
#[derive(Debug)]
struct Body(Shape);

impl Body {
    /// The body as a type, or everything in which it has not its form.
    fn read<T: DeserializeOwned>(&self, body: &Value) -> Result<T, Vec<Fault>> {
        let faults = self.0.check(body);
        if !faults.is_empty() {
            return Err(faults);
        }
        T::deserialize(body).map_err(|error| vec![Fault::new("", error.to_string())])
    }
}

impl Shapes {
    fn new(definitions: &serde_json::Map<String, Value>) -> Self {
        let definitions = Arc::new(definitions.clone());
        let shape = |schema: Value| Shape::new(Arc::clone(&definitions), schema);
        let body = |name: &str| Body(shape(reference(name)));
        // The documents within a transaction are checked one by one, as those sent alone are.
        let any = json!({ "type": "object" });
        let mut transaction = definitions["Transaction"].clone();
        let operation = json!({
            "type": "object",
            "properties": {
                "apply": any,
                "delete": transaction["properties"]["operations"]["items"]["oneOf"][1]["properties"]["delete"],
                "ifMatch": transaction["properties"]["operations"]["items"]["oneOf"][1]["properties"]["ifMatch"],
            },
            "additionalProperties": false,
        });
        transaction["properties"]["operations"]["items"] = json!({});
        Self {
            transaction: shape(transaction),
            operation: shape(operation),
            rollback: body("RollbackRequest"),
            join_token: body("JoinTokenRequest"),
            api_token: body("ApiTokenRequest"),
            revocation: body("RevocationRequest"),
        }
    }
}

/// The whole API.
pub fn router(state: ApiState) -> Router {
    let mut definitions = Definitions::default();
    let operations = operation::all(&mut definitions);
    let definitions = definitions.finish();
    let document: &'static str = openapi::document(&operations, &definitions).to_string().leak();
    let api = Arc::new(Api {
        doorkeeper: Doorkeeper::new(state.api_tokens.clone()),
        shapes: Shapes::new(&definitions),
        watches: Arc::default(),
        patching: Turns::default(),
        drain: state.drain.clone(),
        state,
    });
    let mut router = Router::new().route("/openapi.json", get(move || async move { openapi(document) }));
    for operation in operations {
        let (path, operation) = (operation.path.clone(), Arc::new(operation));
        router = router.route(&path, route(Arc::clone(&api), operation));
    }
    router
        .fallback(async || {
            Refusal::new(Why::NotFound, "there is nothing at this path; /openapi.json says what there is")
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(Why::MethodNotAllowed, "the header Allow says which methods this path has")
        })
}

fn route(api: Arc<Api>, operation: Arc<Operation>) -> MethodRouter {
    let filter = MethodFilter::try_from(operation.method.clone()).expect("operations have methods that axum knows");
    let handler = async move |path: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
        answer(api, &operation, path, request).await.unwrap_or_else(IntoResponse::into_response)
    };
    MethodRouter::new().on(filter, handler)
}

async fn answer(
    api: Arc<Api>,
    operation: &Operation,
    path: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let call = Call::admit(api, operation, path, request).await?;
    let mut response = (operation.handler)(call).await?;
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn openapi(document: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")];
    (StatusCode::OK, headers, document).into_response()
}
