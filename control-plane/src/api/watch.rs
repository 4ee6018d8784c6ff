//! Watches: changes as they are committed, a line of JSON each.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use heddle_api::resource::{API_VERSION, AnyObject, ObjectKind};
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Api,
    call::{Call, bad_param},
    media::LINES,
    refusal::Refusal,
    selector::Selector,
};
use crate::{
    registry::{StoredChange, View},
    store::{Batch, Revision, StoreError, Watch},
    tokens::ApiToken,
};

/// How often a watch that has nothing to say tells how far it is; its token is checked then, too.
const BOOKMARK: Duration = Duration::from_secs(15);
/// How long a watch lasts; clients go on from the last version that they were told.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

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
    bookmarks: tokio::time::Interval,
    end: Instant,
    done: bool,
}

pub(super) async fn watch(call: Call, selector: Selector) -> Result<Response, Refusal> {
    for param in ["limit", "continue"] {
        if call.param(param).is_some() {
            return Err(bad_param(param, "belongs to a list, not to watch=true"));
        }
    }
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
    let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = Watching {
        api: Arc::clone(&call.api),
        token: call.token.clone(),
        kind: call.kind(),
        namespace,
        selector,
        batches,
        told,
        ready: VecDeque::new(),
        bookmarks,
        end: Instant::now() + LIFETIME,
        done: false,
    };
    if from.is_none() {
        watching.tell_all(&view);
    }
    if let Some(Ok(batch)) = first {
        watching.tell(&batch);
    }
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
            tokio::select! {
                biased;
                () = self.api.drain.drained() => self.done = true,
                batch = self.batches.next() => match batch {
                    Some(Ok(batch)) => self.tell(&batch),
                    // The client asks again, and is told why then.
                    Some(Err(_)) | None => self.done = true,
                },
                _ = self.bookmarks.tick() => {
                    let over = Instant::now() >= self.end;
                    self.done = over || !self.api.doorkeeper.is_valid(&self.token).await;
                    self.bookmark();
                }
                () = tokio::time::sleep_until(self.end) => {
                    self.done = true;
                    self.bookmark();
                }
            }
        }
    }

    /// What is there already.
    fn tell_all(&mut self, view: &View) {
        let namespace = self.namespace.clone();
        for object in view.list_any(self.kind, namespace.as_deref(), None) {
            self.tell_object(None, Some(object.clone()));
        }
        if self.kind == ObjectKind::Workload {
            for registration in view.registrations(namespace.as_deref(), None) {
                if view.object(self.kind, &registration.name).is_none() {
                    self.tell_object(None, Some(registration.to_workload().into()));
                }
            }
        }
        self.bookmark();
    }

    fn tell(&mut self, batch: &Batch) {
        for event in &batch.events {
            match StoredChange::read(event) {
                Ok(Some(change)) if change.kind == self.kind => self.tell_object(change.before, change.after),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "a watch leaves a change out"),
            }
        }
        self.told = batch.revision;
    }

    /// Tells a change as those see it who watch only some objects.
    fn tell_object(&mut self, before: Option<AnyObject>, after: Option<AnyObject>) {
        let is_seen = |object: &AnyObject| {
            let metadata = object.metadata();
            let here = self.namespace.is_none() || metadata.namespace == self.namespace;
            here && self.selector.matches(&metadata.labels)
        };
        let before = before.filter(is_seen);
        let (event, object) = match (before, after.clone().filter(is_seen)) {
            (None, None) => return,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            // It goes, or goes out of sight: as it was last, at the version at which it went.
            (Some(mut before), None) => {
                if let Some(after) = after {
                    before.metadata_mut().resource_version.clone_from(&after.metadata().resource_version);
                }
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
