//! The path of a request as it will be forwarded: decisions and forwarding use the same bytes.
//!
//! Proxies and apps disagree on what a path means, and each disagreement is a way round a rule. So a
//! path either has one meaning for every server we know, or it is refused; of what means the same
//! written in two ways, one is forwarded.
//!
//! Normalised:
//! - percent-encoded unreserved characters (RFC 3986, section 2.3) are decoded: `/%61dmin` is
//!   `/admin`, as section 6.2.2.2 says;
//! - hex digits of what stays encoded become upper case: `%3a` is `%3A` (section 6.2.2.1);
//! - an empty path is `/`.
//!
//! Refused, with 400, as some servers resolve, decode, split or truncate these, and others do not:
//! - a path that does not begin with `/` (but `*`, which only `OPTIONS` may have: the server's part);
//! - empty segments (`//`), also of an encoded dot: `/.//`;
//! - dot segments, plain or encoded (`.`, `..`, `%2e`, `.%2E`), also with path parameters (`..;x`);
//! - an encoded slash or backslash (`%2F`, `%5C`) and a plain backslash;
//! - `;`: path parameters, which some servers take away before they look for a handler, and its
//!   encoded form;
//! - `#` and `?`, encoded (`%23`, `%3F`) or plain;
//! - an encoded percent sign before two hex digits (`%252e`): who decodes twice would see a dot;
//! - control characters, plain or encoded (`%00` to `%1F`, `%7F`), and plain spaces;
//! - what does not decode to UTF-8, of which overlong forms of the above are a part, and plain bytes
//!   beyond ASCII;
//! - a `%` without two hex digits.
//!
//! Not touched: case, a trailing slash, all other characters, encoded or not. A plain `:` and `%3A`
//! are thus two paths; neither means anything else to a server than what it shows.

use std::borrow::Cow;

use crate::outcome::{Error, ErrorKind};

/// The path as it will be forwarded, or why it is ambiguous. `path` is that of the URI, without
/// query; `*` (of `OPTIONS *`) passes.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, Error> {
    if path.is_empty() {
        return Ok(Cow::Borrowed("/"));
    }
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err(ambiguous("does not begin with a slash"));
    }
    let path = decode(path)?;
    check_segments(&path)?;
    Ok(path)
}

/// Decodes unreserved characters and refuses every byte, plain or encoded, that is not one thing to
/// all.
fn decode(path: &str) -> Result<Cow<'_, str>, Error> {
    let bytes = path.as_bytes();
    if bytes.iter().all(|&byte| is_plain(byte)) {
        return Ok(Cow::Borrowed(path));
    }
    let mut out = String::with_capacity(bytes.len());
    // All that is encoded, decoded: to see whether it is UTF-8.
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if is_plain(byte) {
            out.push(char::from(byte));
            decoded.push(byte);
            continue;
        }
        if byte != b'%' {
            return Err(forbidden(byte));
        }
        let [high, low, after @ ..] = rest else { return Err(ambiguous("a percent sign without two hex digits")) };
        let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
            return Err(ambiguous("a percent sign without two hex digits"));
        };
        rest = after;
        let byte = high << 4 | low;
        decoded.push(byte);
        match byte {
            0..=0x1f | 0x7f | b'/' | b'\\' | b';' | b'#' | b'?' => return Err(forbidden(byte)),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(high)]));
                out.push(char::from(HEX[usize::from(low)]));
            }
        }
    }
    // Its hex digits may have been encoded themselves: `%25%32e`.
    if decoded.windows(3).any(|three| three[0] == b'%' && hex(three[1]).is_some() && hex(three[2]).is_some()) {
        return Err(ambiguous("encoded twice"));
    }
    if std::str::from_utf8(&decoded).is_err() {
        return Err(ambiguous("does not decode to UTF-8"));
    }
    Ok(Cow::Owned(out))
}

/// No empty and no dot segments. A last empty one is a trailing slash.
fn check_segments(path: &str) -> Result<(), Error> {
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_some() => return Err(ambiguous("an empty segment")),
            "." | ".." => return Err(ambiguous("a dot segment")),
            _ => {}
        }
    }
    Ok(())
}

/// What may stand in a path as it is. The first row is RFC 3986's `pchar` without `;` and `%`, and
/// the slash; the second is not, yet clients send it and every server takes it as it is.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'!' | b'$' | b'&'
        | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@')
        || matches!(byte, b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}')
}

const HEX: [u8; 16] = *b"0123456789ABCDEF";

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn ambiguous(what: &str) -> Error {
    Error::new(ErrorKind::BadRequest, format!("ambiguous path: {what}"))
}

fn forbidden(byte: u8) -> Error {
    Error::new(ErrorKind::BadRequest, format!("ambiguous path: byte 0x{byte:02X}, plain or encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_pass_without_a_copy() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/d~e-f_g",
            "/...",
            "/.well-known/x",
            "/a.",
            "/a..b",
            "/pkg.Service/Method",
            "/a:b@c,d=e&f+g$h!i*j'(k)",
            "*",
            "/[x]{y}|z^`\"<>",
        ] {
            match normalize(path) {
                Ok(Cow::Borrowed(same)) => assert_eq!(same, path),
                other => panic!("{path}: {other:?}"),
            }
        }
        assert_eq!(normalize("").unwrap(), "/");
    }

    #[test]
    fn what_means_the_same_is_forwarded_the_same() {
        for (path, normal) in [
            ("/%61dmin", "/admin"),
            ("/%61%64%6D%69%6e", "/admin"),
            ("/a%2Db%5F%7e%2Ehtml", "/a-b_~.html"),
            ("/a%3ab", "/a%3Ab"),
            ("/a%20b", "/a%20b"),
            ("/%c3%bc", "/%C3%BC"),
            ("/a%2ab", "/a%2Ab"),
            ("/%2ewell-known", "/.well-known"),
            ("/100%25", "/100%25"),
            ("/50%25-off", "/50%25-off"),
        ] {
            assert_eq!(normalize(path).unwrap(), normal, "{path}");
        }
    }

    #[test]
    fn what_servers_disagree_on_is_refused() {
        for path in [
            "admin",
            "%2Fadmin",
            "//",
            "//admin",
            "/a//b",
            "/a/b//",
            "/a/../admin",
            "/..",
            "/../",
            "/.",
            "/./a",
            "/admin/.",
            "/admin/..",
            "/%2e",
            "/%2E%2e/x",
            "/.%2e/x",
            "/%2e./x",
            "/a/%2E/b",
            "/admin%2f",
            "/a%2Fb",
            "/a%5Cb",
            "/\\admin",
            "/a\\..\\b",
            "/admin;x",
            "/..;/admin",
            "/admin%3Bx",
            "/admin#f",
            "/admin%23f",
            "/admin?x",
            "/admin%3Fx",
            "/admin%00",
            "/admin%00.html",
            "/a%0d%0ab",
            "/a%7F",
            "/a b",
            "/a\tb",
            "/a\0b",
            "/%252e%252e/x",
            "/%25%32e/x",
            "/%25%32%65/x",
            "/%252%65",
            "/%2561dmin",
            "/%c0%ae%c0%ae/x",
            "/%c0%af",
            "/%e0%80%af",
            "/%ff",
            "/%C3",
            "/%ED%A0%80",
            "/\u{fc}",
            "/%",
            "/%2",
            "/%zz",
            "/%u002e",
            "/%+1",
            "**",
            "*a",
            "/\u{7f}",
            "/.%00",
        ] {
            let error = normalize(path).expect_err(path);
            assert_eq!(error.kind, ErrorKind::BadRequest, "{path}");
            assert!(error.detail.starts_with("ambiguous path: "), "{path}");
        }
    }

    #[test]
    fn normal_paths_stay_normal() {
        let mut state = 1_u64;
        let alphabet: Vec<&str> =
            vec!["/", "a", ".", "%2e", "%61", "%2F", "%41", "%c3%bc", "%C3", "%3a", ";", "..", "\\", "%20", "~", "*"];
        for _ in 0..20_000 {
            let mut path = String::from("/");
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                path.push_str(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let Ok(normal) = normalize(&path) else { continue };
            assert_eq!(normalize(&normal).unwrap(), normal, "{path}");
            // A server that decodes everything, once, sees the same segments.
            let decoded = |path: &str| {
                path.split('/')
                    .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8().unwrap().into_owned())
                    .collect::<Vec<_>>()
            };
            assert_eq!(decoded(&path), decoded(&normal), "{path}");
            assert!(decoded(&normal).iter().all(|segment| segment != "." && segment != ".." && !segment.contains('/')));
        }
    }
}
