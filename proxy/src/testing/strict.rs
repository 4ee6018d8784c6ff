//! An app that reads HTTP/1.1 to the letter: what is not as RFC 9112 has it is a panic.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    snapshot::Protocol,
    testing::{Called, Proxy, TestMesh, app},
};

/// Such an app behind a pair of proxies.
pub(crate) struct Pair {
    pub(crate) requests: Requests,
    #[cfg_attr(test, allow(dead_code))]
    pub(crate) callee: Proxy,
    pub(crate) caller: Proxy,
}

/// Calls `orders.shop:80`.
pub(crate) async fn pair() -> Pair {
    let requests = Requests::default();
    let app = http1(&requests).await;
    let mesh = TestMesh::new();
    let callee = mesh.sidecar("orders", Protocol::Http1, app);
    let caller = mesh.caller(vec![Called::new("orders", Protocol::Http1, &callee.addresses)]);
    Pair { requests, callee, caller }
}

/// What it saw: method, target, body.
pub(crate) type Requests = Rc<RefCell<Vec<String>>>;

/// An app that reads HTTP/1.1 to the letter, and says what it saw.
pub(crate) async fn http1(requests: &Requests) -> SocketAddr {
    let requests = requests.clone();
    app::tcp(move |mut socket| {
        let requests = requests.clone();
        async move {
            while let Some(request) = read_request(&mut socket).await {
                let target = request.split(' ').nth(1).unwrap().to_owned();
                requests.borrow_mut().push(request);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{target}", target.len());
                if socket.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

async fn read_line(socket: &mut TcpStream) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(socket.read_u8().await.ok()?);
        let bare = line.len() > 1 && line.ends_with(b"\n") && !line.ends_with(b"\r\n") || line == b"\n";
        assert!(!bare, "a bare LF reached the app: {:?}", String::from_utf8_lossy(&line));
    }
    line.truncate(line.len() - 2);
    assert!(!line.iter().any(|byte| b"\r\0".contains(byte)), "{:?}", String::from_utf8_lossy(&line));
    Some(String::from_utf8_lossy(&line).into_owned())
}

async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let first = read_line(socket).await?;
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { panic!("no request line: {first:?}") };
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    loop {
        let line = read_line(socket).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}"));
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(!name.is_empty() && name.bytes().all(token), "{line:?}");
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.to_owned()),
            "transfer-encoding" => codings.push(value.to_owned()),
            "expect" => socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?,
            _ => {}
        }
    }
    let mut body = Vec::new();
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) => {
            assert!(length.bytes().all(|digit| digit.is_ascii_digit()), "{length}");
            let length: u64 = length.parse().unwrap();
            (&mut *socket).take(length).read_to_end(&mut body).await.ok()?;
            if (body.len() as u64) < length {
                return None;
            }
        }
        ([], [coding]) if coding == "chunked" => loop {
            let line = read_line(socket).await?;
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
            if size == 0 {
                while !read_line(socket).await?.is_empty() {}
                break;
            }
            let mut chunk = vec![0; size];
            socket.read_exact(&mut chunk).await.ok()?;
            body.extend(chunk);
            assert_eq!(read_line(socket).await?, "");
        },
        other => panic!("two ways to end a body: {other:?}"),
    }
    Some(format!("{method} {target} {}", String::from_utf8_lossy(&body)).trim_end().to_owned())
}
