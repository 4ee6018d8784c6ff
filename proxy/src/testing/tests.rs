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

use std::net::SocketAddr;

use super::{Called, Proxy, TestMesh};
use crate::snapshot::Protocol;

/// A service `orders` with a sidecar, and somebody who calls it.
struct Pair {
    callee: Proxy,
    caller: Proxy,
}

fn pair(protocol: Protocol, app: SocketAddr) -> Pair {
    pair_with(protocol, app, |called| called)
}

/// As [`pair`], with something else in what the caller knows of the service.
fn pair_with(protocol: Protocol, app: SocketAddr, change: impl FnOnce(Called) -> Called) -> Pair {
    let mesh = TestMesh::new();
    let callee = mesh.sidecar("orders", protocol, app);
    let caller = mesh.caller(vec![change(Called::new("orders", protocol, &callee.addresses))]);
    Pair { callee, caller }
}
