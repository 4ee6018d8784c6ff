//! `heddle`: the one command that users of the mesh type.
//!
//! [`args`] says what can be typed; each command has a module of its own, which talks to the
//! control plane through [`client`] and to people or programs through [`output`]. Every failure is
//! an [`error::Error`], which knows its exit code and what to do next.

mod apply;
mod args;
mod client;
mod commands;
mod context;
mod delete;
mod describe;
mod diff;
mod error;
mod explain;
mod get;
mod inject;
mod install;
mod kind;
mod manifest;
mod object;
mod output;
mod problem;
mod revisions;
mod root;
mod run;
mod status;
mod table;
mod time;
mod token;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let paint = output::Paint::for_stderr(cli.global.color);
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error::Error::Runtime)
        .and_then(|runtime| runtime.block_on(commands::dispatch(cli)));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::complain(&error.report(&paint));
            ExitCode::from(error.exit_code())
        }
    }
}
