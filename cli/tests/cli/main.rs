//! The `heddle` binary against an API that answers as each test wants, and a sidecar made of shell.

// Helpers outside of test functions are test code too.
#![allow(clippy::unwrap_used)]

mod api;
mod fake;
mod inject;
mod run;
