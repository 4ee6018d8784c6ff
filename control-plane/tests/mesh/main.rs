//! The control plane in process, and proxies as clients over real TLS.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod discovery;
mod identity;
mod registration;
mod start;
mod world;
