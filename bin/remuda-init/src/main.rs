//! Process 1 of a sandbox.

use std::process::ExitCode;

fn main() -> ExitCode {
    remuda_init::run()
}
