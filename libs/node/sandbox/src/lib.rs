//! Sandboxes: isolated places in which a coding agent runs.
//!
//! Owns: the drivers that make and end sandboxes ([`Driver`]), the place where their process 1 connects
//! ([`Rendezvous`]), and what can be done in one ([`Sandbox`]). Does not own: when to make one and whose it is
//! (`warm-pool`), what a CLI is told (`agents`), where its connections may lead (`egress`), logins (`homes`).
//!
//! ```text
//! Rendezvous::expect(id) ─▶ Expected ──connect()──▶ CreateRequest ─▶ Driver::create ─▶ sandbox, init inside
//!                              │                                                           │
//!                              └──arrived()──▶ Sandbox ◀── one connection, many channels ──┘
//! ```
//!
//! A driver makes and ends sandboxes and does nothing else, so one that takes minutes or works on another machine fits
//! without a change above it: its init connects over TCP and TLS, with the same token and the same frames.
//!
//! Invariants:
//! - A sandbox whose node is gone ends by itself (`remuda-init`: 45 s). Until then a restarted node may take it back:
//!   it comes out of [`Returned`], with the label that it was given.
//! - Memory is bounded: each direction of each channel by a window of credit, and their number.
//! - No token, key, argument or environment is in a log or on a command line.

mod channel;
mod connection;
mod docker;
mod driver;
mod id;
mod rendezvous;
mod sandbox;

#[cfg(target_os = "linux")]
mod bubblewrap;
#[cfg(target_os = "linux")]
mod cgroup;

#[cfg(target_os = "linux")]
pub use bubblewrap::{Bubblewrap, BubblewrapSettings};
#[cfg(target_os = "linux")]
pub use cgroup::{Enforcement, Enforcements, enforcements};
pub use channel::{ByteReader, ByteWriter, ConnectionStream};
pub use docker::{Docker, DockerSettings};
pub use driver::{
    Connect, CreateRequest, Created, Door, Driver, DriverError, Found, InitProgram, Limits,
    default_init_program,
};
pub use id::{SandboxId, SandboxIdError};
pub use init_protocol::{ArchiveLimits, Done, Exit, Failure, FailureCode, Health, entrance_address};
pub use rendezvous::{Expected, Rendezvous, RendezvousError, Returned, TlsDoor};
pub use sandbox::{ExecRequest, Process, ProcessWaiter, Sandbox, SandboxError, Watch};

/// The home directory in every sandbox: memory, and the user's own.
pub const HOME: &str = "/home/agent";

/// Where an agent's install directory is in a sandbox, read-only.
pub const AGENT_DIRECTORY: &str = "/opt/agent";

/// Where a workspace is in a sandbox: memory, and the user's own.
pub const WORKSPACE: &str = "/workspace";

/// Where the directory of the node's socket is in a sandbox.
pub const DOOR_DIRECTORY: &str = "/run/remuda";

/// The socket's name in it.
pub(crate) const SOCKET_NAME: &str = "node.sock";

/// The user in a sandbox, and its group.
pub const SANDBOX_UID: u32 = 1000;
