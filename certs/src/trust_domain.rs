//! Trust domain names.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::spiffe_id::SpiffeIdError;

/// The longest trust domain name that SPIFFE-ID section 2.3 allows, in bytes.
pub const MAX_LEN: usize = 255;

/// The name of a trust domain: 1 to 255 of `a-z`, `0-9`, `.`, `-`, `_`.
///
/// The host of a URI knows no case; SPIFFE settles on lower case, and so that two spellings of one
/// name can never be compared as different, upper case is refused and not folded. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name (`example.org`, without a scheme).
    pub fn new(name: &str) -> Result<Self, SpiffeIdError> {
        if name.is_empty() {
            return Err(SpiffeIdError::EmptyTrustDomain);
        }
        if name.len() > MAX_LEN {
            return Err(SpiffeIdError::TrustDomainTooLong { len: name.len() });
        }
        match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(found) => Err(SpiffeIdError::TrustDomainChar { found }),
            None => Ok(Self(name.into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().to_owned()
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_every_allowed_character_and_the_longest_name() {
        for name in ["a", "heddle.local", "0-9_a.b", "-", "..", &"a".repeat(255)] {
            assert_eq!(TrustDomain::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_what_the_spec_refuses() {
        assert_eq!(TrustDomain::new(""), Err(SpiffeIdError::EmptyTrustDomain));
        assert_eq!(TrustDomain::new(&"a".repeat(256)), Err(SpiffeIdError::TrustDomainTooLong { len: 256 }));
        for (name, found) in [
            ("Heddle", 'H'),
            ("a:80", ':'),
            ("user@a", '@'),
            ("a/b", '/'),
            ("a%2e", '%'),
            ("a b", ' '),
            ("é", 'é'),
            ("[::1]", '['),
            ("a?b", '?'),
            ("a#b", '#'),
            ("a\0", '\0'),
        ] {
            assert_eq!(TrustDomain::new(name), Err(SpiffeIdError::TrustDomainChar { found }), "{name}");
        }
    }

    #[test]
    fn serde_refuses_what_parsing_refuses() {
        assert_eq!(serde_json::from_str::<TrustDomain>("\"a.b\"").unwrap(), TrustDomain::new("a.b").unwrap());
        assert!(serde_json::from_str::<TrustDomain>("\"A.b\"").is_err());
        assert_eq!(serde_json::to_string(&TrustDomain::new("a.b").unwrap()).unwrap(), "\"a.b\"");
    }
}
