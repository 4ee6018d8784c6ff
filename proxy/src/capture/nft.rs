//! Rules of nftables: a table of our own for both families, in the place of an earlier one, in one transaction.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{Args, CaptureError, InboundPorts, feed};

pub(super) fn apply(args: &Args) -> Result<(), CaptureError> {
    let rules = if args.remove { removal() } else { rules(args) };
    if args.dry_run {
        print!("{rules}");
        return Ok(());
    }
    feed("nft", &["-f", "-"], &rules)
}

/// It must be there to be deleted.
fn removal() -> String {
    "add table inet heddle\ndelete table inet heddle\n".to_owned()
}

/// What nft is given.
pub(super) fn rules(args: &Args) -> String {
    let mut text = removal();
    let mut line = |line: &str| writeln!(text, "{line}").expect("writing to a string");
    line("table inet heddle {");
    line("\tchain output {");
    line("\t\ttype nat hook output priority -100");
    line("\t\t# what stays in the pod");
    line("\t\toifname \"lo\" return");
    line("\t\t# the proxy's own");
    let uids: Vec<String> = args.uids.iter().map(ToString::to_string).collect();
    line(&format!("\t\tmeta skuid {{ {} }} return", uids.join(", ")));
    let skipped = args.skip_outbound_ports.to_string();
    if !skipped.is_empty() {
        line(&format!("\t\ttcp dport {{ {skipped} }} return"));
    }
    let subnets = IpNet::aggregate(&args.skip_subnets);
    for (family, is_ipv4) in [("ip", true), ("ip6", false)] {
        let of_family = subnets.iter().filter(|net| net.addr().is_ipv4() == is_ipv4);
        let of_family: Vec<String> = of_family.map(ToString::to_string).collect();
        if !of_family.is_empty() {
            line(&format!("\t\t{family} daddr {{ {} }} return", of_family.join(", ")));
        }
    }
    line(&format!("\t\tmeta l4proto tcp redirect to :{}", args.outbound_port));
    line("\t}");
    line("\tchain prerouting {");
    line("\t\ttype nat hook prerouting priority -100");
    line("\t\tiifname \"lo\" return");
    line("\t\t# what is only passing through");
    line("\t\tfib daddr type != local return");
    line(&format!("\t\ttcp dport {{ {} }} return", args.skip_inbound_ports.with(args.inbound_port)));
    match &args.inbound_ports {
        InboundPorts::All => line(&format!("\t\tmeta l4proto tcp redirect to :{}", args.inbound_port)),
        InboundPorts::Only(ports) if ports.ranges().next().is_none() => {}
        InboundPorts::Only(ports) => line(&format!("\t\ttcp dport {{ {ports} }} redirect to :{}", args.inbound_port)),
    }
    line("\t}");
    line("}");
    text
}
