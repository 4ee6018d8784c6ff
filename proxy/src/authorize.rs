//! Who may come in: a DENY rule that matches wins, then any ALLOW rule, then the mesh's default.
//!
//! What addresses and identities alone decide is decided at accept; what needs method or path waits
//! for the request. Both go through the same rules, so that no request is decided otherwise than one
//! naive walk over all rules would decide it.
//!
//! Paths are compared whole and with their case. Apps that take `/ADMIN` or `/admin/` for `/admin` are
//! safe with ALLOW rules (what is not listed is not let in), not with DENY rules alone.

mod pattern;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use heddle_certs::SpiffeId;
use http::Method;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

pub use self::pattern::{IdentityPattern, PathPattern, PatternError};
use crate::outcome::Authorization;

/// Rules and default of one service, compiled.
#[derive(Clone, Debug)]
pub struct Authorizer {
    deny: Arc<[Rule]>,
    allow: Arc<[Rule]>,
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

/// Whether a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    No,
    /// Some requests of this connection may match, and some may not.
    Depends,
    Yes,
}

impl Authorizer {
    /// Compiles rules.
    pub fn new(rules: Vec<Rule>, default_allow: bool) -> Self {
        let (deny, allow): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.deny);
        Self { deny: deny.into(), allow: allow.into(), default_allow }
    }

    /// What holds for all requests of a connection, if anything does.
    pub fn at_accept(&self, peer: &Peer<'_>) -> AtAccept {
        let mut deny_depends = false;
        for rule in &*self.deny {
            match rule.at_connection(peer) {
                Match::Yes => return AtAccept::Deny(rule.verdict()),
                Match::Depends => deny_depends = true,
                Match::No => {}
            }
        }
        let mut allow_depends = false;
        let mut allow = None;
        for rule in &*self.allow {
            match rule.at_connection(peer) {
                Match::Yes => {
                    allow = Some(rule);
                    break;
                }
                Match::Depends => allow_depends = true,
                Match::No => {}
            }
        }
        let all_allowed = allow.is_some() || self.default_allow;
        if !all_allowed && !allow_depends {
            // Whether or not a DENY rule names it: nothing allows it.
            AtAccept::Deny(self.default())
        } else if deny_depends || !all_allowed {
            AtAccept::PerRequest
        } else {
            AtAccept::Allow(allow.map_or_else(|| self.default(), Rule::verdict))
        }
    }

    /// The verdict on a request; `path` as it will be forwarded (see [`crate::path::normalize`]).
    ///
    /// Patterns are compared with the decoded path, as the app's own router does: `/a%3Ab` is what a rule
    /// calls `/a:b`. A normalised path has no encoded byte that would change its segments.
    pub fn at_request(&self, peer: &Peer<'_>, method: &Method, path: &str) -> Authorization {
        let path = percent_decode_str(path).decode_utf8_lossy();
        self.first_match(|rule| rule.matches_source(peer) && rule.matches_request(peer.port, method, &path))
    }

    /// The verdict on opaque bytes: a DENY rule holds even if it asks for method or path (they might
    /// be these), an ALLOW rule that asks for them does not.
    pub fn at_opaque(&self, peer: &Peer<'_>) -> Authorization {
        self.first_match(|rule| match rule.at_connection(peer) {
            Match::Yes => true,
            Match::Depends => rule.deny,
            Match::No => false,
        })
    }

    /// Whether any rule for this port asks for method or path: then opaque bytes are refused there.
    pub fn has_request_rules(&self, port: u16) -> bool {
        self.deny.iter().chain(&*self.allow).any(|rule| {
            rule.operations.iter().any(|operation| operation.matches_port(port) && operation.asks_for_request())
        })
    }

    fn first_match(&self, mut matches: impl FnMut(&Rule) -> bool) -> Authorization {
        let rule = self.deny.iter().chain(&*self.allow).find(|rule| matches(rule));
        rule.map_or_else(|| self.default(), Rule::verdict)
    }

    fn default(&self) -> Authorization {
        Authorization { allowed: self.default_allow, policy: None, rule: None }
    }
}

impl Rule {
    fn verdict(&self) -> Authorization {
        Authorization { allowed: !self.deny, policy: Some(self.policy.clone()), rule: Some(self.name.clone()) }
    }

    fn matches_source(&self, peer: &Peer<'_>) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|source| source.matches(peer))
    }

    fn matches_request(&self, port: u16, method: &Method, path: &str) -> bool {
        self.operations.is_empty()
            || self.operations.iter().any(|operation| {
                operation.matches_port(port)
                    && (operation.methods.is_empty() || operation.methods.contains(method))
                    && (operation.paths.is_empty() || operation.paths.iter().any(|pattern| pattern.matches(path)))
            })
    }

    /// Whether all, some or no requests of a connection match.
    fn at_connection(&self, peer: &Peer<'_>) -> Match {
        if !self.matches_source(peer) {
            return Match::No;
        }
        if self.operations.is_empty() {
            return Match::Yes;
        }
        let mut result = Match::No;
        for operation in self.operations.iter().filter(|operation| operation.matches_port(peer.port)) {
            if !operation.asks_for_request() {
                return Match::Yes;
            }
            result = Match::Depends;
        }
        result
    }
}

impl Source {
    fn matches(&self, peer: &Peer<'_>) -> bool {
        let any = |patterns: &[IdentityPattern]| {
            patterns.is_empty() || peer.id.is_some_and(|id| patterns.iter().any(|pattern| pattern.matches(id)))
        };
        any(&self.identities)
            && any(&self.namespaces)
            && (self.cidrs.is_empty() || {
                // As a dual-stack listener sees IPv4 callers.
                let ip = peer.ip.to_canonical();
                self.cidrs.iter().any(|cidr| cidr.contains(&ip))
            })
            && (!self.unauthenticated || peer.id.is_none())
    }
}

impl Operation {
    fn matches_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    fn asks_for_request(&self) -> bool {
        !self.methods.is_empty() || !(self.paths.is_empty() || self.paths.contains(&PathPattern::Any))
    }
}
