use clap::Parser;

use super::{
    iptables::{self, Family},
    *,
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(flags: &[&str]) -> Args {
    Line::try_parse_from(["capture"].iter().chain(flags)).unwrap_or_else(|error| panic!("{error}")).args
}

const MANY: &[&str] = &[
    "--uid=7,8",
    "--outbound-port=1",
    "--inbound-port=2",
    "--inbound-ports=80,8080-8090,8085-8099",
    "--skip-inbound-ports=8081,8082",
    "--skip-outbound-ports=22,25",
    "--skip-subnets=10.1.0.0/16,10.0.0.0/8",
    "--skip-subnets=fd00::/8",
];

#[test]
fn nft_replaces_a_table_for_both_families() {
    let expected = "\
add table inet heddle
delete table inet heddle
table inet heddle {
\tchain output {
\t\ttype nat hook output priority -100
\t\t# what stays in the pod
\t\toifname \"lo\" return
\t\t# the proxy's own
\t\tmeta skuid { 2102 } return
\t\ttcp dport { 53 } return
\t\tmeta l4proto tcp redirect to :15001
\t}
\tchain prerouting {
\t\ttype nat hook prerouting priority -100
\t\tiifname \"lo\" return
\t\t# what is only passing through
\t\tfib daddr type != local return
\t\ttcp dport { 15006, 15020 } return
\t\tmeta l4proto tcp redirect to :15006
\t}
}
";
    assert_eq!(nft::rules(&args(&[])), expected);
    let many = nft::rules(&args(MANY));
    for line in [
        "meta skuid { 7, 8 } return",
        "tcp dport { 22, 25 } return",
        "ip daddr { 10.0.0.0/8 } return",
        "ip6 daddr { fd00::/8 } return",
        "meta l4proto tcp redirect to :1",
        "tcp dport { 2, 8081-8082 } return",
        "tcp dport { 80, 8080-8099 } redirect to :2",
    ] {
        assert!(many.lines().any(|found| found.trim() == line), "no {line:?} in {many}");
    }
    let none = nft::rules(&args(&["--inbound-ports=none", "--skip-outbound-ports=none"]));
    assert!(!none.contains("15006\n") && !none.contains("53"), "{none}");
}

#[test]
fn iptables_gets_the_same_in_two() {
    let expected = "\
*nat
:HEDDLE_OUTPUT - [0:0]
:HEDDLE_PREROUTING - [0:0]
-A OUTPUT -p tcp -j HEDDLE_OUTPUT
-A PREROUTING -p tcp -j HEDDLE_PREROUTING
-A HEDDLE_OUTPUT -o lo -j RETURN
-A HEDDLE_OUTPUT -m owner --uid-owner 7 -j RETURN
-A HEDDLE_OUTPUT -m owner --uid-owner 8 -j RETURN
-A HEDDLE_OUTPUT -p tcp --dport 22:22 -j RETURN
-A HEDDLE_OUTPUT -p tcp --dport 25:25 -j RETURN
-A HEDDLE_OUTPUT -d 10.0.0.0/8 -j RETURN
-A HEDDLE_OUTPUT -p tcp -j REDIRECT --to-ports 1
-A HEDDLE_PREROUTING -i lo -j RETURN
-A HEDDLE_PREROUTING -m addrtype ! --dst-type LOCAL -j RETURN
-A HEDDLE_PREROUTING -p tcp --dport 2:2 -j RETURN
-A HEDDLE_PREROUTING -p tcp --dport 8081:8082 -j RETURN
-A HEDDLE_PREROUTING -p tcp --dport 80:80 -j REDIRECT --to-ports 2
-A HEDDLE_PREROUTING -p tcp --dport 8080:8099 -j REDIRECT --to-ports 2
COMMIT
";
    assert_eq!(iptables::rules(&args(MANY), Family::V4, [false; 2]), expected);
    let again = iptables::rules(&args(MANY), Family::V6, [true; 2]);
    assert!(again.contains("-d fd00::/8 -j RETURN") && !again.contains("10.0.0.0"), "{again}");
    assert!(!again.contains("-A OUTPUT") && !again.contains("-A PREROUTING"), "jumped to once: {again}");
}

#[test]
fn ports_are_ranges_that_do_not_overlap() {
    let shown = |text: &str| text.parse::<Ports>().map(|ports| ports.to_string());
    assert_eq!(shown("80").unwrap(), "80");
    assert_eq!(shown("9000-9010, 80,81,9005-9020,65535").unwrap(), "80-81, 9000-9020, 65535");
    assert_eq!(shown("none").unwrap(), "");
    for wrong in ["0", "80,", "65536", "9-8", "http", "1-2-3", "-5"] {
        assert!(shown(wrong).unwrap_err().to_string().contains("write such as"), "{wrong}");
    }
    assert_eq!("all".parse(), Ok(InboundPorts::All));
}

#[test]
fn two_listeners_have_two_ports() {
    let error = apply(&args(&["--inbound-port=15001", "--dry-run"])).unwrap_err().to_string();
    assert!(error.contains("both 15001"), "{error}");
}
