//! The feed of orders, handed on to customers. As any WebSocket client does, it reaches orders through
//! the HTTP proxy of its surroundings by CONNECT.

use anyhow::{Context as _, bail};
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    http::{StatusCode, Uri},
    response::Response,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, client::IntoClientRequest as _},
};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::{propagate::TraceHeaders, service::Refusal};

/// Where the feed comes from.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    /// Of orders: `host:port`.
    target: String,
    /// Of the HTTP proxy: `host:port`.
    proxy: Option<String>,
}

impl Upstream {
    pub(super) fn new(orders: &str, http_proxy: Option<&str>) -> anyhow::Result<Self> {
        let target = host_and_port(orders)?;
        let is_local = target.starts_with("127.") || target.starts_with("localhost:") || target.starts_with("[::1]");
        let proxy = http_proxy.filter(|proxy| !proxy.is_empty() && !is_local).map(host_and_port).transpose()?;
        Ok(Self { target, proxy })
    }

    pub(super) async fn connect(&self, trace: &TraceHeaders) -> anyhow::Result<WebSocketStream<TcpStream>> {
        let stream = match &self.proxy {
            Some(proxy) => tunnel(proxy, &self.target).await?,
            None => TcpStream::connect(&self.target).await.with_context(|| format!("cannot reach {}", self.target))?,
        };
        let mut request = format!("ws://{}/feed", self.target).into_client_request()?;
        request.headers_mut().extend(trace.headers());
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _response)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                bail!("orders answered {}: {}", response.status(), body.trim())
            }
            Err(error) => Err(error).context("orders speak no WebSocket"),
        }
    }
}

/// `host:port` of a URL.
fn host_and_port(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
    let host = uri.host().with_context(|| format!("{url:?} names no host"))?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80)))
}

async fn tunnel(proxy: &str, target: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await.with_context(|| format!("cannot reach the HTTP proxy {proxy}"))?;
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    // Byte by byte, since what follows the head belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 8192 {
            bail!("the HTTP proxy {proxy} answered more than 8 KiB of headers");
        }
        head.push(stream.read_u8().await.with_context(|| format!("the HTTP proxy {proxy} closed the connection"))?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        bail!("the HTTP proxy {proxy} refused to connect to {target}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(stream)
}

pub(super) async fn serve(
    State(app): State<App>,
    trace: TraceHeaders,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let connected = tokio::time::timeout(std::time::Duration::from_secs(10), app.feed.connect(&trace)).await;
    let upstream = match connected {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(error)) => return Err(Refusal::new(StatusCode::BAD_GATEWAY, format!("no feed: {error:#}"))),
        Err(_elapsed) => {
            return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "no feed: orders did not answer in time"));
        }
    };
    Ok(upgrade.on_upgrade(move |customer| hand_on(customer, upstream, app.stop)))
}

async fn hand_on(mut customer: WebSocket, mut upstream: WebSocketStream<TcpStream>, stop: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => close(close_code::AWAY, "this instance stops"),
            received = upstream.next() => match received {
                Some(Ok(tungstenite::Message::Text(text))) => Message::text(text.as_str()),
                Some(Ok(tungstenite::Message::Close(Some(frame)))) => close(frame.code.into(), frame.reason.as_str()),
                Some(Ok(tungstenite::Message::Close(None)) | Err(_)) | None => close(close_code::ERROR, "the feed broke off"),
                Some(Ok(_)) => continue,
            },
            received = customer.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => continue,
            },
        };
        let last = matches!(message, Message::Close(_));
        if customer.send(message).await.is_err() || last {
            break;
        }
    }
    // Whether orders still listens is of no interest.
    let _ = upstream.close(None).await;
    let _ = upstream.flush().await;
}

fn close(code: u16, reason: &str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}
