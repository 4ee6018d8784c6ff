//! What people type: `heddle` against the real control plane, and with real sidecars.

use std::{
    process::{Command, Output},
    time::Duration,
};

use heddle_tests::{app::App, eventually, mesh::Mesh, peer, process::Process};
use serde_json::Value;

use crate::world::ECHO;

const ROUTE: &str = "
apiVersion: heddle.dev/v1
kind: HTTPRoute
metadata: { name: echo, namespace: test, labels: { team: a } }
spec:
  parentRefs: [{ name: echo }]
  rules: [{ backendRefs: [{ name: echo }] }]
";

/// A command that goes on until it is told to end.
const UNTIL_TERM: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// Runs `heddle` to its end, and returns exit code, standard output and standard error.
async fn heddle(mesh: &Mesh, arguments: &[&str]) -> (i32, String, String) {
    finish(mesh.cli(arguments)).await
}

async fn finish(mut command: Command) -> (i32, String, String) {
    command.stdin(std::process::Stdio::null());
    let output: Output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

/// Runs `heddle`, which must succeed, and returns its standard output.
async fn ok(mesh: &Mesh, arguments: &[&str]) -> String {
    let (code, out, err) = heddle(mesh, arguments).await;
    assert_eq!(code, 0, "heddle {arguments:?}: {out}{err}");
    out
}

fn write(mesh: &Mesh, name: &str, text: &str) -> String {
    let path = mesh.folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_from_files_and_back() {
    let mesh = Mesh::start(&[]).await;
    write(&mesh, "objects/b/echo.yaml", ECHO);
    write(&mesh, "objects/a-route.yaml", ROUTE);
    let folder = mesh.folder.path().join("objects");
    let folder = folder.to_str().expect("UTF-8");

    let dry = ok(&mesh, &["apply", "-f", folder, "--dry-run"]).await;
    assert!(dry.contains("service test/echo created (dry run)"), "{dry}");
    let (code, _, err) = heddle(&mesh, &["get", "svc/echo", "-n", "test"]).await;
    assert_eq!(code, 5, "{err}");

    let applied = ok(&mesh, &["apply", "-f", folder, "--wait"]).await;
    assert!(applied.contains("httproute test/echo created\n") && applied.contains("3 created, revision "), "{applied}");
    let again = ok(&mesh, &["apply", "-f", folder, "--diff"]).await;
    assert!(again.contains("3 unchanged") && !again.contains("---"), "{again}");

    // What `get` shows can be applied as it is.
    let shown = ok(&mesh, &["get", "all", "-n", "test", "-o", "yaml"]).await;
    let file = write(&mesh, "shown.yaml", &shown);
    assert!(ok(&mesh, &["apply", "-f", &file]).await.contains("unchanged"), "{shown}");

    let table = ok(&mesh, &["get", "hr", "-A", "-l", "team=a"]).await;
    assert!(table.starts_with("NAMESPACE   NAME ") && table.contains("test        echo "), "{table}");
    let described = ok(&mesh, &["describe", "svc", "echo", "-n", "test"]).await;
    for related in ["routed by  HTTPRoute test/echo", "policy     AuthorizationPolicy test/echo-callers (ALLOW)"] {
        assert!(described.contains(related), "{described}");
    }

    let changed = write(&mesh, "changed.yaml", &ECHO.replace("port: 80", "port: 81"));
    let (code, diff, err) = heddle(&mesh, &["diff", "-f", &changed, "--exit-code"]).await;
    assert_eq!(code, 7, "{err}");
    assert!(diff.contains("-  - port: 80\n") || diff.contains("-    port: 80\n"), "{diff}");
    ok(&mesh, &["apply", "-f", &changed]).await;
    let revisions: Value = serde_json::from_str(&ok(&mesh, &["revisions", "-o", "json"]).await).expect("JSON");
    assert_eq!(revisions.as_array().expect("a list").len(), 2, "{revisions}");
    assert!(ok(&mesh, &["revisions", "1", "2"]).await.contains("port: 81"));
    assert!(ok(&mesh, &["rollback", "--dry-run"]).await.contains("service test/echo updated (dry run)"));
    assert!(ok(&mesh, &["rollback"]).await.contains("back at revision 1"));
    let (code, diff, _) = heddle(&mesh, &["diff", "-f", folder, "--exit-code"]).await;
    assert_eq!(code, 0, "{diff}");

    assert_eq!(ok(&mesh, &["delete", "hr/echo", "-n", "test"]).await, "httproute test/echo deleted\n");
    let (code, _, err) = heddle(&mesh, &["delete", "hr/echo", "-n", "test"]).await;
    assert_eq!(code, 5, "{err}");
    assert!(ok(&mesh, &["delete", "-f", folder, "--ignore-not-found"]).await.contains("2 deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_conflicts_and_roles() {
    let mesh = Mesh::start(&[]).await;
    let bad = write(
        &mesh,
        "bad.yaml",
        &format!(
            "{ECHO}---{}---{}",
            ROUTE.replace("name: echo }] }]", "name: nobody, port: 0 }] }]"),
            ROUTE.replace("name: echo,", "name: other,").replace("rules:", "rulez: 3\n  rules:")
        ),
    );
    let (code, out, err) = heddle(&mesh, &["apply", "-f", &bad]).await;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    for expected in [
        "bad.yaml, document 3 (HTTPRoute test/echo)",
        "spec.rules[0].backendRefs[0]",
        "bad.yaml, document 4 (HTTPRoute test/other)",
        "rulez",
        "nothing was changed",
    ] {
        assert!(err.contains(expected), "no {expected:?} in\n{err}");
    }
    assert_eq!(ok(&mesh, &["get", "all", "-n", "test"]).await, "");

    let echo = write(&mesh, "echo.yaml", ECHO);
    ok(&mesh, &["apply", "-f", &echo]).await;
    let fetched = ok(&mesh, &["get", "svc/echo", "-n", "test", "-o", "yaml"]).await;
    let mine = write(&mesh, "mine.yaml", &fetched.replace("port: 80", "port: 82"));
    ok(&mesh, &["apply", "-f", &write(&mesh, "theirs.yaml", &ECHO.replace("port: 80", "port: 81"))]).await;
    let (code, _, err) = heddle(&mesh, &["apply", "-f", &mine]).await;
    assert_eq!(code, 6, "{err}");

    let viewer = mesh.folder.path().join("viewer.yaml");
    let viewer = viewer.to_str().expect("UTF-8");
    ok(&mesh, &["api-token", "create", "dashboard", "--role", "viewer", "-o", viewer]).await;
    ok(&mesh, &["--config", viewer, "get", "svc", "-A"]).await;
    let (code, _, err) = heddle(&mesh, &["--config", viewer, "apply", "-f", &echo]).await;
    assert_eq!(code, 4, "{err}");
    let tokens = ok(&mesh, &["api-token", "list"]).await;
    let id = tokens.lines().find(|line| line.contains("dashboard")).and_then(|line| line.split_whitespace().next());
    ok(&mesh, &["api-token", "delete", id.expect("an id")]).await;
    let (code, _, err) = heddle(&mesh, &["--config", viewer, "get", "svc", "-A"]).await;
    assert_eq!(code, 4, "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_changes_as_they_happen() {
    let mesh = Mesh::start(&[]).await;
    let echo = write(&mesh, "echo.yaml", ECHO);
    let watch = Process::start("watch", mesh.cli(&["get", "svc", "-A", "--watch"]), mesh.folder.path());
    let shows = |what: &'static str| {
        let watch = &watch;
        async move {
            eventually(what, Duration::from_secs(10), || async {
                let output = watch.output();
                if output.contains(what) { Ok(()) } else { Err(output) }
            })
            .await;
        }
    };
    shows("NAMESPACE").await;
    ok(&mesh, &["apply", "-f", &echo]).await;
    shows("echo").await;
    ok(&mesh, &["delete", "-f", &echo]).await;
    shows("deleted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_run_beside_sidecars() {
    let Some(curl) = peer::find("curl") else { return };
    let curl = curl.to_str().expect("UTF-8").to_owned();
    let mesh = Mesh::start(&[]).await;
    ok(&mesh, &["apply", "-f", &write(&mesh, "echo.yaml", ECHO)]).await;
    let app = App::start("echo").await;
    let port = format!("80:{}", app.address.port());
    let arguments =
        ["run", "--service", "echo.test", "--workload", "echo-1", "--port", &port, "--", "sh", "-c", UNTIL_TERM];
    let mut server = Process::start("server", mesh.cli(&arguments), mesh.folder.path());
    connected(&mesh, true).await;

    let call = |account: &'static str| {
        let curl = curl.clone();
        mesh.cli(&["run", "--account", account, "--", &curl, "-sS", "-f", "http://echo.test/hello", "-d", "ping"])
    };
    let (code, out, err) = finish(call("client.test")).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("ping"), "{out}");
    let (code, _, err) = finish(call("stranger.test")).await;
    assert_eq!(code, 22, "curl's code for an error status: {err}");
    assert_eq!(app.count(), 1);

    let status = ok(&mesh, &["status"]).await;
    assert!(status.contains("test/echo-1") && status.contains("in 23h"), "{status}");
    let workloads = ok(&mesh, &["get", "workloads", "-n", "test"]).await;
    assert!(workloads.contains("echo-1") && workloads.contains("registered"), "{workloads}");

    assert!(server.terminate(Duration::from_secs(20)).await.success());
    let workloads = ok(&mesh, &["get", "workloads", "-n", "test"]).await;
    assert!(!workloads.contains("echo-1"), "{workloads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_does_not_outlive_its_command() {
    let mesh = Mesh::start(&[]).await;
    ok(&mesh, &["apply", "-f", &write(&mesh, "echo.yaml", ECHO)]).await;
    let arguments = ["run", "--service", "echo.test", "--workload", "echo-1", "--", "sleep", "10"];
    let mut command = mesh.cli(&arguments);
    command.env("TMPDIR", mesh.folder.path());
    let mut run = Process::start("run", command, mesh.folder.path());
    connected(&mesh, true).await;
    run.kill();
    connected(&mesh, false).await;
}

/// Waits until the proxy `echo-1` is connected, or is not.
async fn connected(mesh: &Mesh, wanted: bool) {
    eventually("echo-1", Duration::from_secs(30), || async {
        let (_, out, err) = heddle(mesh, &["status", "echo-1"]).await;
        if out.contains("connected ") == wanted { Ok(()) } else { Err(out + &err) }
    })
    .await;
}
