//! Pools: what is used again and what is not.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use heddle_certs::SystemClock;
use http::{Request, Response};
use http_body_util::BodyExt;
use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::spawn_local,
    time::{Duration, advance, pause, resume, sleep},
};

use super::{Carried, Dial, Pool, Slots, Target, parse_server_name, server_name};
use crate::{
    body::Body,
    cluster::limit::Limit,
    identity::Identity,
    outcome::{Error, ErrorKind},
    snapshot::{Limits, Protocol},
    testing::{Served, TestMesh, allow_all, app, cluster, meshed, run, run_within, serving, until},
};

fn dial() -> Dial {
    Dial {
        timeout: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        slots: None,
        max_header_bytes: 64 << 10,
        max_headers: 100,
    }
}

/// Sends a request; whether a connection was made for it.
async fn send(pool: &Rc<Pool>, carried: Carried, dial: &Dial) -> Result<(Response<Body>, bool), Error> {
    let mut made = false;
    let uri = if carried == Carried::Http2 { "http://orders.shop/" } else { "/" };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri.parse().unwrap();
    if carried == Carried::Http1 {
        request.headers_mut().insert("host", http::HeaderValue::from_static("orders.shop"));
    }
    let response = pool.send(Box::new(request), carried, dial, |via, _| made = via.connect.is_some()).await?;
    Ok((response, made))
}

async fn finish(response: Response<Body>) -> Bytes {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    // The connection needs a turn to see that it is free.
    sleep(Duration::from_millis(5)).await;
    body
}

#[test]
fn a_connection_is_used_again_after_a_whole_response() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(app), &identity);
        let (first, made) = send(&pool, Carried::Http1, &dial()).await.unwrap();
        assert!(made);
        let (second, made) = send(&pool, Carried::Http1, &dial()).await.unwrap();
        assert!(made, "the first is in use");
        finish(first).await;
        finish(second).await;
        assert_eq!(pool.len(), 2);
        let (third, made) = send(&pool, Carried::Http1, &dial()).await.unwrap();
        assert!(!made);
        // Given up in the middle, it is not used again.
        drop(third);
        sleep(Duration::from_millis(5)).await;
        assert_eq!(pool.len(), 1);
        pool.sweep(Duration::ZERO);
        assert_eq!(pool.len(), 0);
    });
}

#[test]
fn http_2_connections_are_shared() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(app), &identity);
        let tasks: Vec<_> = (0..150)
            .map(|_| {
                let pool = pool.clone();
                spawn_local(async move { finish(send(&pool, Carried::Http2, &dial()).await.unwrap().0).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(pool.len(), 2, "as many as it takes waited for the one that was being made");
        // With all their streams in use, another is made.
        let mut held = Vec::new();
        for _ in 0..201 {
            held.push(send(&pool, Carried::Http2, &dial()).await.unwrap().0);
        }
        assert_eq!(pool.len(), 3);
        drop(held);
        pool.sweep(Duration::ZERO);
        assert_eq!(pool.len(), 0);
    });
}

/// Frames of HTTP/2 (RFC 9113, section 4.1) by their types, from an app that opens no stream's response and says
/// first that it takes so many streams.
fn silent_app(listener: TcpListener, streams: u8) -> mpsc::UnboundedReceiver<u8> {
    let (types, received) = mpsc::unbounded_channel();
    spawn_local(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let types = types.clone();
            spawn_local(async move {
                // SETTINGS_MAX_CONCURRENT_STREAMS.
                socket.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams]).await.unwrap();
                let mut preface = [0; 24];
                socket.read_exact(&mut preface).await.unwrap();
                let mut head = [0; 9];
                while socket.read_exact(&mut head).await.is_ok() {
                    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                    socket.read_exact(&mut payload).await.unwrap();
                    let _ = types.send(head[3]);
                }
            });
        }
    });
    received
}

const HEADERS: u8 = 1;
const PING: u8 = 6;

#[test]
fn no_more_streams_are_opened_than_the_app_takes() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(listener.local_addr().unwrap()), &identity);
        let mut received = silent_app(listener, 2);
        for _ in 0..5 {
            let pool = pool.clone();
            spawn_local(async move { send(&pool, Carried::Http2, &dial()).await.map(drop) });
        }
        let mut opened = 0;
        while opened < 5 {
            opened += usize::from(received.recv().await.unwrap() == HEADERS);
        }
        assert_eq!(pool.len(), 3);
    });
}

#[test]
fn an_app_that_takes_no_stream_is_not_waited_for_for_ever() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(listener.local_addr().unwrap()), &identity);
        let _received = silent_app(listener, 0);
        let dial = Dial { timeout: Duration::from_millis(50), ..dial() };
        assert_eq!(send(&pool, Carried::Http2, &dial).await.unwrap_err().kind, ErrorKind::ConnectTimeout);
    });
}

#[test]
fn an_app_is_not_pinged_however_long_its_streams_are_silent() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(listener.local_addr().unwrap()), &identity);
        let mut received = silent_app(listener, 2);
        spawn_local(async move { send(&pool, Carried::Http2, &dial()).await.map(drop) });
        while received.recv().await.unwrap() != HEADERS {}
        pause();
        advance(Duration::from_secs(40)).await;
        resume();
        sleep(Duration::from_millis(50)).await;
        while let Ok(frame) = received.try_recv() {
            assert_ne!(frame, PING);
        }
    });
}

#[test]
fn an_unused_connection_of_one_endpoint_makes_room_for_one_to_another() {
    run(async {
        let identity = Identity::new(SystemClock::shared());
        for carried in [Carried::Http1, Carried::Http2] {
            let limit = Limit::new(Limits { max_connections: 2, max_requests: 100, max_pending: 10 });
            let slots = Slots::new(limit.clone());
            let dial = Dial { slots: Some(slots.clone()), timeout: Duration::from_millis(500), ..dial() };
            let mut pools = Vec::new();
            for _ in 0..3 {
                let pool = Pool::new(Target::plain(app::echo().await), &identity);
                slots.register(&pool);
                pools.push(pool);
            }
            for n in 0..9 {
                let answered = tokio::time::timeout(Duration::from_secs(5), send(&pools[n % 3], carried, &dial));
                finish(answered.await.expect("at once").unwrap().0).await;
                assert!(limit.in_use()[0] <= 2);
            }
            // With both in use there is nothing to be had, until one is done with.
            let other = if carried == Carried::Http1 { Carried::Http2 } else { Carried::Http1 };
            finish(send(&pools[0], other, &dial).await.unwrap().0).await;
            let first = send(&pools[0], carried, &dial).await.unwrap().0;
            let second = send(&pools[1], carried, &dial).await.unwrap().0;
            let waiting = spawn_local({
                let (pool, dial) = (pools[2].clone(), dial.clone());
                async move { send(&pool, carried, &dial).await.map(|(response, _)| response.status()) }
            });
            sleep(Duration::from_millis(50)).await;
            assert!(!waiting.is_finished());
            finish(first).await;
            assert_eq!(waiting.await.unwrap().unwrap(), 200);
            drop(second);
        }
    });
}

#[test]
fn who_asked_first_may_go_away_before_the_connection_is_made() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(app), &identity);
        let dial = dial();
        let mut first = Box::pin(send(&pool, Carried::Http2, &dial));
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(first);
        assert_eq!(send(&pool, Carried::Http2, &dial).await.unwrap().0.status(), 200);
        assert_eq!(pool.len(), 1);
    });
}

#[test]
fn a_connection_retires_before_a_certificate_expires() {
    run(async {
        let mesh = TestMesh::new();
        let callee = mesh.proxy(
            "orders",
            serving("orders", vec![Served::new(80, Protocol::Http, app::echo().await)], allow_all()),
            &[crate::listener::Role::Inbound],
        );
        let endpoint = Arc::new(meshed(callee.address(), "orders"));
        for (carried, account) in [(Carried::Http1, "web"), (Carried::Http2, "web")] {
            let identity = mesh.identity_for(account, Duration::from_secs(3));
            let pool = Pool::new(Target::endpoint(&endpoint, &cluster("orders")).unwrap(), &identity);
            finish(send(&pool, carried, &dial()).await.unwrap().0).await;
            let (response, made) = send(&pool, carried, &dial()).await.unwrap();
            assert!(!made);
            finish(response).await;
            until("the certificate is about to expire", || {
                pool.sweep(Duration::from_secs(60));
                pool.len() == 0
            })
            .await;
            assert!(identity.current().is_some(), "before it has");
            until("it has expired", || identity.current().is_none()).await;
            let error = send(&pool, carried, &dial()).await.err().unwrap();
            assert_eq!(error.kind, ErrorKind::NoCertificate);
        }
    });
}

#[test]
fn neither_certificate_may_be_about_to_expire() {
    for (own, peers, carried) in [
        (240, 3600, Carried::Http1),
        (3600, 240, Carried::Http1),
        (240, 3600, Carried::Http2),
        (3600, 240, Carried::Http2),
    ] {
        run_within(Duration::from_secs(600), async move {
            let mesh = TestMesh::new();
            let mut common = mesh.sidecar("orders", Protocol::Http, app::echo().await).worker.common.clone();
            common.identity = mesh.identity_for("orders", Duration::from_secs(peers));
            let callee = mesh.again(common, &[crate::listener::Role::Inbound]);
            let endpoint = Arc::new(meshed(callee.address(), "orders"));
            let identity = mesh.identity_for("web", Duration::from_secs(own));
            let pool = Pool::new(Target::endpoint(&endpoint, &cluster("orders")).unwrap(), &identity);
            let dial = Dial { idle: Duration::from_secs(600), ..dial() };
            for (passes, expected) in [(0, true), (0, false), (200, false), (36, true), (0, false)] {
                pause();
                advance(Duration::from_secs(passes)).await;
                resume();
                let (response, made) = send(&pool, carried, &dial).await.unwrap();
                assert_eq!(made, expected, "{own} {peers} {carried:?}, {passes} s later");
                finish(response).await;
            }
        });
    }
}

#[test]
fn what_is_retired_is_not_used_again() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(app), &identity);
        let (first, _) = send(&pool, Carried::Http1, &dial()).await.unwrap();
        let (second, _) = send(&pool, Carried::Http2, &dial()).await.unwrap();
        pool.retire();
        // What has begun ends well.
        assert!(!finish(first).await.is_empty());
        assert!(!finish(second).await.is_empty());
        assert_eq!(pool.len(), 0);
    });
}

#[test]
fn connections_are_limited_and_waited_for() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let pool = Pool::new(Target::plain(app), &identity);
        let limit = Limit::new(Limits { max_connections: 1, max_requests: 100, max_pending: 1 });
        let dial = Dial { slots: Some(Slots::new(limit.clone())), ..dial() };
        let (first, _) = send(&pool, Carried::Http1, &dial).await.unwrap();
        let waiting = spawn_local({
            let (pool, dial) = (pool.clone(), dial.clone());
            async move { send(&pool, Carried::Http1, &dial).await.map(|(response, made)| (response.status(), made)) }
        });
        until("one waits", || limit.in_use()[2] == 1).await;
        let error = send(&pool, Carried::Http1, &dial).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Overloaded);
        finish(first).await;
        let (status, made) = waiting.await.unwrap().unwrap();
        assert_eq!((status.as_u16(), made), (200, false), "it got the connection that became free");
        // One that ends makes room for a new one.
        let (second, _) = send(&pool, Carried::Http1, &dial).await.unwrap();
        drop(second);
        assert_eq!(send(&pool, Carried::Http1, &dial).await.unwrap().0.status(), 200);
    });
}

#[test]
fn workers_wait_for_connections_of_one_another() {
    run(async {
        let app = app::echo().await;
        let identity = Identity::new(SystemClock::shared());
        let used = Arc::<crate::cluster::limit::Used>::default();
        let limits = Limits { max_connections: 2, max_requests: 100, max_pending: 10 };
        let worker = || {
            let limit = Limit::of(limits, used.clone());
            let slots = Slots::new(limit.clone());
            let pool = Pool::new(Target::plain(app), &identity);
            slots.register(&pool);
            (pool, limit, Dial { slots: Some(slots), ..dial() })
        };
        let ((one, limit, dial), (two, other_limit, other_dial)) = (worker(), worker());
        let (first, _) = send(&one, Carried::Http1, &dial).await.unwrap();
        let (second, _) = send(&two, Carried::Http1, &other_dial).await.unwrap();
        let waiting = spawn_local({
            let (pool, dial) = (one.clone(), dial.clone());
            async move { send(&pool, Carried::Http1, &dial).await.map(|(response, made)| (response.status(), made)) }
        });
        until("one waits", || limit.in_use()[2] == 1).await;
        // What the other no longer uses is its own still, until it looks whether somebody else would.
        finish(second).await;
        assert_eq!(other_limit.in_use(), [1, 0, 0]);
        let other_slots = other_dial.slots.as_ref().unwrap();
        other_slots.make_room_for_others();
        let (status, made) = waiting.await.unwrap().unwrap();
        assert_eq!((status.as_u16(), made), (200, true));
        until("it is given back", || other_limit.in_use() == [0; 3]).await;
        drop(first);
        // Where nobody waits, nothing is given up.
        let (third, _) = send(&two, Carried::Http1, &other_dial).await.unwrap();
        finish(third).await;
        other_slots.make_room_for_others();
        assert_eq!(two.len(), 1);
    });
}

#[test]
fn names_of_ports_are_read_as_they_are_written() {
    let written = server_name(&cluster("orders")).unwrap();
    assert_eq!(written.to_str(), "p80.orders.shop.heddle");
    assert_eq!(parse_server_name(&written.to_str()), Some(cluster("orders")));
    for bad in [
        "",
        "heddle",
        "orders.shop.heddle",
        "p.orders.shop.heddle",
        "p80.orders.shop",
        "p80.orders.shop.heddle.x",
        "p80.orders.shop.example",
        "p+80.orders.shop.heddle",
        "p65536.orders.shop.heddle",
        "80.orders.shop.heddle",
    ] {
        assert_eq!(parse_server_name(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn the_kernel_looks_after_a_peer_that_is_gone_and_not_after_one_that_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    super::keep_alive(&tcp);
    let socket = socket2::SockRef::from(&tcp);
    assert!(socket.keepalive().unwrap());
    // It counts a reader that pauses as one that is gone.
    #[cfg(target_os = "linux")]
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

thread_local! {
    static REFUSED: RefCell<Vec<(SocketAddr, Errno)>> = const { RefCell::new(Vec::new()) };
}

/// What the kernel is to say to who connects there, on this thread from now on.
pub(crate) fn refuse(address: SocketAddr, errno: Errno) {
    REFUSED.with_borrow_mut(|refused| refused.push((address, errno)));
}

pub(super) fn refused(address: SocketAddr) -> Option<Errno> {
    REFUSED.with_borrow(|refused| refused.iter().find(|(of, _)| *of == address).map(|(_, errno)| *errno))
}

#[test]
fn only_what_this_host_lacks_for_every_address_is_not_the_endpoints_fault() {
    let kind = |errno: Errno| super::connect_error(([127, 0, 0, 1], 80).into(), &errno.into()).kind;
    for own in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
        assert_eq!(kind(own), ErrorKind::Overloaded, "{own:?}");
    }
    for of_address in [
        Errno::CONNREFUSED,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::TIMEDOUT,
        Errno::CONNRESET,
        Errno::ADDRNOTAVAIL,
        Errno::ACCESS,
        Errno::PERM,
    ] {
        assert_eq!(kind(of_address), ErrorKind::ConnectFailed, "{of_address:?}");
    }
}
