//! Which nodes are alive and what they offer: a pure state machine.
//!
//! Owns: the last believed report of every node and its pools, and where each node stands. Does not own: the clock,
//! the network, the probes, the decision what runs where. Time comes in as [`Moment`]; what has changed goes out as
//! [`Change`]s, which the scheduler takes as they are.
//!
//! ```text
//!            register                late                    node_timeout
//!  (unknown) ───────▶ Online ───────────────────▶ Stale ───────────────────▶ Offline ──forget_after──▶ (unknown)
//!                       ▲ └──draining──▶ Draining ──┘                           │
//!                       └────────────── any report that is not late ◀───────────┘
//! ```
//!
//! Invariants:
//! - A report that is older than one already believed changes nothing, in whatever order they arrive: by sequence
//!   within one incarnation, by incarnation between restarts, and per pool, because a callback speaks of one pool only.
//! - A node that is late is used as before; only `NodeState::Offline` takes its replicas away. One lost heartbeat
//!   moves nothing.
//! - A report that says nothing new yields no change, and its cost does not depend on how many nodes there are.
//!
//! Deliberately absent: any opinion on slots. What a report says about them is passed on.

mod node;
mod registry;

pub use node::{Change, NodeEntry, Replica};
pub use registry::{Applied, Refusal, Registry, Settings};

use std::time::Duration;

/// A moment: the time since the control plane started, from a clock that never goes back.
pub type Moment = Duration;
