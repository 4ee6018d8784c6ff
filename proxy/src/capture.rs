//! `heddle-proxy capture`: the packet filter's rules that redirect a pod's TCP connections to its proxy, as an init
//! container sets them.
//!
//! Outgoing connections go to the captured listener, incoming ones to the inbound listener; the kernel keeps the
//! original destination for the proxy to ask for. What the proxy itself dials goes out as it is, and so does what stays
//! within the pod: loopback and the pod's own addresses. UDP, and so DNS, is never touched.

mod iptables;
mod nft;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, Write},
    ops::RangeInclusive,
    process::{Command, ExitCode, Output, Stdio},
    str::FromStr,
};

use clap::{Args as ClapArgs, ValueEnum};
use ipnet::IpNet;

/// Where rules go, and what they are.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// User that the proxy runs as, whose connections are left alone; again for more.
    #[arg(long = "uid", value_name = "UID", value_delimiter = ',', default_value = "2102")]
    pub uids: Vec<u32>,
    /// Where outgoing connections go: the port of `heddle-proxy --captured`.
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Where incoming connections go: the port of `heddle-proxy --inbound`.
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Incoming connections to these ports only: `8080,9000-9010`, `all` or `none`.
    #[arg(long, value_name = "PORTS", default_value = "all")]
    pub inbound_ports: InboundPorts,
    /// But not to these; that of health and metrics is meant for the platform.
    #[arg(long, value_name = "PORTS", default_value = "15020")]
    pub skip_inbound_ports: Ports,
    /// Outgoing connections to these ports are left alone; that of DNS must not wait for a proxy.
    #[arg(long, value_name = "PORTS", default_value = "53")]
    pub skip_outbound_ports: Ports,
    /// Outgoing connections to these address ranges are left alone: `10.0.0.0/8,fd00::/8`.
    #[arg(long = "skip-subnets", value_name = "CIDR", value_delimiter = ',')]
    pub skip_subnets: Vec<IpNet>,
    /// Take the rules back.
    #[arg(long)]
    pub remove: bool,
    /// Write what would be given to the packet filter, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Which program sets the rules [default: nft, or iptables where there is no nft].
    #[arg(long, value_name = "PROGRAM")]
    pub backend: Option<Backend>,
}

/// A program that sets rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// nftables: one table for both families, replaced as a whole.
    Nft,
    /// iptables and ip6tables: a chain of our own in each of two.
    Iptables,
}

/// Ports and ranges of ports, in order, none twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

/// Which incoming connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundPorts {
    /// To every port.
    All,
    /// To these.
    Only(Ports),
}

/// Text that names no ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no port or range of ports; write such as 8080,9000-9010")]
pub struct InvalidPorts(String);

/// Why rules are not in place as they were asked for. Nothing is left half done, unless it says so.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error("--outbound-port and --inbound-port are both {0}: they are two listeners of the proxy")]
    SamePort(u16),
    #[error("neither nft nor iptables is on this machine; install nftables")]
    NoProgram,
    #[error("{program} cannot be run: {source}")]
    Run { program: String, source: io::Error },
    #[error("{program} refuses: {said}")]
    Refused { program: String, said: String },
    #[error("{first}; and what was set before that cannot be taken back: {second}")]
    Half { first: Box<Self>, second: Box<Self> },
}

/// Does what is asked, and says what was wrong.
pub fn run(args: &Args) -> ExitCode {
    match apply(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle-proxy: capture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn apply(args: &Args) -> Result<(), CaptureError> {
    if args.outbound_port == args.inbound_port {
        return Err(CaptureError::SamePort(args.inbound_port));
    }
    let has = |program: &str| is_there(program);
    let backend = match args.backend {
        Some(backend) => backend,
        None if has("nft") => Backend::Nft,
        None if has("iptables") => Backend::Iptables,
        None if args.dry_run => Backend::Nft,
        None => return Err(CaptureError::NoProgram),
    };
    match backend {
        Backend::Nft => nft::apply(args),
        Backend::Iptables => iptables::apply(args),
    }
}

fn is_there(program: &str) -> bool {
    !matches!(start(Command::new(program).arg("--version")), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Also where the path of an unprivileged user is set, programs for administrators are found.
fn start(command: &mut Command) -> io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null()).output()
}

/// Runs a program, with this to read.
fn feed(program: &str, arguments: &[&str], input: &str) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Run { program: program.to_owned(), source };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CaptureError::Refused { program: program.to_owned(), said })
}

impl Ports {
    /// The ranges.
    fn ranges(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }

    /// With one more.
    fn with(&self, port: u16) -> Self {
        Self::of(self.0.iter().cloned().chain([port..=port]).collect())
    }

    /// Sets of the packet filter take no overlaps.
    fn of(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl FromStr for Ports {
    type Err = InvalidPorts;

    /// `none` and nothing are no ports.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text == "none" {
            return Ok(Self::default());
        }
        let range = |part: &str| {
            let part = part.trim();
            let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = port(first).zip(port(last)).filter(|(first, last)| first <= last);
            range.map(|(first, last)| first..=last).ok_or_else(|| InvalidPorts(part.to_owned()))
        };
        Ok(Self::of(text.split(',').map(range).collect::<Result<_, _>>()?))
    }
}

impl FromStr for InboundPorts {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::Only) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}
