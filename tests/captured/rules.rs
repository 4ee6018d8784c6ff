//! `heddle-proxy capture` on a real kernel.

use heddle_tests::{
    netns::{Family, Pair},
    peer,
};

use crate::world::{World, capture};

#[test]
fn nft_rules_are_set_again_as_often_as_one_likes_and_removed() {
    let Some(pair) = Pair::new() else { return };
    pair.a.nft("table inet others {\n chain c {\n }\n}\n");
    let before = pair.a.sh("nft list ruleset");
    let flags = ["--inbound-ports", "80,8080-8090", "--skip-subnets", "10.0.0.0/8,10.1.0.0/16,fd00::/8"];
    capture(&pair.a, &flags);
    let once = pair.a.sh("nft list ruleset");
    assert!(once.contains("table inet heddle") && once.contains("redirect to :15006"), "{once}");
    capture(&pair.a, &flags);
    assert_eq!(pair.a.sh("nft list ruleset"), once);
    capture(&pair.a, &["--outbound-port", "4001"]);
    let other = pair.a.sh("nft list ruleset");
    assert!(other.contains(":4001") && !other.contains(":15001"), "in the place of the first: {other}");
    // What is written is what would be done.
    let written = capture(&pair.a, &[&flags[..], &["--dry-run"]].concat());
    assert_eq!(pair.a.sh("nft list ruleset"), other);
    pair.a.nft(&written);
    assert_eq!(pair.a.sh("nft list ruleset"), once);
    for _ in 0..2 {
        capture(&pair.a, &["--remove"]);
        assert_eq!(pair.a.sh("nft list ruleset"), before, "others' rules stay");
    }
}

#[test]
fn rules_that_cannot_be_set_leave_what_was_there() {
    let Some(pair) = Pair::new() else { return };
    capture(&pair.a, &[]);
    let before = pair.a.sh("nft list ruleset");
    // Without the right to.
    let mut command = pair.a.command("setpriv");
    command.args(["--reuid=2103", "--clear-groups"]).arg(heddle_tests::process::binary("heddle-proxy"));
    let output = command.args(["capture", "--outbound-port", "4001"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("nft refuses: "), "{output:?}");
    assert_eq!(pair.a.sh("nft list ruleset"), before);
}

#[test]
fn iptables_rules_are_set_again_as_often_as_one_likes_and_removed() {
    let Some(pair) = Pair::new() else { return };
    if peer::find("iptables").is_none() {
        return;
    }
    let saved = || pair.a.sh("iptables -t nat -S; ip6tables -t nat -S");
    let before = saved();
    capture(&pair.a, &["--backend", "iptables"]);
    let once = saved();
    assert_eq!(once.matches("-A OUTPUT -p tcp -j HEDDLE_OUTPUT").count(), 2, "one in each family: {once}");
    assert_eq!(once.matches("-j REDIRECT --to-ports 15006").count(), 2, "{once}");
    capture(&pair.a, &["--backend", "iptables"]);
    assert_eq!(saved(), once);
    for _ in 0..2 {
        capture(&pair.a, &["--backend", "iptables", "--remove"]);
        assert_eq!(saved(), before);
    }
}

/// A program that stands in the way of another, in a folder that comes first in `PATH`.
fn instead_of(program: &str, script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(program);
    std::fs::write(&path, script).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its owner");
    folder
}

#[test]
fn iptables_rules_are_set_for_both_families_or_for_none() {
    let Some(pair) = Pair::new() else { return };
    if peer::find("iptables").is_none() {
        return;
    }
    let saved = || pair.a.sh("iptables -t nat -S; ip6tables -t nat -S");
    let before = saved();
    let path = std::env::var("PATH").unwrap_or_default();
    let broken = instead_of("ip6tables-restore", "#!/bin/sh\ncat > /dev/null; echo no such family >&2; exit 2\n");
    let mut command = pair.a.command("env");
    command.arg(format!("PATH={}:{path}", broken.path().display())).arg(heddle_tests::process::binary("heddle-proxy"));
    let output = command.args(["capture", "--backend", "iptables"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("no such family"), "{output:?}");
    assert_eq!(saved(), before, "what IPv4 had been given is taken back");
    // Nor does a dry run do anything.
    let written = capture(&pair.a, &["--backend", "iptables", "--dry-run"]);
    assert!(written.contains("# iptables-restore") && written.contains("# ip6tables-restore"), "{written}");
    assert_eq!(saved(), before);
}

#[tokio::test]
async fn iptables_rules_capture_the_same() {
    for family in [Family::V4, Family::V6] {
        let Some(world) = World::start(family).await else { return };
        if peer::find("iptables").is_none() {
            return;
        }
        for (namespace, skipped) in [(&world.pair.a, "15020"), (&world.pair.b, "15020,9701")] {
            capture(namespace, &["--remove"]);
            capture(namespace, &["--backend", "iptables", "--skip-inbound-ports", skipped]);
        }
        let answer = world.curl(&[&world.url(8080)]);
        let client = answer.header("x-client").unwrap_or_default();
        assert!(answer.status == 200 && client.contains("/sa/client"), "{answer:?}");
        let answer = world.curl_without_sidecar(&[&world.url(8080)]);
        assert_eq!(answer.header("heddle-error"), Some("plaintext-refused"), "{answer:?}");
    }
}

#[tokio::test]
async fn what_stays_in_the_pod_and_what_is_skipped_is_left_alone() {
    let Some(world) = World::start(Family::V4).await else { return };
    // The app beside the server's proxy calls itself.
    for url in ["http://127.0.0.1:8081/", "http://10.88.0.2:8080/"] {
        let answer = world.curl_in_server(&[url]);
        assert_eq!((answer.status, answer.header("x-client")), (200, None), "{answer:?}");
    }
    capture(&world.pair.a, &["--skip-outbound-ports", "8082", "--skip-subnets", "10.77.0.0/16,fd00::/8"]);
    let answer = world.curl(&[&world.url(8082)]);
    assert_eq!((answer.status, answer.header("x-client")), (200, None), "as without a sidecar: {answer:?}");
    for url in ["http://10.77.0.1:8082/", "http://[fd77::1]:8082/"] {
        let answer = world.curl(&[url]);
        assert_eq!((answer.status, answer.header("via")), (200, None), "{answer:?}");
    }
    let answer = world.curl(&[&world.url(8080)]);
    assert!(answer.header("x-client").is_some(), "and the rest is not: {answer:?}");
}

#[tokio::test]
async fn dns_is_left_alone_over_udp_and_tcp() {
    for family in [Family::V4, Family::V6] {
        dns(family).await;
    }
}

async fn dns(family: Family) {
    let Some(world) = World::start(family).await else { return };
    let server = std::net::SocketAddr::new(world.pair.b.address(family), 53);
    // What answers is in the server's namespace, like this thread.
    capture(&world.pair.b, &["--remove"]);
    let udp = tokio::net::UdpSocket::bind(server).await.expect("root may");
    tokio::spawn(async move {
        let mut asked = [0; 64];
        while let Ok((read, from)) = udp.recv_from(&mut asked).await {
            let _ = udp.send_to(&asked[..read], from).await;
        }
    });
    let tcp = tokio::net::TcpListener::bind(server).await.expect("root may");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    for transport in ["udp", "tcp"] {
        let line = format!("exec 3<>/dev/{transport}/{}/53; echo query >&3; timeout 5 head -n 1 <&3", server.ip());
        let mut command = tokio::process::Command::from(world.pair.a.command("setpriv"));
        command.args(["--reuid=2103", "--clear-groups", "bash", "-c", &line]);
        let output = command.output().await.expect("bash runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "query\n", "{transport}: {output:?}");
    }
}
