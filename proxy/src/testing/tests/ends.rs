//! More that ends at any byte: opaque exchanges from either side, HTTP/2 of an app; and what a GOAWAY leaves out.

use std::{
    cell::{Cell, RefCell},
    io::{self, ErrorKind::ConnectionReset},
    net::SocketAddr,
    rc::Rc,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{server::conn, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, sleep, timeout},
};

use super::{Pair, pair_with};
use crate::{
    snapshot::Protocol,
    stream::Stream,
    testing::{
        Local, app,
        client::{connect2, get2},
        run, until,
    },
};

/// How a connection ends: by a reset, or by an end of stream.
type Reset = bool;

/// Reads to the end, and gives what came before it.
async fn rest(socket: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let read = timeout(Duration::from_secs(5), socket.read_to_end(&mut bytes)).await.expect("an end");
    (bytes, read.map(drop))
}

fn pair(protocol: Protocol, app: SocketAddr) -> Pair {
    pair_with(protocol, app, |called| called.retries(|retry| retry.max_retries = 1))
}

const WORDS: &[u8] = b"EHLO loom\r\n";

#[test]
fn opaque_bytes_end_where_the_client_ends() {
    for protocol in [Protocol::Tcp, Protocol::Detect] {
        run(async move {
            let got = Rc::new(RefCell::new((Vec::new(), None)));
            let app = app::tcp({
                let got = got.clone();
                move |mut socket| {
                    let got = got.clone();
                    async move {
                        *got.borrow_mut() = (Vec::new(), None);
                        let mut piece = [0; 64];
                        let end = loop {
                            match socket.read(&mut piece).await {
                                Ok(0) => break Ok(()),
                                Ok(n) => got.borrow_mut().0.extend_from_slice(&piece[..n]),
                                Err(error) => break Err(error.kind()),
                            }
                        };
                        // Half of the connection is as good as before.
                        let _ = socket.write_all(b"end").await;
                        got.borrow_mut().1 = Some(end);
                    }
                }
            })
            .await;
            let Pair { caller, .. } = pair(protocol, app);
            for n in 1..=WORDS.len() {
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                socket.write_all(&WORDS[..n]).await.unwrap();
                socket.shutdown().await.unwrap();
                let (answer, end) = rest(&mut socket).await;
                assert_eq!((&*answer, end.is_ok()), (&b"end"[..], true), "after {n} bytes");
                assert_eq!(*got.borrow(), (WORDS[..n].to_vec(), Some(Ok(()))), "after {n} bytes");

                got.borrow_mut().0.clear();
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                socket.write_all(&WORDS[..n]).await.unwrap();
                until("the app has them", || got.borrow().0 == WORDS[..n]).await;
                Stream::from(socket).reset();
                until("the app hears of it", || got.borrow().1.is_some()).await;
                assert_eq!(got.borrow().1, Some(Err(ConnectionReset)), "after {n} bytes");
            }
        });
    }
}

#[test]
fn opaque_bytes_end_where_the_server_ends() {
    for protocol in [Protocol::Tcp, Protocol::Detect] {
        run(async move {
            let how: Rc<Cell<(usize, Reset)>> = Rc::default();
            let heard = Rc::new(RefCell::new(None));
            let app = app::tcp({
                let (how, heard) = (how.clone(), heard.clone());
                move |mut socket| {
                    let ((n, resets), heard) = (how.get(), heard.clone());
                    async move {
                        socket.write_all(&WORDS[..n]).await.unwrap();
                        if resets {
                            sleep(Duration::from_millis(1)).await;
                            Stream::from(socket).reset();
                            return;
                        }
                        socket.shutdown().await.unwrap();
                        *heard.borrow_mut() = Some(rest(&mut socket).await.0);
                    }
                }
            })
            .await;
            let Pair { caller, .. } = pair(protocol, app);
            for n in 0..=WORDS.len() {
                how.set((n, false));
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                let (answer, end) = rest(&mut socket).await;
                assert_eq!((&*answer, end.is_ok()), (&WORDS[..n], true), "after {n} bytes");
                // The other half is as good as before.
                socket.write_all(b"bye").await.unwrap();
                drop(socket);
                until("the app hears of it", || heard.borrow().is_some()).await;
                assert_eq!(heard.take().as_deref(), Some(&b"bye"[..]), "after {n} bytes");

                how.set((n, true));
                let mut socket = TcpStream::connect(caller.address()).await.unwrap();
                let (answer, end) = rest(&mut socket).await;
                assert!(WORDS[..n].starts_with(&answer), "{answer:?}");
                assert_eq!(end.map_err(|error| error.kind()), Err(ConnectionReset), "after {n} bytes");
            }
        });
    }
}

/// Of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream][..], payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` (RFC 7541, appendix A).
const OK: &[u8] = b"\x88";

/// Reads a client's preface, and then frames until so many streams have been opened; `None`: it ended before.
async fn opened(socket: &mut TcpStream, mut streams: usize) -> Option<()> {
    let mut preface = [0; 24];
    socket.read_exact(&mut preface).await.ok()?;
    while streams > 0 {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).await.ok()?;
        streams -= usize::from(head[3] == HEADERS);
    }
    Some(())
}

/// Serves a connection of HTTP/2 as one should: answers with the path.
async fn serve_well(socket: TcpStream, paths: Rc<RefCell<Vec<String>>>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        paths.borrow_mut().push(request.uri().path().to_owned());
        let answer = Response::new(app::text(request.uri().path().to_owned()));
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let _ = conn::http2::Builder::new(Local).serve_connection(TokioIo::new(socket), service).await;
}

#[test]
fn a_stream_of_the_app_is_whole_or_told_to_be_broken() {
    let response = [
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, ACK, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, OK),
        frame(DATA, 0, 1, b"hello "),
        frame(DATA, END_STREAM, 1, b"world"),
    ]
    .concat();
    for resets in [false, true] {
        let response = response.clone();
        run(async move {
            let cut = Rc::new(Cell::new(Some(0)));
            let app = app::tcp({
                let (cut, response) = (cut.clone(), response.clone());
                move |mut socket| {
                    let (cut, response) = (cut.get(), response.clone());
                    async move {
                        let Some(n) = cut else { return serve_well(socket, Rc::default()).await };
                        // Its own settings first, for whoever waits for them.
                        let first = n.min(9);
                        let _ = socket.write_all(&response[..first]).await;
                        if first == 9 && opened(&mut socket, 1).await.is_some() {
                            let _ = socket.write_all(&response[first..n]).await;
                        }
                        if resets {
                            sleep(Duration::from_millis(1)).await;
                            Stream::from(socket).reset();
                        } else {
                            let _ = socket.shutdown().await;
                            let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut Vec::new())).await;
                        }
                    }
                }
            })
            .await;
            let Pair { caller, .. } = pair(Protocol::Http2, app);
            for n in 0..=response.len() {
                cut.set(Some(n));
                let sent = connect2(caller.address()).await.send_request(get2("/cut"));
                let answer = timeout(Duration::from_secs(5), sent).await.expect("an answer").unwrap();
                let (status, error) = (answer.status(), answer.headers().get("heddle-error").cloned());
                let body = timeout(Duration::from_secs(5), answer.into_body().collect()).await.expect("an end");
                let body = body.map(|body| body.to_bytes());
                if status != StatusCode::OK {
                    assert!(error.is_some_and(|error| error.as_bytes().starts_with(b"upstream-")), "{n}: {status}");
                    assert!(n < response.len() || resets, "{n}: {body:?}");
                    continue;
                }
                let whole = matches!(&body, Ok(body) if body == "hello world");
                assert!(whole || body.is_err(), "{n}: a part is taken for the whole: {body:?}");
                assert!(whole == (n == response.len()) || resets && n == response.len(), "{n}: {body:?}");
            }
            // For the last end to arrive.
            sleep(Duration::from_millis(50)).await;
            cut.set(None);
            let answer = connect2(caller.address()).await.send_request(get2("/after")).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "/after");
        });
    }
}

/// Sends three calls side by side to an app that leaves its first connection after stream 1 or 3: statuses, and the
/// paths that its later connections were asked for.
async fn three_calls(last: u8, answered: &'static [u8]) -> (Vec<(StatusCode, bool)>, Vec<String>) {
    let paths: Rc<RefCell<Vec<String>>> = Rc::default();
    let count = Cell::new(0);
    let app = app::tcp({
        let paths = paths.clone();
        move |mut socket| {
            count.set(count.get() + 1);
            let (number, paths) = (count.get(), paths.clone());
            async move {
                if number > 1 {
                    return serve_well(socket, paths).await;
                }
                socket.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
                opened(&mut socket, 3).await.unwrap();
                let mut end =
                    [frame(SETTINGS, ACK, 0, &[]), frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0])].concat();
                for stream in answered {
                    // And `x-by: first`.
                    let headers = [OK, b"\x00\x04x-by\x05first"].concat();
                    end.extend(frame(HEADERS, END_HEADERS | END_STREAM, *stream, &headers));
                }
                socket.write_all(&end).await.unwrap();
                socket.shutdown().await.unwrap();
                let _ = rest(&mut socket).await;
            }
        }
    })
    .await;
    let Pair { caller, .. } = pair(Protocol::Http2, app);
    let sender = connect2(caller.address()).await;
    let call = |path: &str| {
        let body = Full::new(Bytes::from_static(b"once"));
        let sent = sender.clone().send_request(Request::post(format!("http://orders.shop{path}")).body(body).unwrap());
        async { sent.await.map(|answer| (answer.status(), answer.headers().contains_key("x-by"))).unwrap() }
    };
    let (one, two, three) = tokio::join!(call("/1"), call("/2"), call("/3"));
    let mut answers = vec![one, two, three];
    answers.sort();
    (answers, paths.take())
}

#[test]
fn a_goaway_loses_no_call() {
    run(async {
        // What it has begun it finishes; what comes after that was never looked at, and is sent again.
        let (answers, elsewhere) = three_calls(3, &[1, 3]).await;
        assert_eq!(answers, [(StatusCode::OK, false), (StatusCode::OK, true), (StatusCode::OK, true)]);
        assert_eq!(elsewhere.len(), 1, "once: {elsewhere:?}");
    });
}

#[test]
fn what_was_begun_before_a_goaway_is_not_done_twice() {
    run(async {
        // The second was begun, and its end is not known.
        let (answers, elsewhere) = three_calls(3, &[1]).await;
        let statuses: Vec<u16> = answers.iter().map(|(status, _)| status.as_u16()).collect();
        assert_eq!(statuses, [200, 200, 502]);
        assert_eq!(elsewhere.len(), 1, "once: {elsewhere:?}");
    });
}
