//! A server watched over, on scripted bytes and a clock that is stepped.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{JoinHandle, spawn_local},
    time::{Duration, Instant, sleep},
};

use super::{Ended, Ending, http1};
use crate::{
    body::Body,
    config::Limits,
    lifecycle::{self, Lifecycle, Stage, Stages},
    outcome::ErrorKind,
};

struct Served {
    client: DuplexStream,
    ended: JoinHandle<Ended>,
    stages: Stages,
    requests: Rc<Cell<u32>>,
}

/// A server that reads each request's body, takes a second, and answers with it.
fn serve() -> Served {
    let (client, server) = duplex(64 << 10);
    let (stages, life) = lifecycle::channel();
    let requests = Rc::new(Cell::new(0));
    let ended = spawn_local(run(server, life, requests.clone()));
    Served { client, ended, stages, requests }
}

async fn run(server: DuplexStream, life: Lifecycle, requests: Rc<Cell<u32>>) -> Ended {
    let handle = |request: http::Request<hyper::body::Incoming>| {
        requests.update(|requests| requests + 1);
        let last = Ending::outbound(&life).has_begun();
        async move {
            let Ok(body) = request.into_body().collect().await else { return Response::new(Body::empty()) };
            sleep(Duration::from_secs(1)).await;
            let mut response = Response::new(Body::from(body.to_bytes()));
            if last {
                super::reply::last(&mut response);
            }
            response
        }
    };
    http1(server.into(), &Limits::default(), Ending::outbound(&life), handle).await
}

/// Runs with a clock that moves when nothing else does.
fn paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

async fn all(mut client: DuplexStream) -> String {
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    all
}

#[test]
fn headers_must_come_to_an_end_in_time() {
    paused(async {
        let mut served = serve();
        // However long nothing is asked.
        sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        for piece in ["GET / HT", "TP/1.1\r\n", "host: a\r\n", "x: "] {
            served.client.write_all(piece.as_bytes()).await.unwrap();
            sleep(Duration::from_secs(2)).await;
        }
        let answer = all(served.client).await;
        assert_eq!(began.elapsed().as_secs(), 10, "pieces do not prolong it");
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("heddle-error: header-timeout"), "{answer}");
        assert_eq!(served.ended.await.unwrap().unwrap().kind, ErrorKind::HeaderTimeout);
        assert_eq!(served.requests.get(), 0);
    });
}

#[test]
fn a_slow_body_is_no_slow_header() {
    paused(async {
        let mut served = serve();
        served.client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n").await.unwrap();
        for _ in 0..3 {
            sleep(Duration::from_secs(60)).await;
            served.client.write_all(b"x").await.unwrap();
        }
        // Nor is what follows it: the connection is idle, though its last bytes were a body's.
        sleep(Duration::from_secs(60)).await;
        served.client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let answers = all(served.client).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
        assert!(served.ended.await.unwrap().is_none());
    });
}

#[test]
fn an_idle_connection_ends() {
    paused(async {
        let mut served = serve();
        let began = Instant::now();
        sleep(Duration::from_secs(500)).await;
        served.client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let answer = all(served.client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!(began.elapsed().as_secs(), 500 + 1 + 600);
        assert!(served.ended.await.unwrap().is_none());
    });
}

fn parked() -> u32 {
    super::park::PARKED.get()
}

#[test]
fn an_idle_connection_is_held_without_buffers_and_goes_on() {
    paused(async {
        let mut served = serve();
        let before = parked();
        for pause in [1, 60, 1, 300] {
            served.client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
            sleep(Duration::from_secs(5)).await;
            served.client.write_all(b"dy").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"body") {
                served.client.read_buf(&mut answer).await.unwrap();
            }
            sleep(Duration::from_secs(pause)).await;
        }
        assert_eq!(parked() - before, 2, "not with a request under way, nor for a moment");
        // What comes in pieces, and more than is read at once.
        let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\nconnection: close\r\n\r\n", "y".repeat(5000));
        for piece in long.as_bytes().chunks(1700) {
            served.client.write_all(piece).await.unwrap();
            sleep(Duration::from_secs(3)).await;
        }
        let answer = all(served.client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!((served.requests.get(), parked() - before), (5, 2));
        assert!(served.ended.await.unwrap().is_none());
    });
}

#[test]
fn what_is_not_read_yet_is_not_lost_when_the_connection_is_idle() {
    paused(async {
        let served = serve();
        let before = parked();
        let body = "x".repeat(200_000);
        let (mut read, mut write) = tokio::io::split(served.client);
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        write.write_all(request.as_bytes()).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        let mut answer = vec![0; 100_000];
        read.read_exact(&mut answer).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        while !answer.ends_with(b"xxxx") || answer.len() < body.len() + 20 {
            read.read_buf(&mut answer).await.unwrap();
        }
        assert_eq!(answer.iter().filter(|byte| **byte == b'x').count(), body.len());
        sleep(Duration::from_secs(6)).await;
        assert_eq!(parked() - before, 1, "only once all is written");
        drop((read, write));
        assert!(served.ended.await.unwrap().is_none());
    });
}

#[test]
fn the_end_comes_to_connections_held_without_buffers_too() {
    paused(async {
        let served = serve();
        sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        served.stages.advance(Stage::Closing);
        assert_eq!(all(served.client).await, "");
        assert_eq!(began.elapsed().as_secs(), 1);
        let served = serve();
        sleep(Duration::from_secs(60)).await;
        drop(served.client);
        assert!(served.ended.await.unwrap().is_none());
    });
}

#[test]
fn the_end_lets_what_has_begun_finish() {
    paused(async {
        let mut served = serve();
        served.client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        sleep(Duration::from_millis(500)).await;
        served.stages.advance(Stage::Closing);
        let answer = all(served.client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(served.ended.await.unwrap().is_none());

        // An idle one gets a moment: a request may be on its way.
        let mut served = serve();
        served.stages.advance(Stage::Closing);
        sleep(Duration::from_millis(900)).await;
        served.client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let answer = all(served.client).await;
        assert!(answer.contains("connection: close"), "{answer}");
        let served = serve();
        let began = Instant::now();
        served.stages.advance(Stage::Closing);
        assert_eq!(all(served.client).await, "");
        assert_eq!(began.elapsed().as_secs(), 1);
    });
}

#[test]
fn a_caller_may_go_away_at_any_byte() {
    paused(async {
        let request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
        for length in 0..request.len() {
            let mut served = serve();
            served.client.write_all(&request[..length]).await.unwrap();
            drop(served.client);
            let ended = served.ended.await.unwrap();
            assert!(ended.is_none_or(|error| error.kind == ErrorKind::BadRequest), "after {length} bytes");
        }
    });
}

#[test]
fn bytes_after_an_upgrade_that_is_none_are_the_next_request() {
    paused(async {
        let mut served = serve();
        let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let next = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        served.client.write_all(format!("{upgrade}{next}").as_bytes()).await.unwrap();
        let answers = all(served.client).await;
        assert_eq!((answers.matches("HTTP/1.1 200 OK").count(), served.requests.get()), (2, 2), "{answers}");
    });
}

#[test]
fn both_lengths_and_http_1_0_chunks_are_no_way_to_smuggle() {
    paused(async {
        for (request, at_most) in [
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 0),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", 0),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc", 0),
            ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 1),
            ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n", 0),
            // Chunked wins, and what follows it is no body.
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n",
                1,
            ),
        ] {
            let mut served = serve();
            served.client.write_all(request.as_bytes()).await.unwrap();
            served.client.shutdown().await.unwrap();
            drop(all(served.client).await);
            assert!(served.requests.get() <= at_most, "{request:?}: {}", served.requests.get());
        }
    });
}

/// Says something, ends, and gives what is answered, and after how long.
async fn half_closed(mut client: DuplexStream, request: &str) -> (String, Duration) {
    let began = Instant::now();
    client.write_all(request.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    (all(client).await, began.elapsed())
}

#[test]
fn a_caller_that_ends_after_its_request_may_wait_for_the_answer() {
    paused(async {
        for (request, waits) in [
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", true),
            // It could have said more: it is gone, if it does not come at once.
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n", false),
        ] {
            let served = serve();
            let (answer, took) = half_closed(served.client, request).await;
            assert_eq!(answer.contains(" 200 OK\r\n"), waits, "{request:?}: {answer}");
            assert!(waits || took <= Duration::from_millis(250), "{took:?}");
            assert!(served.ended.await.unwrap().is_none());
        }
    });
}

#[test]
fn a_caller_that_has_ended_is_waited_for_only_so_long() {
    paused(async {
        for (delay, request, expected) in [
            (100, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 100),
            (1_000_000, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 250),
            (9_000, "GET / HTTP/1.0\r\n\r\n", 9_000),
            // It is gone, for all that anybody can tell.
            (1_000_000, "GET / HTTP/1.0\r\n\r\n", 10_000),
        ] {
            let (client, server) = duplex(64 << 10);
            let (_stages, life) = lifecycle::channel();
            let ended = spawn_local(async move {
                let handle = |_| async move {
                    sleep(Duration::from_millis(delay)).await;
                    Response::new(Body::empty())
                };
                http1(server.into(), &Limits::default(), Ending::outbound(&life), handle).await
            });
            let (answer, took) = half_closed(client, request).await;
            assert_eq!(took.as_millis(), expected);
            assert_eq!(answer.contains(" 200 OK\r\n"), u128::from(delay) == expected, "{answer}");
            assert!(ended.await.unwrap().is_none());
        }
    });
}

#[test]
fn a_caller_that_has_ended_and_reads_slowly_gets_all() {
    paused(async {
        let (mut client, server) = duplex(1 << 10);
        let (_stages, life) = lifecycle::channel();
        let ended = spawn_local(async move {
            let handle = |_| async move { Response::new(Body::from(Bytes::from(vec![b'x'; 32 << 10]))) };
            http1(server.into(), &Limits::default(), Ending::outbound(&life), handle).await
        });
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        sleep(Duration::from_secs(60)).await;
        let answer = all(client).await;
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 32 << 10);
        assert!(ended.await.unwrap().is_none());
    });
}
