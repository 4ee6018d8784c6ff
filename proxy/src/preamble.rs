//! What two proxies say to one another before the bytes of an opaque connection.
//!
//! ```text
//! client: "HTCP"  version u8 = 1  length u16  { type u8  length u16  value }*
//! server: status u8  length u16  reason
//! ```
//!
//! Numbers are big-endian. Unknown types are skipped. The server answers before any byte of the app,
//! so that a refusal tells why, and so that a connection that was not accepted is provably unused.

use std::{io, str};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::outcome::{Error, ErrorKind};

const MAGIC: [u8; 4] = *b"HTCP";
const VERSION: u8 = 1;
/// Longest list of fields, and longest reason.
const MAX: u16 = 4096;
/// Type of the `traceparent` field.
const TRACEPARENT: u8 = 1;
/// Type of the field with the instances passed.
const VIA: u8 = 2;
/// Status of a connection that is let in.
const OK: u8 = 0;

/// What the client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preamble {
    /// As the header.
    pub traceparent: Option<String>,
    /// Instances that it came through, separated by commas.
    pub via: Option<String>,
}

impl Preamble {
    /// Reads what the client says; no byte beyond it.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; 7];
        from.read_exact(&mut head).await?;
        let [m0, m1, m2, m3, version, high, low] = head;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(malformed("no preamble"));
        }
        if version != VERSION {
            return Err(malformed("a version of the preamble that is not known"));
        }
        let length = u16::from_be_bytes([high, low]);
        if length > MAX {
            return Err(malformed("too long a preamble"));
        }
        let mut fields = vec![0; usize::from(length)];
        from.read_exact(&mut fields).await?;
        Self::parse(&fields)
    }

    fn parse(mut fields: &[u8]) -> io::Result<Self> {
        let mut preamble = Self::default();
        while let [kind, high, low, rest @ ..] = fields {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, rest) = rest.split_at_checked(length).ok_or_else(|| malformed("a field that is cut off"))?;
            let text = || str::from_utf8(value).map(str::to_owned).map_err(|_| malformed("a field that is no text"));
            match *kind {
                TRACEPARENT => preamble.traceparent = Some(text()?),
                VIA => preamble.via = Some(text()?),
                _ => {}
            }
            fields = rest;
        }
        if fields.is_empty() { Ok(preamble) } else { Err(malformed("a field that is cut off")) }
    }

    /// Says it to the server.
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut fields = Vec::new();
        for (kind, value) in [(TRACEPARENT, &self.traceparent), (VIA, &self.via)] {
            if let Some(value) = value {
                let length = u16::try_from(value.len()).map_err(|_| malformed("too long a preamble"))?;
                fields.push(kind);
                fields.extend(length.to_be_bytes());
                fields.extend_from_slice(value.as_bytes());
            }
        }
        let mut message = Vec::with_capacity(fields.len() + 7);
        message.extend(MAGIC);
        message.push(VERSION);
        let length = u16::try_from(fields.len()).ok().filter(|length| *length <= MAX);
        message.extend(length.ok_or_else(|| malformed("too long a preamble"))?.to_be_bytes());
        message.extend(fields);
        to.write_all(&message).await?;
        to.flush().await
    }
}

/// Lets the client in.
pub async fn accept(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(&[OK, 0, 0]).await?;
    to.flush().await
}

/// Tells the client why not: `reason: detail`.
pub async fn refuse(to: &mut (impl AsyncWrite + Unpin), error: &Error) -> io::Result<()> {
    let mut message = vec![error.kind.row().tcp_status];
    put_text(&mut message, &error.to_string());
    to.write_all(&message).await?;
    to.flush().await
}

/// What the server answers: `Ok(None)` if it lets the connection in, else why not.
pub async fn read_answer(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Error>> {
    let mut head = [0; 3];
    from.read_exact(&mut head).await?;
    let [status, high, low] = head;
    let length = u16::from_be_bytes([high, low]);
    if length > MAX {
        return Err(malformed("too long a reason"));
    }
    let mut text = vec![0; usize::from(length)];
    from.read_exact(&mut text).await?;
    if status == OK {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&text);
    let (reason, detail) = text.split_once(": ").unwrap_or(("", &text));
    let kind = reason.parse().unwrap_or_else(|_| kind_of(status));
    Ok(Some(Error::new(kind, format!("the peer refused: {detail}"))))
}

/// Of a peer that gives a reason which this version does not know.
fn kind_of(status: u8) -> ErrorKind {
    match status {
        1 => ErrorKind::Denied,
        2 => ErrorKind::NotServed,
        3 => ErrorKind::Draining,
        4 => ErrorKind::AppUnavailable,
        5 => ErrorKind::OpaqueRefused,
        _ => ErrorKind::UpstreamRefused,
    }
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(MAX) / 2)];
    let length = u16::try_from(text.len()).expect("below the maximum");
    to.extend(length.to_be_bytes());
    to.extend_from_slice(text.as_bytes());
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Preamble> {
        Preamble::read(&mut &*bytes).await
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_not_a_byte_more() {
        let preamble = Preamble { traceparent: Some("00-ab-cd-01".into()), via: Some("shop/orders-1 ".repeat(250)) };
        let mut bytes = Vec::new();
        preamble.write(&mut bytes).await.unwrap();
        bytes.extend(b"app");
        let mut rest = &bytes[..];
        assert_eq!(Preamble::read(&mut rest).await.unwrap(), preamble);
        assert_eq!(rest, b"app");
    }

    #[tokio::test]
    async fn one_that_is_too_long_is_not_written() {
        for length in [usize::from(MAX), 70_000] {
            let preamble = Preamble { traceparent: None, via: Some("x".repeat(length)) };
            let mut bytes = Vec::new();
            assert!(preamble.write(&mut bytes).await.is_err() && bytes.is_empty());
        }
    }

    #[tokio::test]
    async fn unknown_fields_are_skipped() {
        let preamble = read(b"HTCP\x01\x00\x0c\x63\x00\x03abc\x02\x00\x03x/y").await.unwrap();
        assert_eq!(preamble, Preamble { traceparent: None, via: Some("x/y".into()) });
    }

    #[tokio::test]
    async fn malformed_ones_are_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"HTCP\x02\x00\x00",
            b"HTCP\x01\x10\x01",
            b"HTCP\x01\x00\x02\x01\x00",
            b"HTCP\x01\x00\x04\x01\x00\x02x",
            b"HTCP\x01\x00\x04\x01\x00\x01\xff",
            b"HTCP\x01\x00\x09abc",
            b"HT",
        ] {
            assert!(read(bytes).await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn every_refusal_arrives_as_what_it_was() {
        for kind in ErrorKind::ALL {
            let mut bytes = Vec::new();
            refuse(&mut bytes, &Error::new(*kind, "AuthorizationPolicy shop/x rule 1")).await.unwrap();
            assert_ne!(bytes[0], OK);
            let error = read_answer(&mut &bytes[..]).await.unwrap().unwrap();
            assert_eq!(error.kind, *kind);
            assert!(error.never_sent);
            assert_eq!(&*error.detail, "the peer refused: AuthorizationPolicy shop/x rule 1");
        }
        let mut bytes = Vec::new();
        accept(&mut bytes).await.unwrap();
        assert!(read_answer(&mut &bytes[..]).await.unwrap().is_none());
        let unknown = read_answer(&mut &b"\x01\x00\x03why"[..]).await.unwrap().unwrap();
        assert_eq!(unknown.kind, ErrorKind::Denied);
    }

    #[tokio::test]
    async fn long_reasons_are_cut() {
        let mut bytes = Vec::new();
        refuse(&mut bytes, &Error::new(ErrorKind::Denied, "ü".repeat(10_000))).await.unwrap();
        assert!(read_answer(&mut &bytes[..]).await.unwrap().is_some());
    }
}
