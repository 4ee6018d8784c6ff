//! Ports for programs that must be told one, and waiting for them.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::eventually;

/// Below the ports that Linux gives to sockets that asked for none in particular (32768 and up).
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// A port of loopback that nobody listens on, and that no connection will be given meanwhile: one that
/// the system chose for a listener which is closed again may be some other test's before its own
/// program binds it. Never the same one twice in a process.
///
/// # Panics
/// When none is free.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    let mut candidates = std::iter::repeat_with(|| rand::random_range(RANGE)).take(10_000);
    let port = candidates.find(|port| !given.contains(port) && free(port)).expect("a free port");
    given.insert(port);
    port
}

/// Waits until somebody listens there, on loopback.
///
/// # Panics
/// When nobody does in time; some programs take their time.
pub async fn listening(port: u16) {
    eventually(&format!("a listener at {port}"), Duration::from_secs(90), || async move {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}
