//! Starting, stopping, and doing without the control plane.

use std::time::Duration;

use heddle_tests::{
    app::App,
    eventually,
    mesh::{Mesh, ProxySpec},
};
use http::StatusCode;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::world::{ECHO, World, calling, serving};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_control_plane_proxies_go_on_and_start_again() {
    let mut world = World::start().await;
    let client = world.client.client();
    assert_eq!(client.get("http://echo.test/").send().await.expect("an answer").status(), StatusCode::OK);
    // What was learnt a moment ago is on disk a moment later.
    world.client.wait_kept("echo.test").await;
    world.server.wait_kept("test/echo").await;
    world.mesh.kill_control_plane();
    assert_eq!(client.get("http://echo.test/").send().await.expect("an answer").status(), StatusCode::OK);

    let folder = world.mesh.folder.path().to_path_buf();
    world.server.restart(&folder).await;
    world.client.restart(&folder).await;
    let client = world.client.client();
    assert_eq!(client.get("http://echo.test/").send().await.expect("an answer").status(), StatusCode::OK);
    let refused = client.get("http://nobody.test/").send().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    world.mesh.start_control_plane().await;
    world.mesh.apply(&ECHO.replace("echo", "later")).await;
    eventually("the proxies to be back", Duration::from_secs(20), || async {
        let response = client.get("http://later.test/").send().await.map_err(|error| error.to_string())?;
        match response.headers().get("heddle-error") {
            Some(reason) if reason == "no-endpoints" => Ok(()),
            reason => Err(format!("{} {reason:?}", response.status())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_ends() {
    let mut world = World::start().await;
    let client = world.client.client();
    world.app.set_delay(Duration::from_millis(500));
    let slow = tokio::spawn(client.get("http://echo.test/").send());
    eventually("the request to be in flight", Duration::from_secs(5), || async {
        if world.app.count() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let status = world.server.process.terminate(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}");
    let answer = slow.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK, "the request in flight was answered");
    let (_, proxies) = world.mesh.get("/v1/workloads").await;
    assert!(!proxies.to_string().contains("echo-1"), "deregistered: {proxies}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_without_a_lost_request() {
    let world = World::with(&["--svid-ttl", "3s"], ECHO).await;
    let report =
        heddle_tests::load::steady(world.client.client(), "http://echo.test/".to_owned(), 100, Duration::from_secs(8))
            .await;
    report.assert_nothing_lost(800);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_no_request() {
    let mut mesh = Mesh::start(&[]).await;
    mesh.apply(ECHO).await;
    let app = App::start("echo").await;
    let fifo = mesh.folder.path().join("stderr");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).expect("a pipe");
    // Full, and never read: who writes to it waits for ever.
    let full =
        rustix::fs::open(&fifo, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).expect("a pipe");
    let mut full = std::fs::File::from(full);
    while std::io::Write::write(&mut full, &[b'x'; 1 << 16]).is_ok() {}
    let wrapper = ["sh", "-c", r#"exec "$@" 2>"$0""#].map(str::to_owned).into_iter();
    let spec = ProxySpec {
        wrapper: wrapper.chain([fifo.display().to_string()]).collect(),
        flags: vec!["--log".to_owned(), "trace".to_owned()],
        ..serving("echo-1", "echo", &[format!("80:{}", app.address.port())])
    };
    let mut server = mesh.proxy("test", spec).await;
    let client = mesh.proxy("test", calling("client")).await;
    let caller = client.client();
    for _ in 0..50 {
        let answer = tokio::time::timeout(Duration::from_secs(5), caller.get("http://echo.test/").send());
        let status = answer.await.expect("it is not held up").expect("an answer").status();
        assert_eq!(status, StatusCode::OK);
    }
    assert!(server.metrics().await.contains("heddle_log_lines_dropped_total 0"), "what waits still fits");
    let status = server.process.terminate(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}");
}
