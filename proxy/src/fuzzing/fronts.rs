//! Whole proxies, driven by what a client sends.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, LocalOptions, LocalRuntime},
    signal::unix::{SignalKind, signal},
    time::{Duration, timeout},
};

use crate::{
    snapshot::Protocol,
    testing::{
        Called, Proxy, TestMesh, app,
        client::{get, get2, send1, send2},
        strict::{self, Pair},
    },
};

/// The front ends of a pair of proxies, with an app behind it.
pub struct Fronts {
    runtime: LocalRuntime,
    pair: Pair,
    caller2: Proxy,
    callee2: Proxy,
}

impl Fronts {
    /// Starts them: proxies, apps and clients in this thread.
    pub fn start() -> Self {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
        let (pair, callee2, caller2) = runtime.block_on(async {
            // Ignored in a Rust program, but not where libFuzzer's `main` is the first.
            let _ = signal(SignalKind::pipe()).expect("a handler");
            let mesh = TestMesh::new();
            let callee = mesh.sidecar("orders", Protocol::Http2, app::echo().await);
            let caller = mesh.caller(vec![Called::new("orders", Protocol::Http2, &callee.addresses)]);
            (strict::pair().await, callee, caller)
        });
        Self { runtime, pair, caller2, callee2 }
    }

    /// Sends bytes on an HTTP/1.1 connection, then another client's request; gives what the app saw of the first.
    ///
    /// # Panics
    /// When the app saw something that is no request, when nothing becomes of them, or when the other client is not
    /// answered as it should be.
    pub fn http1(&self, bytes: &[u8]) -> Vec<String> {
        let address = self.pair.caller.address();
        self.runtime.block_on(async {
            exchange(address, bytes).await;
            let after = send1(address, get("/after")).await;
            assert_eq!((after.status.as_u16(), &*after.body), (200, "/after"));
        });
        for proxy in [&self.pair.caller, &self.pair.callee] {
            proxy.outcomes.borrow_mut().clear();
        }
        let mut seen = self.pair.requests.take();
        assert_eq!(seen.pop().as_deref(), Some("GET /after"));
        seen
    }

    /// Sends bytes after the preface of an HTTP/2 connection, then another client's request.
    ///
    /// # Panics
    /// When nothing becomes of them, or when the other client is not answered as it should be.
    pub fn http2(&self, bytes: &[u8]) {
        let address = self.caller2.address();
        self.runtime.block_on(async {
            exchange(address, &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes].concat()).await;
            let after = send2(address, get2("/after")).await;
            assert!(after.status == 200 && after.body.starts_with("2 GET http://orders.shop/after\n"), "{after:?}");
        });
        for proxy in [&self.caller2, &self.callee2] {
            proxy.outcomes.borrow_mut().clear();
        }
    }
}

/// Sends, says that there is no more, and reads until the other side has no more either.
async fn exchange(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    // It may be refused, and closed, before all is sent.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
}
