//! The control plane's REST API, as this command uses it.

use std::{error::Error as _, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use http::Method;
use reqwest::{Response, Url};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    context::{Context, ContextError},
    error::Error,
    kind::Kind,
    object::Object,
    problem::Problem,
};

/// How long one exchange may take; watches are exempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Objects per page of a list.
const PAGE: &str = "500";

/// A connection to the control plane, as one user of it.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    context: Context,
}

/// Where to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One namespace.
    Namespace(String),
    /// All of them.
    All,
}

/// What a list holds, and up to when.
pub(crate) struct Listing {
    /// In the server's order.
    pub(crate) items: Vec<Object>,
    /// Where a watch continues.
    pub(crate) resource_version: Option<String>,
}

/// The result of a transaction.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Transacted {
    /// The store's revision after it.
    #[serde(default)]
    pub(crate) revision: Value,
    /// One for each operation.
    #[serde(default)]
    pub(crate) results: Vec<Outcome>,
}

/// What became of one operation.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub(crate) struct Outcome {
    /// `created`, `updated`, `unchanged` or `deleted`.
    pub(crate) action: String,
    /// As it is now (or was).
    #[serde(default = "nothing")]
    pub(crate) object: Object,
}

fn nothing() -> Object {
    Object(Value::Null)
}

impl Client {
    /// A client for this context. Connects at the first call.
    pub(crate) fn new(context: Context) -> Result<Self, Error> {
        let base = parse_address(&context.address)?;
        let mut authorization = http::HeaderValue::from_str(&format!("Bearer {}", context.token))
            .ok()
            .filter(|_| !context.token.trim().is_empty())
            .ok_or_else(|| ContextError::Token(context.name.clone()))?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(&context)?)
            // The context says where to go: neither a system proxy nor a redirect gets the token.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("heddle/", env!("CARGO_PKG_VERSION")))
            .default_headers([(http::header::AUTHORIZATION, authorization)].into_iter().collect())
            .build()
            .map_err(|error| ContextError::Ca { context: context.name.clone(), reason: innermost(&error) })?;
        Ok(Self { http, base, context })
    }

    /// The context that this client is for.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Sends a request and reads the answer as JSON; an error status is an error.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<T, Error> {
        let request = format!("{method} /{}", path.join("/"));
        let response = self.send(method, path, query, body, Some(REQUEST_TIMEOUT)).await?;
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| Error::Answer { request, reason: error.to_string() })
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let url = url(&self.base, path, query);
        let request = format!("{method} {}", url.path());
        let mut builder = self.http.request(method, url);
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(body) = body {
            builder = builder.json(body);
        }
        let response = builder.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(Error::Refused(Box::new(Problem::parse(status, request, &body))))
    }

    /// One object.
    pub(crate) async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Object, Error> {
        let path = object_path(kind, namespace, name);
        self.call(Method::GET, &path, &[], None).await
    }

    /// One object, or nothing if there is none.
    pub(crate) async fn find(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Object>, Error> {
        match self.get(kind, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind that refer to a service, `<namespace>/<name>`, or hold for it.
    pub(crate) async fn referring(&self, kind: Kind, service: &str) -> Result<Vec<Object>, Error> {
        Ok(self.list_only(kind, &Scope::All, &[("references", service)]).await?.items)
    }

    /// All objects of a kind.
    pub(crate) async fn list(&self, kind: Kind, scope: &Scope, selector: Option<&str>) -> Result<Listing, Error> {
        let only: Vec<_> = selector.map(|selector| ("labelSelector", selector)).into_iter().collect();
        self.list_only(kind, scope, &only).await
    }

    /// Page by page; once more from the start if the pages are forgotten meanwhile.
    async fn list_only(&self, kind: Kind, scope: &Scope, only: &[(&str, &str)]) -> Result<Listing, Error> {
        match self.list_once(kind, scope, only).await {
            // So long after the first page that its point in time is forgotten.
            Err(Error::Refused(problem)) if problem.status == 410 => self.list_once(kind, scope, only).await,
            listing => listing,
        }
    }

    async fn list_once(&self, kind: Kind, scope: &Scope, only: &[(&str, &str)]) -> Result<Listing, Error> {
        let path = list_path(kind, scope);
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("limit", PAGE)];
            query.extend(only);
            query.extend(token.as_deref().map(|token| ("continue", token)));
            let mut page: Value = self.call(Method::GET, &path, &query, None).await?;
            let found = page.get_mut("items").map(Value::take);
            let Some(Value::Array(found)) = found else {
                let request = format!("GET /{}", path.join("/"));
                return Err(Error::Answer { request, reason: "it has no `items`".to_owned() });
            };
            items.extend(found.into_iter().map(Object));
            token = text(page.pointer("/metadata/continue")).filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(Listing { items, resource_version: text(page.pointer("/metadata/resourceVersion")) });
            }
        }
    }

    /// Changes of a kind's objects from a list's point in time on, as (type, object), as many as come together,
    /// until the server ends the stream or `each` says so by an error.
    pub(crate) async fn watch(
        &self,
        kind: Kind,
        scope: &Scope,
        selector: Option<&str>,
        from: Option<&str>,
        mut each: impl AsyncFnMut(Vec<(String, Object)>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = list_path(kind, scope);
        let mut query = vec![("watch", "true")];
        query.extend(selector.map(|selector| ("labelSelector", selector)));
        query.extend(from.map(|from| ("resourceVersion", from)));
        let response = self.send(Method::GET, &path, &query, None, None).await?;
        let mut stream = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = stream.next().await {
            buffer.extend_from_slice(&chunk.map_err(|error| self.unreachable(&error))?);
            let mut events = Vec::new();
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event: Event = serde_json::from_slice(&line).map_err(|error| Error::Answer {
                    request: format!("GET /{}?watch=true", path.join("/")),
                    reason: error.to_string(),
                })?;
                events.push((event.r#type, event.object));
            }
            each(events).await?;
        }
        Ok(())
    }

    /// Does all operations or none. `sources` says where each one comes from.
    pub(crate) async fn transact(
        &self,
        operations: &[Value],
        sources: &[String],
        dry_run: bool,
    ) -> Result<Transacted, Error> {
        let query: &[(&str, &str)] = if dry_run { &[("dryRun", "true")] } else { &[] };
        let body = serde_json::json!({ "operations": operations });
        match self.call(Method::POST, &["v1", "transactions"], query, Some(&body)).await {
            Err(Error::Refused(problem)) => Err(Error::Refused(Box::new(problem.locate(sources)))),
            other => other,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let reason = if error.is_timeout() { "no answer in time".to_owned() } else { innermost(error) };
        let name = &self.context.name;
        let hint = if reason.contains("certificate") || reason.contains("UnknownIssuer") {
            format!(
                "context {name:?} trusts another CA or another host name than this control plane has; its first start writes a context that fits"
            )
        } else {
            format!(
                "is it running (`heddle-control-plane`)? context {name:?} names this address; --context or HEDDLE_ADDRESS choose another"
            )
        };
        Error::Unreachable { address: self.context.address.clone(), reason, hint }
    }
}

/// One line of a watch.
#[derive(serde::Deserialize)]
struct Event {
    r#type: String,
    #[serde(default = "nothing")]
    object: Object,
}

/// A number or text as text; empty and null are nothing.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn list_path(kind: Kind, scope: &Scope) -> Vec<&str> {
    match scope {
        Scope::Namespace(namespace) if kind.namespaced => vec!["v1", "namespaces", namespace, kind.plural],
        _ => vec!["v1", kind.plural],
    }
}

fn object_path<'a>(kind: Kind, namespace: &'a str, name: &'a str) -> Vec<&'a str> {
    if kind.namespaced { vec!["v1", "namespaces", namespace, kind.plural, name] } else { vec!["v1", kind.plural, name] }
}

fn url(base: &Url, path: &[&str], query: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url
}

fn parse_address(address: &str) -> Result<Url, ContextError> {
    let invalid = || ContextError::Address(address.to_owned());
    let url = Url::parse(address).map_err(|_| invalid())?;
    let usable = url.scheme() == "https" && url.has_host() && url.query().is_none() && url.username().is_empty();
    if usable { Ok(url) } else { Err(invalid()) }
}

/// Trusts the context's CA and nothing else.
fn tls(context: &Context) -> Result<ClientConfig, ContextError> {
    let unusable = |reason: String| ContextError::Ca { context: context.name.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(context.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("there is none".to_owned()));
    }
    tls_with(roots).map_err(|error| unusable(error.to_string()))
}

fn tls_with(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client for plain HTTP on this machine: trusts nobody, and uses no proxy.
pub(crate) fn local(timeout: Duration) -> Result<reqwest::Client, std::io::Error> {
    let tls = tls_with(RootCertStore::empty()).map_err(std::io::Error::other)?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()
        .map_err(std::io::Error::other)
}

/// The cause that says most: the last of the chain.
fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["https://127.0.0.1:9700", "https://[::1]:9700/", "https://mesh.example.com/heddle"] {
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for bad in ["http://127.0.0.1:9700", "127.0.0.1:9700", "", "https://", "https://a?b=c", "https://me@host"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        let base = parse_address("https://h:1/base/").unwrap();
        let kind = Kind::typed("svc").unwrap();
        let url = url(&base, &object_path(kind, "shop", "../x?y"), &[("labelSelector", "a in (b,c)&d")]);
        assert_eq!(
            url.as_str(),
            "https://h:1/base/v1/namespaces/shop/services/..%2Fx%3Fy?labelSelector=a+in+%28b%2Cc%29%26d"
        );
    }

    #[test]
    fn a_context_without_a_ca_is_refused() {
        let context = Context {
            name: "x".into(),
            address: "https://h:1".into(),
            ca_pem: String::new(),
            token: "t".into(),
            namespace: None,
        };
        assert!(Client::new(context.clone()).is_err_and(|error| error.to_string().contains("there is none")));
        assert!(Client::new(Context { token: "a\nb".into(), ..context }).is_err());
    }
}
