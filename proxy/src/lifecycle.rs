//! The stages of a proxy's life, which listeners and connections follow.

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
    connections: drain::Watch,
}

/// Sets the stage.
#[derive(Debug)]
pub struct Stages {
    stage: watch::Sender<Stage>,
    connections: drain::Signal,
}

/// Makes the two ends.
pub fn channel() -> (Stages, Lifecycle) {
    let (stage, watched) = watch::channel(Stage::default());
    let (signal, connections) = drain::channel();
    (Stages { stage, connections: signal }, Lifecycle { stage: watched, connections })
}

impl Lifecycle {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
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
