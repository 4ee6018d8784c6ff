//! Patterns of identities and paths.

use std::str::FromStr;

use heddle_certs::{SpiffeId, TrustDomain};
use percent_encoding::percent_decode_str;

/// A SPIFFE ID, or a pattern of such: a segment may be `*`, a trailing `/**` is any rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    /// Exactly this one.
    Exact(SpiffeId),
    /// Segments.
    Pattern {
        /// The trust domain, never a pattern.
        trust_domain: TrustDomain,
        /// `None` is `*`.
        segments: Vec<Option<String>>,
        /// Whether at least one more segment must follow.
        rest: bool,
    },
}

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(pub String);

impl IdentityPattern {
    /// Every workload of a namespace.
    pub fn namespace(trust_domain: &TrustDomain, namespace: &str) -> Self {
        let segment = |s: &str| Some(s.to_owned());
        Self::Pattern {
            trust_domain: trust_domain.clone(),
            segments: vec![segment("ns"), segment(namespace), segment("sa"), None],
            rest: false,
        }
    }

    /// Whether the identity matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(exact) => exact == id,
            Self::Pattern { trust_domain, segments, rest } => {
                if id.trust_domain() != trust_domain {
                    return false;
                }
                let Some(path) = id.path().strip_prefix('/') else { return false };
                let mut given = path.split('/');
                for wanted in segments {
                    match (given.next(), wanted) {
                        (Some(_), None) => {}
                        (Some(given), Some(wanted)) if given == wanted => {}
                        _ => return false,
                    }
                }
                given.next().is_some() == *rest
            }
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        if !s.contains('*') {
            return s.parse().map(Self::Exact).map_err(|error| PatternError(format!("{s:?}: {error}")));
        }
        let bad = |why: &str| PatternError(format!("{s:?}: {why}"));
        let (trust_domain, path) = s
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| bad("a pattern begins with spiffe://<trust domain>/"))?;
        let trust_domain = TrustDomain::new(trust_domain).map_err(|error| bad(&error.to_string()))?;
        let (path, rest) =
            if path == "**" { ("", true) } else { path.strip_suffix("/**").map_or((path, false), |path| (path, true)) };
        let segments: Vec<_> = if path.is_empty() && rest {
            Vec::new()
        } else {
            path.split('/').map(|segment| (segment != "*").then(|| segment.to_owned())).collect()
        };
        // The fixed segments must be such as an identity can have, or the pattern could never match.
        let sample: Vec<_> = segments.iter().map(|segment| segment.as_deref().unwrap_or("x")).collect();
        let sample =
            if rest { format!("/{}/x", sample.join("/")).replace("//", "/") } else { format!("/{}", sample.join("/")) };
        if segments.iter().flatten().any(|segment| segment.contains('*')) {
            return Err(bad("* stands for a whole segment, ** for all that follow"));
        }
        if segments.iter().flatten().any(String::is_empty) {
            return Err(bad("empty segment"));
        }
        SpiffeId::with_path(&trust_domain, &sample).map_err(|error| bad(&error.to_string()))?;
        Ok(Self::Pattern { trust_domain, segments, rest })
    }
}

/// `/exact`, `/prefix/*` (anything below it) or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// Every path.
    Any,
    /// Exactly this one.
    Exact(String),
    /// What begins with this, which ends in `/`.
    Below(String),
}

impl PathPattern {
    /// Whether a path, normalised and decoded, matches. Case matters.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == path,
            Self::Below(prefix) => path.starts_with(&**prefix),
        }
    }
}

impl FromStr for PathPattern {
    type Err = PatternError;

    /// A pattern is normalised and decoded like the paths that it is compared with; one that no
    /// forwarded path can have is an error.
    fn from_str(s: &str) -> Result<Self, PatternError> {
        if matches!(s, "*" | "/*") {
            // Every path begins with a slash; but "/*" is also what people write for "everything",
            // and that "/" itself were not below "/" would surprise them.
            return Ok(Self::Any);
        }
        let normal = |path: &str| {
            if !path.starts_with('/') {
                return Err(PatternError(format!("{s:?}: a path begins with a slash, or is \"*\"")));
            }
            if path.contains('*') {
                return Err(PatternError(format!("{s:?}: * may only stand for all that follows a slash, at the end")));
            }
            let path =
                crate::path::normalize(path).map_err(|error| PatternError(format!("{s:?}: {}", error.detail)))?;
            Ok(percent_decode_str(&path).decode_utf8_lossy().into_owned())
        };
        match s.strip_suffix("/*") {
            Some(prefix) => Ok(Self::Below(normal(&format!("{prefix}/"))?)),
            None => Ok(Self::Exact(normal(s)?)),
        }
    }
}
