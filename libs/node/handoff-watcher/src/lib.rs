//! The handoff directory: how engines announce themselves to their node.
//!
//! Owns: reading handoff files whatever is in them, writing and removing them atomically, and watching the directory.
//! Does not own: what a handoff means. It is a hint; whoever uses one probes its URL first.
//!
//! ```text
//! write ──▶ .handoff-<name>-<random> ──rename──▶ <pool>_<replica>.json
//!                                              │ inotify event, or the next scan
//!                                              ▼
//!            scan ──▶ parse each changed file ──▶ HandoffSet { handoffs, problems } ──watch──▶ the node
//! ```
//!
//! Invariants:
//! - no file's content can make the watcher stop: each bad file is a [`FileProblem`] of its own, by its name;
//! - at most [`FILE_BYTES_MAX`] bytes of a file are read, and at most [`FILES_MAX`] files are;
//! - names that begin with a dot are never looked at, so a half-written temporary file is never seen.

mod liveness;
mod parse;
mod watcher;
mod write;

pub use liveness::{Liveness, liveness};
pub use parse::{FILE_BYTES_MAX, FileProblem, parse};
pub use watcher::{FILES_MAX, HandoffSet, Observe, WatchOptions, Watcher};
pub use write::{WriteError, remove, remove_halves, write};
