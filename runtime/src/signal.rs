//! Signals of the operating system.

use std::{fmt, io};

use tokio::signal::unix::{SignalKind, signal};

/// Which signal asked the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGTERM.
    Terminate,
    /// SIGINT, Ctrl-C.
    Interrupt,
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Waits for the first SIGTERM or SIGINT. From its first poll on, and for good, neither ends the
/// process by itself; call it again to wait for a second.
pub async fn shutdown() -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => Shutdown::Terminate,
        _ = interrupt.recv() => Shutdown::Interrupt,
    })
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    // One test, since a signal reaches every listener in the process.
    #[tokio::test]
    async fn tells_which_signal_came() {
        for (sent, expected) in [(Signal::TERM, Shutdown::Terminate), (Signal::INT, Shutdown::Interrupt)] {
            let mut shutdown = pin!(shutdown());
            std::future::poll_fn(|cx| {
                assert!(shutdown.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            kill_process(getpid(), sent).unwrap();
            assert_eq!(shutdown.await.unwrap(), expected);
        }
    }
}
