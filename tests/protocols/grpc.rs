//! gRPC: all call shapes, metadata, deadlines, cancellation, by grpcio and grpc-js.

use std::{path::PathBuf, process::Command};

use heddle_tests::{
    peer,
    ports::{free_port, listening},
    process::{Process, succeed},
};

use crate::{
    websocket::node,
    world::{Service, World, script},
};

struct Calls {
    world: World,
    python: PathBuf,
    _server: Process,
    _folder: tempfile::TempDir,
}

impl Calls {
    /// A grpcio server with these channel options behind a pair of proxies.
    async fn start(options: &[&str]) -> Option<Self> {
        let python = peer::kept("python-2/bin/python")?;
        let folder = tempfile::Builder::new().prefix("heddle-grpc-").tempdir().expect("a temporary folder");
        let port = free_port();
        let mut command = Command::new(&python);
        command.arg(script("grpc_server.py")).arg(port.to_string()).args(options);
        let server = Process::start("grpcio", command, folder.path());
        listening(port).await;
        let world = World::start(&[Service::new("calls", "grpc", port)]).await;
        Some(Self { world, python, _server: server, _folder: folder })
    }

    async fn check(&self, checks: &[&str]) {
        let mut command = Command::new(&self.python);
        command.arg(script("grpc_client.py")).arg(self.world.upstream("calls").to_string()).args(checks);
        let text = succeed(command).await;
        assert!(text.ends_with("all well\n"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_in_every_way() {
    let Some(calls) = Calls::start(&[]).await else { return };
    calls.check(&["shapes", "metadata", "large"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_and_cancellation_reach_the_server() {
    let Some(calls) = Calls::start(&[]).await else { return };
    calls.check(&["deadlines", "cancellation", "pings"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_its_connections_loses_no_call() {
    let ages = ["grpc.max_connection_age_ms=300", "grpc.max_connection_age_grace_ms=5000"];
    let Some(calls) = Calls::start(&ages).await else { return };
    calls.check(&["many"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_take_few_streams_on_a_connection() {
    let Some(calls) = Calls::start(&["grpc.max_concurrent_streams=2"]).await else { return };
    calls.check(&["long_lived", "many"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_js_calls_in_every_way() {
    let Some(calls) = Calls::start(&[]).await else { return };
    let Some(mut command) = node() else { return };
    command.arg(script("grpc_client.js")).arg(calls.world.upstream("calls").to_string());
    assert_eq!(succeed(command).await, "all well\n");
}
