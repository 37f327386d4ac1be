//! Engines as real processes: kept in this process, by the program, and got from archives.

#![expect(clippy::unwrap_used, reason = "a test may end by panicking")]

mod archive;
mod build;
mod in_process;
mod program;
#[path = "../../../../libs/node/model-store/tests/support/server.rs"]
mod server;
mod support;
