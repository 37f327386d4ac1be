//! Child processes that never outlive their purpose: the one crate with unsafe code.
//!
//! Owns: starting a child in its own session ([`spawn`]), keeping its output in a bounded log ([`log`]), ending it,
//! naming a process so that a reused process id is never mistaken for it ([`Identity`]), steps between fork and exec
//! (`prepare`), and lock files ([`LockFile`]). Does not own: what is started and why, and when it is started again.
//!
//! Invariants:
//! - A child of [`Lifetime::Tied`] dies with this process, however this process dies. On Linux the kernel sees to it
//!   (`PR_SET_PDEATHSIG`); elsewhere only an orderly end does.
//! - The kernel sends that signal when the *thread* that forked the child ends. Therefore every child is forked by a
//!   thread of its own that lives until the child has been reaped; no other way to start one exists here.
//! - A signal is sent only to a child that has not been reaped yet, or through a file descriptor of the process, so it
//!   never reaches a stranger who got the same process id.
//! - The grandchildren of a tied child are killed with its process group as soon as the child is gone.
//!
//! ```text
//! spawn ──▶ keeper thread: fork, exec ──▶ wait ──▶ kill the rest of the group ──▶ reap ──▶ on_exit
//!                └─▶ pump thread: pipe ──▶ bounded log, lines
//! ```

#[cfg(not(unix))]
compile_error!("Remuda's nodes run on Linux and other Unix systems");

mod identity;
mod lock;
pub mod log;
#[cfg(target_os = "linux")]
pub mod prepare;
mod spawn;

pub use identity::{Identity, terminate, wait_until_gone};
pub use lock::{LockFile, is_held};
pub use spawn::{Child, Exit, Lifetime, LineTap, Output, Request, SpawnError, spawn};
