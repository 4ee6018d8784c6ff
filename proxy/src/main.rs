//! The proxy's process: see the library for what it does.

use std::process::ExitCode;

use clap::Parser;
use heddle_proxy::{app, config::file::Flags};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::run(&Flags::parse())
}
