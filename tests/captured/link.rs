//! Links that lose what they carry, or everything from one moment on.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use heddle_tests::{eventually, netns::Family};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::World;

/// Drops what comes over the cable and matches this.
fn lose(world: &World, matches: &str) {
    for namespace in [&world.pair.a, &world.pair.b] {
        namespace.nft(&format!(
            "add table inet link
             delete table inet link
             table inet link {{
               chain input {{
                 type filter hook input priority -300
                 iifname eth0 {matches} drop
               }}
             }}"
        ));
    }
}

#[tokio::test]
async fn a_link_that_loses_packets_harms_nothing() {
    let Some(world) = World::start(Family::V4).await else { return };
    // And takes its time, where the kernel can.
    let slow = "tc qdisc add dev eth0 root netem delay 20ms 2> /dev/null || echo no netem";
    let can = world.pair.a.sh(slow) + &world.pair.b.sh(slow);
    println!("{}", if can.is_empty() { "with a delay of 20 ms" } else { "without a delay: the kernel has no netem" });
    lose(&world, "numgen random mod 100 < 3");
    for _ in 0..20 {
        let answer = world.curl(&[&world.url(8080)]);
        assert_eq!((answer.status, answer.header("x-port")), (200, Some("8080")), "{answer:?}");
        let answer = world.curl(&["--http2-prior-knowledge", "--data", "some words", &world.url(8081)]);
        assert!(answer.status == 200 || answer.header("heddle-error").is_some(), "{answer:?}");
    }
}

#[tokio::test]
async fn both_ends_hear_of_a_link_that_is_gone() {
    let Some(mut world) = World::serving(Family::V4, 7000).await else { return };
    let policy = "{ apiVersion: heddle.dev/v1, kind: TrafficPolicy, metadata: { name: echo, namespace: test }, \
         spec: { targetRef: { kind: Service, name: echo }, timeouts: { request: 5s } } }";
    world.mesh.apply(policy).await;
    let app = tokio::net::TcpListener::bind("0.0.0.0:7000").await.expect("a free port");
    let app = tokio::spawn(async move {
        loop {
            let (mut socket, _) = app.accept().await.expect("a connection");
            // Its proxy looks whether it listens.
            let Ok(word) = socket.read_u8().await else { continue };
            socket.write_u8(word).await.expect("sent");
            return socket.read_u8().await.expect_err("nothing more");
        }
    });
    let (established, ready) = tokio::sync::oneshot::channel();
    let to = SocketAddr::new(world.pair.b.address(Family::V4), 7000);
    let client = world.pair.a.thread(move || {
        let mut socket = TcpStream::connect(to).expect("its own proxy takes it");
        socket.write_all(&[0]).expect("sent");
        let mut byte = [1];
        socket.read_exact(&mut byte).expect("the byte comes back");
        let _ = established.send(());
        socket.set_read_timeout(Some(Duration::from_secs(110))).expect("a duration");
        socket.read_exact(&mut byte).expect_err("nothing more")
    });
    ready.await.expect("a connection through both");
    let service = format!("http://{}/", world.pick("10.99.0.1", "[fd99::1]"));
    eventually("an answer", Duration::from_secs(10), || {
        let answer = world.curl(&[&service]);
        async move { if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) } }
    })
    .await;

    lose(&world, "");
    // A request is told in time, on a connection that was good and on a new one.
    for _ in 0..2 {
        let answer = world.curl(&["--max-time", "30", &service]);
        assert!(answer.header("heddle-error").is_some(), "{answer:?}");
    }
    // Who waits without a word hears of it once the kernel has asked in vain, for a minute.
    let of_app = tokio::time::timeout(Duration::from_secs(120), app).await.expect("in time").expect("no panic");
    assert_eq!(of_app.kind(), std::io::ErrorKind::ConnectionReset, "{of_app}");
    let of_client = tokio::task::spawn_blocking(|| client.join()).await.expect("no panic").expect("no panic");
    assert_eq!(of_client.kind(), std::io::ErrorKind::ConnectionReset, "{of_client}");

    lose(&world, "tcp dport 1");
    eventually("the way to be open again", Duration::from_secs(30), || {
        let answer = world.curl(&[&service]);
        async move { if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) } }
    })
    .await;
}
