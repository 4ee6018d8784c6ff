//! Real servers that are not HTTP, through capture on both sides: servers that speak first, clients that do, and TLS
//! of the app's own.

use std::{process::Command, time::Duration};

use heddle_tests::{eventually, netns::Family, peer, process::Process};
use serde_json::Value;

use crate::world::{APP, PROXY, World};

const SOON: Duration = Duration::from_secs(10);

/// A line of shell in the client's pod, as this user.
fn shell(world: &World, uid: u32, line: &str) -> String {
    let mut command: Command = world.pair.a.command("setpriv");
    let user = [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()];
    let output = command.args(user).args(["timeout", "10", "bash", "-c", line]).output().expect("bash runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Both with a sidecar and without one.
async fn both_ways(world: &World, line: &str, expected: &str) {
    for uid in [APP, PROXY] {
        eventually("the server to answer", SOON, || {
            let said = shell(world, uid, line);
            async move { if said.contains(expected) { Ok(()) } else { Err(format!("uid {uid}: {said:?}")) } }
        })
        .await;
    }
}

/// What the config dump says of a destination.
async fn decided(world: &World, side: &str, port: u16) -> Value {
    let dump = if side == "outbound" { world.dump(&world.client, 'a') } else { world.dump(&world.server, 'b') };
    let destination = std::net::SocketAddr::new(world.pair.b.address(world.family), port).to_string();
    let all = dump["detection"][side].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|found| found["destination"] == destination).cloned();
    found.unwrap_or_else(|| panic!("nothing of {destination} in {all:?}"))
}

async fn ssh(family: Family) {
    let Some(world) = World::serving(family, 2222).await else { return };
    let Some(sshd) = peer::find("sshd") else { return };
    let folder = world.mesh.folder.path().join("ssh");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::create_dir_all("/run/sshd").expect("sshd's own folder");
    let key = folder.join("key");
    let made = Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen runs").success());
    let mut command = world.pair.b.command("env");
    command.arg(sshd).args(["-D", "-e", "-p", "2222", "-f", "/dev/null", "-o", "PidFile=none", "-h"]).arg(&key);
    let _sshd = Process::start("sshd", command, world.mesh.folder.path());
    let ip = world.pair.b.address(family);
    both_ways(&world, &format!("ssh-keyscan -T 8 -p 2222 -t ed25519 {ip}"), "ssh-ed25519 AAAA").await;

    let out = decided(&world, "outbound", 2222).await;
    assert_eq!(
        (&out["speaks"], &out["leadsTo"]),
        (&"opaque".into(), &format!("test/echo:90 at {}", world.inbound()).into())
    );
    // An SSH client speaks at once too: either may have been first. One that waits is greeted.
    let greet = format!("exec 3<>/dev/tcp/{ip}/2222; head -c 7 <&3");
    both_ways(&world, &greet, "SSH-2.0").await;
    for side in ["outbound", "inbound"] {
        let found = decided(&world, side, 2222).await;
        assert_eq!((&found["speaks"], &found["because"]), (&"opaque".into(), &"server spoke first".into()), "{found}");
    }
    // Having learnt it, the client's proxy does not wait 50 ms for a client that will not speak.
    let timed = format!("s=${{EPOCHREALTIME/./}}; {greet}; echo \" $((${{EPOCHREALTIME/./}} - s))\"");
    let took = || shell(&world, APP, &timed).split_whitespace().nth(1).and_then(|us| us.parse::<u64>().ok());
    let fastest = (0..10).filter_map(|_| took()).min().expect("it was greeted");
    assert!(fastest < 50_000, "{fastest} us");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_over_ipv4() {
    ssh(Family::V4).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_over_ipv6() {
    ssh(Family::V6).await;
}

#[tokio::test]
async fn a_client_that_speaks_first_is_opaque_where_it_speaks_no_http() {
    let Some(world) = World::serving(Family::V4, 6379).await else { return };
    let (Some(redis), Some(_)) = (peer::find("redis-server"), peer::find("redis-cli")) else { return };
    let mut command = world.pair.b.command("env");
    command.arg(redis).args(["--port", "6379", "--bind", "0.0.0.0", "--save", "", "--protected-mode", "no"]);
    command.arg("--dir").arg(world.mesh.folder.path());
    let _redis = Process::start("redis", command, world.mesh.folder.path());
    both_ways(&world, "redis-cli -h 10.88.0.2 set loom heddle; redis-cli -h 10.88.0.2 get loom", "heddle").await;
    for side in ["outbound", "inbound"] {
        let found = decided(&world, side, 6379).await;
        assert_eq!((&found["speaks"], &found["because"]), (&"opaque".into(), &"first bytes".into()), "{found}");
    }
}

#[tokio::test]
async fn tls_of_the_apps_own_passes_as_it_is() {
    let Some(world) = World::serving(Family::V4, 8443).await else { return };
    let Some(openssl) = peer::find("openssl") else { return };
    let folder = world.mesh.folder.path();
    let (key, certificate) = (folder.join("app.key"), folder.join("app.crt"));
    let made = Command::new(&openssl)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=the-app", "-keyout"])
        .args([key.as_path(), "-out".as_ref(), certificate.as_path()])
        .output();
    assert!(made.expect("openssl runs").status.success());
    let mut command = world.pair.b.command("env");
    command
        .arg(&openssl)
        .args(["s_server", "-accept", "8443", "-www", "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&certificate);
    let _server = Process::start("s_server", command, folder);
    let line = "curl -skv --max-time 5 --connect-to app.example::10.88.0.2:8443 https://app.example/ 2>&1";
    both_ways(&world, line, "subject: CN=the-app").await;
    for side in ["outbound", "inbound"] {
        let found = decided(&world, side, 8443).await;
        assert_eq!(found["speaks"], "tls of the app's own", "{found}");
    }
}
