//! The order of shutting down: callers learn that this workload leaves while it serves on; only then
//! it refuses; the application's own calls are carried until it is gone.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    config,
    lifecycle::{ShutDown, Stage, Stages},
    registration::Leave,
};

/// How often the application is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(super) struct Draining {
    pub settings: config::Drain,
    /// How much of it is wanted.
    pub asked: watch::Receiver<ShutDown>,
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
        let mut asked = self.asked.clone();
        let deadline = if *asked.borrow() == ShutDown::Inbound {
            // The application takes the time that it takes; the other end lives as long as the process.
            let _ = asked.wait_for(|asked| *asked >= ShutDown::All).await;
            Instant::now() + self.settings.deadline
        } else {
            deadline
        };
        tokio::select! {
            _ = timeout_at(deadline, self.application_gone()) => {}
            _ = asked.wait_for(|asked| *asked == ShutDown::ApplicationGone) => {}
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle;

    /// Drains, asked for this much, beside an application that listens as long as the returned
    /// listener lives.
    async fn draining(
        asked: ShutDown,
    ) -> (watch::Sender<ShutDown>, lifecycle::Lifecycle, tokio::task::JoinHandle<()>, tokio::net::TcpListener) {
        let (stages, life) = lifecycle::channel();
        let (leave, mut leaving) = mpsc::channel::<Leave>(1);
        tokio::spawn(async move {
            if let Some(leave) = leaving.recv().await {
                let _ = leave.reply.send(true);
            }
        });
        let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let drain = watch::Sender::new(asked);
        let settings = config::Drain { deadline: Duration::from_secs(30), deregister_wait: Duration::from_secs(5) };
        let apps = vec![app.local_addr().expect("bound")];
        let draining = Draining { settings, asked: drain.subscribe(), stages, leave, apps };
        (drain, life, tokio::spawn(draining.run()), app)
    }

    #[tokio::test(start_paused = true)]
    async fn outbound_serves_on_until_it_is_asked_too() {
        let (drain, life, ended, app) = draining(ShutDown::Inbound).await;
        drop(app);
        life.reached(Stage::Refusing).await;
        sleep(Duration::from_secs(100)).await;
        assert_eq!(life.stage(), Stage::Refusing);
        drain.send_replace(ShutDown::All);
        life.reached(Stage::Closing).await;
        ended.await.expect("no panic");
    }

    #[tokio::test]
    async fn an_application_that_listens_is_waited_for_unless_it_is_said_to_be_gone() {
        let (drain, life, ended, _app) = draining(ShutDown::All).await;
        life.reached(Stage::Refusing).await;
        assert!(timeout(LOOK * 5, life.reached(Stage::Closing)).await.is_err());
        drain.send_replace(ShutDown::ApplicationGone);
        ended.await.expect("no panic");
    }
}
