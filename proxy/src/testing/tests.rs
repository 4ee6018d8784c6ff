//! Pairs of proxies, end to end.

mod drain;
mod http;
mod instance;
mod opaque;
mod policy;
mod reasons;
mod refusals;
mod retries;
