//! Opaque protocols: databases, and servers that speak first. Their ports are undeclared: each connection is found to
//! be opaque by what is said on it, and by whom.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use heddle_tests::{
    peer,
    ports::{free_port, listening},
    process::{Process, succeed},
    servers::{self, Listens, folder},
};

use crate::{
    nginx::Nginx,
    world::{Service, World, script},
};

/// The only connections on record were opaque ones.
async fn assert_opaque(world: &World) {
    let connections = world.client.metric("heddle_requests_total", &[]).await;
    assert!(connections == 0.0, "taken for HTTP: {}", world.client.metrics().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_benchmark_finds_redis_as_it_is() {
    let Some(benchmark) = peer::find("redis-benchmark") else { return };
    let port = free_port();
    let Some(_server) = servers::redis(port, Listens::Loopback).await else { return };
    let world = World::start(&[Service::new("redis", "", port)]).await;
    let upstream = world.upstream("redis").port().to_string();
    for more in [&["-P", "16", "-n", "20000"][..], &["-d", "100000", "-n", "500"], &["-k", "0", "-n", "200"]] {
        let mut command = Command::new(&benchmark);
        command.args(["-p", &upstream, "-c", "10", "-q", "--csv", "-t", "set,get,lpush,mset"]).args(more);
        let text = succeed(command).await;
        let rates = text
            .lines()
            .filter(|line| ["\"SET\"", "\"GET\"", "\"LPUSH\""].contains(&line.split(',').next().unwrap_or("")));
        assert_eq!(rates.count(), 3, "{more:?}: {text}");
    }
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_finds_postgresql_as_it_is() {
    let Some(pgbench) = peer::find("pgbench") else { return };
    let port = free_port();
    let Some(_server) = servers::postgresql(port, Listens::Loopback).await else { return };
    let world = World::start(&[Service::new("postgres", "", port)]).await;
    let upstream = world.upstream("postgres").port().to_string();
    let connect = ["-h", "127.0.0.1", "-p", &upstream, "-U", "postgres"];
    let mut command = Command::new(&pgbench);
    command.args(connect).args(["--initialize", "--quiet", "postgres"]);
    succeed(command).await;
    for more in [&["--protocol", "simple"][..], &["--protocol", "prepared"], &["--connect", "--select-only"]] {
        let mut command = Command::new(&pgbench);
        command.args(connect).args(["--no-vacuum", "--client", "4", "--transactions", "50"]).args(more).arg("postgres");
        let text = succeed(command).await;
        assert!(text.contains("processed: 200/200"), "{more:?}: {text}");
    }
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_greets_first() {
    let Some(client) = peer::find("mariadb") else { return };
    let port = free_port();
    let Some(_server) = servers::mariadb(port, Listens::Loopback).await else { return };
    let world = World::start(&[Service::new("maria", "", port)]).await;
    let sql = "create database t; create table t.n (n int, b longblob); \
               insert into t.n values (1, repeat('x', 3000000)), (2, ''); select sum(n), sum(length(b)) from t.n;";
    let mut command = Command::new(client);
    command.args(["--no-defaults", "-h", "127.0.0.1", "-u", "root", "--batch", "--skip-column-names"]);
    command.args(["-P", &world.upstream("maria").port().to_string(), "-e", sql]);
    let began = Instant::now();
    assert_eq!(succeed(command).await, "3\t3000000\n");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_and_its_half_closed_streams() {
    let (Some(server), Some(client)) = (peer::find("sshd"), peer::find("ssh")) else { return };
    let (folder, port) = (folder(), free_port());
    let path = |name: &str| folder.path().join(name).display().to_string();
    for key in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]);
        succeed(command).await;
    }
    fs::create_dir_all("/run/sshd").expect("what sshd wants");
    let mut command = Command::new(server);
    command.args(["-D", "-e", "-f", "/dev/null", "-h", &path("host"), "-p", &port.to_string()]);
    for option in [
        "ListenAddress=127.0.0.1",
        "PermitRootLogin=prohibit-password",
        "StrictModes=no",
        "PidFile=none",
        &format!("AuthorizedKeysFile={}", path("user.pub")),
    ] {
        command.args(["-o", option]);
    }
    let _server = Process::start("sshd", command, folder.path());
    listening(port).await;
    let world = World::start(&[Service::new("ssh", "", port)]).await;
    let source = folder.path().join("source");
    fs::write(&source, vec![7; 5_000_000]).expect("written");
    // cat ends when its input does, and its output ends after that.
    let mut command = Command::new("bash");
    command.args(["-c", "exec \"$@\" < \"$0\"", &path("source")]).arg(client);
    command.args(["-p", &world.upstream("ssh").port().to_string(), "-i", &path("user"), "-F", "none"]);
    command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
    command.args(["root@127.0.0.1", "cat | md5sum"]);
    let mut expected = Command::new("md5sum");
    expected.args(["--", &path("source")]);
    let expected = succeed(expected).await;
    assert_eq!(succeed(command).await.split(' ').next(), expected.split(' ').next());
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_smtp_server_greets_first() {
    let Some(python) = peer::kept("python-2/bin/python") else { return };
    let port = free_port();
    let Some(server) = servers::smtp(port, Listens::Loopback).await else { return };
    let world = World::start(&[Service::new("mail", "", port)]).await;
    let mut command = Command::new(python);
    command.arg(script("smtp_client.py")).args(["127.0.0.1", &world.upstream("mail").port().to_string()]);
    assert_eq!(succeed(command).await, "all well\n");
    let output = server.process.output();
    assert!(output.contains("a thread through the heddle"), "{output}");
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_its_heartbeats() {
    let Some(python) = peer::kept("python-2/bin/python") else { return };
    let port = free_port();
    let Some(_server) = servers::rabbitmq(port, Listens::Loopback).await else { return };
    let world = World::start(&[Service::new("queue", "", port)]).await;
    let mut command = Command::new(python);
    command.arg(script("amqp_client.py")).args(["127.0.0.1", &world.upstream("queue").port().to_string(), "5"]);
    assert_eq!(succeed(command).await, "all well\n");
    assert_opaque(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_as_an_app_and_what_is_encrypted_already() {
    let (Some(haproxy), Some(_)) = (peer::find("haproxy"), peer::find("curl")) else { return };
    let Some(nginx) = Nginx::start().await else { return };
    fs::write(nginx.files.join("page"), vec![b'x'; 200_000]).expect("written");
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command.args(["-subj", "/CN=secret.test", "-addext", "subjectAltName=DNS:secret.test"]);
    command.args(["-keyout", &path("pem.key"), "-out", &path("pem")]);
    succeed(command).await;
    let (http1, http2, tls) = (free_port(), free_port(), free_port());
    let settings = format!(
        "
global
  maxconn 200
defaults
  mode http
  timeout connect 5s
  timeout client 10s
  timeout server 10s
frontend all
  bind 127.0.0.1:{http1}
  bind 127.0.0.1:{http2} proto h2
  bind 127.0.0.1:{tls} ssl crt {} alpn h2,http/1.1
  default_backend nginx
backend nginx
  server one 127.0.0.1:{}
",
        path("pem"),
        nginx.http1
    );
    fs::write(folder.path().join("haproxy.cfg"), settings).expect("written");
    let mut command = Command::new(haproxy);
    command.args(["-db", "-f", &path("haproxy.cfg")]);
    let _server = Process::start("haproxy", command, folder.path());
    for port in [http1, http2, tls] {
        listening(port).await;
    }
    let world = World::start(&[
        Service::new("one", "http", http1),
        Service::new("two", "http", http2),
        Service::new("secret", "", tls),
    ])
    .await;
    let secret = world.upstream("secret").port();
    for (version, url) in [
        ("--http1.1", format!("http://{}/page", world.upstream("one"))),
        ("--http2-prior-knowledge", format!("http://{}/page", world.upstream("two"))),
        ("--http1.1", format!("https://secret.test:{secret}/page")),
        ("--http2", format!("https://secret.test:{secret}/page")),
    ] {
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "--fail",
            version,
            "--cacert",
            &path("pem"),
            "--connect-to",
            &format!("secret.test:{secret}:127.0.0.1:{secret}"),
        ]);
        command.args(["--write-out", "%{size_download} %{http_version}", "--output", "/dev/null", &url]);
        let spoken = if version == "--http1.1" { "1.1" } else { "2" };
        assert_eq!(succeed(command).await, format!("200000 {spoken}"), "{url}");
    }
}
