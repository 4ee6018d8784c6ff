//! One probe, made.

use std::net::SocketAddr;

use http::{HeaderValue, header, uri::PathAndQuery};
use reqwest::redirect;
use tokio::{net::TcpStream, time::timeout};
use tonic::transport::Endpoint;

use super::{Action, Probe, Verdict};
use crate::control_plane::causes;

/// As the kubelet calls itself, which some applications look at.
const USER_AGENT: &str = "kube-probe/heddle";
/// How often the kubelet follows.
const REDIRECTS: usize = 10;
const CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks the application, for as long as the probe may take.
pub(super) async fn app(probe: &Probe, app: SocketAddr) -> Verdict {
    let asked = async {
        match &probe.action {
            Action::Http { https, path, headers } => http(*https, app, path, headers.clone()).await,
            Action::Tcp => match TcpStream::connect(app).await {
                Ok(_) => Ok(format!("{app} accepts connections")),
                Err(error) => Err(format!("{app} accepts no connection: {error}")),
            },
            Action::Grpc { service } => grpc(app, service).await,
        }
    };
    match timeout(probe.timeout, asked).await {
        Ok(verdict) => verdict,
        Err(_) => Err(format!("{app} did not answer within {} s", probe.timeout.as_secs())),
    }
}

async fn http(https: bool, app: SocketAddr, path: &str, mut headers: http::HeaderMap) -> Verdict {
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    let url = format!("{}://{app}{path}", if https { "https" } else { "http" });
    // To another host the kubelet does not follow, and is content.
    let follow = redirect::Policy::custom(|attempt| {
        if attempt.previous().len() >= REDIRECTS {
            return attempt.error("it redirects too often");
        }
        let same = attempt.previous().first().map(reqwest::Url::host_str) == Some(attempt.url().host_str());
        if same { attempt.follow() } else { attempt.stop() }
    });
    // A connection of its own each time, so that it is known to be taken.
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .redirect(follow)
        .tls_danger_accept_invalid_certs(true)
        .build();
    let client = client.map_err(|error| format!("{url} cannot be asked: {}", causes(&error)))?;
    match client.get(&url).headers(headers).send().await {
        Ok(response) if (200..400).contains(&response.status().as_u16()) => {
            Ok(format!("GET {url}: {}", response.status()))
        }
        Ok(response) => Err(format!("GET {url}: {}", response.status())),
        Err(error) => Err(format!("GET {url}: {}", causes(&error.without_url()))),
    }
}

async fn grpc(app: SocketAddr, service: &str) -> Verdict {
    let failed = |why: String| format!("gRPC health of {service:?} at {app}: {why}");
    let endpoint = Endpoint::from_shared(format!("http://{app}")).and_then(|endpoint| endpoint.user_agent(USER_AGENT));
    let channel = endpoint.map_err(|error| failed(causes(&error)))?.connect().await;
    let mut client = tonic::client::Grpc::new(channel.map_err(|error| failed(causes(&error)))?);
    client.ready().await.map_err(|error| failed(causes(&error)))?;
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, PathAndQuery::from_static(CHECK), codec).await;
    let answer = answer.map_err(|status| failed(format!("{:?}: {}", status.code(), status.message())))?;
    match answer.into_inner().status {
        SERVING => Ok(failed("SERVING".to_owned())),
        2 => Err(failed("NOT_SERVING".to_owned())),
        3 => Err(failed("SERVICE_UNKNOWN".to_owned())),
        other => Err(failed(format!("status {other}"))),
    }
}
