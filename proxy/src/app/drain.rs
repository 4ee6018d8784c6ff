//! The order of shutting down: callers learn that this workload leaves while it serves on; only then
//! it refuses; the application's own calls are carried until it is gone.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    config,
    lifecycle::{Stage, Stages},
    registration::Leave,
};

/// How often the application is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(super) struct Draining {
    pub settings: config::Drain,
    pub stages: Stages,
    pub leave: mpsc::Sender<Leave>,
    /// Where the application listens.
    pub apps: Vec<SocketAddr>,
}

impl Draining {
    pub(super) async fn run(self) {
        let deadline = Instant::now() + self.settings.deadline;
        self.stages.advance(Stage::Leaving);
        let wait = self.settings.deregister_wait.min(self.settings.deadline / 2);
        tracing::info!(connections = self.stages.connections(), "leaving: callers are being told");
        let told = self.deregister(wait).await;
        self.stages.advance(Stage::Refusing);
        tracing::info!(
            told,
            connections = self.stages.connections(),
            "refusing: only the application's own calls go on"
        );
        let _ = timeout_at(deadline, self.application_gone()).await;
        self.stages.advance(Stage::Closing);
        if timeout_at(deadline, self.stages.finished()).await.is_err() {
            tracing::warn!(connections = self.stages.connections(), "the deadline has passed; ending connections");
        }
        tracing::info!("drained");
    }

    /// Whether every caller has learnt of it.
    async fn deregister(&self, wait: Duration) -> bool {
        let (reply, told) = oneshot::channel();
        if self.leave.send(Leave { wait, reply }).await.is_err() {
            return false;
        }
        // Registration answers a little after `wait` at the latest, unless it is in the middle of a
        // call of its own.
        timeout(wait + Duration::from_secs(2), told).await.is_ok_and(|told| told.unwrap_or(false))
    }

    /// Returns when it neither listens nor has a connection open: some applications stop listening
    /// first, and then finish what they have begun.
    async fn application_gone(&self) {
        while self.stages.connections() > 0 || self.application_listens().await {
            sleep(LOOK).await;
        }
    }

    async fn application_listens(&self) -> bool {
        for app in &self.apps {
            if matches!(timeout(LOOK, TcpStream::connect(app)).await, Ok(Ok(_)) | Err(_)) {
                return true;
            }
        }
        false
    }
}
