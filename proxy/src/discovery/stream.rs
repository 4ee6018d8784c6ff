//! The task that speaks delta ADS with the control plane, for as long as the process lives: connect,
//! subscribe, take and answer; and go on with what is held while there is no connection.

#[cfg(test)]
mod tests;

use std::{pin::pin, time::Duration};

use heddle_api::proto::ads::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use heddle_runtime::backoff::Jittered;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{Command, Feed, table::Table};
use crate::control_plane::{MAX_MESSAGE, causes};

/// How long the control plane may take to accept the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that may wait to be sent; more means that the control plane does not read.
const OUTGOING: usize = 256;
/// How often time itself may change something: resources that do not come, destinations not used.
const TICK: Duration = Duration::from_secs(1);
/// A connection that lived for so long was a good one: the next starts without backoff.
const GOOD: Duration = Duration::from_secs(10);
/// Idle destinations are dropped only on a stream that has been up for so long.
const SETTLED: Duration = Duration::from_secs(30);

/// Makes the connection that streams run on. Waits as long as there is no certificate.
pub(crate) trait Connect: Send {
    /// The next connection.
    fn connect(&mut self) -> impl Future<Output = Result<Channel, String>> + Send;
}

/// What others may watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Whether the stream is up.
    pub connected: bool,
    /// Grows with each response.
    pub responses: u64,
    /// Resources refused so far.
    pub rejected: u64,
    /// The process has seen at least one stream.
    pub streams: u64,
}

/// The task.
pub(crate) struct Client<C> {
    /// What is believed.
    pub table: Table,
    /// The request path's handle.
    pub feed: Feed,
    /// Where to.
    pub connect: C,
    /// How it goes, for metrics and readiness.
    pub status: watch::Sender<Status>,
    /// Grows whenever there is something new to be kept.
    pub news: watch::Sender<u64>,
}

/// Why a stream ended.
enum End {
    Failed(String),
    Renew,
    Shutdown,
}

impl<C: Connect> Client<C> {
    /// Runs until every handle is gone.
    pub(crate) async fn run(mut self) {
        self.feed.publish(&mut self.table, Instant::now());
        let mut backoff = Jittered::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let started = Instant::now();
            let end = self.connection().await;
            self.status.send_modify(|status| status.connected = false);
            let reason = match end {
                End::Shutdown => return,
                End::Renew => {
                    tracing::debug!("a new connection to the control plane, since the credentials have changed");
                    continue;
                }
                End::Failed(reason) => reason,
            };
            if started.elapsed() > GOOD {
                backoff.reset();
            }
            let pause = backoff.next_delay();
            tracing::warn!(reason, retry_ms = pause.as_millis() as u64, "no stream from the control plane");
            self.feed.trouble(Some(&reason));
            if self.wait(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connection(&mut self) -> End {
        // Commands go on while there is none.
        let Self { connect, feed, table, .. } = self;
        let channel = match while_away(feed, table, connect.connect()).await {
            Some(Ok(channel)) => channel,
            Some(Err(reason)) => return End::Failed(reason),
            None => return End::Shutdown,
        };
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        self.table.start_stream(Instant::now());
        for request in self.table.requests(Instant::now()) {
            // The channel holds more than there are types.
            let _ = outgoing.try_send(request);
        }
        let opening = timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(ReceiverStream::new(requests)));
        let opened = match while_away(&mut self.feed, &mut self.table, opening).await {
            Some(Ok(Ok(response))) => response.into_inner(),
            Some(Ok(Err(status))) => return End::Failed(describe(&status)),
            Some(Err(_)) => return End::Failed("the control plane did not open the stream in time".to_owned()),
            None => return End::Shutdown,
        };
        self.status.send_modify(|status| {
            status.connected = true;
            status.streams += 1;
        });
        tracing::info!("the stream from the control plane is up");
        self.feed.trouble(None);
        self.stream(opened, outgoing).await
    }

    async fn stream(
        &mut self,
        mut responses: Streaming<DeltaDiscoveryResponse>,
        outgoing: mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> End {
        let started = Instant::now();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Includes what was dialled while the stream was being opened.
            for request in self.table.requests(Instant::now()) {
                if outgoing.try_send(request).is_err() {
                    return End::Failed("the control plane does not read".to_owned());
                }
            }
            tokio::select! {
                command = self.feed.commands.recv() => match command {
                    None => return End::Shutdown,
                    Some(Command::Reconnect) => return End::Renew,
                    Some(command) => obey(&mut self.feed, &mut self.table, command),
                },
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        let answer = self.take(response);
                        if outgoing.try_send(answer).is_err() {
                            return End::Failed("the control plane does not read".to_owned());
                        }
                    }
                    Ok(None) => return End::Failed("the control plane ended the stream".to_owned()),
                    Err(status) => return End::Failed(describe(&status)),
                },
                _ = tick.tick() => {
                    let now = Instant::now();
                    let gave_up = self.table.gives_up(now);
                    let swept = self.table.is_settled() && started.elapsed() > SETTLED && self.table.sweep(now);
                    if gave_up || swept {
                        self.feed.publish(&mut self.table, now);
                    }
                    if swept {
                        self.news.send_modify(|news| *news += 1);
                    }
                }
            }
        }
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let now = Instant::now();
        tracing::debug!(
            type_url = response.type_url,
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "resources from the control plane"
        );
        let answer = self.table.apply(response, now);
        self.feed.publish(&mut self.table, now);
        let rejected = answer.error_detail.as_ref();
        if let Some(detail) = rejected {
            tracing::warn!(type_url = answer.type_url, reason = detail.message, "resources that cannot be used");
        }
        let rejected = rejected.map_or(0, |detail| detail.details.len() as u64);
        self.status.send_modify(|status| {
            status.responses += 1;
            status.rejected += rejected;
        });
        // At once: a proxy that ends now must find it at its next start.
        self.news.send_modify(|news| *news += 1);
        answer
    }

    /// Obeys commands until a future is done; `None` when every handle is gone.
    async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        while_away(&mut self.feed, &mut self.table, future).await
    }
}

async fn while_away<T>(feed: &mut Feed, table: &mut Table, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return Some(done),
            command = feed.commands.recv() => match command {
                None => return None,
                // There is none to make anew.
                Some(Command::Reconnect) => {}
                Some(command) => obey(feed, table, command),
            }
        }
    }
}

fn obey(feed: &mut Feed, table: &mut Table, command: Command) {
    let now = Instant::now();
    match command {
        Command::Dial(name) => {
            if table.dial(&name, false, now).is_err() {
                tracing::warn!(name, "too many destinations are in use; this one cannot be resolved");
            }
            feed.publish_usage(table);
        }
        // Nobody waits for it any more, if it fails.
        Command::Dump(reply) => _ = reply.send(table.dump()),
        Command::Saved(reply) => _ = reply.send(table.saved()),
        Command::Reconnect => {}
    }
}

fn describe(status: &tonic::Status) -> String {
    let code = status.code();
    match std::error::Error::source(status) {
        Some(source) => format!("{code:?}: {}: {}", status.message(), causes(source)),
        None => format!("{code:?}: {}", status.message()),
    }
}
