//! Asking DNS, by way of the system's resolver, which holds a thread for as long as it takes.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Duration, timeout},
};

use crate::{
    config::DialName,
    outcome::{Error, ErrorKind},
};

/// How long DNS may take.
pub(super) const LOOKUP: Duration = Duration::from_secs(5);
/// Lookups of a worker at once, with those that nobody waits for any more.
pub(super) const MAX_LOOKUPS: usize = 16;

/// Addresses of a host and a port; blocks.
pub(super) type Resolve = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The lookups of a worker.
pub(super) struct Lookups {
    pub(super) places: Arc<Semaphore>,
    pub(super) resolve: Arc<Resolve>,
}

impl Default for Lookups {
    fn default() -> Self {
        let resolve = |host: &str, port| Ok((host, port).to_socket_addrs()?.collect());
        Self { places: Arc::new(Semaphore::new(MAX_LOOKUPS)), resolve: Arc::new(resolve) }
    }
}

/// Why a name has no addresses.
pub(super) enum Failed {
    /// DNS was asked.
    Asked(Error),
    /// It never came to that: others hold all places. That says nothing of the name.
    Unasked(Error),
}

impl Failed {
    pub(super) fn into_error(self) -> Error {
        let (Self::Asked(error) | Self::Unasked(error)) = self;
        error
    }
}

impl Lookups {
    /// The addresses of a name, in order.
    pub(super) async fn look_up(&self, name: &DialName) -> Result<Vec<SocketAddr>, Failed> {
        if let Ok(ip) = name.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, name.port)]);
        }
        let failed = |why: String| Error::new(ErrorKind::ConnectFailed, format!("{name}: {why}"));
        // It stays taken until the system's resolver returns: nothing makes that stop.
        let Ok(Ok(place)) = timeout(LOOKUP, self.places.clone().acquire_owned()).await else {
            let why = format!("{MAX_LOOKUPS} other lookups were not answered within {} s", LOOKUP.as_secs());
            return Err(Failed::Unasked(failed(why)));
        };
        let asking = async {
            let (resolve, DialName { host, port }) = (self.resolve.clone(), name.clone());
            let asked = spawn_blocking(move || {
                let _place = place;
                resolve(&host, port)
            });
            asked.await.map_err(io::Error::other)?
        };
        let found = timeout(LOOKUP, asking).await;
        let in_time = found.map_err(|_| format!("DNS did not answer within {} s", LOOKUP.as_secs()));
        let found = in_time.and_then(|found| found.map_err(|error| error.to_string()));
        let mut addresses = found.map_err(|why| Failed::Asked(failed(why)))?;
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }
}
