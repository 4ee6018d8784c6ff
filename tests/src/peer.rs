//! Programs that nobody here wrote. A missing one is said aloud, and where `HEDDLE_REQUIRE_PEERS=1`
//! is set (as CI does) it fails the test.

use std::path::PathBuf;

/// Path of a program in `PATH`, or `None` after saying that the test is skipped.
///
/// # Panics
/// When the program is missing and `HEDDLE_REQUIRE_PEERS=1` is set.
pub fn find(program: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file());
    found.or_else(|| missing(program))
}

/// Path of a program that a script `tests/peers/<script>.sh` gets and keeps, if it has been got.
///
/// # Panics
/// As [`find`].
pub fn kept(file: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HEDDLE_PEERS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        cache.map(|cache| cache.join("heddle-peers"))
    });
    home.map(|home| home.join(file)).filter(|path| path.exists()).or_else(|| missing(file))
}

pub(crate) fn missing(program: &str) -> Option<PathBuf> {
    assert!(
        std::env::var_os("HEDDLE_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{program} is missing, and HEDDLE_REQUIRE_PEERS=1 makes that a failure"
    );
    eprintln!("SKIPPED: {program} is not on this machine (tests/peers has scripts that get what tests need)");
    None
}
