//! Pairs of proxies, end to end.

mod http;
