//! What a connection speaks, told from its first bytes.
//!
//! A declared protocol wins: then nothing is looked at here. Undeclared, a connection is HTTP only if its
//! first line ends in `HTTP/1.x` or if it opens with the preface of HTTP/2; bytes that merely look
//! like a method are not enough.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout, timeout_at},
};

use crate::stream::Stream;

/// Longest first line that is waited for: the longest that the HTTP server takes.
const MAX: usize = 64 << 10;
/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a record of a TLS handshake begins with (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;
/// Longest method looked for: a long one that somebody made up is opaque, which loses routes, not bytes.
const LONGEST_METHOD: usize = 32;

/// What a connection speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS of the app's own; the name asked for, if one is.
    Tls(Option<String>),
    /// Something else.
    Opaque,
    /// Not said in time.
    Silent,
    /// The client ended before it said anything.
    Ended,
}

/// What the bytes so far say; `None`: not enough.
pub fn classify(bytes: &[u8]) -> Option<Detected> {
    Scan::default().classify(bytes)
}

/// What was looked at of bytes that come bit by bit, so that each is looked at once.
#[derive(Default)]
struct Scan {
    /// So far a request line has no end and nothing that may not be in it.
    line: usize,
    /// What reads a ClientHello, and how far.
    hello: Option<(rustls::server::Acceptor, usize)>,
}

impl Scan {
    /// What the bytes so far say: those of before, and more.
    fn classify(&mut self, bytes: &[u8]) -> Option<Detected> {
        match bytes.first()? {
            &HANDSHAKE => self.classify_tls(bytes),
            _ if bytes.starts_with(PREFACE) => Some(Detected::Http2),
            _ if PREFACE.starts_with(bytes) => None,
            _ => self.classify_request_line(bytes),
        }
    }

    /// A handshake record (RFC 8446, section 5.1) with a ClientHello in it.
    fn classify_tls(&mut self, bytes: &[u8]) -> Option<Detected> {
        match bytes {
            [_, 3, 0..=4, _, _, 1, ..] => {}
            [_] | [_, 3] | [_, 3, 0..=4] | [_, 3, 0..=4, _] | [_, 3, 0..=4, _, _] => return None,
            _ => return Some(Detected::Opaque),
        }
        let (acceptor, read) = self.hello.get_or_insert_default();
        let mut rest = bytes.get(*read..).unwrap_or_default();
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest).is_err() {
                return Some(Detected::Opaque);
            }
        }
        *read = bytes.len();
        match acceptor.accept() {
            Ok(Some(accepted)) => Some(Detected::Tls(accepted.client_hello().server_name().map(str::to_owned))),
            Ok(None) if bytes.len() < MAX => None,
            // An older TLS, or a newer one: its name is not known, but it is no HTTP.
            Ok(None) | Err(_) => Some(Detected::Tls(None)),
        }
    }

    /// `method SP target SP HTTP/1.x CRLF` (RFC 9112, section 3); a bare LF is for the HTTP server to judge.
    fn classify_request_line(&mut self, bytes: &[u8]) -> Option<Detected> {
        // Servers ignore an empty line before the first request (RFC 9112, section 2.2).
        let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let method = bytes.iter().take(LONGEST_METHOD + 1).take_while(|byte| is_token(**byte)).count();
        if method > LONGEST_METHOD {
            return Some(Detected::Opaque);
        }
        match bytes.get(method) {
            None => return None,
            Some(b'\r') if bytes.len() == 1 => return None,
            Some(b' ') if method > 0 => {}
            Some(_) => return Some(Detected::Opaque),
        }
        let new = bytes.get(self.line..).unwrap_or_default();
        let odd = new.iter().position(|&byte| byte < b' ' || byte == 0x7f);
        let at = self.line + odd.unwrap_or(new.len());
        let line = &bytes[..at];
        self.line = at;
        if line.len() >= MAX {
            return Some(Detected::Opaque);
        }
        // No control character is part of a request line.
        match bytes[at..] {
            [] | [b'\r'] => return None,
            [b'\n', ..] | [b'\r', b'\n', ..] => {}
            _ => return Some(Detected::Opaque),
        }
        let is_http =
            matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit());
        Some(if is_http { Detected::Http1 } else { Detected::Opaque })
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The bytes at the beginning of a stream, read no further than to know what it speaks.
#[derive(Default)]
pub(crate) struct Peek {
    bytes: BytesMut,
    scan: Scan,
}

impl Peek {
    /// Reads until it is known what the client speaks. What has begun like a request line and does not go on for
    /// `patience` is opaque: some protocols begin with a word, and the client waits for its answer. Cancel safe:
    /// asked again, it goes on.
    pub(crate) async fn classify(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        patience: Duration,
    ) -> io::Result<Detected> {
        loop {
            if let Some(detected) = self.scan.classify(&self.bytes) {
                return Ok(detected);
            }
            if self.bytes.len() == self.bytes.capacity() {
                self.bytes.reserve(4 << 10);
            }
            // A handshake goes on, and what says nothing may be waiting itself.
            let may_be_a_word = self.bytes.first().is_some_and(|first| *first != HANDSHAKE);
            let read = stream.read_buf(&mut self.bytes);
            let n = if may_be_a_word {
                let Ok(read) = timeout(patience, read).await else { return Ok(Detected::Opaque) };
                read?
            } else {
                read.await?
            };
            if n == 0 {
                return Ok(if self.bytes.is_empty() { Detected::Ended } else { Detected::Opaque });
            }
        }
    }

    /// The bytes, to be put back.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Looks at the first bytes of a stream for at most `wait`, and leaves them to be read. What has begun like
/// HTTP and does not go on in that time is [`Detected::Silent`] like what says nothing: the rest may come.
pub(crate) async fn detect(stream: &mut Stream, wait: Duration) -> io::Result<Detected> {
    let mut peek = Peek::default();
    let result = timeout_at(Instant::now() + wait, peek.classify(stream, Duration::MAX)).await;
    stream.put_back(peek.into_bytes());
    result.unwrap_or(Ok(Detected::Silent))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn http_is_what_its_first_line_says() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Detected::Http1)),
            (b"GET / HTTP/1.0\n", Some(Detected::Http1)),
            (b"\r\nGET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\nHost: x\r\n", Some(Detected::Http1)),
            (PREFACE, Some(Detected::Http2)),
            (b"GET / HTTP/2.0\r\n", Some(Detected::Opaque)),
            (b"GET /\r\n", Some(Detected::Opaque)),
            (b"GET / HTTP/1.x\r\n", Some(Detected::Opaque)),
            (b"EHLO example.org\r\n", Some(Detected::Opaque)),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Detected::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Opaque)),
            (b"SSH-2.0-x\r\n", Some(Detected::Opaque)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Detected::Opaque)),
            (b" GET / HTTP/1.1\r\n", Some(Detected::Opaque)),
            (b"GET \x01", Some(Detected::Opaque)),
            (b"", None),
            (b"G", None),
            (b"\r", None),
            (b"\r\n", None),
            (b"PRI * HTTP/2.0\r\n\r\n", None),
            (b"PR", None),
            (b"PROPFIND / HT", None),
            (b"GET / HTTP/1.1\r", None),
        ] {
            assert_eq!(classify(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(classify(&[b"GET /".as_slice(), &vec![b'a'; MAX]].concat()), Some(Detected::Opaque));
        assert_eq!(classify(&[b'a'; LONGEST_METHOD + 1]), Some(Detected::Opaque));
    }

    #[test]
    fn what_more_bytes_say_never_contradicts_what_fewer_said() {
        let hello = client_hello("db.example");
        let long = [b"GET /", [b'a'; MAX].as_slice(), b" HTTP/1.1\r\n"].concat();
        for whole in [
            b"POST /x HTTP/1.1\r\n\r\n".as_slice(),
            PREFACE,
            b"EHLO x\r\n",
            b"GET /\r\n",
            b"GET /\x01 HTTP/1.1\r\n",
            b"GET /\r HTTP/1.1\r\n",
            &long,
            &hello,
        ] {
            let last = classify(whole).unwrap();
            // However few come at a time.
            for step in [1, 2, 7, 1000] {
                let mut scan = Scan::default();
                let said = (step..whole.len()).step_by(step).find_map(|n| scan.classify(&whole[..n]));
                assert_eq!(said.or_else(|| scan.classify(whole)), Some(last.clone()), "{step} at a time of {whole:?}");
            }
            for n in (0..whole.len()).filter(|n| *n < 1000 || whole.len() - n < 1000) {
                assert!(classify(&whole[..n]).is_none_or(|said| said == last), "{n} bytes of {whole:?}");
            }
        }
    }

    #[test]
    fn each_byte_is_looked_at_once_however_they_come() {
        let line = [b"GET /", [b'a'; MAX - 100].as_slice(), b" HTTP/1.1\r\n"].concat();
        // A ClientHello that is long, in many records.
        let mut hello = vec![1, 0, 0xf0, 0];
        hello.resize(0xf000, 0);
        let hello: Vec<u8> = hello
            .chunks(1000)
            .flat_map(|part| [&[0x16, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat())
            .collect();
        for (bytes, expected) in [(line, Some(Detected::Http1)), (hello, None)] {
            let began = Instant::now();
            let mut scan = Scan::default();
            let last = (1..=bytes.len()).map(|n| scan.classify(&bytes[..n])).last().unwrap();
            assert_eq!(last, expected);
            // All of them again for each would be 2 GB.
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        }
    }

    #[test]
    fn tls_tells_its_name() {
        assert_eq!(classify(&client_hello("db.example")), Some(Detected::Tls(Some("db.example".into()))));
        assert_eq!(classify(b"\x16\x03\x01\x00\x05\x02"), Some(Detected::Opaque));
        assert_eq!(classify(b"\x16\x05"), Some(Detected::Opaque));
        assert_eq!(classify(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"), Some(Detected::Tls(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_no_longer_than_that() {
        let (mut client, near) = duplex(64);
        let mut stream = Stream::from(near);
        let since = Instant::now();
        assert_eq!(detect(&mut stream, Duration::from_millis(50)).await.unwrap(), Detected::Silent);
        assert_eq!(since.elapsed().as_millis(), 50);
        client.write_all(b"GET / HT").await.unwrap();
        assert_eq!(detect(&mut stream, Duration::from_millis(50)).await.unwrap(), Detected::Silent);
        client.write_all(b"TP/1.1\r\n").await.unwrap();
        assert_eq!(detect(&mut stream, Duration::from_millis(50)).await.unwrap(), Detected::Http1);
        drop(client);
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "GET / HTTP/1.1\r\n");
        assert_eq!(detect(&mut stream, Duration::from_millis(50)).await.unwrap(), Detected::Ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_that_does_not_go_on_is_no_request_line() {
        const PATIENCE: Duration = Duration::from_millis(50);
        for (begun, expected) in [
            (&b"ruok"[..], Some(Detected::Opaque)),
            (b"GET / HT", Some(Detected::Opaque)),
            (b"\x16\x03", None),
            (b"", None),
        ] {
            let (mut client, mut near) = duplex(64);
            client.write_all(begun).await.unwrap();
            let mut peek = Peek::default();
            let since = Instant::now();
            let said = timeout(PATIENCE * 9, peek.classify(&mut near, PATIENCE)).await;
            assert_eq!(said.ok().map(Result::unwrap), expected, "{begun:?}");
            assert_eq!(expected.is_some(), since.elapsed() == PATIENCE, "{begun:?}");
            assert_eq!(&*peek.into_bytes(), begun);
        }
        let (mut client, mut near) = duplex(64);
        let slowly = async {
            for byte in b"GET / HTTP/1.1\r\n" {
                tokio::time::sleep(PATIENCE / 2).await;
                client.write_u8(*byte).await.unwrap();
            }
        };
        let mut peek = Peek::default();
        let (said, ()) = tokio::join!(peek.classify(&mut near, PATIENCE), slowly);
        assert_eq!(said.unwrap(), Detected::Http1);
    }

    fn client_hello(name: &'static str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(heddle_certs::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut connection =
            rustls::ClientConnection::new(std::sync::Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut bytes).unwrap();
        }
        bytes
    }
}
