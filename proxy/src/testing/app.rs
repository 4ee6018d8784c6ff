//! Apps.

use std::{convert::Infallible, future::Future, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use crate::testing::Local;

pub(crate) type AppBody = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn text(text: impl Into<Bytes>) -> AppBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An app that answers requests, by HTTP/1.1 and HTTP/2.
pub(crate) async fn http<F>(handle: impl Fn(Request<Incoming>) -> F + Clone + 'static) -> SocketAddr
where
    F: Future<Output = Response<AppBody>> + 'static,
{
    tcp(move |socket| {
        let handle = handle.clone();
        async move {
            let service = service_fn(move |request| {
                let response = handle(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let mut first = [0; 3];
            while socket.peek(&mut first).await.is_ok_and(|n| n > 0 && n < 3) {
                tokio::task::yield_now().await;
            }
            if &first == b"PRI" {
                let _ = conn::http2::Builder::new(Local).serve_connection(TokioIo::new(socket), service).await;
            } else {
                let connection = conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                let _ = connection.with_upgrades().await;
            }
        }
    })
    .await
}

/// An app that tells what it was asked: `<version> <method> <uri>`, a line for each header, an empty line, the
/// body; a header `status` says with which status.
pub(crate) async fn echo() -> SocketAddr {
    http(|request| async move {
        let (parts, body) = request.into_parts();
        let version = if parts.version == Version::HTTP_2 { "2" } else { "1.1" };
        let mut told = format!("{version} {} {}\n", parts.method, parts.uri);
        for (name, value) in &parts.headers {
            told += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        told.push('\n');
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        told += &String::from_utf8_lossy(&body);
        let asked = parts.headers.get("status").and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
        let status = asked.filter(|status| !status.is_informational()).unwrap_or_default();
        Response::builder().status(status).header("x-app", "echo").body(text(told)).unwrap()
    })
    .await
}

/// An app that does as it likes with each connection.
pub(crate) async fn tcp<F>(handle: impl Fn(TcpStream) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            spawn_local(handle(socket));
        }
    });
    address
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
