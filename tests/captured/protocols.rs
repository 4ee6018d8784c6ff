//! Real servers that are not HTTP, through capture on both sides: servers that speak first, clients that do, and TLS
//! of the app's own.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use heddle_tests::{
    eventually,
    netns::Family,
    peer,
    process::Process,
    servers::{self, Listens},
};
use serde_json::Value;

use crate::world::{APP, PROXY, World, capture};

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

/// Every way in which this service can be reached, with a sidecar and without one; `line`: given a host and a port.
async fn in_every_way(world: &World, port: u16, line: impl Fn(IpAddr, u16) -> String, expected: &str) {
    let with = world.destinations(port).into_iter().map(|to| (APP, to));
    let without = [Family::V4, Family::V6].map(|family| (PROXY, SocketAddr::new(world.pair.b.address(family), port)));
    for (uid, to) in with.chain(without) {
        let line = line(to.ip(), to.port());
        eventually(&format!("the server at {to} to answer"), SOON, || {
            let said = shell(world, uid, &line);
            async move { if said.contains(expected) { Ok(()) } else { Err(format!("uid {uid}: {said:?}")) } }
        })
        .await;
    }
}

/// That both proxies found it to be opaque, because of who was first to speak.
async fn assert_opaque(world: &World, port: u16, because: &str) {
    for side in ["outbound", "inbound"] {
        let found = decided(world, side, port).await;
        assert_eq!((&found["speaks"], &found["because"]), (&"opaque".into(), &because.into()), "{side}: {found}");
    }
}

/// What the config dump says of a destination.
async fn decided(world: &World, side: &str, port: u16) -> Value {
    let dump = if side == "outbound" { world.dump(&world.client, 'a') } else { world.dump(&world.server, 'b') };
    let destination = SocketAddr::new(world.pair.b.address(world.family), port).to_string();
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
    assert_opaque(&world, 2222, "server spoke first").await;
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
async fn redis_is_opaque_by_its_first_bytes() {
    let Some(world) = World::serving(Family::V4, 6379).await else { return };
    let Some(_) = peer::find("redis-cli") else { return };
    let Some(_redis) = servers::redis(6379, Listens::Everywhere).await else { return };
    let line =
        |host, port| format!("redis-cli -h {host} -p {port} set loom heddle; redis-cli -h {host} -p {port} get loom");
    in_every_way(&world, 6379, line, "heddle").await;
    assert_opaque(&world, 6379, "first bytes").await;

    // Of the mesh, but nothing of it: not even a connection.
    let said = shell(&world, APP, "redis-cli -h 10.88.0.2 -p 6380 ping");
    assert!(said.contains("reset by peer"), "{said}");
    // Outside, where that is allowed.
    capture(&world.pair.b, &["--remove"]);
    for outside in ["10.77.0.1", "fd77::1"] {
        let said = shell(&world, APP, &format!("redis-cli -h {outside} get loom"));
        assert_eq!(said, "heddle\n", "{outside}");
    }
}

#[tokio::test]
async fn mariadb_greets_first() {
    let Some(world) = World::serving(Family::V6, 3306).await else { return };
    let Some(_) = peer::find("mariadb") else { return };
    let Some(_mariadb) = servers::mariadb(3306, Listens::Everywhere).await else { return };
    let line = |host, port| {
        format!(
            "mariadb --no-defaults -h {host} -P {port} -u root -N -e \"select repeat('loom', 2), length(repeat('x', 3000000))\""
        )
    };
    in_every_way(&world, 3306, line, "loomloom\t3000000").await;
    assert_opaque(&world, 3306, "server spoke first").await;
}

#[tokio::test]
async fn a_mail_server_greets_first() {
    let Some(world) = World::serving(Family::V4, 2525).await else { return };
    let Some(server) = servers::smtp(2525, Listens::Everywhere).await else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocols/smtp_client.py");
    let line = |host, port| format!("/usr/bin/python3 {} {host} {port}", script.display());
    in_every_way(&world, 2525, line, "all well").await;
    assert_opaque(&world, 2525, "server spoke first").await;
    assert!(server.process.output().contains("a thread through the heddle"));
}

#[tokio::test]
async fn postgresql_is_opaque_by_its_first_bytes() {
    let Some(world) = World::serving(Family::V6, 5432).await else { return };
    let Some(_postgresql) = servers::postgresql(5432, Listens::Everywhere).await else { return };
    let line = |host, port| {
        format!("psql -h {host} -p {port} -U postgres -tAc \"select repeat('loom', 2), length(repeat('x', 3000000))\"")
    };
    in_every_way(&world, 5432, line, "loomloom|3000000").await;
    assert_opaque(&world, 5432, "first bytes").await;
    let benchmark = |step: &str| {
        let line = format!("pgbench -h 10.99.0.1 -p 90 -U postgres {step} postgres 2>&1");
        shell(&world, APP, &line)
    };
    let made = benchmark("--initialize --quiet");
    assert!(made.contains("done in"), "{made}");
    let said = benchmark("--no-vacuum --client 4 --transactions 20");
    assert!(said.contains("processed: 80/80"), "{said}");
}

#[tokio::test]
async fn rabbitmq_is_opaque_by_its_first_bytes() {
    let Some(world) = World::serving(Family::V6, 5672).await else { return };
    let Some(modules) = peer::kept("python-2/lib") else { return };
    let Some(_rabbitmq) = servers::rabbitmq(5672, Listens::Everywhere).await else { return };
    // For users who may not read where it is kept.
    let folder = servers::folder();
    let copied = Command::new("sh")
        .args(["-ec", "cp -r \"$0\"/python3*/site-packages/pika \"$1\""])
        .args([modules.as_path(), folder.path()])
        .status();
    assert!(copied.expect("sh runs").success());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocols/amqp_client.py");
    let line = |host, port| {
        format!("PYTHONPATH={} /usr/bin/python3 {} {host} {port} 0", folder.path().display(), script.display())
    };
    in_every_way(&world, 5672, line, "all well").await;
    assert_opaque(&world, 5672, "first bytes").await;
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
