//! Who may come in: a DENY rule that matches wins, then any ALLOW rule, then the mesh's default.
//!
//! What addresses and identities alone decide is decided at accept; what needs method or path waits
//! for the request. Both go through the same rules, so that no request is decided otherwise than one
//! naive walk over all rules would decide it.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use heddle_certs::{SpiffeId, TrustDomain};
use http::Method;
use ipnet::IpNet;

use crate::outcome::Authorization;

/// Rules and default of one service, compiled.
#[derive(Clone, Debug)]
pub struct Authorizer {
    #[expect(dead_code)]
    rules: Vec<Rule>,
    #[expect(dead_code)]
    default_allow: bool,
}

/// One rule: any source and any operation.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `AuthorizationPolicy <namespace>/<name>`.
    pub policy: Arc<str>,
    /// Its name or index.
    pub name: Arc<str>,
    /// Refuse instead of letting in.
    pub deny: bool,
    /// Any of them; empty: any caller.
    pub sources: Vec<Source>,
    /// Any of them; empty: any operation.
    pub operations: Vec<Operation>,
}

/// A caller: all that is given must hold; within a list any.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Identities.
    pub identities: Vec<IdentityPattern>,
    /// Namespaces, made with [`IdentityPattern::namespace`].
    pub namespaces: Vec<IdentityPattern>,
    /// Addresses.
    pub cidrs: Vec<IpNet>,
    /// Only callers without verified identity.
    pub unauthenticated: bool,
}

/// What is called: all that is given must hold; within a list any.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    /// Ports of the service.
    pub ports: Vec<u16>,
    /// Methods.
    pub methods: Vec<Method>,
    /// Paths.
    pub paths: Vec<PathPattern>,
}

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

impl IdentityPattern {
    /// Every workload of a namespace.
    pub fn namespace(trust_domain: &TrustDomain, namespace: &str) -> Self {
        let _ = (trust_domain, namespace);
        todo!()
    }

    /// Whether the identity matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let _ = id;
        todo!()
    }
}

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(pub String);

impl FromStr for IdentityPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let _ = s;
        todo!()
    }
}

/// `/exact`, `/prefix/*` (anything below it) or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// Every path.
    Any,
    /// Exactly this one.
    Exact(String),
    /// Anything below this, which ends in `/`.
    Below(String),
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let _ = s;
        todo!()
    }
}

/// A caller at accept.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Verified identity.
    pub id: Option<&'a SpiffeId>,
    /// Address of the connection's other end.
    pub ip: IpAddr,
    /// Port of the service that is called.
    pub port: u16,
}

/// What can be said before any request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtAccept {
    /// Every request of this connection is allowed.
    Allow(Authorization),
    /// Every request of this connection is denied.
    Deny(Authorization),
    /// It depends on the request.
    PerRequest,
}

impl Authorizer {
    /// Compiles rules.
    pub fn new(rules: Vec<Rule>, default_allow: bool) -> Self {
        Self { rules, default_allow }
    }

    /// What holds for all requests of a connection, if anything does.
    pub fn at_accept(&self, peer: &Peer<'_>) -> AtAccept {
        let _ = peer;
        todo!()
    }

    /// The verdict on a request; `path` as it will be forwarded.
    pub fn at_request(&self, peer: &Peer<'_>, method: &Method, path: &str) -> Authorization {
        let _ = (peer, method, path);
        todo!()
    }

    /// The verdict on opaque bytes: a DENY rule holds even if it asks for method or path (they might
    /// be these), an ALLOW rule that asks for them does not.
    pub fn at_opaque(&self, peer: &Peer<'_>) -> Authorization {
        let _ = peer;
        todo!()
    }

    /// Whether any rule for this port asks for method or path: then opaque bytes are refused there.
    pub fn has_request_rules(&self, port: u16) -> bool {
        let _ = port;
        todo!()
    }
}
