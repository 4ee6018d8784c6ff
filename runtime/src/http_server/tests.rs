//! Over real sockets with the clock paused: where nothing happens for a while, time jumps.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::Instant,
};

use super::*;

struct Server {
    address: SocketAddr,
    signal: drain::Signal,
    task: JoinHandle<()>,
}

async fn start<H, F>(handler: H) -> Server
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (signal, watch) = drain::channel();
    Server { address, signal, task: tokio::spawn(serve(listener, handler, watch)) }
}

async fn router(request: Request<Incoming>) -> Reply {
    match request.uri().path() {
        "/live" => reply(StatusCode::OK, "live\n"),
        "/json" => reply_json(StatusCode::OK, "{}"),
        "/panic" => panic!("on purpose"),
        "/slow" => {
            sleep(Duration::from_secs(2)).await;
            reply(StatusCode::OK, "slow\n")
        }
        "/stuck" => std::future::pending().await,
        "/large" => reply(StatusCode::OK, vec![b'x'; 64 << 20]),
        "/body" => match read_body(request.into_body(), 100).await {
            Ok(body) => reply(StatusCode::OK, body),
            Err(refusal) => refusal,
        },
        _ => reply(StatusCode::NOT_FOUND, "no such path\n"),
    }
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

/// Sends `request` and reads until the server closes.
async fn exchange(server: &Server, request: &str) -> String {
    let mut stream = connect(server).await;
    // A server that refuses early may have closed before all is written.
    let _ = stream.write_all(request.as_bytes()).await;
    read_to_end(&mut stream).await
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let longest = MAX_CONNECTION_AGE + HANDLER_TIMEOUT;
    let _ = timeout(longest, stream.read_to_end(&mut bytes)).await.expect("the server keeps it open");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn get(server: &Server, path: &str) -> String {
    exchange(server, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn answers_by_path() {
    let server = start(router).await;
    let response = get(&server, "/live").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nlive\n"), "{response}");
    assert!(get(&server, "/json").await.contains("content-type: application/json"));
    assert!(get(&server, "/x").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_arrive_in_time_ends_the_connection() {
    let server = start(router).await;
    for partial in ["", "GET", "GET /live HTTP/1.1\r\nhost: a\r\n"] {
        let start = Instant::now();
        let response = exchange(&server, partial).await;
        assert!(!response.contains("200"), "{response}");
        assert!((HEADER_TIMEOUT..HEADER_TIMEOUT * 2).contains(&start.elapsed()), "{partial:?}: {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_does_not_help() {
    let server = start(router).await;
    let mut stream = connect(&server).await;
    let start = Instant::now();
    let slowly = async {
        loop {
            if stream.write_all(b"a").await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    slowly.await;
    assert!(start.elapsed() < HEADER_TIMEOUT * 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let server = start(router).await;
    let start = Instant::now();
    let response = exchange(&server, "GET /live HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(response.ends_with("live\n"), "{response}");
    assert!(start.elapsed() < HEADER_TIMEOUT * 2);
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = start(router).await;
    let large = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(2 * MAX_HEADER_BYTES));
    assert!(exchange(&server, &large).await.starts_with("HTTP/1.1 431 "));
    let fits = "a: b\r\n".repeat(MAX_HEADERS - 1);
    let response = exchange(&server, &format!("GET /live HTTP/1.1\r\nconnection: close\r\n{fits}\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    assert!(exchange(&server, &format!("GET /live HTTP/1.1\r\n{many}\r\n")).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let server = start(router).await;
    let response = exchange(&server, "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n").await;
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_in_size_and_time() {
    let server = start(router).await;
    let post = |len: usize, body: &str| {
        format!("POST /body HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}")
    };
    let response = exchange(&server, &post(5, "hello")).await;
    assert!(response.ends_with("hello"), "{response}");
    let response = exchange(&server, &post(101, &"x".repeat(101))).await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    let response = exchange(&server, &post(5, "hell")).await;
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
}

#[tokio::test]
async fn a_panic_costs_one_connection() {
    let server = start(router).await;
    assert_eq!(get(&server, "/panic").await, "");
    assert!(get(&server, "/live").await.ends_with("live\n"));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_given_up() {
    let server = start(router).await;
    let response = get(&server, "/stuck").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off() {
    let server = start(router).await;
    let mut stream = connect(&server).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(MAX_CONNECTION_AGE + CLOSE_TIMEOUT + Duration::from_secs(1)).await;
    let response = read_to_end(&mut stream).await;
    assert!(response.len() < 64 << 20, "it never got the whole");
}

#[tokio::test(start_paused = true)]
async fn idle_clients_cannot_keep_others_out() {
    let server = start(router).await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(connect(&server).await);
    }
    let start = Instant::now();
    assert!(get(&server, "/live").await.ends_with("live\n"), "it waited for room");
    assert!(start.elapsed() < HEADER_TIMEOUT * 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_was_begun_and_takes_nothing_new() {
    let server = start(router).await;
    let mut slow = connect(&server).await;
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut idle = connect(&server).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.signal.drain_within(Duration::from_secs(10)).await, 0);
    server.task.await.unwrap();
    assert!(read_to_end(&mut slow).await.ends_with("slow\n"));
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn draining_does_not_wait_for_the_stuck() {
    let calls = Arc::new(AtomicUsize::new(0));
    let server = start({
        let calls = calls.clone();
        move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        }
    })
    .await;
    let mut stuck = connect(&server).await;
    stuck.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let start = Instant::now();
    assert_eq!(server.signal.drain_within(CLOSE_TIMEOUT * 3).await, 0);
    assert!(start.elapsed() <= CLOSE_TIMEOUT * 2, "{:?}", start.elapsed());
}
