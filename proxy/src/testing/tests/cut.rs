//! Connections that end at any byte: of a request, of a response, of TLS. Nobody hangs, nobody takes a part for the
//! whole, and what is left over never becomes part of another exchange.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use http::Response;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{Duration, sleep, timeout},
};

use super::{Pair, pair};
use crate::{
    snapshot::Protocol,
    stream::Stream,
    testing::{
        Called, TestMesh, app,
        client::{get, send1},
        run, until,
    },
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// An end of stream.
    Fin,
    /// A reset.
    Rst,
}

/// The requests that reached an app whole.
type Whole = Rc<RefCell<Vec<String>>>;

/// An app that answers with its path, and remembers what it was sent to the end: path and body.
async fn remembering(whole: &Whole) -> SocketAddr {
    let whole = whole.clone();
    app::http(move |request| {
        let whole = whole.clone();
        async move {
            let path = request.uri().path().to_owned();
            if let Ok(body) = request.into_body().collect().await {
                let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                whole.borrow_mut().push(format!("{path} {body}"));
            }
            Response::new(app::text(path))
        }
    })
    .await
}

/// Sends bytes, ends, and gives what is answered.
async fn ends_after(address: SocketAddr, bytes: &[u8], end: End) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    if end == End::Rst {
        // Once it is there.
        sleep(Duration::from_millis(1)).await;
        Stream::from(socket).reset();
        return String::new();
    }
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
    let _ = read.unwrap_or_else(|_| panic!("nothing becomes of {:?}", String::from_utf8_lossy(bytes)));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The caller ends after each of the bytes of a request.
fn callers_that_end(protocol: Protocol, request: Vec<u8>, expected: &'static str) {
    run(async move {
        let whole = Whole::default();
        let Pair { caller, .. } = pair(protocol, remembering(&whole).await);
        for end in [End::Fin, End::Rst] {
            for n in 0..request.len() {
                let answer = ends_after(caller.address(), &request[..n], end).await;
                assert!(!answer.starts_with("HTTP/1.1 2"), "{n} bytes were answered: {answer}");
            }
        }
        // Nothing of them is left on a connection.
        let after = if protocol == Protocol::Http2 {
            crate::testing::client::send2(caller.address(), crate::testing::client::get2("/after")).await
        } else {
            send1(caller.address(), get("/after")).await
        };
        assert_eq!((after.status.as_u16(), &*after.body), (200, "/after"));
        ends_after(caller.address(), &request, End::Fin).await;
        until("the whole one", || whole.borrow().len() >= 2).await;
        assert_eq!(*whole.borrow(), ["/after ", expected]);
    });
}

#[test]
fn a_request_without_its_end_is_none() {
    let request = b"GET /cut?x=1 HTTP/1.1\r\nhost: orders.shop\r\nx-y: z\r\n\r\n";
    callers_that_end(Protocol::Http, request.to_vec(), "/cut ");
}

#[test]
fn a_body_without_its_end_is_none() {
    let request = b"POST /cut HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 11\r\n\r\nhello world";
    callers_that_end(Protocol::Http1, request.to_vec(), "/cut hello world");
}

#[test]
fn chunks_without_their_end_are_no_body() {
    let request = b"POST /cut HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
        5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
    callers_that_end(Protocol::Http1, request.to_vec(), "/cut hello world");
}

#[test]
fn a_stream_without_its_end_is_no_request() {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    // :method POST, :scheme http, :path /cut, :authority orders.shop (RFC 7541, appendix A).
    let head = b"\x83\x86\x44\x04/cut\x41\x0borders.shop";
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, head),
        frame(0, 0, 1, b"hello "),
        frame(0, 1, 1, b"world"),
    ]
    .concat();
    callers_that_end(Protocol::Http2, request, "/cut hello world");
}

const WITH_LENGTH: &str = "HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 11\r\n\r\nhello world";
const IN_CHUNKS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
    5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
const TO_THE_END: &str = "HTTP/1.1 200 OK\r\n\r\nhello world";

/// An app that ends after so many bytes of a response: `/<n>/<how>/<which>`; to anything else it answers whole.
async fn ending() -> SocketAddr {
    app::tcp(|mut socket| async move {
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if socket.read_exact(&mut byte).await.is_err() {
                    return;
                }
                head.push(byte[0]);
            }
            let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
            let path = text.split(' ').nth(1).unwrap().to_owned();
            let told: Vec<&str> = path[1..].split('/').collect();
            let [n, how, which] = told[..] else {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                socket.write_all(answer.as_bytes()).await.unwrap();
                continue;
            };
            let response = match which {
                "length" => WITH_LENGTH,
                "chunks" => IN_CHUNKS,
                _ => TO_THE_END,
            };
            let n: usize = n.parse().unwrap();
            let _ = socket.write_all(&response.as_bytes()[..n]).await;
            if how == "rst" {
                sleep(Duration::from_millis(1)).await;
                Stream::from(socket).reset();
            }
            return;
        }
    })
    .await
}

/// Whether what a client of HTTP/1.1 got is a response to its end, and with which body.
fn is_whole(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n") || body.contains("\r\n0\r\n") && body.ends_with("\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|n| n.parse().unwrap());
    length.is_some_and(|length: usize| body.len() == length)
}

fn apps_that_end(which: &'static str, response: &'static str, ends: &'static [End]) {
    run(async move {
        let Pair { caller, .. } = pair(Protocol::Http1, ending().await);
        for end in ends {
            for n in 0..=response.len() {
                let how = if *end == End::Rst { "rst" } else { "fin" };
                let request =
                    format!("GET /{n}/{how}/{which} HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n");
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                socket.write_all(request.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                let read = timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
                let ended = read.unwrap_or_else(|_| panic!("nothing becomes of {request:?}"));
                let answer = String::from_utf8(answer).unwrap();
                if answer.starts_with("HTTP/1.1 502 ") {
                    assert!(answer.contains("heddle-error: upstream-"), "{answer}");
                    // Of a head whose body broke off at once nothing need have gone on.
                    assert!(n < response.len() || *end == End::Rst, "{n} {end:?}: {answer}");
                    continue;
                }
                assert!(answer.starts_with("HTTP/1.1 200 OK"), "{n} {end:?}: {answer:?} {ended:?}");
                // What has no length of its own is whole if it ends well, wherever that is.
                let expected = n == response.len() || (which == "end" && *end == End::Fin);
                let whole = is_whole(&answer) && ended.is_ok();
                assert!(whole == expected || (n == response.len() && *end == End::Rst), "{n} {end:?}: {answer:?}");
                if n == response.len() {
                    // For the end of its connection to arrive, which was good for more until then.
                    sleep(Duration::from_millis(50)).await;
                }
                let after = send1(caller.address(), get("/after")).await;
                assert_eq!((after.status.as_u16(), &*after.body), (200, "/after"), "{n} {end:?}");
            }
        }
    });
}

#[test]
fn a_response_with_a_length_is_whole_or_told_to_be_broken() {
    apps_that_end("length", WITH_LENGTH, &[End::Fin, End::Rst]);
}

#[test]
fn a_response_in_chunks_is_whole_or_told_to_be_broken() {
    apps_that_end("chunks", IN_CHUNKS, &[End::Fin, End::Rst]);
}

#[test]
fn a_response_to_the_end_of_its_connection_is_broken_by_a_reset() {
    apps_that_end("end", TO_THE_END, &[End::Fin, End::Rst]);
}

/// Carries bytes between proxies until it is told to end, by an end of stream that no `close_notify` announces.
async fn wire(to: SocketAddr, cut: Rc<tokio::sync::Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            let cut = cut.clone();
            spawn_local(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified() => {
                        let _ = near.shutdown().await;
                        let _ = far.shutdown().await;
                        // Read, lest closing resets them.
                        let (mut one, mut other) = ([0; 99], [0; 99]);
                        let _ = tokio::join!(near.read(&mut one), far.read(&mut other));
                    }
                }
            });
        }
    });
    address
}

#[test]
fn an_end_that_tls_does_not_announce_is_a_reset_to_both() {
    run(async {
        let ended = Rc::new(RefCell::new(None));
        let app = app::tcp({
            let ended = ended.clone();
            move |mut socket| {
                let ended = ended.clone();
                async move {
                    socket.write_all(b"hello").await.unwrap();
                    let mut rest = Vec::new();
                    let result = socket.read_to_end(&mut rest).await;
                    *ended.borrow_mut() = Some((rest, result.map_err(|error| error.kind())));
                }
            }
        })
        .await;
        let mesh = TestMesh::new();
        let callee = mesh.sidecar("orders", Protocol::Tcp, app);
        let cut = Rc::new(tokio::sync::Notify::new());
        let wire = wire(callee.address(), cut.clone()).await;
        let caller = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &[wire])]);
        let mut socket = TcpStream::connect(caller.address()).await.unwrap();
        socket.write_all(b"bye").await.unwrap();
        let mut greeting = [0; 5];
        socket.read_exact(&mut greeting).await.unwrap();
        // For the three bytes to arrive.
        sleep(Duration::from_millis(50)).await;
        cut.notify_waiters();
        let error = socket.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        until("the app hears of it", || ended.borrow().is_some()).await;
        assert_eq!(*ended.borrow(), Some((b"bye".to_vec(), Err(std::io::ErrorKind::ConnectionReset))));
    });
}

#[test]
fn an_answer_before_the_end_of_a_body_arrives() {
    run(async {
        // As servers refuse what is too large: they answer, and read no more.
        let app = app::tcp(|mut socket| async move {
            let _ = socket.read(&mut [0; 1000]).await;
            let answer = b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\ntoo ";
            let _ = socket.write_all(answer).await;
            sleep(Duration::from_millis(200)).await;
        })
        .await;
        let Pair { caller, .. } = pair(Protocol::Http, app);
        for _ in 0..3 {
            let mut socket = TcpStream::connect(caller.address()).await.unwrap();
            let head = b"POST /large HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 100000000\r\n\r\n";
            socket.write_all(head).await.unwrap();
            let (mut read, mut write) = socket.into_split();
            let sending = spawn_local(async move { while write.write_all(&[b'x'; 10_000]).await.is_ok() {} });
            let mut answer = Vec::new();
            let mut piece = [0; 1000];
            while !answer.ends_with(b"too ") {
                let n = timeout(Duration::from_secs(5), read.read(&mut piece)).await.expect("an answer").unwrap();
                assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&piece[..n]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
            drop(read);
            sending.abort();
        }
    });
}
