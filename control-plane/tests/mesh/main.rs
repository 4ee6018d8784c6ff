//! The control plane in process, and proxies as clients over real TLS.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod api_server;
mod discovery;
mod identity;
mod kubernetes;
mod registration;
mod scale;
mod start;
mod webhook;
mod world;

/// As in the daemon, so that its memory can be measured here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
