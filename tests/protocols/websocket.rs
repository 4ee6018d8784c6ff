//! WebSocket, by an upgrade of HTTP/1.1 and by HTTP/2's extended CONNECT.

use std::{path::PathBuf, process::Command};

use heddle_tests::{
    peer,
    ports::{free_port, listening},
    process::{Process, succeed},
};

use crate::world::{Service, World, script};

/// Node, with the modules that tests use.
pub(crate) fn node() -> Option<Command> {
    let modules: PathBuf = peer::kept("node-1/node_modules")?;
    let mut command = Command::new(peer::find("node")?);
    command.env("NODE_PATH", modules);
    Some(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_what_they_are_without_proxies() {
    let Some(python) = peer::kept("python-2/bin/python") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = free_port();
    let mut command = Command::new(&python);
    command.arg(script("websocket_server.py")).arg(port.to_string());
    let _server = Process::start("websockets", command, folder.path());
    listening(port).await;
    let world = World::start(&[Service::new("chat", "http", port)]).await;
    let url = format!("ws://{}/chat", world.upstream("chat"));
    let mut command = Command::new(&python);
    command.arg(script("websocket_client.py")).arg(&url);
    assert_eq!(succeed(command).await, "all well\n");
    let Some(mut command) = node() else { return };
    command.arg(script("websocket_client.js")).arg(&url);
    assert_eq!(succeed(command).await, "all well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_connect_opens_tunnels_where_the_app_takes_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (name, takes) in [("tunnel", "true"), ("plain", "false")] {
        let Some(mut command) = node() else { return };
        let port = free_port();
        command.arg(script("tunnel_server.js")).args([&port.to_string(), takes]);
        servers.push(Process::start(name, command, folder.path()));
        listening(port).await;
        services.push(Service::new(name, "http2", port));
    }
    let world = World::start(&services).await;
    for (name, expected) in [("tunnel", &["200"][..]), ("plain", &["403", "heddle-error=upgrade-refused"])] {
        let Some(mut command) = node() else { return };
        command.arg(script("tunnel_client.js")).arg(format!("http://{}", world.upstream(name))).args(expected);
        assert_eq!(succeed(command).await, "all well\n", "{name}");
    }
}
