//! Pairs of proxies, end to end.

mod drain;
mod http;
mod opaque;
mod policy;
mod refusals;
mod retries;
