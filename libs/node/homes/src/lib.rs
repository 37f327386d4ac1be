//! Sealed homes: the directories in which agent CLIs keep their logins, one for each owner and agent.
//!
//! Owns: sealing and opening, keys, versions, fences, and where sealed homes lie. Does not own: sandboxes, what a home
//! is made of (to this crate it is a tar archive, of which it reads nothing), who may be an owner. It does blocking
//! I/O: call it where blocking is allowed.
//!
//! ```text
//!           open: fence + 1                          put: same fence, same version
//! (nothing) ───────────────▶ ticket {version, fence} ───────────────▶ ticket {version + 1, fence} ──put──▶ …
//!                               │ somebody opens again: fence + 1        │ the node died: salvage, same fence
//!                               ▼                                        ▼
//!                            every later put is refused: Fenced       version + 1, with what the sandbox still has
//! ```
//!
//! A sealed home is encrypted with AES-256-GCM under a data key of its own, and the data key under the master key, so
//! a new master key means wrapping the data keys again and nothing else. Owner, agent, version and fence are
//! authenticated with both, the master key's id with the second.
//!
//! Invariants:
//! - A home opens for its owner only: its owner stands in the authenticated data, [`Homes::open`] takes it from an
//!   [`OwnerHandle`], and what was opened is only given to something that is [`OwnedBy`] the same owner.
//! - Plain bytes and keys are wiped when they are dropped, and have neither `Debug` nor `Display` nor `Serialize`.
//!   (The expanded form of a key, which `ring` makes for each call, is not wiped by `ring`.)
//! - A `put` that returned is on disk: written aside, synced, renamed, directory synced. A death at any step leaves
//!   the old home or the new one, whole.
//! - Versions only grow. The highest one is recorded beside the home and authenticated ([`HomeError::RolledBack`]).
//!   Who puts both files back as they once were is noticed by a running node, but not by one that starts anew, unless
//!   the marks lie on another disk ([`DirectoryStore::open`]).
//! - An older writer loses: each `open` raises the fence, and a `put` with a lower one is refused.
//!
//! # The order of things
//!
//! 1. A node that starts salvages every sandbox that has an owner ([`Homes::salvage`], with the ticket from the
//!    sandbox's label), ends it, and brings home what is spooled ([`Homes::drain_spool`]). Only then it opens homes.
//! 2. [`Homes::open`]; the ticket goes into the sandbox's label before the archive is unpacked there.
//! 3. At every change, and once more when the last process has ended: pack, [`Homes::put`], keep the new ticket. The
//!    puts of a sandbox come one after the other; after [`HomeError::Conflict`], pack again.
//! 4. The sandbox ends after the last `put` has returned. If it fails, the sandbox is kept and the put tried again.
//!
//! A store belongs to one node. Where several share one, a sandbox of a node that died could be overtaken by another
//! node's `open` before it is salvaged: its put would be refused, and a refresh in it lost.
//!
//! # What cannot be lost, and what can
//!
//! A CLI refreshes its login inside the sandbox; its init sees the files change and the node takes them back, at the
//! latest after the run. A refresh is safe once `put` has returned. Before that it lives in the sandbox's memory only:
//! when the node's process dies, the sandbox lives on for 45 s, and the node that comes back takes the login from it
//! ([`Homes::salvage`]) before the owner gets another sandbox. When the whole machine dies in that window, or the
//! provider rotated a token and its answer never reached the CLI's file, the new token is lost and nobody can bring it
//! back: the owner logs in again. A laptop that loses power at that moment loses its login in the same way.
//!
//! # What does not compile
//!
//! Secrets cannot be printed, and a home that was opened can be read for somebody's sandbox only:
//! ```compile_fail
//! println!("{:?}", homes::MasterKey::generate().unwrap());
//! ```
//! ```compile_fail
//! println!("{:?}", homes::PlainHome::new());
//! ```
//! ```compile_fail
//! fn print(home: homes::OpenHome) { println!("{home:?}"); }
//! ```
//! ```compile_fail
//! fn lend(home: &homes::OpenHome) -> &[u8] { home.plain() }
//! ```
//! ```compile_fail
//! fn copy(owner: &homes::OwnerHandle) -> homes::OwnerHandle { owner.clone() }
//! ```

mod directory;
mod homes;
mod keys;
mod mark;
mod owner;
mod rotate;
mod sealed;
mod spool;
mod store;

pub use directory::{DirectoryStore, Step};
pub use homes::{HomeError, HomeStatus, Homes, Opened, Saved, Ticket};
pub use keys::{KeyError, KeyId, KeyRing, MasterKey};
pub use owner::{AgentName, LendingRefused, NameError, OpenHome, OwnedBy, OwnerHandle, PlainHome, TooLarge};
pub use rotate::{Rotated, rotate};
pub use sealed::SealError;
pub use spool::Spool;
pub use store::{HomeStore, LockedSlot, Part, Slot, StoreError};

/// The largest home, in bytes of its archive.
pub const HOME_BYTES_MAX: usize = 32 << 20;
