//! Signals on their way to the command.

use std::{future::poll_fn, io, task::Poll};

use rustix::process::{Pid, Signal};
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
};

/// The signals that are passed on.
const PASSED: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Receives the signals that are passed on.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// From now on these signals no longer end this process.
    pub(super) fn new() -> io::Result<Self> {
        PASSED
            .into_iter()
            .map(|signal| Ok((signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The next one that asks to end.
    pub(super) async fn next_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if ends(signal) {
                return signal;
            }
        }
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, receiver) in &mut self.0 {
                if receiver.poll_recv(context).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a signal asks the command to end. HUP does not: to servers it says "read your configuration
/// again", and a command that ends by it does so by itself.
pub(super) fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT].contains(&signal)
}

/// Whether the command has this signal from the terminal already: Ctrl-C and Ctrl-\ go to the whole
/// foreground group, and a second one makes some programs give up on ending tidily.
pub(super) fn from_terminal(signal: Signal) -> bool {
    let typed = signal == Signal::INT || signal == Signal::QUIT;
    typed && rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Sends the command a signal, unless it has it already.
pub(super) fn pass_on(signal: Signal, child: &Child) {
    if !from_terminal(signal) {
        send(signal, child);
    }
}

/// Sends a process a signal. One that has ended and was waited for has no id any more.
pub(super) fn send(signal: Signal, child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It can only fail because the process is just ending.
        let _ = rustix::process::kill_process(pid, signal);
    }
}
