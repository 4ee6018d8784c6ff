//! A peer that is far away: what is sent takes its time, however fast the link.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Duration, Instant, sleep, sleep_until, timeout},
};

use crate::{
    snapshot::Protocol,
    testing::{
        Called, Proxy, TestMesh,
        app::{self, text},
        client::connect2,
        run, until,
    },
};

/// One way.
const LATER: Duration = Duration::from_millis(50);
const BODY: usize = 8 << 20;

/// A link to somewhere, however wide.
#[derive(Clone, Default)]
struct Link {
    connections: Rc<Cell<usize>>,
    there: Way,
    back: Way,
}

/// One direction of a link.
#[derive(Clone, Default)]
struct Way {
    /// How long what is sent takes from now on.
    later: Rc<Cell<Duration>>,
    /// Bytes that came out at the end.
    passed: Rc<Cell<usize>>,
    /// Bytes on their way.
    within: Rc<Cell<usize>>,
}

impl Link {
    fn new(later: Duration) -> Self {
        let link = Self::default();
        link.there.later.set(later);
        link.back.later.set(later);
        link
    }

    /// The near end of it.
    async fn to(&self, far: SocketAddr) -> SocketAddr {
        let link = self.clone();
        app::tcp(move |here| {
            let link = link.clone();
            link.connections.update(|connections| connections + 1);
            async move {
                let other = TcpStream::connect(far).await.unwrap();
                here.set_nodelay(true).unwrap();
                other.set_nodelay(true).unwrap();
                let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), other.into_split());
                tokio::join!(link.there.carry(from_here, to_there), link.back.carry(from_there, to_here));
            }
        })
        .await
    }
}

impl Way {
    async fn carry(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (sender, mut on_its_way) = mpsc::unbounded_channel();
        let reading = async move {
            loop {
                let mut bytes = BytesMut::with_capacity(64 << 10);
                match from.read_buf(&mut bytes).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => {
                        self.within.update(|all| all + read);
                        sender.send((Instant::now() + self.later.get(), bytes)).unwrap();
                    }
                }
            }
        };
        let writing = async move {
            while let Some((at, bytes)) = on_its_way.recv().await {
                sleep_until(at).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                self.within.update(|all| all - bytes.len());
                self.passed.update(|all| all + bytes.len());
            }
            let _ = to.shutdown().await;
        };
        tokio::join!(reading, writing);
    }
}

/// A caller's proxy, with such a link to the proxy of an app that gives and takes large bodies.
async fn pair(link: &Link) -> (Proxy, Proxy) {
    let app = app::http(|request| async move {
        let large = request.uri().path() == "/large";
        let taken = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        Response::new(if large { text(vec![b'x'; BODY]) } else { text(taken.to_string()) })
    })
    .await;
    let mesh = TestMesh::new();
    let callee = mesh.sidecar("orders", Protocol::Http2, app);
    let there = link.to(callee.address()).await;
    let caller = mesh.caller(vec![Called::new("orders", Protocol::Http2, &[there])]);
    (caller, callee)
}

fn request(path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(format!("http://orders.shop{path}")).body(Full::new(body)).unwrap()
}

/// How long a large body takes there, and another one back, on a connection that is there already.
async fn both_ways(later: Duration) -> (Duration, Duration) {
    let (caller, _callee) = pair(&Link::new(later)).await;
    let mut client = connect2(caller.address()).await;
    let first = client.send_request(request("/", Bytes::new())).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let began = Instant::now();
    let answer = client.send_request(request("/", vec![b'x'; BODY].into())).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), BODY.to_string());
    let there = began.elapsed();
    let began = Instant::now();
    let answer = client.send_request(request("/large", Bytes::new())).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), BODY);
    (there, began.elapsed())
}

#[test]
fn one_stream_fills_a_long_link() {
    run(async {
        let near = both_ways(Duration::ZERO).await;
        let far = both_ways(LATER).await;
        println!("{BODY} bytes there and back: {near:?} near, {far:?} with 100 ms a round trip");
        // With 64 KiB in each round trip of 100 ms it would be 13 s more. (On a busy machine all takes its time.)
        for (near, far) in [(near.0, far.0), (near.1, far.1)] {
            assert!(far < near * 3 + Duration::from_secs(3), "{far:?}, and {near:?} without the way");
        }
    });
}

#[test]
fn as_much_is_on_its_way_as_the_distance_asks_for() {
    run(async {
        const ENOUGH: usize = 19 << 20;
        for there in [true, false] {
            let link = Link::new(LATER);
            let (caller, _callee) = pair(&link).await;
            let mut client = connect2(caller.address()).await;
            let first = client.send_request(request("/", Bytes::new())).await.unwrap();
            assert_eq!(first.status(), StatusCode::OK);
            // Nothing that is sent from now on arrives, so nobody says that there is room for more.
            let (way, asked) = if there {
                (&link.there, request("/", vec![b'x'; BODY].into()))
            } else {
                (&link.back, request("/large", Bytes::new()))
            };
            way.later.set(Duration::from_secs(3600));
            let _asked = tokio::task::spawn_local(client.send_request(asked));
            until("two megabytes on their way", || way.within.get() * 10 >= ENOUGH).await;
        }
    });
}

#[test]
fn slow_readers_far_away_hold_up_nobody_and_what_they_may_hold_is_bounded() {
    run(async {
        const SLOW: usize = 8;
        let link = Link::new(LATER);
        let (caller, _callee) = pair(&link).await;
        let mut quick = connect2(caller.address()).await;
        let first = quick.send_request(request("/", Bytes::new())).await.unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        let mut unread = Vec::new();
        for _ in 0..SLOW {
            // A connection of its own each, whose windows fill up; between the proxies they share one.
            let mut client = connect2::<Empty<Bytes>>(caller.address()).await;
            let request = Request::post("http://orders.shop/large").body(Empty::new()).unwrap();
            unread.push((client.send_request(request).await.unwrap(), client));
        }
        let mut before = usize::MAX;
        while before != link.back.passed.get() {
            before = link.back.passed.get();
            sleep(Duration::from_secs(1)).await;
        }
        // Its window, that of the client, and what is on its way between them.
        assert!(before < SLOW * (5 << 20), "{before} bytes came for {SLOW} who read nothing");
        for _ in 0..3 {
            let asked = quick.send_request(request("/large", Bytes::new()));
            let answer = timeout(Duration::from_secs(20), asked).await.unwrap().unwrap();
            let read = timeout(Duration::from_secs(20), answer.into_body().collect()).await.unwrap().unwrap();
            assert_eq!(read.to_bytes().len(), BODY);
        }
        assert_eq!(link.connections.get(), 1);
        for (answer, _client) in unread {
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), BODY);
        }
    });
}
