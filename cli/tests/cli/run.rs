//! `heddle run` with a sidecar made of shell, whose health and admin listener is the test itself.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json as value};

use crate::fake::{Answer, Ended, Fake, ended, eventually, heddle, json};

/// Writes what it was started with, says where it listens, and ends on TERM.
const SIDECAR: &str = r#"#!/bin/sh
echo "$*" >> "$FAKE/arguments"
echo "a line in the log"
if [ -e "$FAKE/broken" ]; then echo "cannot do that"; exit 3; fi
while [ $# -gt 0 ]; do
  [ "$1" = --state-dir ] && state=$2
  [ "$1" = --join ] && cp "$2" "$FAKE/join.json"
  shift
done
env > "$FAKE/sidecar-environment"
trap 'echo "sidecar TERM" >> "$FAKE/events"; exit 0' TERM
trap 'echo "sidecar INT" >> "$FAKE/events"' INT
echo "$FAKE_ADDRESSES" > "$state/new" && mv "$state/new" "$state/addresses.json"
echo "$$" > "$FAKE/pid"
while :; do sleep 0.02; done
"#;

struct Bench {
    fake: Fake,
    ready: Arc<AtomicBool>,
    addresses: String,
    temporary: PathBuf,
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{text}").unwrap();
}

impl Bench {
    fn new() -> Self {
        Self::with_api(|asked| {
            if asked.line.starts_with("POST /v1/join-tokens") {
                return json(
                    201,
                    &value!({"id": "x", "controlPlane": "127.0.0.1:9701", "trustDomain": "t",
                    "identity": "spiffe://t/ns/shop/sa/orders", "trustAnchors": "PEM", "token": "hjt_x_secret"}),
                );
            }
            if asked.line.ends_with("/orders") {
                return json(
                    200,
                    &value!({"kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
                    "spec": {"ports": [{"port": 80, "targetPort": 8080}], "serviceAccounts": ["orders-sa"]}}),
                );
            }
            json(404, &value!({"title": "Not found", "detail": "no such service"}))
        })
    }

    fn with_api(api: impl Fn(&crate::fake::Asked) -> Answer + Send + Sync + 'static) -> Self {
        let fake = Fake::start(api);
        let sidecar = fake.path("heddle-proxy");
        std::fs::write(&sidecar, SIDECAR).unwrap();
        std::fs::set_permissions(&sidecar, PermissionsExt::from_mode(0o755)).unwrap();
        let ready = Arc::new(AtomicBool::new(true));
        let events = fake.path("events");
        let (address, stop) = crate::fake::serve(None, {
            let ready = Arc::clone(&ready);
            move |asked| match asked.line.as_str() {
                "GET /ready" if ready.load(Ordering::SeqCst) => (200, "ready\n".to_owned()),
                "GET /ready" => (503, "not ready; waiting for: certificate\n".to_owned()),
                "POST /drain/inbound" => {
                    append(&events, "drained");
                    (200, String::new())
                }
                "POST /drain/application-gone" => (202, String::new()),
                other => panic!("{other}"),
            }
        });
        let proxy: SocketAddr = "127.0.0.1:4321".parse().unwrap();
        let addresses = value!({"inbound": "127.0.0.1:4320", "httpProxy": proxy, "upstreams": {}, "admin": address, "health": address});
        let temporary = fake.path("tmp");
        std::fs::create_dir(&temporary).unwrap();
        Self { fake, ready, addresses: addresses.to_string(), temporary, _stop: stop }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["run"];
        all.extend(arguments);
        let mut command = self.fake.command(&all);
        command
            .env("HEDDLE_PROXY", self.fake.path("heddle-proxy"))
            .env("FAKE", self.fake.folder.path())
            .env("FAKE_ADDRESSES", &self.addresses)
            .env("TMPDIR", &self.temporary)
            // Not in the foreground of whatever terminal the tests run in.
            .process_group(0);
        command
    }

    /// Runs a shell script as the command.
    fn script(&self, script: &str) -> Ended {
        ended(self.command(&["--service", "orders.shop", "--", "sh", "-c", script]))
    }

    /// Starts a shell script as the command and waits for its first line.
    fn started(&self, script: &str) -> (Child, impl Iterator<Item = String> + use<>) {
        let mut command = self.command(&["--service", "orders.shop", "--", "sh", "-c", script]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(lines.next().as_deref(), Some("up"));
        (child, lines)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.fake.path(name)).unwrap_or_default()
    }

    fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn kill(child: &Child, signal: &str) {
    let status = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn wait(child: Child) -> Ended {
    child.wait_with_output().unwrap().into()
}

#[test]
fn the_command_runs_beside_a_sidecar_and_its_exit_code_is_returned() {
    let bench = Bench::new();
    let ended = bench.script(r#"echo "$http_proxy $HTTP_PROXY $NO_PROXY $NODE_USE_ENV_PROXY"; exit 7"#);
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert_eq!(ended.out, "http://127.0.0.1:4321 http://127.0.0.1:4321 localhost,127.0.0.1,::1 1\n");
    assert_eq!(ended.err, "");
    assert_eq!(bench.read("events"), "sidecar TERM\n");
    bench.assert_clean();
    let arguments = bench.read("arguments");
    assert!(arguments.contains("--service orders.shop --port 80:127.0.0.1:8080"), "{arguments}");
    assert!(!arguments.contains("hjt_"), "{arguments}");
    let join: Value = serde_json::from_str(&bench.read("join.json")).unwrap();
    assert_eq!(join["token"], "hjt_x_secret");
    assert_eq!(bench.fake.asked()[1].body["serviceAccount"], "orders-sa");
}

#[test]
fn settings_of_another_sidecar_and_the_api_token_do_not_reach_this_one() {
    let bench = Bench::new();
    let mut command = bench.command(&["--service", "orders.shop", "--", "true"]);
    command.env("HEDDLE_PROXY_CONFIG", "/x").env("HEDDLE_TOKEN", "heddle_secret").env("HEDDLE_LOG", "debug");
    assert_eq!(ended(command).code, Some(0));
    let environment = bench.read("sidecar-environment");
    assert!(environment.contains("HEDDLE_LOG=debug"), "{environment}");
    assert!(!environment.contains("HEDDLE_PROXY_CONFIG") && !environment.contains("heddle_secret"), "{environment}");
}

#[test]
fn the_command_does_not_see_what_lets_into_the_api() {
    let bench = Bench::new();
    let run = |more: &[&str]| {
        let mut arguments = vec!["--service", "orders.shop"];
        arguments.extend(more);
        arguments.extend(["--", "env"]);
        let mut command = bench.command(&arguments);
        command.env("HEDDLE_TOKEN", "heddle_secret").env("HEDDLE_LOG", "debug");
        ended(command).out
    };
    let out = run(&[]);
    for name in ["HEDDLE_TOKEN", "HEDDLE_CONFIG", "HEDDLE_CONTEXT", "HEDDLE_ADDRESS", "HEDDLE_CA"] {
        assert!(!out.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}: {out}");
    }
    assert!(out.contains("HEDDLE_LOG=debug"), "{out}");
    assert!(run(&["--keep-heddle-env"]).contains("HEDDLE_TOKEN=heddle_secret"));
}

#[test]
fn a_signal_that_ends_the_command_is_its_exit_code() {
    let bench = Bench::new();
    assert_eq!(bench.script("kill -KILL $$").code, Some(137));
    assert_eq!(bench.script("kill -TERM $$").code, Some(143));
    bench.assert_clean();
}

#[test]
fn on_term_peers_are_sent_elsewhere_before_the_command_is_told_and_the_sidecar_ends_last() {
    let bench = Bench::new();
    let (child, _lines) = bench
        .started(r#"trap 'echo "command TERM" >> $FAKE/events; exit 9' TERM; echo up; while :; do sleep 0.02; done"#);
    kill(&child, "TERM");
    let ended = wait(child);
    assert_eq!(ended.code, Some(9), "{ended:?}");
    assert_eq!(bench.read("events"), "drained\ncommand TERM\nsidecar TERM\n");
    bench.assert_clean();
}

#[test]
fn other_signals_are_passed_on_and_end_nothing() {
    let bench = Bench::new();
    let (child, mut lines) =
        bench.started(r#"trap 'echo usr1' USR1; trap 'echo int; exit 4' INT; echo up; while :; do sleep 0.02; done"#);
    kill(&child, "USR1");
    assert_eq!(lines.next().as_deref(), Some("usr1"));
    assert_eq!(bench.read("events"), "");
    kill(&child, "INT");
    assert_eq!(lines.next().as_deref(), Some("int"));
    assert_eq!(wait(child).code, Some(4));
    // The sidecar itself got no INT.
    assert_eq!(bench.read("events"), "drained\nsidecar TERM\n");
}

#[test]
fn hup_is_for_the_command_and_takes_nothing_out_of_the_mesh() {
    let bench = Bench::new();
    let (child, mut lines) =
        bench.started(r#"trap 'echo hup' HUP; trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done"#);
    kill(&child, "HUP");
    assert_eq!(lines.next().as_deref(), Some("hup"));
    assert_eq!(bench.read("events"), "", "peers go on calling");
    // A sidecar that dies is still started again.
    let first = bench.read("pid");
    assert!(Command::new("kill").args(["-KILL", first.trim()]).status().unwrap().success());
    eventually("another sidecar", || bench.read("pid") != first && !bench.read("pid").is_empty());
    kill(&child, "TERM");
    assert_eq!(wait(child).code, Some(0));
    assert_eq!(bench.read("events"), "drained\nsidecar TERM\n");
}

#[test]
fn a_command_that_ends_by_hup_is_drained_like_any_other() {
    let bench = Bench::new();
    let (child, _lines) = bench.started("echo up; while :; do sleep 0.02; done");
    kill(&child, "HUP");
    assert_eq!(wait(child).code, Some(129));
    assert_eq!(bench.read("events"), "sidecar TERM\n");
}

#[test]
fn a_sidecar_that_cannot_start_is_told_with_the_end_of_its_log() {
    let bench = Bench::new();
    std::fs::write(bench.fake.path("broken"), "").unwrap();
    let ended = bench.script("echo never");
    assert_eq!((ended.code, ended.out.as_str()), (Some(125), ""));
    assert!(ended.err.contains("exit status: 3") && ended.err.contains("    cannot do that\n"), "{}", ended.err);
    bench.assert_clean();
}

#[test]
fn what_the_sidecar_waits_for_is_said_and_in_the_end_given_up() {
    let bench = Bench::new();
    bench.ready.store(false, Ordering::SeqCst);
    let ended =
        ended(bench.command(&["--service", "orders.shop", "--ready-timeout", "1s200ms", "--", "echo", "never"]));
    assert_eq!((ended.code, ended.out.as_str()), (Some(125), ""));
    assert!(
        ended.err.contains("heddle: waiting for the sidecar: not ready; waiting for: certificate\n"),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("not ready after 1s200ms"), "{}", ended.err);
    assert_eq!(bench.read("events"), "sidecar TERM\n");
    bench.assert_clean();
}

#[test]
fn a_signal_while_waiting_ends_the_sidecar() {
    let bench = Bench::new();
    bench.ready.store(false, Ordering::SeqCst);
    let mut command = bench.command(&["--service", "orders.shop", "--", "echo", "never"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the sidecar", || bench.fake.path("pid").exists());
    kill(&child, "TERM");
    let ended = wait(child);
    assert_eq!((ended.code, ended.out.as_str()), (Some(143), ""));
    assert_eq!(bench.read("events"), "sidecar TERM\n");
    bench.assert_clean();
}

#[test]
fn a_sidecar_that_dies_is_started_again_where_it_was() {
    let bench = Bench::new();
    let (child, _lines) = bench.started(r#"trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done"#);
    let first = bench.read("pid");
    assert!(Command::new("kill").args(["-KILL", first.trim()]).status().unwrap().success());
    eventually("another sidecar", || bench.read("pid") != first && !bench.read("pid").is_empty());
    let again = bench.read("arguments").lines().nth(1).unwrap().to_owned();
    assert!(again.contains("--http-proxy 127.0.0.1:4321") && again.contains("--inbound 127.0.0.1:4320"), "{again}");
    kill(&child, "TERM");
    let ended = wait(child);
    assert_eq!(ended.code, Some(0));
    assert!(ended.err.contains("starting it again"), "{}", ended.err);
}

#[test]
fn commands_that_cannot_run_have_codes_of_their_own() {
    let bench = Bench::new();
    let missing = ended(bench.command(&["--service", "orders.shop", "--", "/nonexistent/command"]));
    assert_eq!(missing.code, Some(127), "{missing:?}");
    let file = bench.fake.write("no-program", "");
    let refused = ended(bench.command(&["--service", "orders.shop", "--", &file]));
    assert_eq!(refused.code, Some(126), "{refused:?}");
    assert_eq!(bench.read("events"), "sidecar TERM\nsidecar TERM\n");
    bench.assert_clean();
}

#[test]
fn a_service_that_is_not_there_is_told_before_anything_starts() {
    let bench = Bench::new();
    let with_command = ended(bench.command(&["--service", "ordrs.shop", "--", "true"]));
    assert_eq!(with_command.code, Some(125));
    assert!(with_command.err.contains("there is no service shop/ordrs"), "{}", with_command.err);
    let alone = ended(bench.command(&["--service", "ordrs.shop"]));
    assert_eq!(alone.code, Some(5));
    assert_eq!(bench.read("arguments"), "");
}

#[test]
fn a_join_file_needs_no_api() {
    let bench = Bench::new();
    let join = bench.fake.write("own-join.json", r#"{"token":"own"}"#);
    let mut command = bench.command(&["--service", "orders.shop", "--port", "8080", "--join", &join, "--", "true"]);
    command.env("HEDDLE_CONFIG", "/nonexistent");
    let ended = ended(command);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(bench.read("arguments").contains(&format!("--join {join}")));
    assert!(bench.fake.lines().is_empty());
}

#[test]
fn without_a_command_the_sidecar_runs_alone() {
    let bench = Bench::new();
    let mut command = bench.command(&["--account", "web.shop"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(err.any(|line| line.contains("http_proxy=http://127.0.0.1:4321")));
    kill(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(bench.read("events"), "sidecar TERM\n");
    assert!(!bench.read("arguments").contains("--service"));
}

#[test]
fn no_binary_is_told_with_what_to_do() {
    let mut command = heddle(&["run", "--service", "a", "--join", "/dev/null", "--", "true"]);
    command.env("PATH", "/nonexistent");
    let ended = ended(command);
    // A heddle-proxy built beside this heddle would be found; it cannot use that join file.
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.err.contains("HEDDLE_PROXY") || ended.err.contains("join"), "{}", ended.err);
}
