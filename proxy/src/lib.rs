//! Heddle's per-pod proxy, in the order in which a request passes it.
//!
//! What it believes is a [`snapshot`]; what it decides, it decides in pure functions ([`authorize`],
//! [`path`], [`route`], the parts of [`cluster`]); what became of it is one [`outcome`], from which
//! [`telemetry`] makes log line, metrics and span.

mod admin;
pub mod app;
pub mod authorize;
pub mod cluster;
pub mod config;
mod control_plane;
pub mod discovery;
pub mod headers;
pub mod identity;
pub mod lifecycle;
pub mod outcome;
pub mod path;
mod registration;
pub mod route;
pub mod snapshot;
pub mod state;
pub mod telemetry;
pub mod trace_context;
