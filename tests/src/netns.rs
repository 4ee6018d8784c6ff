//! Hosts on one machine: network namespaces, two joined by a cable, or a host and its pods on a bridge. They are
//! removed when dropped. Root only.

use std::{
    fs::File,
    io::Write,
    net::IpAddr,
    os::fd::AsFd,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::peer;

/// Family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Two namespaces, `a` and `b`.
#[derive(Debug)]
pub struct Pair {
    /// Where clients are.
    pub a: Namespace,
    /// Where servers are, and the control plane.
    pub b: Namespace,
}

/// A host with pods on a bridge of its own, each pod a namespace.
#[derive(Debug)]
pub struct Host {
    /// Where the control plane is.
    pub host: Namespace,
    /// In order of their addresses.
    pub pods: Vec<Namespace>,
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    side: u8,
}

impl Pair {
    /// Makes them, with addresses of both families on both ends; `None`, after saying so, where they cannot be made.
    ///
    /// # Panics
    /// Where they cannot be made and `HEDDLE_REQUIRE_PEERS=1` is set, or half of them could.
    pub fn new() -> Option<Self> {
        let [a, b] = namespaces([1, 2])?;
        let pair = Self { a, b };
        run(Command::new("ip").args(["link", "add", "eth0", "netns", &pair.a.name]).args([
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &pair.b.name,
        ]));
        for namespace in [&pair.a, &pair.b] {
            namespace.has_addresses("eth0");
        }
        // What is not on the cable is still somewhere at its other end.
        for (namespace, other) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            namespace.default_route(other);
        }
        Some(pair)
    }
}

impl Host {
    /// Makes one with as many pods; `None`, after saying so, where it cannot be made.
    ///
    /// # Panics
    /// As [`Pair::new`].
    pub fn new(pods: u8) -> Option<Self> {
        let [host] = namespaces([1])?;
        host.sh("ip link add eth0 type bridge");
        host.has_addresses("eth0");
        let mut all = Vec::new();
        for number in 0..pods {
            let [pod] = namespaces([10 + number])?;
            run(Command::new("ip").args(["link", "add", "eth0", "netns", &pod.name, "type", "veth", "peer"]).args([
                "name",
                &format!("pod{number}"),
                "netns",
                &host.name,
            ]));
            host.sh(&format!("ip link set pod{number} master eth0 up"));
            pod.has_addresses("eth0");
            pod.default_route(&host);
            all.push(pod);
        }
        Some(Self { host, pods: all })
    }
}

/// Makes namespaces that have these numbers in their addresses.
fn namespaces<const N: usize>(numbers: [u8; N]) -> Option<[Namespace; N]> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for program in ["ip", "nft", "setpriv", "sysctl"] {
        peer::find(program)?;
    }
    if !rustix::process::geteuid().is_root() {
        return peer::missing("a user who may make network namespaces (root)").map(|_| unreachable!());
    }
    Some(numbers.map(|side| {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace { name: format!("heddle-{}-{count}", std::process::id()), side };
        run(Command::new("ip").args(["netns", "add", &namespace.name]));
        namespace.sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.dad_transmits=0");
        namespace
    }))
}

impl Namespace {
    /// Its address on the cable.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [10, 88, 0, self.side].into(),
            Family::V6 => [0xfd88, 0, 0, 0, 0, 0, 0, u16::from(self.side)].into(),
        }
    }

    fn has_addresses(&self, link: &str) {
        let (v4, v6) = (self.address(Family::V4), self.address(Family::V6));
        self.sh(&format!(
            "ip addr add {v4}/24 dev {link}; ip addr add {v6}/64 dev {link} nodad; ip link set {link} up"
        ));
    }

    fn default_route(&self, via: &Self) {
        let (v4, v6) = (via.address(Family::V4), via.address(Family::V6));
        self.sh(&format!("ip route add default via {v4}; ip -6 route add default via {v6}"));
    }

    /// What runs a program here.
    pub fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// A program here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a line of shell here and returns what it wrote.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, line: &str) -> String {
        run(self.command("sh").args(["-ec", line]))
    }

    /// Gives rules to nftables here.
    ///
    /// # Panics
    /// When they are refused.
    pub fn nft(&self, rules: &str) {
        let mut nft = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft runs");
        nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
        assert!(nft.wait().expect("nft ends").success(), "{rules}");
    }

    /// From now on this thread, and what it starts, is here.
    ///
    /// # Panics
    /// When the kernel does not let it.
    pub fn enter(&self) {
        enter(&self.open());
    }

    /// Does something on a thread of its own that is here.
    ///
    /// # Panics
    /// When the kernel does not let it.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = self.open();
        thread::spawn(move || {
            enter(&file);
            work()
        })
    }

    fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).expect("a namespace")
    }
}

fn enter(file: &File) {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whoever is still in it keeps it until they end.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}
