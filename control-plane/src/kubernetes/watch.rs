//! Follows all objects of a kind: a list in pages, then a watch, which goes on from where it was after each end.
//! While the API server does not answer, nothing is told, and what was told holds.

use std::time::Duration;

use futures_util::StreamExt as _;
use heddle_api::resource::Name;
use heddle_runtime::backoff::Jittered;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, WatchEvent},
};
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{objects::Followed, reduce::Event};

/// Objects on a page of a list.
const PAGE: u32 = 500;
/// How long the API server is asked to keep a watch open, seconds; up to a half more, so that not all end at once.
const WATCH_SECONDS: u32 = 240;
/// Bookmarks come every minute: who is silent for longer may be gone, though the connection does not show it.
const QUIET: Duration = Duration::from_secs(90);
/// Longest wait for a page, or for a watch to begin.
const ANSWER: Duration = Duration::from_secs(30);
/// What is asked for again sooner than this is asked for more slowly.
const SHORT: Duration = Duration::from_secs(5);
/// HTTP status of a version that the API server has no longer.
const GONE: u16 = 410;

#[derive(Deserialize)]
struct Page<W> {
    metadata: PageMetadata,
    items: Vec<W>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

/// Why a list or watch ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the version to go on from is too old")]
    TooOld,
    #[error("the API server does not answer")]
    Silent,
    #[error("{}", said(.0))]
    Refused(#[source] kube::Error),
    #[error("the control plane ends")]
    Done,
}

impl From<kube::Error> for End {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == GONE => Self::TooOld,
            error => Self::Refused(error),
        }
    }
}

/// Follows until nobody listens. `failed` is called at each failure.
pub(super) async fn follow<F: Followed>(client: Client, events: mpsc::Sender<Event<F>>, failed: impl Fn()) {
    let mut backoff = Jittered::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut version = None;
    let mut troubled = false;
    while !events.is_closed() {
        let began = Instant::now();
        let ended = match version.clone() {
            None => list(&client, &events).await.map(|listed| version = Some(listed)),
            Some(_) => watch(&client, &mut version, &events, &mut troubled).await,
        };
        match ended {
            Ok(()) => {
                if version.is_none() || began.elapsed() >= SHORT {
                    backoff.reset();
                    continue;
                }
            }
            Err(End::Done) => return,
            Err(End::TooOld) => {
                tracing::debug!(resource = F::RESOURCE, "what is known of Kubernetes is too old to go on from");
                version = None;
            }
            Err(error) => {
                failed();
                // Each outage is told once.
                if !std::mem::replace(&mut troubled, true) {
                    tracing::warn!(resource = F::RESOURCE, %error, "Kubernetes cannot be followed; what is known of it holds");
                }
            }
        }
        tokio::select! {
            () = sleep(backoff.next_delay()) => {}
            () = events.closed() => return,
        }
    }
}

/// Lists everything; returns the version that it is as of.
async fn list<F: Followed>(client: &Client, events: &mpsc::Sender<Event<F>>) -> Result<String, End> {
    let mut all: Vec<(Name, F)> = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let request = Request::new(F::PATH).list(&params).map_err(kube::Error::BuildRequest)?;
        let answer = timeout(ANSWER, client.request::<Page<F::Wire>>(request));
        let page = answer.await.map_err(|_| End::Silent)??;
        all.extend(page.items.into_iter().filter_map(|wire| {
            let name = F::metadata(&wire).name();
            Some((name, F::read(wire)?))
        }));
        match page.metadata.r#continue.filter(|next| !next.is_empty()) {
            Some(next) => params.continue_token = Some(next),
            None => {
                events.send(Event::All(all)).await.map_err(|_| End::Done)?;
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }
}

/// Watches from a version, which moves on with what is told. Once it has begun, the trouble is over.
async fn watch<F: Followed>(
    client: &Client,
    version: &mut Option<String>,
    events: &mpsc::Sender<Event<F>>,
    troubled: &mut bool,
) -> Result<(), End> {
    let seconds = WATCH_SECONDS + rand::random_range(0..WATCH_SECONDS / 2);
    let params = WatchParams::default().timeout(seconds);
    let from = version.clone().unwrap_or_default();
    let request = Request::new(F::PATH).watch(&params, &from).map_err(kube::Error::BuildRequest)?;
    let started = timeout(ANSWER, client.request_events::<F::Wire>(request));
    let mut told = std::pin::pin!(started.await.map_err(|_| End::Silent)??);
    if std::mem::take(troubled) {
        tracing::info!(resource = F::RESOURCE, "Kubernetes is followed again");
    }
    loop {
        let next = tokio::select! {
            next = timeout(QUIET, told.next()) => next,
            () = events.closed() => return Err(End::Done),
        };
        // Asked again from there, it is seen whether anybody answers.
        let Ok(next) = next else { return Ok(()) };
        let event = match next.transpose()? {
            None => return Ok(()),
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status).into()),
            Some(WatchEvent::Bookmark(bookmark)) => {
                *version = Some(bookmark.metadata.resource_version);
                continue;
            }
            Some(WatchEvent::Added(wire) | WatchEvent::Modified(wire)) => {
                let metadata = F::metadata(&wire);
                *version = Some(metadata.resource_version.clone());
                let name = metadata.name();
                match F::read(wire) {
                    Some(object) => Event::Put(name, object),
                    None => Event::Gone(name),
                }
            }
            Some(WatchEvent::Deleted(wire)) => {
                let metadata = F::metadata(&wire);
                *version = Some(metadata.resource_version.clone());
                Event::Gone(metadata.name())
            }
        };
        events.send(event).await.map_err(|_| End::Done)?;
    }
}

/// An error with its causes: what kube says alone is not enough to tell a refusal from an outage.
fn said(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        let one_says = one.to_string();
        if !text.contains(&one_says) {
            text = format!("{text}: {one_says}");
        }
        cause = one.source();
    }
    text
}
