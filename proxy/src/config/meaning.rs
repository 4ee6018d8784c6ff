//! From what was typed to what is meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    str::FromStr,
    time::Duration,
};

use serde_json::Value;

use super::{
    Advertise, Config, DialName, DiscoverySettings, Drain, Inbound, Limits, Log, OtlpProtocol, Outbound, ServedPort,
    ServedService, Tracing, Upstream, join,
    read::{Faults, Section},
};
use crate::snapshot::ServiceName;

/// Everything that the tree says; `None` if a fault leaves something undecided.
pub(super) fn config(tree: Value, faults: &Faults) -> Option<Config> {
    let mut top = Section::new(String::new(), tree, faults);
    let state_dir = top.parse_with("stateDir", |dir| {
        if dir.is_empty() { Err("write the path of a folder".to_owned()) } else { Ok(dir.into()) }
    });
    let join = join::join(&mut top, faults);
    let own_namespace = join.as_ref().and_then(|join| join.identity.as_workload().map(|(ns, _)| ns.to_owned()));
    let services =
        top.sections("services").into_iter().filter_map(|at| service(at, own_namespace.as_deref())).collect();
    let workload = top.parse_with("workload", dns_label);
    let inbound = inbound(top.section("inbound"));
    let outbound = outbound(top.section("outbound"));
    let admin = address_or_off(&mut top, "admin", Some(loopback(15000)));
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        top.fault(
            "admin",
            format_args!("{admin} can be reached from outside: write an address of loopback, such as 127.0.0.1:15000"),
        );
    }
    let health = address(&mut top, "health").unwrap_or_else(|| any(15020));
    let labels = labels(&mut top);
    // A node without zone gives its pods an empty one.
    let zone = |zone: &str| if zone.is_empty() { Ok(String::new()) } else { label(zone).map(|()| zone.to_owned()) };
    let zone = top.parse_with("zone", zone).unwrap_or_default();
    let workers = workers(&mut top);
    let tracing = tracing(top.section("tracing"));
    let drain = drain(top.section("drain"));
    let limits = limits(top.section("limits"));
    let discovery = discovery(top.section("discovery"));
    let log = log(top.section("log"));
    let probes = top.parse_with("probes", |text| text.parse()).unwrap_or_default();
    top.finish();
    let config = Config {
        services,
        workload,
        join: join?,
        state_dir,
        inbound,
        outbound,
        admin,
        health,
        labels,
        zone,
        workers,
        tracing,
        drain,
        limits,
        discovery,
        log,
        probes,
    };
    same_address_twice(&config, faults);
    Some(config)
}

/// Two listeners on one address are a slip that the kernel would report less plainly.
fn same_address_twice(config: &Config, faults: &Faults) {
    let mut seen = BTreeMap::new();
    let upstreams = config.outbound.upstreams.iter().enumerate();
    let inbound = config.inbound.listen.iter().map(|address| ("inbound.listen".to_owned(), Some(*address)));
    let captured = config.outbound.captured.iter().map(|address| ("outbound.captured".to_owned(), Some(*address)));
    let named = [
        ("outbound.httpProxy".to_owned(), config.outbound.http_proxy),
        ("admin".to_owned(), config.admin),
        ("health".to_owned(), Some(config.health)),
    ];
    let named = inbound.chain(captured).chain(named).chain(
        upstreams.map(|(index, upstream)| (format!("outbound.upstreams[{index}].listen"), Some(upstream.listen))),
    );
    for (path, address) in named {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        if let Some(other) = seen.insert(address, path.clone()) {
            faults.add(&path, format_args!("{address} is taken by {other}: write another port"));
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

/// Both families: a connection is redirected to an address of its own.
fn both_loopbacks(port: u16) -> Vec<SocketAddr> {
    vec![loopback(port), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
}

/// As [`both_loopbacks`], for those outside.
fn both_any(port: u16) -> Vec<SocketAddr> {
    vec![any(port), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]
}

/// `ip:port`, or a port of 127.0.0.1.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(loopback(port));
    }
    text.parse().map_err(|_| "write IP:PORT, or a port of 127.0.0.1".to_owned())
}

fn address(at: &mut Section, key: &'static str) -> Option<SocketAddr> {
    at.parse_with(key, parse_address)
}

fn address_or_off(at: &mut Section, key: &'static str, default: Option<SocketAddr>) -> Option<SocketAddr> {
    if at.is_off(key) {
        at.parse_with(key, |_| Ok(()));
        return None;
    }
    at.parse_with(key, |text| parse_address(text).map_err(|right| format!("{right}, or off"))).or(default)
}

/// A number within bounds.
fn number<T: FromStr + PartialOrd + std::fmt::Display + Copy>(
    at: &mut Section,
    key: &'static str,
    default: T,
    min: T,
    max: T,
) -> T {
    let right = || format!("write a whole number from {min} to {max}");
    at.parse_with(key, |text| text.parse().ok().filter(|n| (min..=max).contains(n)).ok_or_else(right))
        .unwrap_or(default)
}

/// Threads that carry traffic; `auto`: one for each CPU that this process may use, by its affinity and its
/// cgroup's limit.
fn workers(at: &mut Section) -> NonZeroUsize {
    const MAX: usize = 256;
    let auto = || std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MAX));
    let parse = |text: &str| {
        let number = if text == "auto" { Some(auto()) } else { text.parse().ok().filter(|n| *n <= MAX) };
        number.and_then(NonZeroUsize::new).ok_or_else(|| format!("write a whole number from 1 to {MAX}, or auto"))
    };
    at.parse_with("workers", parse).unwrap_or(NonZeroUsize::MIN)
}

/// A duration within bounds.
fn duration(at: &mut Section, key: &'static str, default: Duration, min: Duration, max: Duration) -> Duration {
    let show = |duration| heddle_api::resource::Duration(duration);
    at.parse_with(key, |text| {
        let right = || format!("write a duration from {} to {}, such as 10s, 250ms or 1h30m", show(min), show(max));
        let parsed: heddle_api::resource::Duration = text.parse().map_err(|_| right())?;
        if (min..=max).contains(&parsed.0) { Ok(parsed.0) } else { Err(right()) }
    })
    .unwrap_or(default)
}

/// A DNS label or name: what names and zones are made of.
fn label(text: &str) -> Result<(), String> {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let (first, last) = (text.bytes().next(), text.bytes().next_back());
    if text.len() <= 63 && edge(first) && edge(last) && text.bytes().all(inner) {
        Ok(())
    } else {
        Err("write at most 63 lower-case letters, digits, '-' and '.', with a letter or digit at each end".to_owned())
    }
}

/// A single DNS label.
fn dns_label(text: &str) -> Result<String, String> {
    label(text)?;
    if text.contains('.') { Err("write one label, without a dot".to_owned()) } else { Ok(text.to_owned()) }
}

fn service(mut at: Section, own_namespace: Option<&str>) -> Option<ServedService> {
    let right = "write the service's name, such as orders or orders.shop";
    let mut from_name = None;
    let name = at.require("name", |text| {
        let (name, namespace) = text.split_once('.').map_or((text, None), |(name, namespace)| (name, Some(namespace)));
        let name = dns_label(name).map_err(|_| right.to_owned())?;
        from_name = namespace.map(dns_label).transpose().map_err(|_| right.to_owned())?;
        Ok(name)
    });
    let namespace = at.parse_with("namespace", dns_label);
    if let (Some(written), Some(from_name)) = (&namespace, &from_name)
        && written != from_name
    {
        at.fault("namespace", format_args!("{written:?} is not right: the name says {from_name:?}"));
    }
    let namespace = namespace.or(from_name).or_else(|| own_namespace.map(str::to_owned));
    if namespace.is_none() && name.is_some() {
        at.fault("namespace", "is missing: write it, or the name as NAME.NAMESPACE");
    }
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    for mut port in at.sections("ports") {
        let number = port.parse_with("port", parse_port);
        let app = port.require("app", |text| {
            parse_address(text)
                .ok()
                .filter(|address| address.port() != 0)
                .ok_or_else(|| "write where the application listens: a port of 127.0.0.1, or IP:PORT".to_owned())
        });
        if let Some(number) = number
            && !seen.insert(number)
        {
            port.fault("port", format_args!("{number} is there twice"));
        }
        port.finish();
        ports.extend(app.map(|app| ServedPort { port: number, app }));
    }
    at.finish();
    Some(ServedService { name: ServiceName { namespace: namespace?.into(), name: name?.into() }, ports })
}

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| "write a port from 1 to 65535".to_owned())
}

fn inbound(mut at: Section) -> Inbound {
    let listen = at.parse_each("listen", parse_address).unwrap_or_else(|| both_any(15006));
    if listen.is_empty() {
        at.fault("listen", "is empty: write IP:PORT, or a port of 127.0.0.1");
    }
    let advertise = at
        .parse_with("advertise", |text| {
            let right = || "write IP:PORT, IP or :PORT".to_owned();
            if let Some(port) = text.strip_prefix(':') {
                return parse_port(port).map(|port| Advertise { ip: None, port: Some(port) });
            }
            if let Ok(address) = text.parse::<SocketAddr>() {
                return Ok(Advertise { ip: Some(address.ip()), port: Some(address.port()) });
            }
            text.parse::<IpAddr>().map(|ip| Advertise { ip: Some(ip), port: None }).map_err(|_| right())
        })
        .unwrap_or_default();
    if advertise.ip.is_some_and(|ip| ip.is_unspecified()) {
        at.fault("advertise", "peers cannot dial this address: write one of this host");
    }
    at.finish();
    Inbound { listen, advertise }
}

fn outbound(mut at: Section) -> Outbound {
    let captured = captured(&mut at);
    let http_proxy = address_or_off(&mut at, "httpProxy", Some(loopback(15002)));
    let named = captured.iter().map(|address| ("captured", address)).chain(http_proxy.iter().map(|a| ("httpProxy", a)));
    for (key, address) in named {
        // Whoever can reach these calls with this workload's identity.
        if !address.ip().is_loopback() {
            at.fault(
                key,
                format_args!("{address} lets other hosts call as this workload: write an address of loopback"),
            );
        }
    }
    let mut upstreams = Vec::new();
    for mut upstream in at.sections("upstreams") {
        let name: Option<(DialName, String)> = upstream.require("name", |text| {
            let name = text.parse().map_err(|_| "write service[.namespace][:port]".to_owned())?;
            Ok((name, text.to_owned()))
        });
        let listen = upstream.require("listen", parse_address);
        if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
            upstream.fault(
                "listen",
                format_args!("{listen} lets other hosts call as this workload: write an address of loopback"),
            );
        }
        upstream.finish();
        if let (Some((name, typed)), Some(listen)) = (name, listen) {
            upstreams.push(Upstream { name, typed, listen });
        }
    }
    at.finish();
    Outbound { captured, http_proxy, upstreams }
}

fn captured(at: &mut Section) -> Vec<SocketAddr> {
    if at.is_off("captured") {
        at.parse_with("captured", |_| Ok(()));
        return Vec::new();
    }
    let parse = |text: &str| match text.parse::<u16>() {
        Ok(port) => Ok(both_loopbacks(port)),
        Err(_) => text.parse().map(|address| vec![address]).map_err(|_| {
            "write IP:PORT, or a port of both 127.0.0.1 and ::1, or several with commas between them, or off".to_owned()
        }),
    };
    at.parse_each("captured", parse).map_or_else(|| both_loopbacks(15001), |addresses| addresses.concat())
}

fn labels(top: &mut Section) -> BTreeMap<String, String> {
    let labels = top.texts("labels");
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    for (key, value) in &labels {
        if key.is_empty() || key.len() > 253 || !key.bytes().all(|byte| part(byte) || byte == b'/') {
            top.fault(
                "labels",
                format_args!("{key:?} is no key of a label: write letters, digits, '-', '_', '.' and '/'"),
            );
        }
        if value.len() > 63 || !value.bytes().all(part) {
            top.fault(
                "labels",
                format_args!(
                    "{value:?} of {key} is no value of a label: write at most 63 letters, digits, '-', '_' and '.'"
                ),
            );
        }
    }
    labels
}

fn tracing(mut at: Section) -> Tracing {
    let parse_protocol = |text: &str| match text {
        "grpc" => Ok(OtlpProtocol::Grpc),
        "http" | "http/protobuf" => Ok(OtlpProtocol::Http),
        _ => Err("write grpc or http".to_owned()),
    };
    let parse_endpoint = |text: &str| {
        let uri: Option<http::Uri> = text.parse().ok();
        uri.filter(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")))
            .ok_or_else(|| "write a URL, such as http://127.0.0.1:4317".to_owned())
    };
    let parse_ratio = |text: &str| {
        text.parse()
            .ok()
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .ok_or_else(|| "write a number from 0 to 1".to_owned())
    };
    let tracing = Tracing {
        endpoint: at.parse_with("endpoint", parse_endpoint),
        protocol: at.parse_with("protocol", parse_protocol),
        sampling_ratio: at.parse_with("samplingRatio", parse_ratio),
    };
    at.finish();
    tracing
}

const SECOND: Duration = Duration::from_secs(1);

fn drain(mut at: Section) -> Drain {
    let default = Drain::default();
    let drain = Drain {
        deadline: duration(&mut at, "deadline", default.deadline, Duration::ZERO, 3600 * SECOND),
        deregister_wait: duration(&mut at, "deregisterWait", default.deregister_wait, Duration::ZERO, 30 * SECOND),
    };
    at.finish();
    drain
}

fn limits(mut at: Section) -> Limits {
    let default = Limits::default();
    let milli = Duration::from_millis(1);
    let limits = Limits {
        max_connections: number(&mut at, "maxConnections", default.max_connections, 1, 1_000_000),
        max_header_bytes: number(&mut at, "maxHeaderBytes", default.max_header_bytes, 8192, 1 << 20),
        max_headers: number(&mut at, "maxHeaders", default.max_headers, 10, 1000),
        header_timeout: duration(&mut at, "headerTimeout", default.header_timeout, 10 * milli, 600 * SECOND),
        handshake_timeout: duration(&mut at, "handshakeTimeout", default.handshake_timeout, 10 * milli, 600 * SECOND),
        detect_timeout: duration(&mut at, "detectTimeout", default.detect_timeout, milli, 10 * SECOND),
        max_streams: number(&mut at, "maxStreams", default.max_streams, 1, 100_000),
        max_resets: number(&mut at, "maxResets", default.max_resets, 1, 100_000),
        body_timeout: duration(&mut at, "bodyTimeout", default.body_timeout, SECOND, 3600 * SECOND),
        idle_timeout: duration(&mut at, "idleTimeout", default.idle_timeout, SECOND, 24 * 3600 * SECOND),
    };
    at.finish();
    limits
}

fn discovery(mut at: Section) -> DiscoverySettings {
    let default = DiscoverySettings::default();
    let milli = Duration::from_millis(1);
    let settings = DiscoverySettings {
        idle: duration(&mut at, "idle", default.idle, SECOND, 24 * 3600 * SECOND),
        wait: duration(&mut at, "wait", default.wait, milli, 60 * SECOND),
        max_destinations: number(&mut at, "maxDestinations", default.max_destinations, 1, 100_000),
    };
    at.finish();
    settings
}

fn log(mut at: Section) -> Log {
    let filter = at.parse_with("filter", |text| {
        text.split(',')
            .all(|directive| !directive.trim().is_empty())
            .then(|| text.to_owned())
            .ok_or_else(|| "write a filter, such as info or info,heddle_proxy=debug".to_owned())
    });
    let json = at.parse_with("format", |text| match text {
        "json" => Ok(true),
        "text" => Ok(false),
        _ => Err("write text or json".to_owned()),
    });
    let access = at.parse_with("access", |text| match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("write on or off".to_owned()),
    });
    at.finish();
    Log { access, filter: filter.unwrap_or_else(|| "info".to_owned()), json: json.unwrap_or(false) }
}
