//! The resources of one type: which are wanted, which are held, which were refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use heddle_api::{
    limits::MAX_RESOURCE,
    proto::{Any, ads, discovery as proto, type_url},
};
use prost::Message;
use tokio::time::Instant;

use super::MISSING_AFTER;

/// INVALID_ARGUMENT of gRPC.
const INVALID_ARGUMENT: i32 = 3;

pub(super) struct Kind<T> {
    type_url: &'static str,
    /// Whether to keep resources as they were sent, for the state directory.
    keep_sent: bool,
    /// Whether what is held stays when the control plane says that it is gone.
    lasting: bool,
    wanted: BTreeMap<String, Wanted>,
    held: BTreeMap<String, Held<T>>,
    rejected: BTreeMap<String, Rejected>,
    /// Subscriptions that this stream's control plane knows of.
    subscribed: BTreeSet<String>,
    opened: bool,
}

struct Wanted {
    since: Instant,
    answer: Option<Answer>,
    /// It was told that it is taken for missing.
    given_up: bool,
}

/// What was said of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Held,
    Missing,
    Rejected,
}

struct Held<T> {
    version: String,
    value: Arc<T>,
    sent: Option<Any>,
}

/// The last version that was refused.
#[derive(Clone, Debug)]
pub(super) struct Rejected {
    pub version: String,
    pub reason: String,
}

/// What became of a response.
#[derive(Default)]
pub(super) struct Response {
    /// Name and aliases.
    pub updated: Vec<(String, Vec<String>)>,
    /// With aliases.
    pub rejected: Vec<(proto::Rejection, Vec<String>)>,
    pub removed: Vec<String>,
}

impl<T> Kind<T> {
    pub(super) fn new(type_url: &'static str, keep_sent: bool) -> Self {
        Self {
            type_url,
            keep_sent,
            lasting: false,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            rejected: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            opened: false,
        }
    }

    pub(super) fn type_url(&self) -> &'static str {
        self.type_url
    }

    pub(super) fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    // === wanted ===

    pub(super) fn want(&mut self, name: String, now: Instant) {
        self.wanted.entry(name).or_insert(Wanted { since: now, answer: None, given_up: false });
    }

    pub(super) fn unwant(&mut self, name: &str) {
        self.wanted.remove(name);
    }

    /// Drops what is held and was refused of a name.
    pub(super) fn forget(&mut self, name: &str) {
        self.held.remove(name);
        self.rejected.remove(name);
    }

    pub(super) fn wanted(&self) -> impl Iterator<Item = &String> {
        self.wanted.keys()
    }

    /// Notes an answer that came under another name.
    pub(super) fn settle(&mut self, name: &str, answer: Answer) {
        if let Some(wanted) = self.wanted.get_mut(name) {
            wanted.answer = Some(answer);
        }
    }

    /// Whether it is known what to think of a name: it is held, or there is no such resource, or none
    /// that can be used, or no answer came for long.
    pub(super) fn is_answered(&self, name: &str, now: Instant) -> bool {
        self.held.contains_key(name)
            || self.wanted.get(name).is_some_and(|wanted| {
                wanted.answer.is_some() || now.saturating_duration_since(wanted.since) >= MISSING_AFTER
            })
    }

    /// Whether anything has come to be taken for missing since this was last asked.
    pub(super) fn gives_up(&mut self, now: Instant) -> bool {
        let mut any = false;
        for wanted in self.wanted.values_mut().filter(|wanted| wanted.answer.is_none() && !wanted.given_up) {
            wanted.given_up = now.saturating_duration_since(wanted.since) >= MISSING_AFTER;
            any |= wanted.given_up;
        }
        any
    }

    pub(super) fn is_settled(&self) -> bool {
        self.wanted.values().all(|wanted| wanted.answer.is_some())
    }

    // === held ===

    pub(super) fn held(&self, name: &str) -> Option<&Arc<T>> {
        self.held.get(name).map(|held| &held.value)
    }

    pub(super) fn held_names(&self) -> impl Iterator<Item = &String> {
        self.held.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.held.values().map(|held| &held.value)
    }

    pub(super) fn rejected(&self) -> &BTreeMap<String, Rejected> {
        &self.rejected
    }

    pub(super) fn version(&self, name: &str) -> Option<&str> {
        self.held.get(name).map(|held| held.version.as_str())
    }

    pub(super) fn answer(&self, name: &str) -> Option<Answer> {
        self.wanted.get(name).and_then(|wanted| wanted.answer)
    }

    /// Everything held, as it was sent.
    pub(super) fn sent(&self) -> impl Iterator<Item = ads::Resource> {
        self.held.iter().filter_map(|(name, held)| {
            let resource = Some(held.sent.clone()?);
            Some(ads::Resource { version: held.version.clone(), resource, name: name.clone(), aliases: Vec::new() })
        })
    }

    // === the stream ===

    pub(super) fn start_stream(&mut self, now: Instant) {
        self.subscribed.clear();
        self.opened = false;
        for wanted in self.wanted.values_mut() {
            wanted.since = now;
            wanted.given_up = false;
        }
    }

    /// What this stream is yet to be told about subscriptions.
    pub(super) fn request(&mut self) -> Option<ads::DeltaDiscoveryRequest> {
        self.request_with(BTreeMap::new)
    }

    /// As [`Kind::request`]; `aliases` are those that stand for something held, with what it is.
    pub(super) fn request_with(
        &mut self,
        aliases: impl FnOnce() -> BTreeMap<String, String>,
    ) -> Option<ads::DeltaDiscoveryRequest> {
        let wanted: BTreeSet<String> = self.wanted.keys().cloned().collect();
        if wanted == self.subscribed {
            return None;
        }
        let mut request = ads::DeltaDiscoveryRequest {
            type_url: self.type_url.to_owned(),
            resource_names_subscribe: wanted.difference(&self.subscribed).cloned().collect(),
            resource_names_unsubscribe: self.subscribed.difference(&wanted).cloned().collect(),
            ..ads::DeltaDiscoveryRequest::default()
        };
        if !self.opened {
            let held = self.held.iter().map(|(name, held)| (name.clone(), held.version.clone()));
            let version = |(alias, name)| Some((alias, self.held.get(&name)?.version.clone()));
            request.initial_resource_versions = held.chain(aliases().into_iter().filter_map(version)).collect();
            self.opened = true;
        }
        self.subscribed = wanted;
        Some(request)
    }

    /// Takes from a response what is wanted by name and can be compiled.
    pub(super) fn apply<M, C>(&mut self, sent: ads::DeltaDiscoveryResponse, compile: C) -> Response
    where
        M: Message + Default,
        C: Fn(&str, &str, M) -> Result<T, String>,
    {
        self.apply_if(sent, |_| false, compile)
    }

    /// As [`Kind::apply`]; `also` says what is wanted though not by its name.
    pub(super) fn apply_if<M, C>(
        &mut self,
        sent: ads::DeltaDiscoveryResponse,
        also: impl Fn(&ads::Resource) -> bool,
        compile: C,
    ) -> Response
    where
        M: Message + Default,
        C: Fn(&str, &str, M) -> Result<T, String>,
    {
        let mut response = Response::default();
        let mut seen = BTreeSet::new();
        for resource in sent.resources {
            let wanted = self.wanted.contains_key(&resource.name) || also(&resource);
            let twice = !seen.insert(resource.name.clone());
            if !wanted {
                // Unsubscribed from while it was under way.
                continue;
            }
            let compiled = if twice {
                Err("is there twice in one response".to_owned())
            } else {
                self.compile(&resource, &compile)
            };
            let ads::Resource { version, resource: body, name, aliases } = resource;
            match compiled {
                Ok(value) => {
                    self.rejected.remove(&name);
                    self.settle(&name, Answer::Held);
                    // A copy: what arrived is a part of its whole message, which would stay as long.
                    let sent = body.filter(|_| self.keep_sent);
                    let sent = sent.map(|body| Any { value: Bytes::copy_from_slice(&body.value), ..body });
                    self.held.insert(name.clone(), Held { version, value: Arc::new(value), sent });
                    response.updated.push((name, aliases));
                }
                Err(reason) => {
                    // One line for each in the answer.
                    let reason = reason.replace('\n', " ");
                    self.settle(&name, if self.held.contains_key(&name) { Answer::Held } else { Answer::Rejected });
                    self.rejected.insert(name.clone(), Rejected { version: version.clone(), reason: reason.clone() });
                    response.rejected.push((proto::Rejection { name, version, reason }, aliases));
                }
            }
        }
        for name in sent.removed_resources {
            if self.lasting && self.held.contains_key(&name) {
                tracing::warn!(name, "the control plane says that it is gone; the last one stays in use");
                continue;
            }
            self.settle(&name, Answer::Missing);
            self.held.remove(&name);
            self.rejected.remove(&name);
            response.removed.push(name);
        }
        response
    }

    fn compile<M, C>(&self, sent: &ads::Resource, compile: C) -> Result<T, String>
    where
        M: Message + Default,
        C: Fn(&str, &str, M) -> Result<T, String>,
    {
        let body = sent.resource.as_ref().ok_or("has no content")?;
        if body.type_url != self.type_url {
            return Err(format!("is of type {:?}", body.type_url));
        }
        if body.value.len() > MAX_RESOURCE {
            return Err(format!("has {} bytes, more than {MAX_RESOURCE}", body.value.len()));
        }
        let message = M::decode(&*body.value).map_err(|error| format!("cannot be read: {error}"))?;
        compile(&sent.name, &sent.version, message)
    }
}

impl Response {
    /// A response of which nothing can be used.
    pub(super) fn refused(type_url: &str, reason: &str) -> Self {
        let rejection =
            proto::Rejection { name: type_url.to_owned(), version: String::new(), reason: reason.to_owned() };
        Self { rejected: vec![(rejection, Vec::new())], ..Self::default() }
    }

    /// ACK, or NACK with every resource that was refused.
    pub(super) fn answer(&self, type_url: String, nonce: String) -> ads::DeltaDiscoveryRequest {
        let rejections: Vec<_> = self.rejected.iter().map(|(rejection, _)| rejection).collect();
        let error_detail = (!rejections.is_empty()).then(|| status(&rejections));
        ads::DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            ..ads::DeltaDiscoveryRequest::default()
        }
    }
}

/// For people as text, for the control plane's records as [`proto::Rejection`]s.
fn status(rejections: &[&proto::Rejection]) -> ads::Status {
    let lines: Vec<_> =
        rejections.iter().map(|rejection| format!("{}: {}", rejection.name, rejection.reason)).collect();
    let packed = rejections
        .iter()
        .map(|rejection| Any { type_url: type_url::REJECTION.to_owned(), value: rejection.encode_to_vec().into() });
    ads::Status { code: INVALID_ARGUMENT, message: lines.join("\n"), details: packed.collect() }
}
