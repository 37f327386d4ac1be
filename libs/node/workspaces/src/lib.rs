//! Workspaces of agents: the directories that they work in, kept on the node as archives.
//!
//! Owns: what an archive may hold, where workspaces lie and until when, what has changed in one, and the patch that says
//! so. Does not own: sandboxes (an archive is a stream of bytes to this crate), who may ask. It does blocking I/O: call
//! it where blocking is allowed.
//!
//! ```text
//! upload or clone ─▶ canonical ─▶ 0.tar (the base) ─┐
//!                                                   ├─▶ changes ─▶ patch
//! end of a run ────▶ canonical ─▶ N.tar ────────────┘
//! ```
//!
//! Invariants:
//! - Nothing in an archive is trusted: what leaves the directory, is neither file, directory nor link, or is more than
//!   the limits allow is refused before anything of it is kept.
//! - A workspace is its owner's: it lies in a directory named by a digest of the owner, and every call names the owner.
//! - A workspace is there whole or not at all, also after a kill at any step: what is not whole has a name of its own,
//!   and a lock that its maker holds.
//! - `.git` is kept for the agent and never given out: what stands in there can make git run programs.

mod archive;
mod changes;
mod patch;
mod store;

pub use archive::{Archive, ArchiveError, Limits, Node, canonical};
pub use changes::{Change, Kind, changes, export};
pub use patch::write_patch;
pub use store::{Draft, Record, Store, StoreError, StoreSettings, is_id, new_id};
