//! Admission, placement and the life of a task: a pure state machine.
//!
//! Owns: which replicas can take work, which tasks wait and in which order, who holds which slot, and how often a
//! task may start over. Does not own: bytes, connections, clients, the clock. Time comes in as [`Moment`], events come
//! in as calls, what is to be done goes out as return values and [`Effect`]s.
//!
//! ```text
//!  submit ──▶ Placed ────────────────▶ started ──▶ release ──▶ (slot free: the first waiting task that fits is Placed)
//!     │         ▲   └─ requeue / refused ─┐ (nothing sent yet)
//!     ├──▶ Queued ◀──────────────────────┘
//!     │       └─ evicted, expired, pool gone ──▶ Effect::Ended
//!     └──▶ Refusal
//! ```
//!
//! Invariants, each held by the generated histories in `scheduler/histories.rs`:
//! - A task ends exactly once: by `release`, `cancel`, a returned [`Refusal`], or one [`Effect::Ended`].
//! - A replica never holds more of our leases than it has slots, and every lease is given back exactly once: a
//!   [`Lease`] that was given back or taken away is refused when it is used again.
//! - After every call no waiting task fits a replica that has room. So a new task can never overtake a waiting one,
//!   and within a class the order is the order of arrival.
//! - No queue holds more than its capacity, but for tasks that were accepted before and had to come back.
//!
//! The node has the last word about its slots: what is counted here is what this control plane believes, and
//! [`Scheduler::refused`] is how it learns better.
//!
//! Deliberately absent: locks (the caller holds one short one), randomness (equal choices go by name), strings on the
//! way of a task (names become indices when a replica is reported), fairness between classes: batch work runs only
//! when no interactive task waits, and may wait for ever if interactive work never pauses.

mod affinity;
mod arena;
mod dialects;
mod failed;
mod fleet;
mod life;
mod pace;
mod place;
mod queue;
mod reason;
mod refusal;
mod replica;
mod scheduler;
mod settings;
mod task;
#[cfg(test)]
mod testing;
mod view;

pub use dialects::DialectSet;
pub use reason::{Reason, Reasons};
pub use refusal::{Refusal, StaleLease};
pub use replica::{ReplicaInfo, ReplicaKey, ReplicaStatus, ReplicaUpdate};
pub use scheduler::{Admission, Effect, Effects, Placement, Scheduler, Waiting};
pub use settings::{AdmissionPolicy, Settings};
pub use task::{Lease, Outcome, PREFIXES_MAX, Target, TaskKey, TaskSpec};
pub use view::{ModelEntry, PoolEntry, ReplicaEntry, TaskEntry, TaskPhase};

/// A moment: the time since the control plane started, from a clock that never goes back.
pub type Moment = std::time::Duration;
