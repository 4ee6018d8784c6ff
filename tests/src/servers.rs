//! Servers that nobody here wrote, as apps that know nothing of a mesh: databases, queues, mail.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    eventually, peer,
    ports::{free_port, listening},
    process::{Process, succeed},
};

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listens {
    /// On IPv4's loopback alone.
    Loopback,
    /// At every address of both families, for anybody.
    Everywhere,
}

/// A server that ends when dropped, and what it keeps.
#[derive(Debug)]
pub struct Server {
    /// Its process; the first, where it takes several.
    pub process: Process,
    _others: Vec<Process>,
    _folder: tempfile::TempDir,
}

impl Server {
    fn new(process: Process, folder: tempfile::TempDir) -> Self {
        Self { process, _others: Vec::new(), _folder: folder }
    }
}

/// A folder that servers under users of their own may enter.
///
/// # Panics
/// When there is no room for one.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("heddle-tcp-").tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its owner");
    folder
}

/// A command that runs as this user.
fn as_user(user: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(program);
    command
}

/// Redis; `None` where there is none.
pub async fn redis(port: u16, listens: Listens) -> Option<Server> {
    let (program, folder) = (peer::find("redis-server")?, folder());
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    command.arg("--bind").args(match listens {
        Listens::Loopback => &["127.0.0.1"][..],
        Listens::Everywhere => &["*", "-::*"],
    });
    command.arg("--dir").arg(folder.path());
    let process = Process::start("redis", command, folder.path());
    listening(port).await;
    Some(Server::new(process, folder))
}

/// PostgreSQL, which trusts everybody; `None` where there is none.
///
/// # Panics
/// When its data cannot be made.
pub async fn postgresql(port: u16, listens: Listens) -> Option<Server> {
    let (programs, folder) = (postgresql_programs()?, folder());
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a new folder");
    let mut command = Command::new("chown");
    command.arg("postgres").arg(&data);
    succeed(command).await;
    let mut command = as_user("postgres", &programs.join("initdb"));
    command.args(["--no-sync", "--auth", "trust", "--username", "postgres", "--pgdata"]).arg(&data).current_dir("/");
    succeed(command).await;
    fs::write(data.join("pg_hba.conf"), "local all all trust\nhost all all all trust\n").expect("written");
    let mut command = as_user("postgres", &programs.join("postgres"));
    let addresses = if listens == Listens::Loopback { "127.0.0.1" } else { "*" };
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "fsync=off", "-c"]);
    command.arg(format!("listen_addresses={addresses}"));
    command.arg("-c").arg(format!("unix_socket_directories={}", data.display())).current_dir("/");
    let process = Process::start("postgres", command, folder.path());
    listening(port).await;
    eventually("PostgreSQL's start", Duration::from_secs(30), || {
        let ready = process.output().contains("ready to accept connections");
        async move { if ready { Ok(()) } else { Err("not ready".to_owned()) } }
    })
    .await;
    Some(Server::new(process, folder))
}

/// The folder of the newest PostgreSQL that Debian has installed.
fn postgresql_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists()).max();
    newest.or_else(|| peer::find("postgres").and_then(|path| path.parent().map(Path::to_path_buf)))
}

/// MariaDB, where `root` needs no password, and nobody one who is not from this machine; `None` where there is none.
pub async fn mariadb(port: u16, listens: Listens) -> Option<Server> {
    let (program, folder) = (peer::find("mariadbd")?, folder());
    let data = folder.path().join("data");
    let mut command = Command::new("mariadb-install-db");
    command.args(["--no-defaults", "--user=mysql", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    command.arg(format!("--datadir={}", data.display()));
    succeed(command).await;
    let mut command = Command::new(program);
    command.args(["--no-defaults", "--user=mysql", &format!("--port={port}")]);
    command.args(match listens {
        Listens::Loopback => &["--bind-address=127.0.0.1"][..],
        Listens::Everywhere => &["--bind-address=*", "--skip-grant-tables"],
    });
    command.arg(format!("--datadir={}", data.display())).arg(format!("--socket={}/socket", data.display()));
    command.args(["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]);
    let process = Process::start("mariadb", command, folder.path());
    listening(port).await;
    Some(Server::new(process, folder))
}

/// aiosmtpd, which writes out the mail that it gets; `None` where there is none.
pub async fn smtp(port: u16, listens: Listens) -> Option<Server> {
    let (python, folder) = (peer::kept("python-2/bin/python")?, folder());
    let start = |name: &str, address: &str| {
        let mut command = Command::new(&python);
        command.args(["-m", "aiosmtpd", "-n", "-c", "aiosmtpd.handlers.Debugging", "stdout", "-l"]);
        command.arg(format!("{address}:{port}")).env("PYTHONUNBUFFERED", "1");
        Process::start(name, command, folder.path())
    };
    let (process, others) = match listens {
        Listens::Loopback => (start("smtp", "127.0.0.1"), Vec::new()),
        // One listens for one family.
        Listens::Everywhere => (start("smtp", "0.0.0.0"), vec![start("smtp6", "::")]),
    };
    listening(port).await;
    Some(Server { process, _others: others, _folder: folder })
}

/// RabbitMQ; `None` where there is none.
///
/// # Panics
/// When it does not start.
pub async fn rabbitmq(port: u16, listens: Listens) -> Option<Server> {
    peer::find("rabbitmqctl")?;
    let (epmd, folder, names, distribution) = (peer::find("epmd")?, folder(), free_port(), free_port());
    let path = |name: &str| folder.path().join(name);
    // Or RabbitMQ starts one that outlives it.
    let mut command = Command::new(epmd);
    command.args(["-port", &names.to_string(), "-address", "127.0.0.1"]);
    let names_process = Process::start("epmd", command, folder.path());
    listening(names).await;
    fs::write(path("plugins"), "[].").expect("written");
    let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
    command.env("HOME", folder.path()).env("RABBITMQ_MNESIA_BASE", path("data"));
    command.env("RABBITMQ_LOG_BASE", folder.path()).env("RABBITMQ_LOGS", "-");
    command.env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")).env("RABBITMQ_CONF_ENV_FILE", path("none"));
    command.env("ERL_EPMD_PORT", names.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    command.env("RABBITMQ_NODENAME", "heddle@localhost").env("RABBITMQ_NODE_PORT", port.to_string());
    if listens == Listens::Loopback {
        command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
    }
    command.env("RABBITMQ_DIST_PORT", distribution.to_string());
    if listens == Listens::Everywhere {
        // Its guest is let in from loopback alone.
        fs::write(path("rabbitmq.conf"), "loopback_users = none\n").expect("written");
        command.env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"));
    }
    // One process, not a shell before it, which would leave it behind.
    command.env("RABBITMQ_ALLOW_INPUT", "1").arg("-noinput");
    command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1");
    let process = Process::start("rabbitmq", command, folder.path());
    listening(port).await;
    Some(Server { process, _others: vec![names_process], _folder: folder })
}
