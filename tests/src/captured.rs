//! Pods whose traffic is captured: who runs what in them, and the rules that redirect it.

use std::{net::SocketAddr, process::Output};

use crate::{
    mesh::ProxySpec,
    netns::{Family, Namespace},
    process::binary,
};

/// The user that proxies run as.
pub const PROXY: u32 = 2102;
/// Another user than that and root.
pub const APP: u32 = 2103;

/// `heddle-proxy capture`, as root there; gives what it wrote.
///
/// # Panics
/// When it fails.
pub fn capture(namespace: &Namespace, arguments: &[&str]) -> String {
    let mut command = namespace.command("env");
    command.arg(binary("heddle-proxy")).arg("capture").args(arguments);
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// A proxy in a pod, under a user of its own: other fields are for the caller to set.
pub fn captured(namespace: &Namespace, family: Family) -> ProxySpec {
    let ip = namespace.address(family);
    let at = |port: u16| SocketAddr::new(ip, port).to_string();
    let flags = ["--inbound", "0.0.0.0:15006,[::]:15006", "--captured", "15001", "--health"].map(str::to_owned);
    let flags = flags.into_iter().chain([at(15020)]).collect();
    ProxySpec { flags, wrapper: namespace.wrapper(), uid: Some(PROXY), ..ProxySpec::default() }
}
