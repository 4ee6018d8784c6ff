//! Rules of iptables and ip6tables, where there is no nft: chains of our own in each, and a jump to each of these. Each
//! family is one transaction; where the second fails, the first is taken back.

use std::{fmt::Write as _, process::Command};

use ipnet::IpNet;

use super::{Args, CaptureError, InboundPorts, feed, start};

/// Chains that jump, and those that they jump to.
const CHAINS: [(&str, &str); 2] = [("OUTPUT", "HEDDLE_OUTPUT"), ("PREROUTING", "HEDDLE_PREROUTING")];

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

pub(super) fn apply(args: &Args) -> Result<(), CaptureError> {
    let families: &[Family] = if has_ipv6() { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let mut done = Vec::new();
    for family in families {
        let jumps = if args.dry_run { [args.remove; 2] } else { CHAINS.map(|(from, to)| jumps(*family, from, to)) };
        let input = if args.remove { removal(jumps) } else { rules(args, *family, jumps) };
        if args.dry_run {
            print!("# {}\n{input}", family.restore());
            continue;
        }
        if let Err(first) = feed(family.restore(), &["--noflush"], &input) {
            return Err(if args.remove { first } else { take_back(&done, first) });
        }
        done.push(*family);
    }
    Ok(())
}

/// Everything or nothing.
fn take_back(done: &[Family], first: CaptureError) -> CaptureError {
    for family in done {
        let jumps = CHAINS.map(|(from, to)| jumps(*family, from, to));
        if let Err(second) = feed(family.restore(), &["--noflush"], &removal(jumps)) {
            return CaptureError::Half { first: Box::new(first), second: Box::new(second) };
        }
    }
    first
}

/// Whether the chain is jumped to already: a second jump would stay when the first is removed.
fn jumps(family: Family, from: &str, to: &str) -> bool {
    let check = ["-t", "nat", "-C", from, "-p", "tcp", "-j", to];
    start(Command::new(family.program()).args(check)).is_ok_and(|output| output.status.success())
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// What iptables-restore is given; `jumps`: which chain is jumped to already.
pub(super) fn rules(args: &Args, family: Family, jumps: [bool; 2]) -> String {
    let mut text = head();
    let mut rule = |chain: &str, rule: &str| writeln!(text, "-A {chain} {rule}").expect("writing to a string");
    let [(output, own_output), (prerouting, own_prerouting)] = CHAINS;
    for (jumps, from, to) in [(jumps[0], output, own_output), (jumps[1], prerouting, own_prerouting)] {
        if !jumps {
            rule(from, &format!("-p tcp -j {to}"));
        }
    }
    rule(own_output, "-o lo -j RETURN");
    for uid in &args.uids {
        rule(own_output, &format!("-m owner --uid-owner {uid} -j RETURN"));
    }
    for range in args.skip_outbound_ports.ranges() {
        rule(own_output, &format!("-p tcp --dport {}:{} -j RETURN", range.start(), range.end()));
    }
    for subnet in IpNet::aggregate(&args.skip_subnets) {
        if matches!((subnet, family), (IpNet::V4(_), Family::V4) | (IpNet::V6(_), Family::V6)) {
            rule(own_output, &format!("-d {subnet} -j RETURN"));
        }
    }
    rule(own_output, &format!("-p tcp -j REDIRECT --to-ports {}", args.outbound_port));
    rule(own_prerouting, "-i lo -j RETURN");
    rule(own_prerouting, "-m addrtype ! --dst-type LOCAL -j RETURN");
    for range in args.skip_inbound_ports.with(args.inbound_port).ranges() {
        rule(own_prerouting, &format!("-p tcp --dport {}:{} -j RETURN", range.start(), range.end()));
    }
    let to = format!("-j REDIRECT --to-ports {}", args.inbound_port);
    match &args.inbound_ports {
        InboundPorts::All => rule(own_prerouting, &format!("-p tcp {to}")),
        InboundPorts::Only(ports) => {
            for range in ports.ranges() {
                rule(own_prerouting, &format!("-p tcp --dport {}:{} {to}", range.start(), range.end()));
            }
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// What takes it back.
fn removal(jumps: [bool; 2]) -> String {
    let mut text = head();
    for (is_there, (from, to)) in jumps.into_iter().zip(CHAINS) {
        if is_there {
            writeln!(text, "-D {from} -p tcp -j {to}").expect("writing to a string");
        }
    }
    for (_, chain) in CHAINS {
        writeln!(text, "-X {chain}").expect("writing to a string");
    }
    text.push_str("COMMIT\n");
    text
}

/// Makes our chains, or empties them.
fn head() -> String {
    let chains = CHAINS.map(|(_, chain)| format!(":{chain} - [0:0]\n"));
    format!("*nat\n{}", chains.concat())
}

impl Family {
    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn restore(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }
}
