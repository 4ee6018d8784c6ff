//! What whole-mesh tests need: the real binaries as child processes on loopback, an app that tells
//! what reached it, and programs that nobody here wrote.
//!
//! Nothing here is a stand-in for a part of Heddle: a test starts the control plane and the proxies
//! that a user would.

pub mod app;
pub mod captured;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod peer;
pub mod ports;
pub mod process;
pub mod servers;

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

/// Waits until `condition` gives a value, looking again every 20 ms.
///
/// # Panics
/// When `limit` has passed, naming what was waited for and the last thing seen.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = SystemTime::now();
    loop {
        let last = match condition().await {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(start.elapsed().unwrap_or_default() < limit, "waited {limit:?} for {what}; last seen: {last}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
