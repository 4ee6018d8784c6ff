//! A collector in this process.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use heddle_runtime::{drain, http_server};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Response, Status};

use crate::telemetry::Protocol;

/// What it answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said {
    /// Retry.
    Busy,
    /// Retry, but not before.
    BusyFor(Duration),
    /// Do not retry.
    No,
}

pub(super) struct Collector {
    address: SocketAddr,
    state: State,
    serving: JoinHandle<()>,
    _drain: drain::Signal,
}

#[derive(Clone, Default)]
struct State(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// The first answers; after these it takes all.
    says: Vec<Said>,
    asked: usize,
    taken: Vec<ExportTraceServiceRequest>,
}

impl Collector {
    pub(super) async fn start(protocol: Protocol, mut says: Vec<Said>) -> Self {
        says.reverse();
        let state = State(Arc::new(Mutex::new(Inner { says, ..Inner::default() })));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signal, watch) = drain::channel();
        let serving = match protocol {
            Protocol::Grpc => {
                let service = TraceServiceServer::new(state.clone());
                let router = tonic::transport::Server::builder().add_service(service);
                let incoming = TcpListenerStream::new(listener);
                tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() })
            }
            Protocol::Http => {
                let state = state.clone();
                let handler = move |request| {
                    let state = state.clone();
                    async move { state.post(request).await }
                };
                tokio::spawn(http_server::serve(listener, handler, watch))
            }
        };
        Self { address, state, serving, _drain: signal }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it; its address, where nobody listens any more.
    pub(super) async fn gone(self) -> String {
        self.serving.abort();
        let _ = self.serving.await;
        format!("http://{}", self.address)
    }

    pub(super) fn asked(&self) -> usize {
        self.state.0.lock().unwrap().asked
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        let state = self.state.0.lock().unwrap();
        let resources = state.taken.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans).cloned().collect()
    }

    pub(super) fn resource(&self, name: &str) -> String {
        let state = self.state.0.lock().unwrap();
        let resource = state.taken[0].resource_spans[0].resource.as_ref().unwrap();
        let pair = resource.attributes.iter().find(|pair| pair.key == name).unwrap();
        match pair.value.clone().unwrap().value.unwrap() {
            opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(value) => value,
            other => panic!("{other:?}"),
        }
    }
}

impl State {
    fn answer(&self, request: ExportTraceServiceRequest) -> Option<Said> {
        let mut state = self.0.lock().unwrap();
        state.asked += 1;
        let said = state.says.pop();
        if said.is_none() {
            state.taken.push(request);
        }
        said
    }

    async fn post(&self, request: Request<Incoming>) -> http_server::Reply {
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = http_server::read_body(request.into_body(), 1 << 20).await.unwrap();
        let status = |status| http_server::reply(status, "");
        match self.answer(ExportTraceServiceRequest::decode(body).unwrap()) {
            None => http_server::reply(StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec()),
            Some(Said::No) => status(StatusCode::BAD_REQUEST),
            Some(Said::Busy) => status(StatusCode::SERVICE_UNAVAILABLE),
            Some(Said::BusyFor(time)) => {
                let mut reply = status(StatusCode::TOO_MANY_REQUESTS);
                reply.headers_mut().insert("retry-after", time.as_secs().into());
                reply
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for State {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        match self.answer(request.into_inner()) {
            None => Ok(Response::new(ExportTraceServiceResponse::default())),
            Some(Said::No) => Err(Status::invalid_argument("no")),
            Some(Said::Busy) => Err(Status::unavailable("busy")),
            Some(Said::BusyFor(time)) => {
                Err(Status::with_details(Code::ResourceExhausted, "busy", retry_info(time).into()))
            }
        }
    }
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo`, as a collector sends it in `grpc-status-details-bin`.
fn retry_info(time: Duration) -> Vec<u8> {
    let seconds = prost_types::Duration { seconds: i64::try_from(time.as_secs()).unwrap(), nanos: 0 };
    // RetryInfo { retry_delay = 1 }
    let mut info = vec![0x0a];
    seconds.encode_length_delimited(&mut info).unwrap();
    let any = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info };
    // Status { code = 1, details = 3 }
    let mut status = vec![0x08, Code::ResourceExhausted as u8, 0x1a];
    any.encode_length_delimited(&mut status).unwrap();
    status
}
