//! A small OTLP/gRPC collector: keeps the spans that proxies export, in memory.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::service;

/// Kept at most; a demo left running is no reason to fill the memory.
const MAX_SPANS: usize = 200_000;

/// A span, as far as the demo looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) parent: Vec<u8>,
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) failed: bool,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who called.
    Client,
    /// Who was called.
    Server,
    /// Anything else.
    Other,
}

/// The spans collected so far. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Listens on a free port of loopback until `stop`.
    pub(crate) async fn start(stop: CancellationToken) -> anyhow::Result<(Self, SocketAddr)> {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for the collector")?;
        let address = listener.local_addr()?;
        let router = Routes::new(TraceServiceServer::new(collector.clone())).into_axum_router();
        tokio::spawn(service::serve_on(listener, router, stop));
        Ok((collector, address))
    }

    /// All spans.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let about = attributes(resource.resource.unwrap_or_default().attributes);
            let about = |key: &str| about.get(key).cloned().unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                if spans.len() >= MAX_SPANS {
                    return Err(Status::resource_exhausted("enough spans"));
                }
                spans.push(Span {
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    service: about("service.name"),
                    name: span.name,
                    kind: match span.kind {
                        2 => Kind::Server,
                        3 => Kind::Client,
                        _ => Kind::Other,
                    },
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    failed: span.status.is_some_and(|status| status.code == 2),
                    attributes: attributes(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        other => format!("{other:?}"),
    };
    pairs.into_iter().filter_map(|pair| Some((pair.key, text(pair.value?.value?)))).collect()
}

/// One trace as a tree, children below their parents in order of time; `describe` gives a span's line.
pub(crate) fn tree(spans: &[Span], describe: impl Fn(&Span) -> String) -> String {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by_key(|span| span.start);
    let known = |id: &[u8]| spans.iter().any(|span| span.id == id);
    let mut text = String::new();
    let roots: Vec<&Span> = spans.iter().copied().filter(|span| !known(&span.parent)).collect();
    for root in roots {
        let _ = writeln!(text, "{}", describe(root));
        branch(&spans, root, "", &describe, &mut text);
    }
    text
}

fn branch(spans: &[&Span], parent: &Span, indent: &str, describe: &impl Fn(&Span) -> String, text: &mut String) {
    let children: Vec<&Span> = spans.iter().copied().filter(|span| span.parent == parent.id).collect();
    for (index, child) in children.iter().enumerate() {
        let (fork, below) = if index + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let _ = writeln!(text, "{indent}{fork}{}", describe(child));
        branch(spans, child, &format!("{indent}{below}"), describe, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u8, parent: u8, start: u64) -> Span {
        Span {
            trace: vec![1],
            id: vec![id],
            parent: if parent == 0 { Vec::new() } else { vec![parent] },
            service: String::new(),
            name: format!("span {id}"),
            kind: Kind::Other,
            start,
            end: start,
            failed: false,
            attributes: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn keeps_what_is_exported() {
        use opentelemetry_proto::tonic::{
            collector::trace::v1::trace_service_client::TraceServiceClient,
            common::v1::AnyValue,
            resource::v1::Resource,
            trace::v1::{ResourceSpans, ScopeSpans, Span as Exported, Status as SpanStatus},
        };
        let pair = |key: &str, value: Value| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        };
        let (collector, address) = Collector::start(CancellationToken::new()).await.unwrap();
        let exported = Exported {
            trace_id: vec![7; 16],
            span_id: vec![1; 8],
            name: "GET /x".to_owned(),
            kind: 2,
            attributes: vec![pair("http.response.status_code", Value::IntValue(503))],
            status: Some(SpanStatus { code: 2, ..SpanStatus::default() }),
            ..Exported::default()
        };
        let service = pair("service.name", Value::StringValue("orders".to_owned()));
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: vec![service], ..Resource::default() }),
                scope_spans: vec![ScopeSpans { spans: vec![exported], ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        };
        let mut client = TraceServiceClient::connect(format!("http://{address}")).await.unwrap();
        client.export(request).await.unwrap();
        let spans = collector.spans();
        assert_eq!((spans.len(), spans[0].service.as_str(), spans[0].kind), (1, "orders", Kind::Server));
        assert!(spans[0].failed);
        assert_eq!(spans[0].attributes["http.response.status_code"], "503");
    }

    #[test]
    fn a_tree_has_children_below_parents_in_order_of_time() {
        let spans = [span(4, 1, 40), span(3, 2, 30), span(2, 1, 20), span(1, 0, 10), span(5, 9, 50)];
        let text = tree(&spans, |span| span.name.clone());
        assert_eq!(text, "span 1\n├─ span 2\n│  └─ span 3\n└─ span 4\nspan 5\n");
    }
}
