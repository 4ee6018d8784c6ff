//! Everything that can go wrong, with the exit code that it ends in and what to do next.

use std::{io, path::PathBuf};

use crate::{context::ContextError, manifest::ManifestFault, output::Paint, problem::Problem, run::RunError};

/// Exit codes; `heddle --help` documents them for users, [`EXIT_CODES`] is that text.
pub(crate) mod exit {
    /// Done.
    pub(crate) const OK: u8 = 0;
    /// The control plane refused it, a file is malformed, or a proxy rejected it.
    pub(crate) const REFUSED: u8 = 1;
    /// Mistyped, or a file or context that cannot be read.
    pub(crate) const USAGE: u8 = 2;
    /// No answer from the control plane, or it is not ready.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// Token missing, wrong, or of a lesser role than needed.
    pub(crate) const AUTH: u8 = 4;
    /// No such object.
    pub(crate) const NOT_FOUND: u8 = 5;
    /// Somebody else changed it in the meantime, or it is at odds with what is there.
    pub(crate) const CONFLICT: u8 = 6;
    /// `diff --exit-code`: there are differences.
    pub(crate) const DIFFERS: u8 = 7;
    /// Waited long enough in vain.
    pub(crate) const TIMED_OUT: u8 = 8;
    /// `run`: the sidecar did not come up, so the command was not started.
    pub(crate) const SIDECAR: u8 = 125;
    /// `run`: the command cannot be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// `run`: there is no such command.
    pub(crate) const NO_COMMAND: u8 = 127;
}

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused by the control plane, a malformed file, or rejected by a proxy
  2    mistyped, or a file or context that cannot be read
  3    the control plane cannot be reached or is not ready
  4    token missing, wrong, or of a lesser role than needed
  5    no such object or revision
  6    somebody else changed it in the meantime, or it is at odds with what is there
  7    `diff --exit-code`: there are differences
  8    waited in vain (`--wait`)
  125  `run`: the sidecar did not come up, the command was not started
  126  `run`: the command cannot be executed
  127  `run`: no such command
  `run` else returns the command's own code, or 128+n when signal n ended it.";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// No usable context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A file cannot be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// E.g. `cannot read`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Files that hold no valid objects.
    #[error("{} cannot be applied as written", plural(.0.len(), "document"))]
    Manifest(Vec<ManifestFault>),
    /// No connection, or no answer.
    #[error("the control plane at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// The innermost causes.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// An answer with an error status.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// An answer that this version does not understand.
    #[error("the control plane's answer to {request} makes no sense: {reason}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such object, found out on this side.
    #[error("{0}")]
    NotFound(String),
    /// `--wait`: proxies rejected objects.
    #[error("rejected: {}", .0.join("; "))]
    Rejected(Vec<String>),
    /// `--wait`: proxies did not answer in time.
    #[error("proxies did not acknowledge in time: {}", .0.join("; "))]
    TimedOut(Vec<String>),
    /// `run` failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Who reads our output has closed it; no reason to complain.
    #[error("output closed")]
    OutputClosed,
    /// Output cannot be written.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// The process itself.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

impl Error {
    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Context(_) | Self::File { .. } => exit::USAGE,
            Self::Manifest(_) | Self::Answer { .. } | Self::Rejected(_) | Self::Output(_) | Self::Runtime(_) => {
                exit::REFUSED
            }
            Self::Unreachable { .. } => exit::UNREACHABLE,
            Self::Refused(problem) => problem.exit_code(),
            Self::NotFound(_) => exit::NOT_FOUND,
            Self::TimedOut(_) => exit::TIMED_OUT,
            Self::Run(error) => error.exit_code(),
            Self::OutputClosed => exit::OK,
        }
    }

    /// What to do next, where that is not plain from the message.
    fn hint(&self) -> Option<String> {
        match self {
            Self::Context(error) => error.hint(),
            Self::Unreachable { hint, .. } => Some(hint.clone()),
            Self::Refused(problem) => problem.hint(),
            Self::Run(error) => error.hint(),
            Self::Answer { .. } => {
                Some("do the versions of heddle and heddle-control-plane match? `heddle version --server`".to_owned())
            }
            Self::Manifest(_) => Some("nothing was changed".to_owned()),
            Self::Rejected(_) => {
                Some("those proxies go on with what they had; `heddle describe` shows each object's status".to_owned())
            }
            Self::TimedOut(_) => {
                Some("the change is stored and will reach them; `heddle status` shows the proxies".to_owned())
            }
            _ => None,
        }
    }

    /// The whole text for standard error; empty when there is nothing to say.
    pub(crate) fn report(&self, paint: &Paint) -> String {
        match self {
            Self::OutputClosed => return String::new(),
            // Its exit code is another; what went wrong is told as anywhere.
            Self::Run(RunError::Before(error)) => return error.report(paint),
            _ => {}
        }
        let mut text = format!("{} {self}", paint.bad("error:"));
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text.push('\n');
        match self {
            Self::Manifest(faults) => {
                for fault in faults {
                    text.push_str(&format!("  {fault}\n"));
                }
            }
            Self::Refused(problem) => text.push_str(&problem.render_faults(paint)),
            _ => {}
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("  {} {hint}\n", paint.dim("hint:")));
        }
        text
    }
}

/// `1 fault`, `2 faults`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Problem;

    #[test]
    fn what_run_needed_before_its_command_is_told_with_all_faults() {
        let body = br#"{"title": "Invalid", "detail": "name: no DNS label", "faults": [{"path": "name", "message": "no DNS label"}]}"#;
        let problem = || Problem::parse(http::StatusCode::BAD_REQUEST, "POST /v1/join-tokens".into(), body);
        let refused = || Error::Refused(Box::new(problem()));
        let before = Error::from(RunError::Before(Box::new(refused())));
        let paint = Paint::plain();
        assert_eq!(before.report(&paint), refused().report(&paint));
        assert!(before.report(&paint).contains("name: no DNS label"), "{}", before.report(&paint));
    }
}
