//! Heddle's per-pod proxy.
//!
//! # The way of a request
//!
//! To follow one in a debugger, set breakpoints in these files, in this order; each is one stop, and
//! what it calls beside the next stop returns before it goes on.
//!
//! | | out, from the app | in, to the app |
//! | --- | --- | --- |
//! | 1 accept | [`listener`], which gives it to a [`worker`] | the same |
//! | 2 the connection | `outbound.rs`: `serve_connection` | `inbound.rs`: `serve_connection` |
//! | 3 what it speaks | `outbound/destination.rs`, with `detect.rs` | `inbound/caller.rs`: mTLS, SNI, ALPN |
//! | 4 HTTP | `serve.rs` | the same |
//! | 5 the request | `outbound.rs`: `serve_request`, `forward` | `inbound.rs`: the same |
//! | 6 its decision | `outbound/request.rs`: loop, destination, [`route`] | `inbound/access.rs`: port, [`authorize`] |
//! | 7 its tries | `cluster/stack.rs`: the list of layers, a file each | `inbound/app.rs` |
//! | 8 the connection onwards | `connect/pool.rs` | the same |
//! | 9 the response's end | `body/settle.rs` | the same |
//! | 10 the record | `exchange.rs`, from which [`telemetry`] gets its [`outcome`] | the same |
//!
//! What was on its way to the app and redirected passes `inbound/captured.rs` before `inbound/caller.rs`, or
//! instead of it. Opaque bytes take stops 1 to 3, then `outbound/opaque.rs` or `inbound/opaque.rs`, and `tcp.rs`.
//!
//! # The rest
//!
//! What the proxy believes is a [`snapshot`]; what it decides, it decides in pure functions
//! ([`authorize`], [`path`], [`route`], [`headers`], the parts of [`cluster`]). What became of a
//! request or an opaque connection is one [`outcome`], from which [`telemetry`] makes log line, metrics and
//! span. [`app`] puts it all together: threads that carry traffic, and one for everything else.

mod admin;
pub mod app;
pub mod authorize;
mod body;
pub mod capture;
pub mod cluster;
pub mod config;
mod connect;
mod control_plane;
mod detect;
pub mod discovery;
mod exchange;
pub mod fuzzing;
pub mod headers;
pub mod identity;
mod inbound;
pub mod learned;
pub mod lifecycle;
pub mod listener;
mod open;
mod outbound;
pub mod outcome;
pub mod path;
mod preamble;
pub mod probes;
mod registration;
pub mod route;
mod serve;
pub mod snapshot;
pub mod state;
mod stream;
mod tcp;
pub mod telemetry;
#[cfg(any(test, fuzzing))]
mod testing;
mod timer;
pub mod trace_context;
pub mod worker;
