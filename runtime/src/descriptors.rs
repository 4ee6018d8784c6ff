//! The limit of open file descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process open as many descriptors as the system allows it: the soft limit, often 1024 for the sake of
/// programs that use `select`, is raised to the hard one. Logs what there is, and warns where that is less than
/// `needed`, which `why` explains.
pub fn raise(needed: u64, why: &str) {
    let Rlimit { current: before, maximum } = getrlimit(Resource::Nofile);
    if before != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, limit = before, hard = maximum, "the limit of open files cannot be raised");
    }
    // None is no limit.
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    if limit < needed {
        tracing::warn!(limit, needed, why, "few files may be open: set a higher limit (ulimit -Hn, LimitNOFILE)");
    } else {
        tracing::debug!(limit, needed, "files that may be open");
    }
}
