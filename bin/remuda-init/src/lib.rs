//! Process 1 of a sandbox: connects back to its node and does there what the node says.
//!
//! Owns: the processes of the sandbox (starting, signalling, reaping, ending all of them), their streams, files that go
//! in and out as tar archives, watches on directories, and the listener through which programs reach the world. Does
//! not own: making the sandbox (a driver does), who may use it, and what may be reached (the node decides).
//!
//! One thread around `poll`; an archive has a thread of its own for as long as it takes. Memory stays small because
//! every buffer is bounded by a window of credit (see `init-protocol`), and is made only when something flows.
//!
//! ```text
//! start ─▶ harden ─▶ connecting ──Welcome──▶ serving ──End──▶ kill all, exit
//!                      │   ▲                    │
//!                  45 s, or Refuse              └─ connection lost: end all other processes, keep the files
//!                      ▼   └────────────────────┘
//!                     exit
//! ```
//!
//! Invariants:
//! - Works only as process 1: "kill all" would otherwise reach beyond the sandbox. [`run`] refuses anything else.
//! - Without a node no other process runs, but for a second in which each may write what it holds, and after [`init_protocol::RETURN_TIMEOUT_MS`] init itself does not either.
//! - What init holds (its proof, a login on its way) is in no core dump, cannot be read by the processes it starts, and
//!   is in none of its messages.

#[cfg(not(unix))]
compile_error!("sandboxes run on Unix systems");

#[cfg(target_os = "linux")]
mod archive;
#[cfg(target_os = "linux")]
mod channel;
#[cfg(target_os = "linux")]
mod connect;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod harden;
#[cfg(target_os = "linux")]
mod health;
#[cfg(target_os = "linux")]
mod job;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod transport;
#[cfg(target_os = "linux")]
mod watch;

use std::process::ExitCode;

/// Runs until the node says [`init_protocol::Message::End`] (exit code 0) or is gone for too long (1). 64 when it was
/// started wrongly.
#[cfg(target_os = "linux")]
pub fn run() -> ExitCode {
    match serve::Init::start() {
        Ok(init) => init.run(),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            eprintln!("remuda-init: {text}");
            ExitCode::from(64)
        }
    }
}

/// Sandboxes need Linux.
#[cfg(not(target_os = "linux"))]
pub fn run() -> ExitCode {
    eprintln!("remuda-init: sandboxes need Linux");
    ExitCode::from(64)
}
