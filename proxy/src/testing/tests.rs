//! Pairs of proxies, end to end.

mod allocations;
mod cut;
mod drain;
mod ends;
mod far;
mod http;
mod instance;
mod opaque;
mod policy;
mod reasons;
mod refusals;
mod retries;
mod smuggling;
mod uploads;
