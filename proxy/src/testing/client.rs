//! Clients.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::spawn_local};

use crate::testing::Local;

/// A response with its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// Why a proxy answered itself.
    pub(crate) fn error(&self) -> &str {
        self.headers.get("heddle-error").map_or("", |reason| reason.to_str().unwrap())
    }

    /// A header that the app says it got.
    pub(crate) fn got(&self, name: &str) -> Option<&str> {
        let headers = self.body.split("\n\n").next().unwrap();
        headers.lines().skip(1).find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(crate) async fn connect1<B>(address: SocketAddr) -> http1::SendRequest<B>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let socket = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
    spawn_local(connection.with_upgrades());
    sender
}

pub(crate) async fn connect2<B>(address: SocketAddr) -> http2::SendRequest<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let socket = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(Local, TokioIo::new(socket)).await.unwrap();
    spawn_local(connection);
    sender
}

/// One request by HTTP/1.1 on a connection of its own.
pub(crate) async fn send1<B>(address: SocketAddr, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let response = connect1(address).await.send_request(request).await.unwrap();
    Answer::read(response).await
}

/// One request by HTTP/2 on a connection of its own.
pub(crate) async fn send2<B>(address: SocketAddr, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let response = connect2(address).await.send_request(request).await.unwrap();
    Answer::read(response).await
}

/// A GET of this path of `orders.shop`.
pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).header("host", "orders.shop").body(Empty::new()).unwrap()
}

/// The same as HTTP/2 has it.
pub(crate) fn get2(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://orders.shop{path}")).body(Empty::new()).unwrap()
}
