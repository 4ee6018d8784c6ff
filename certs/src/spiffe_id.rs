//! SPIFFE IDs, parsed to the letter of SPIFFE-ID section 2.

use std::{cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::trust_domain::TrustDomain;

/// The longest SPIFFE ID that must be supported and may be made (SPIFFE-ID section 2.3), in bytes.
pub const MAX_LEN: usize = 2048;

const SCHEME: &str = "spiffe://";
const CONTROL_PLANE_PATH: &str = "/heddle/control-plane";

/// A SPIFFE ID: `spiffe://<trust domain>[/<segment>]…`.
///
/// There is one spelling of each identity: no percent-encoding, no upper-case trust domain, no empty,
/// `.` or `..` segment, no trailing slash. So comparing the text is comparing the identity. Cheap to
/// clone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

/// Why something is no SPIFFE ID or trust domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Other scheme than `spiffe`, or none.
    #[error("a SPIFFE ID starts with spiffe://")]
    Scheme,
    /// The trust domain name is empty.
    #[error("the trust domain name is empty")]
    EmptyTrustDomain,
    /// The trust domain name is too long.
    #[error("the trust domain name has {len} bytes, at most 255 are allowed")]
    TrustDomainTooLong {
        /// Its length.
        len: usize,
    },
    /// A character that a trust domain name may not hold; `:` and `@` (port, user) among them.
    #[error("character {found:?} in a trust domain name (allowed: a-z 0-9 . - _)")]
    TrustDomainChar {
        /// The first such character.
        found: char,
    },
    /// The SPIFFE ID is too long.
    #[error("the SPIFFE ID has {len} bytes, at most 2048 are allowed")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A path that does not start with a slash.
    #[error("the path does not start with a slash")]
    NoLeadingSlash,
    /// Two slashes in a row.
    #[error("empty path segment")]
    EmptySegment,
    /// The path ends with a slash.
    #[error("trailing slash in the path")]
    TrailingSlash,
    /// A path segment is `.` or `..`.
    #[error("path segment {segment:?}")]
    DotSegment {
        /// Which of the two.
        segment: &'static str,
    },
    /// A character that a path segment may not hold; `%`, `?` and `#` among them.
    #[error("character {found:?} in the path (allowed: a-z A-Z 0-9 . - _)")]
    PathChar {
        /// The first such character.
        found: char,
    },
}

impl SpiffeId {
    /// The identity of a workload: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        Self::with_path(trust_domain, &format!("/ns/{namespace}/sa/{service_account}"))
    }

    /// The reserved identity of the control plane, `spiffe://<td>/heddle/control-plane`; nothing else
    /// is ever given it.
    pub fn control_plane(trust_domain: &TrustDomain) -> Self {
        Self { text: format!("{SCHEME}{trust_domain}{CONTROL_PLANE_PATH}").into(), trust_domain: trust_domain.clone() }
    }

    /// The identity of the trust domain itself, without a path; what a signing certificate carries.
    pub fn authority(trust_domain: &TrustDomain) -> Self {
        Self { text: format!("{SCHEME}{trust_domain}").into(), trust_domain: trust_domain.clone() }
    }

    /// An identity with this path: empty, or `/` and segments.
    pub fn with_path(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        check_path(path)?;
        let len = SCHEME.len() + trust_domain.as_str().len() + path.len();
        if len > MAX_LEN {
            return Err(SpiffeIdError::TooLong { len });
        }
        Ok(Self { text: format!("{SCHEME}{trust_domain}{path}").into(), trust_domain: trust_domain.clone() })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, with its leading slash; empty for an identity without one.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain.as_str().len()..]
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Namespace and service account, if the path is exactly `/ns/<namespace>/sa/<service account>`.
    pub fn as_workload(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/")?;
        (!service_account.contains('/')).then_some((namespace, service_account))
    }

    /// Whether this is the control plane's reserved identity, in whichever trust domain.
    pub fn is_control_plane(&self) -> bool {
        self.path() == CONTROL_PLANE_PATH
    }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    if path.is_empty() {
        return Ok(());
    }
    let mut segments = path.strip_prefix('/').ok_or(SpiffeIdError::NoLeadingSlash)?.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_none() {
            return Err(SpiffeIdError::TrailingSlash);
        }
        check_segment(segment)?;
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." => return Err(SpiffeIdError::DotSegment { segment: "." }),
        ".." => return Err(SpiffeIdError::DotSegment { segment: ".." }),
        _ => {}
    }
    match segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
        Some(found) => Err(SpiffeIdError::PathChar { found }),
        None => Ok(()),
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(SpiffeIdError::TooLong { len: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = TrustDomain::new(domain)?;
        check_path(path)?;
        Ok(Self { text: text.into(), trust_domain })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.as_str().to_owned()
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl hash::Hash for SpiffeId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn td() -> TrustDomain {
        TrustDomain::new("heddle.local").unwrap()
    }

    #[test]
    fn parses_and_prints_the_same_text() {
        for (text, path) in [
            ("spiffe://td", ""),
            ("spiffe://td/a", "/a"),
            ("spiffe://heddle.local/ns/shop/sa/orders", "/ns/shop/sa/orders"),
            ("spiffe://td/A-Z_a.z/0/...", "/A-Z_a.z/0/..."),
            ("spiffe://td/.a/..b", "/.a/..b"),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(id.path(), path);
            assert_eq!(serde_json::from_str::<SpiffeId>(&format!("\"{text}\"")).unwrap(), id);
        }
    }

    #[test]
    fn length_is_bounded_at_2048_bytes() {
        let longest = format!("spiffe://td/{}", "a".repeat(MAX_LEN - "spiffe://td/".len()));
        assert_eq!(longest.len(), 2048);
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{longest}a").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong { len: 2049 }));
        assert_eq!(SpiffeId::with_path(&td(), "a"), Err(SpiffeIdError::NoLeadingSlash));
        let path = format!("/{}", "a".repeat(2048));
        assert!(matches!(SpiffeId::with_path(&td(), &path), Err(SpiffeIdError::TooLong { .. })));
    }

    #[test]
    fn refuses_what_the_spec_refuses() {
        use SpiffeIdError as E;
        for (text, error) in [
            ("", E::Scheme),
            ("spiffe", E::Scheme),
            ("spiffe:/td/a", E::Scheme),
            ("spiffe:td/a", E::Scheme),
            ("SPIFFE://td/a", E::Scheme),
            ("https://td/a", E::Scheme),
            (" spiffe://td/a", E::Scheme),
            ("spiffe://", E::EmptyTrustDomain),
            ("spiffe:///a", E::EmptyTrustDomain),
            ("spiffe://TD/a", E::TrustDomainChar { found: 'T' }),
            ("spiffe://td:80/a", E::TrustDomainChar { found: ':' }),
            ("spiffe://u@td/a", E::TrustDomainChar { found: '@' }),
            ("spiffe://td?q", E::TrustDomainChar { found: '?' }),
            ("spiffe://td#f", E::TrustDomainChar { found: '#' }),
            ("spiffe://t%64/a", E::TrustDomainChar { found: '%' }),
            ("spiffe://td\\a", E::TrustDomainChar { found: '\\' }),
            ("spiffe://td/", E::TrailingSlash),
            ("spiffe://td/a/", E::TrailingSlash),
            ("spiffe://td//", E::EmptySegment),
            ("spiffe://td//a", E::EmptySegment),
            ("spiffe://td/a//b", E::EmptySegment),
            ("spiffe://td/./a", E::DotSegment { segment: "." }),
            ("spiffe://td/a/..", E::DotSegment { segment: ".." }),
            ("spiffe://td/a?q", E::PathChar { found: '?' }),
            ("spiffe://td/a#f", E::PathChar { found: '#' }),
            ("spiffe://td/%61", E::PathChar { found: '%' }),
            ("spiffe://td/a b", E::PathChar { found: ' ' }),
            ("spiffe://td/a\n", E::PathChar { found: '\n' }),
            ("spiffe://td/a\0", E::PathChar { found: '\0' }),
            ("spiffe://td/é", E::PathChar { found: 'é' }),
            ("spiffe://td/a:b", E::PathChar { found: ':' }),
            ("spiffe://td/a*", E::PathChar { found: '*' }),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn workload_identities_cannot_smuggle_a_path() {
        let id = SpiffeId::workload(&td(), "shop", "orders").unwrap();
        assert_eq!(id.as_str(), "spiffe://heddle.local/ns/shop/sa/orders");
        assert_eq!(id.as_workload(), Some(("shop", "orders")));
        for bad in ["", ".", "..", "a/b", "a%2fb", "a b"] {
            assert!(SpiffeId::workload(&td(), bad, "x").is_err(), "{bad}");
            assert!(SpiffeId::workload(&td(), "x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn as_workload_wants_the_exact_shape() {
        for text in [
            "spiffe://td",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sb/c",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/x/ns/a/sa/b",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/heddle/control-plane",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().as_workload(), None, "{text}");
        }
    }

    #[test]
    fn the_control_plane_is_reserved() {
        let id = SpiffeId::control_plane(&td());
        assert_eq!(id.as_str(), "spiffe://heddle.local/heddle/control-plane");
        assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
        assert!(id.is_control_plane());
        assert!(!SpiffeId::workload(&td(), "heddle", "control-plane").unwrap().is_control_plane());
        assert_eq!(SpiffeId::authority(&td()).path(), "");
    }
}
