//! Watches: changes as they are committed, a line of JSON each.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use heddle_api::resource::{API_VERSION, AnyObject, Name, ObjectKind};
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Api,
    call::{Call, bad_param},
    media::LINES,
    refusal::Refusal,
    selector::Selector,
};
use crate::{
    registry::{StoredChange, View},
    store::{Batch, Event, Revision, StoreError, Watch},
    tokens::ApiToken,
};

/// How often a watch that has nothing to say tells how far it is; its token is checked then, too.
const BOOKMARK: Duration = Duration::from_secs(15);
/// Lines that are made ready at once; more only when these are sent.
const READY: usize = 256;
/// How long a watch lasts; clients go on from the last version that they were told.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Watches of one token at once.
pub(super) const MAX_OF_TOKEN: usize = 100;

/// How many watches each token has.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<String, usize>>);

/// A watch of a token, as long as it lasts.
struct OneOf {
    watches: Arc<Watches>,
    token: String,
}

impl Watches {
    fn begin(self: &Arc<Self>, token: &ApiToken) -> Result<OneOf, Refusal> {
        let mut counts = self.counts();
        let count = counts.entry(token.id.clone()).or_default();
        if *count >= MAX_OF_TOKEN {
            let name = &token.name;
            return Err(Refusal::too_many(&format!("the token {name:?} has {MAX_OF_TOKEN} watches already")));
        }
        *count += 1;
        Ok(OneOf { watches: Arc::clone(self), token: token.id.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OneOf {
    fn drop(&mut self) {
        let mut counts = self.watches.counts();
        if let Some(count) = counts.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.token);
            }
        }
    }
}

/// A watch on its way.
struct Watching {
    api: Arc<Api>,
    token: ApiToken,
    kind: ObjectKind,
    namespace: Option<String>,
    selector: Selector,
    batches: Watch,
    /// Up to where everything was told.
    told: Revision,
    ready: VecDeque<Bytes>,
    /// The list that comes first, as far as it was not told.
    listing: Option<Listing>,
    /// A transaction that is being told, and how much of it was.
    batch: Option<(Batch, usize)>,
    /// When its token is checked next.
    check_at: Instant,
    end: Instant,
    done: bool,
    _one: OneOf,
}

/// What is there already, on its way.
struct Listing {
    view: Arc<View>,
    /// Whether registered workloads are being told; they come after what is declared.
    registered: bool,
    after: Option<Name>,
}

pub(super) async fn watch(call: Call, selector: Selector) -> Result<Response, Refusal> {
    for param in ["limit", "continue", "references"] {
        if call.param(param).is_some() {
            return Err(bad_param(param, "belongs to a list, not to watch=true"));
        }
    }
    let one = call.api.watches.begin(&call.token)?;
    let from = call.param("resourceVersion").and_then(|text| text.parse::<Revision>().ok());
    let registry = &call.api.state.registry;
    let view = registry.view();
    if let Some(from) = from
        && from > registry.store().revision()
    {
        return Err(StoreError::Future { requested: from, newest: view.revision() }.into());
    }
    let told = from.unwrap_or(view.revision());
    let mut batches = registry.store().watch("", told + 1);
    // Whether it can begin there is known by its first answer: 410 must be the status, not a line.
    let first = tokio::select! {
        biased;
        first = batches.next() => first,
        () = probe(&call.api, told) => None,
    };
    if let Some(Err(error)) = first {
        return Err(error.into());
    }
    let namespace = Some(call.part("namespace").to_owned()).filter(|namespace| !namespace.is_empty());
    let listing = from.is_none().then_some(Listing { view, registered: false, after: None });
    let batch = first.and_then(Result::ok).map(|batch| (batch, 0));
    let watching = Watching {
        api: Arc::clone(&call.api),
        token: call.token.clone(),
        kind: call.kind(),
        namespace,
        selector,
        batches,
        told,
        ready: VecDeque::new(),
        listing,
        batch,
        check_at: Instant::now() + BOOKMARK,
        end: Instant::now() + LIFETIME,
        done: false,
        _one: one,
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        Some((Ok::<_, std::convert::Infallible>(watching.next().await?), watching))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Returns once the store has shown that it still has what comes after `told`, or that nothing does.
async fn probe(api: &Api, told: Revision) {
    // A read as of that revision fails where a watch from it would.
    let read = api.state.registry.store().read("/", Some(told)).await;
    if read.is_err() {
        // The watch itself tells it better.
        std::future::pending().await
    }
}

impl Watching {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.done {
                return None;
            }
            // By the clock: a watch with much to tell must not outlive its token either.
            if Instant::now() >= self.check_at {
                self.check().await;
                continue;
            }
            if self.fill() {
                continue;
            }
            tokio::select! {
                biased;
                () = self.api.drain.drained() => self.done = true,
                batch = self.batches.next() => match batch {
                    Some(Ok(batch)) => self.batch = Some((batch, 0)),
                    // The client asks again, and is told why then.
                    Some(Err(_)) | None => self.done = true,
                },
                () = tokio::time::sleep_until(self.check_at) => {}
            }
        }
    }

    /// Whether it may go on; tells how far it is, if everything up to there was told.
    async fn check(&mut self) {
        let now = Instant::now();
        self.check_at = (now + BOOKMARK).min(self.end.max(now));
        self.done = now >= self.end || !self.api.doorkeeper.is_valid(&self.token).await;
        if self.listing.is_none() && self.batch.is_none() {
            self.bookmark();
        }
    }

    /// Makes some lines ready; says whether there was anything to make them of.
    fn fill(&mut self) -> bool {
        if let Some(listing) = self.listing.take() {
            self.tell_some(listing);
            return true;
        }
        if let Some((batch, from)) = self.batch.take() {
            let to = batch.events.len().min(from + READY);
            for event in &batch.events[from..to] {
                self.tell(event, batch.revision);
            }
            if to < batch.events.len() {
                self.batch = Some((batch, to));
            } else {
                self.told = batch.revision;
            }
            return true;
        }
        false
    }

    /// Some of what is there already.
    fn tell_some(&mut self, mut listing: Listing) {
        let namespace = self.namespace.clone();
        let view = Arc::clone(&listing.view);
        let after = listing.after.take();
        let objects: Vec<AnyObject> = if listing.registered {
            let some = view.registrations(namespace.as_deref(), after).take(READY);
            some.map(|registration| registration.to_workload().into()).collect()
        } else {
            view.list_any(self.kind, namespace.as_deref(), after).take(READY).cloned().collect()
        };
        listing.after = objects.last().map(AnyObject::name);
        for object in objects {
            // A declared workload stands for the registered one of its name.
            if !listing.registered || view.object(self.kind, &object.name()).is_none() {
                let revision = view.revision();
                self.tell_object(None, Some(object), revision);
            }
        }
        if listing.after.is_some() {
            self.listing = Some(listing);
        } else if self.kind == ObjectKind::Workload && !listing.registered {
            self.listing = Some(Listing { registered: true, ..listing });
        } else {
            self.bookmark();
        }
    }

    fn tell(&mut self, event: &Event, revision: Revision) {
        let change = match StoredChange::read(event) {
            Ok(Some(change)) if change.kind == self.kind => change,
            Ok(_) => return,
            Err(error) => {
                tracing::error!(%error, "a watch leaves a change out");
                return;
            }
        };
        let StoredChange { mut before, mut after, registered, .. } = change;
        if self.kind == ObjectKind::Workload
            && let Some(name) = before.as_ref().or(after.as_ref()).map(AnyObject::name)
        {
            let view = self.api.state.registry.view();
            if registered && view.object(self.kind, &name).is_some() {
                // Lists do not show it either.
                return;
            }
            if !registered && let Some(registration) = view.registration(&name) {
                // What is declared comes in the place of what is registered, and goes again.
                let shown = || registration.to_workload().into();
                before = before.or_else(|| Some(shown()));
                after = after.or_else(|| Some(shown()));
            }
        }
        self.tell_object(before, after, revision);
    }

    /// Tells a change as those see it who watch only some objects.
    fn tell_object(&mut self, before: Option<AnyObject>, after: Option<AnyObject>, revision: Revision) {
        let is_seen = |object: &AnyObject| {
            let metadata = object.metadata();
            let here = self.namespace.is_none() || metadata.namespace == self.namespace;
            here && self.selector.matches(&metadata.labels)
        };
        let before = before.filter(is_seen);
        let (event, object) = match (before, after.filter(is_seen)) {
            (None, None) => return,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            // It goes, or goes out of sight: as it was last, at the version at which it went.
            (Some(mut before), None) => {
                before.metadata_mut().resource_version = Some(revision.to_string());
                ("DELETED", before)
            }
        };
        let mut object = object;
        if event != "DELETED" {
            let status = self.api.state.status.status(&object);
            object.set_status(Some(status));
        }
        self.push(&json!({ "type": event, "object": object }));
    }

    fn bookmark(&mut self) {
        self.push(&json!({ "type": "BOOKMARK", "object": {
            "apiVersion": API_VERSION, "kind": self.kind.as_str(),
            "metadata": { "resourceVersion": self.told.to_string() },
        } }));
    }

    fn push(&mut self, line: &serde_json::Value) {
        let mut line = line.to_string();
        line.push('\n');
        self.ready.push_back(line.into());
    }
}
