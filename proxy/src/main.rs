//! The proxy's process: see the library for what it does.

mod allocator;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use heddle_proxy::{app, capture, config::file::Flags};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

// Its text is that of the flags.
#[derive(Parser)]
#[command(name = "heddle-proxy", version, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Set the rules that redirect a pod's connections to its proxy (nftables, else iptables), as an init container
    /// does; needs CAP_NET_ADMIN. Everything or nothing, and as often as one likes.
    Capture(capture::Args),
}

fn main() -> ExitCode {
    let line = Line::parse();
    match line.command {
        Some(Other::Capture(args)) => capture::run(&args),
        None => app::run(&line.flags),
    }
}
