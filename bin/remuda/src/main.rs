//! What people type: `remuda run`, `up`, `chat`, and the commands that look after a control plane.
//!
//! This crate talks to people. It owns the command line, tables, progress and exit codes; it decides nothing about
//! tasks, nodes or engines. A command either calls the libraries that the daemons are made of (`run`, `up`, `models`,
//! `keys`, `certs`), or speaks to a control plane over HTTP as any client does.

mod agents;
mod answer;
mod cli;
mod client;
mod commands;
mod demo;
mod failure;
mod local;
mod output;
mod paths;
mod progress;
mod sse;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this program is told when it is to be process 1 of a sandbox.
pub(crate) const INIT_ARGUMENT: &str = "sandbox-init";

fn main() -> ExitCode {
    // Before anything else: what follows is not meant for a sandbox.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == INIT_ARGUMENT)
    {
        return remuda_init::run();
    }
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    daemon::tls::install_provider();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
