//! Bodies of a gigabyte each way, in memory that does not grow.

use std::{
    convert::Infallible,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use heddle_tests::{mesh::Proxy, peer, process::succeed};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

use crate::world::{Service, World};

/// How many bytes each way, unless this variable says otherwise (10 GB take minutes).
const SIZE: (&str, u64) = ("HEDDLE_LARGE_BYTES", 1_000_000_000);
/// What a proxy may grow by: its buffers, and what the allocator keeps.
const GROWTH: u64 = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_in_constant_memory() {
    if peer::find("curl").is_none() {
        return;
    }
    let size = std::env::var(SIZE.0).map_or(SIZE.1, |text| text.parse().expect("a number of bytes"));
    let taken = Arc::new(AtomicU64::new(0));
    let app = zeros(taken.clone()).await.port();
    let world = World::start(&[Service::new("zeros", "http", app)]).await;
    let source = world.folder().join("zeros");
    std::fs::File::create(&source).and_then(|file| file.set_len(size)).expect("a sparse file");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let url = format!("http://{}/{size}", world.upstream("zeros"));
        let curl = |arguments: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--fail", "--output", "/dev/null", version]).args(arguments).arg(&url);
            command
        };
        // What is had once and kept: threads' heaps, connections.
        succeed(curl(&["--max-filesize", "1", "--range", "0-0", "--head"])).await;
        let proxies = [&world.client, world.server("zeros")];
        let before = proxies.map(|proxy| proxy.process.pss());
        let (text, most) = watched(&proxies, succeed(curl(&["--write-out", "%{size_download}"]))).await;
        assert_eq!(text, size.to_string(), "{version}");
        check(version, before, most);

        taken.store(0, Ordering::Relaxed);
        let file = source.to_str().expect("text");
        let (text, most) =
            watched(&proxies, succeed(curl(&["--write-out", "%{size_upload}", "--upload-file", file]))).await;
        assert_eq!(text, size.to_string(), "{version}");
        assert_eq!(taken.load(Ordering::Relaxed), size, "{version}");
        check(version, before, most);
    }
}

fn check(what: &str, before: [u64; 2], most: [u64; 2]) {
    for (before, most) in before.into_iter().zip(most) {
        assert!(most < before + GROWTH, "{what}: a proxy grew from {before} B to {most} B");
    }
}

/// Does something, and gives the most memory that each proxy took meanwhile.
async fn watched<T>(proxies: &[&Proxy; 2], work: impl Future<Output = T>) -> (T, [u64; 2]) {
    let mut most = [0; 2];
    let mut work = std::pin::pin!(work);
    loop {
        let done = tokio::time::timeout(Duration::from_millis(100), &mut work).await;
        for (most, proxy) in most.iter_mut().zip(proxies) {
            *most = proxy.process.pss().max(*most);
        }
        if let Ok(result) = done {
            return (result, most);
        }
    }
}

/// An app that counts the bytes it is sent, and sends as many zeros as its path asks for.
async fn zeros(taken: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let taken = taken.clone();
            let service = service_fn(move |request: Request<Incoming>| answer(request, taken.clone()));
            tokio::spawn(async move {
                // A caller that goes away is no failure of the app.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

async fn answer(
    request: Request<Incoming>,
    taken: Arc<AtomicU64>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    const PIECE: Bytes = Bytes::from_static(&[0; 64 << 10]);
    if request.method() != Method::GET {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            taken.fetch_add(frame.data_ref().map_or(0, |data| data.len() as u64), Ordering::Relaxed);
        }
        return Ok(Response::new(Empty::new().boxed_unsync()));
    }
    let size: u64 = request.uri().path()[1..].parse().unwrap_or(0);
    let pieces = stream::unfold(size, |left| async move {
        let n = left.min(PIECE.len() as u64);
        let piece = PIECE.slice(..usize::try_from(n).expect("no more than a piece"));
        (n > 0).then(|| (Ok(Frame::data(piece)), left - n))
    });
    Ok(Response::new(StreamBody::new(pieces).boxed_unsync()))
}
