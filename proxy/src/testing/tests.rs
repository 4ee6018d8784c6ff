//! Pairs of proxies, end to end.

mod drain;
mod http;
mod opaque;
mod policy;
mod reasons;
mod refusals;
mod retries;
