//! Conformance of HTTP/2: the pair fails no case of h2spec that plain hyper does not fail.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use heddle_tests::{app::App, peer, process::run};

use crate::world::{Service, World};

#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_nothing_that_it_does_not_find_in_hyper() {
    let Some(h2spec) = peer::kept("h2spec-2.2.1+incompatible") else { return };
    let app = App::start_counting("h2").await;
    let world = World::start(&[Service::new("h2", "http2", app.address.port()).permissive()]).await;
    let report = |name: &str| world.folder().join(name);
    let (pair, inbound, hyper) = tokio::join!(
        failures(&h2spec, world.upstream("h2"), report("pair.xml")),
        failures(&h2spec, world.server("h2").addresses.inbound, report("inbound.xml")),
        failures(&h2spec, app.address, report("hyper.xml")),
    );
    assert!(pair.is_subset(&hyper), "the pair fails {pair:#?}\nhyper fails {hyper:#?}");
    assert!(inbound.is_subset(&hyper), "the inbound side fails {inbound:#?}\nhyper fails {hyper:#?}");
    // They were answered by the app, not by a proxy.
    assert!(app.count() > 200, "{}", app.count());
}

/// Names of the cases that fail.
async fn failures(h2spec: &Path, server: SocketAddr, report: PathBuf) -> BTreeSet<String> {
    let mut command = Command::new(h2spec);
    command.args(["--strict", "--host", "127.0.0.1", "--port", &server.port().to_string(), "--timeout", "2"]);
    command.arg("--junit-report").arg(&report);
    let output = run(command).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {text}"));
    let cases: Vec<&str> = report.split("<testcase ").skip(1).collect();
    assert!(cases.len() > 140, "only {} cases ran: {text}", cases.len());
    assert!(!text.contains("skipped, 0 passed"), "{text}");
    let failed = cases.iter().filter(|case| case.contains("<failure") || case.contains("<error"));
    failed.map(|case| format!("{} {}", attribute(case, "package"), attribute(case, "classname"))).collect()
}

fn attribute(case: &str, name: &str) -> String {
    let value = case.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
    value.unwrap_or_default().to_owned()
}
