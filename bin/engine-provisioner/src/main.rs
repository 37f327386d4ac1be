//! Keeps one engine, as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::exit::run(engine_provisioner::cli::main)
}
