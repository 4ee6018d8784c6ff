//! The stages of a proxy's life, which listeners and connections follow.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use heddle_runtime::drain;
use tokio::sync::watch;

/// Stages in their order; none is ever gone back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// As usual.
    #[default]
    Serving,
    /// Callers are being told that this workload leaves. Inbound accepts and serves on, but ends each
    /// connection after the response under way (`Connection: close`, GOAWAY). Outbound as usual.
    Leaving,
    /// Inbound refuses with `draining` what has not begun. Outbound as usual: the application may
    /// still need it.
    Refusing,
    /// The application is gone, or the deadline near: outbound ends as inbound did. When all has
    /// ended, or at the deadline, the process does.
    Closing,
}

/// How much of the proxy is asked to shut down; more may be asked later, never less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutDown {
    /// Nothing.
    #[default]
    No,
    /// Inbound. Outbound waits to be asked, since whoever asks knows better than this proxy when the
    /// application is gone.
    Inbound,
    /// Everything, outbound once the application seems to be gone.
    All,
    /// Everything: the application is gone.
    ApplicationGone,
}

/// Tells the stage, and when the next one comes; cheap to clone, shared by all threads. What is
/// tracked with [`Lifecycle::connections`] is waited for.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    stage: watch::Receiver<Stage>,
    /// The same, for those who only look: no lock on the way of a request.
    now: Arc<AtomicU8>,
    connections: drain::Watch,
}

/// Sets the stage.
#[derive(Debug)]
pub struct Stages {
    stage: watch::Sender<Stage>,
    now: Arc<AtomicU8>,
    connections: drain::Signal,
}

/// Makes the two ends.
pub fn channel() -> (Stages, Lifecycle) {
    let (stage, watched) = watch::channel(Stage::default());
    let (signal, connections) = drain::channel();
    let now = Arc::new(AtomicU8::new(Stage::default() as u8));
    (Stages { stage, now: now.clone(), connections: signal }, Lifecycle { stage: watched, now, connections })
}

impl Lifecycle {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        match self.now.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Leaving,
            2 => Stage::Refusing,
            _ => Stage::Closing,
        }
    }

    /// Waits until this stage or a later one is reached. Never returns if the other end is gone.
    pub async fn reached(&self, stage: Stage) {
        let mut watched = self.stage.clone();
        if watched.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps the process from ending before the deadline, by [`drain::Watch::guard`] or
    /// [`drain::Watch::track`]. (Its signal is raised with [`Stage::Closing`].)
    pub fn connections(&self) -> &drain::Watch {
        &self.connections
    }
}

impl Stages {
    /// Goes to a later stage; to an earlier one it does not go.
    pub fn advance(&self, to: Stage) {
        // Before anybody is told, so that who is told sees it.
        self.now.fetch_max(to as u8, Ordering::AcqRel);
        self.stage.send_if_modified(|stage| {
            let later = to > *stage;
            *stage = to.max(*stage);
            later
        });
        if to == Stage::Closing {
            self.connections.drain();
        }
    }

    /// Waits until every connection has ended, after [`Stage::Closing`].
    pub async fn finished(&self) {
        self.connections.finished().await;
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.remaining()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_only_go_forward() {
        let (stages, life) = channel();
        life.reached(Stage::Serving).await;
        stages.advance(Stage::Refusing);
        stages.advance(Stage::Leaving);
        assert_eq!(life.stage(), Stage::Refusing);
        life.reached(Stage::Leaving).await;
        let guard = life.connections().guard();
        assert!(!life.connections().draining());
        stages.advance(Stage::Closing);
        assert!(life.connections().draining());
        assert_eq!(stages.connections(), 1);
        drop(guard);
        stages.finished().await;
    }
}
