//! Heddle's per-pod proxy, in the order in which a request passes it.
//!
//! What it believes is a [`snapshot`]; what it decides, it decides in pure functions ([`authorize`],
//! [`path`], [`route`], the parts of [`cluster`]); what became of it is one [`outcome`], from which
//! [`telemetry`] makes log line, metrics and span.

mod admin;
pub mod app;
pub mod authorize;
mod body;
pub mod cluster;
pub mod config;
mod connect;
mod control_plane;
mod detect;
pub mod discovery;
mod exchange;
pub mod headers;
pub mod identity;
mod inbound;
pub mod lifecycle;
pub mod listener;
mod outbound;
pub mod outcome;
pub mod path;
mod preamble;
mod registration;
pub mod route;
mod serve;
pub mod snapshot;
pub mod state;
mod stream;
mod tcp;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod trace_context;
pub mod worker;
