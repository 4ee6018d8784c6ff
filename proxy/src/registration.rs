//! Makes the workload known as an endpoint of the services that it serves, for as long as it lives,
//! and takes it back when it drains.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, time::Duration};

use heddle_api::proto::registration::{
    DeregisterRequest, Instance, RegisterRequest, registration_client::RegistrationClient,
};
use heddle_runtime::backoff::Jittered;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::transport::Channel;

use crate::{config::Advertise, discovery::Discovery, snapshot::Snapshot};

/// Longest wait for an answer.
const RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the application to accept a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the application is tried until it accepts connections ...
const PROBE_UNREADY: Duration = Duration::from_millis(200);
/// ... and after that.
const PROBE_READY: Duration = Duration::from_secs(5);
/// Renewed at this part of the lease.
const RENEW_AT: f64 = 0.33;
/// A lease that a control plane cannot mean.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// The task.
pub(crate) struct Registration {
    /// Who registers and what of.
    pub workload: Workload,
    /// What the services' ports are, and where the application serves them.
    pub discovery: Discovery,
    /// The connection of the moment.
    pub channel: watch::Receiver<Option<Channel>>,
    /// Asks to leave.
    pub leave: mpsc::Receiver<Leave>,
}

/// Who registers.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Instance name.
    pub name: String,
    /// What to register as address.
    pub advertise: Advertise,
    /// Where the inbound listener is.
    pub inbound: SocketAddr,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Availability zone.
    pub zone: String,
}

/// Asks to deregister.
pub(crate) struct Leave {
    /// How long to wait for those who call this workload to learn of it.
    pub wait: Duration,
    /// Whether they all have.
    pub reply: oneshot::Sender<bool>,
}

/// What there is to register.
type Instances = Vec<Instance>;

impl Registration {
    /// Runs until it is asked to leave.
    pub(crate) async fn run(mut self) {
        let mut changed = self.discovery.changed();
        // What the control plane was told last, as far as it still knows.
        let mut told: Option<(Instances, bool)> = None;
        let mut last_told = None;
        let mut next = Instant::now();
        let mut backoff = backoff();
        loop {
            changed.borrow_and_update();
            let channel = self.channel.borrow_and_update().clone();
            let (instances, apps) = served(&self.discovery.snapshot());
            let ready = accepts(&apps).await;
            if told.as_ref().is_some_and(|told| *told != (instances.clone(), ready)) {
                told = None;
                next = Instant::now();
            }
            if let (Some(channel), false, true) = (channel, instances.is_empty(), Instant::now() >= next) {
                match self.register(channel, instances.clone(), ready).await {
                    Ok(lease) => {
                        backoff.reset();
                        told = Some((instances, ready));
                        // Not news to people when only the connection is another.
                        if told != last_told {
                            tracing::info!(ready, lease_s = lease.as_secs(), "registered");
                            last_told.clone_from(&told);
                        }
                        next = Instant::now() + lease.mul_f64(RENEW_AT * (0.8 + 0.2 * rand::random::<f64>()));
                    }
                    Err(reason) => {
                        tracing::warn!(reason, "cannot register");
                        told = None;
                        next = Instant::now() + backoff.next_delay();
                    }
                }
            }
            let probe = Instant::now() + if ready { PROBE_READY } else { PROBE_UNREADY };
            // Without a channel `next` may long have passed.
            let wake_at = if next > Instant::now() { probe.min(next) } else { probe };
            tokio::select! {
                leave = self.leave.recv() => {
                    if let Some(leave) = leave {
                        let left = self.deregister(last_told.is_some(), leave.wait).await;
                        // Who asked may have given up.
                        let _ = leave.reply.send(left);
                    }
                    return;
                }
                Ok(()) = changed.changed() => {}
                Ok(()) = self.channel.changed() => {
                    // Another control plane, or the same after a restart, may not know of us.
                    told = None;
                    next = Instant::now();
                }
                () = sleep_until(wake_at) => {}
            }
        }
    }

    async fn register(&self, channel: Channel, instances: Instances, ready: bool) -> Result<Duration, String> {
        let request = RegisterRequest {
            workload: self.workload.name.clone(),
            instances,
            address: self.workload.address(),
            labels: self.workload.labels.clone(),
            zone: self.workload.zone.clone(),
            ready,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut client = RegistrationClient::new(channel);
        match timeout(RPC_TIMEOUT, client.register(request)).await {
            Ok(Ok(response)) => Ok(Duration::from_secs(response.into_inner().lease_seconds.into()).max(SHORTEST_LEASE)),
            Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
            Err(_) => Err(format!("no answer within {} s", RPC_TIMEOUT.as_secs())),
        }
    }

    /// Whether all who may call this workload know that it leaves.
    async fn deregister(&self, registered: bool, wait: Duration) -> bool {
        let Some(channel) = self.channel.borrow().clone().filter(|_| registered) else { return !registered };
        let wait_milliseconds = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).min(30_000);
        let request = DeregisterRequest { workload: self.workload.name.clone(), wait_milliseconds };
        let mut client = RegistrationClient::new(channel);
        // It answers when the wait is over; a little more is for the way.
        match timeout(wait + Duration::from_millis(500), client.deregister(request)).await {
            Ok(Ok(response)) => response.into_inner().acknowledged,
            Ok(Err(status)) => {
                tracing::warn!(code = ?status.code(), reason = status.message(), "cannot deregister");
                false
            }
            Err(_) => {
                tracing::warn!("the control plane did not answer the deregistration in time");
                false
            }
        }
    }
}

impl Workload {
    /// `ip:port`, or `:port` for the address that the control plane sees.
    fn address(&self) -> String {
        let port = self.advertise.port.unwrap_or(self.inbound.port());
        let listens_on = Some(self.inbound.ip()).filter(|ip| !ip.is_unspecified());
        match self.advertise.ip.or(listens_on) {
            Some(ip) => SocketAddr::from((ip, port)).to_string(),
            None => format!(":{port}"),
        }
    }
}

fn backoff() -> Jittered {
    Jittered::new(Duration::from_millis(250), Duration::from_secs(10))
}

/// What this workload serves, as far as the control plane has told of it, and where the application
/// listens.
pub(crate) fn served(snapshot: &Snapshot) -> (Instances, Vec<SocketAddr>) {
    let mut instances = Vec::new();
    let mut apps = Vec::new();
    for (name, policy) in &snapshot.inbound {
        let served = policy.ports.iter().filter_map(|(port, at)| Some((*port, at.app?)));
        let (ports, addresses): (Vec<u32>, Vec<SocketAddr>) = served.map(|(port, app)| (u32::from(port), app)).unzip();
        if !ports.is_empty() {
            let app_ports = ports.iter().copied().zip(addresses.iter().map(|app| u32::from(app.port())));
            instances.push(Instance { service: name.to_string(), app_ports: app_ports.collect(), ports });
            apps.extend(addresses);
        }
    }
    apps.sort_unstable();
    apps.dedup();
    (instances, apps)
}

/// Whether the application accepts connections everywhere.
async fn accepts(apps: &[SocketAddr]) -> bool {
    for app in apps {
        if !matches!(timeout(PROBE_TIMEOUT, TcpStream::connect(app)).await, Ok(Ok(_))) {
            return false;
        }
    }
    true
}
