//! Which sandboxes to start, hand out, keep hot, replace and end: a pure state machine for all agent pools of a node.
//!
//! Owns: the state of every sandbox, who has which, the counts and the memory that the limits are about. Does not own:
//! drivers, connections, homes, the clock. Time comes in as [`Moment`], what happened as [`Event`]s and claims, what is
//! to be done goes out as [`Effect`]s. An effect that is not answered in time is asked again or counts as failed.
//!
//! ```text
//!           Started                 claim                  RunEnded (the last one)
//! Starting ─────────▶ Warm ───────────────────▶ Busy ◀──────────────────────────▶ Hot
//!   │  └─ claimed before it was up (cold) ────▶  │  ▲            claim             │
//!   │                  ▲ Healthy                 │  └── another run of the owner   │ idle limit, room needed
//!   │   Found ─▶ Verifying                       │                                 │
//!   └── failed, late ──┴── unhealthy, old ───────┴──────── not kept, unhealthy ────┴──▶ Ending ─Ended─▶ (gone)
//!       Found with an owner ───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants, each held by the generated histories in `pool/histories.rs`:
//! - A claim gets a sandbox that is healthy as far as anybody knows, that nobody has, and that never had another owner.
//!   A sandbox that had an owner only ever ends.
//! - An owner has at most one sandbox in a pool, and none while a former one is ending: its login is taken back first.
//! - Never more than `sandboxes_max` sandboxes that were started here, nor more than `starts_max` starting at once.
//! - Every sandbox that is unclaimed and not wanted gets [`Effect::End`], again and again until [`Event::Ended`].
//! - A pool that can be started comes back to its target.
//!
//! A claim takes constant time: one look-up of the owner, one pop from a queue. Expelling and the periodic
//! [`Event::Tick`] look at every sandbox, some thousand at most.
//!
//! Deliberately absent: waiting. A claim that cannot be met is refused with the reason, and [`Effect::OwnerFree`] and
//! [`Effect::Room`] say when asking again makes sense.

mod event;
mod pool;
mod sandbox;
mod settings;
mod usage;

pub use event::{Claimed, Effect, Event, Level, LossReason, Refusal};
pub use pool::{Counts, WarmPool};
pub use sandbox::{Owner, PoolKey, ProfileHash, SandboxId};
pub use settings::{PoolSpec, Settings};

use std::time::Duration;

/// A moment: the time since the node started, from a clock that never goes back.
pub type Moment = Duration;
