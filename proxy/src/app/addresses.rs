//! Listeners: bound before anything else is begun, so that a fault in the settings is the first thing
//! that one hears of; and where they turned out to be.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{SocketAddr, TcpListener},
};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::{
    config::{Config, Upstream},
    listener,
    state::StateDir,
};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;

/// Where a proxy listens.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// mTLS from peers; the first, if there are several.
    pub inbound: SocketAddr,
    /// The others.
    #[serde(skip)]
    pub other_inbound: Vec<SocketAddr>,
    /// Captured connections.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub captured: Vec<SocketAddr>,
    /// HTTP proxy port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<SocketAddr>,
    /// Upstream ports, by the name that was typed.
    pub upstreams: BTreeMap<String, SocketAddr>,
    /// Admin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    /// Health and metrics.
    pub health: SocketAddr,
}

impl Addresses {
    /// Every one.
    pub(super) fn all(&self) -> Vec<SocketAddr> {
        let always = [self.inbound, self.health];
        let some = self
            .other_inbound
            .iter()
            .chain(&self.captured)
            .chain(&self.http_proxy)
            .chain(self.upstreams.values())
            .chain(&self.admin);
        always.iter().chain(some).copied().collect()
    }
}

/// What a listener of traffic is for.
#[derive(Clone, Debug)]
pub(super) enum Role {
    Inbound,
    Captured,
    HttpProxy,
    Upstream(Upstream),
}

impl From<Role> for listener::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Inbound => Self::Inbound,
            Role::Captured => Self::Captured,
            Role::HttpProxy => Self::HttpProxy,
            Role::Upstream(upstream) => Self::Upstream(upstream.name.into()),
        }
    }
}

/// All sockets, not accepting yet.
pub(super) struct Listeners {
    pub traffic: Vec<(Role, TcpListener)>,
    pub admin: Option<TcpListener>,
    pub health: TcpListener,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        let mut traffic = Vec::new();
        for listener in bind_all("inbound.listen", &config.inbound.listen)? {
            traffic.push((Role::Inbound, listener));
        }
        for listener in bind_all("outbound.captured", &config.outbound.captured)? {
            traffic.push((Role::Captured, listener));
        }
        if let Some(address) = config.outbound.http_proxy {
            traffic.push((Role::HttpProxy, bind("outbound.httpProxy", address)?));
        }
        for (index, upstream) in config.outbound.upstreams.iter().enumerate() {
            let setting = format!("outbound.upstreams[{index}].listen ({})", upstream.typed);
            traffic.push((Role::Upstream(upstream.clone()), bind(&setting, upstream.listen)?));
        }
        let admin = config.admin.map(|address| bind("admin", address)).transpose()?;
        Ok(Self { traffic, admin, health: bind("health", config.health)? })
    }

    pub(super) fn addresses(&self) -> io::Result<Addresses> {
        let inbound = self.traffic.iter().find(|(role, _)| matches!(role, Role::Inbound));
        let mut addresses = Addresses {
            inbound: inbound.map_or(&self.health, |(_, listener)| listener).local_addr()?,
            other_inbound: Vec::new(),
            captured: Vec::new(),
            http_proxy: None,
            upstreams: BTreeMap::new(),
            admin: self.admin.as_ref().map(TcpListener::local_addr).transpose()?,
            health: self.health.local_addr()?,
        };
        for (role, listener) in &self.traffic {
            let at = listener.local_addr()?;
            match role {
                Role::Inbound if at == addresses.inbound => {}
                Role::Inbound => addresses.other_inbound.push(at),
                Role::Captured => addresses.captured.push(at),
                Role::HttpProxy => addresses.http_proxy = Some(at),
                Role::Upstream(upstream) => _ = addresses.upstreams.insert(upstream.typed.clone(), at),
            }
        }
        Ok(addresses)
    }
}

/// A socket for each address. Where the host has no IPv6, those of IPv4 are enough.
fn bind_all(setting: &str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let has_ipv4 = addresses.iter().any(SocketAddr::is_ipv4);
        let own_family = address.is_ipv6() && has_ipv4;
        match bind_for(setting, *address, own_family) {
            Ok(listener) => listeners.push(listener),
            Err(StartError::Bind { source, .. }) if address.is_ipv6() && has_ipv4 && is_no_ipv6(&source) => {
                tracing::info!(%address, setting, "this host has no IPv6: not listening there");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

fn is_no_ipv6(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

/// One socket for one address. Not SO_REUSEPORT: two sidecars must not share a mistyped port in
/// silence.
fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    bind_for(setting, address, false)
}

/// With `own_family`, `[::]` is not for IPv4 too: that is listened on by itself.
fn bind_for(setting: &str, address: SocketAddr, own_family: bool) -> Result<TcpListener, StartError> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for connections of the last process to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        if own_family {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    bound().map_err(|source| StartError::Bind { setting: setting.to_owned(), address, source })
}

/// Tells the addresses in the state directory, for those who start a proxy on any free port.
pub(super) fn write(addresses: &Addresses, state: Option<&StateDir>) {
    let Some(state) = state else { return };
    let written = serde_json::to_vec_pretty(addresses)
        .map_err(|error| error.to_string())
        .and_then(|json| state.write("addresses.json", &json).map_err(|error| crate::control_plane::causes(&error)));
    if let Err(error) = written {
        tracing::warn!(error, "the addresses are not told in the state directory");
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inbound {}", self.inbound)?;
        let captured = self.captured.iter().map(|address| ("captured", address));
        let http_proxy = self.http_proxy.iter().map(|address| ("http-proxy", address));
        for (name, address) in captured.chain(http_proxy).chain(self.admin.iter().map(|address| ("admin", address))) {
            write!(f, ", {name} {address}")?;
        }
        for (name, address) in &self.upstreams {
            write!(f, ", {name} {address}")?;
        }
        write!(f, ", health {}", self.health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_by_the_name_of_its_setting() {
        let first = bind("health", ([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let error = crate::control_plane::causes(&bind("outbound.httpProxy", address).unwrap_err());
        assert!(error.starts_with(&format!("outbound.httpProxy: cannot listen on {address}: ")), "{error}");
        drop(first);
        bind("health", address).unwrap();
    }

    #[test]
    fn every_listener_is_known_as_ones_own() {
        let any = || bind("any", ([127, 0, 0, 1], 0).into()).unwrap();
        let roles = [Role::Inbound, Role::Inbound, Role::Captured, Role::HttpProxy];
        let traffic: Vec<_> = roles.into_iter().map(|role| (role, any())).collect();
        let listeners = Listeners { traffic, admin: Some(any()), health: any() };
        let own = listeners.addresses().unwrap().all();
        let all = listeners.traffic.iter().map(|(_, listener)| listener).chain(&listeners.admin);
        for listener in all.chain([&listeners.health]) {
            assert!(own.contains(&listener.local_addr().unwrap()), "{listener:?} is not among {own:?}");
        }
        assert_eq!(own.len(), 6);
    }

    #[test]
    fn addresses_are_told_as_those_who_start_proxies_read_them() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses {
            inbound: at(1),
            other_inbound: vec![at(8)],
            captured: vec![at(6), at(7)],
            http_proxy: Some(at(2)),
            upstreams: BTreeMap::from([("db".to_owned(), at(3))]),
            admin: Some(at(4)),
            health: at(5),
        };
        let expected = serde_json::json!({
            "inbound": "127.0.0.1:1",
            "captured": ["127.0.0.1:6", "127.0.0.1:7"],
            "httpProxy": "127.0.0.1:2",
            "upstreams": { "db": "127.0.0.1:3" },
            "admin": "127.0.0.1:4",
            "health": "127.0.0.1:5",
        });
        assert_eq!(serde_json::to_value(&addresses).unwrap(), expected);
    }
}
