//! The node daemon as a library: keeps pools at target and is the one door to their engines.
//!
//! ```text
//!  settings ─┐                    ┌──────────── reports (watch) ──▶ registration, callbacks, `remuda up`
//!            ▼                    │
//!  handoffs ─▶ reconcile ──▶ table of replicas ◀── Door::call ◀── the node's server, or a control plane in this process
//!            │     ▲              │     ▲
//!   plan, execute  │              ▼     │ in, out, slots
//!            ▼     │ what is there     attend: one task per replica, probing its engine
//!          fleet ──┘
//! ```
//!
//! Invariants:
//! - a replica takes tasks only after its engine has answered a probe;
//! - the node has the last word on slots: [`Door`] grants or refuses, and holds a slot until the engine is idle again;
//! - engines that announce themselves by handoff are reached on loopback only;
//! - one node per runtime directory, by a lock that ends with its process.

mod agents;
mod attend;
mod callbacks;
mod door;
mod fleet;
mod gpu;
mod machine;
mod metrics;
mod node;
pub mod plan;
mod pools;
pub mod probe;
mod reconcile;
mod replica;
mod serve;
mod server;
mod settings;
mod slots;
mod sources;

pub use agents::{
    AgentEvents, AgentPool, AgentPoolProblem, AgentsConfig, AgentsError, AgentsSettings, Capacity, Events,
    KeySource, LimitSettings, LoginEvents, ReloadError, WarmDefaults, WorkspaceContent, WorkspaceSettings,
    capacity, local_workspace,
};
pub use door::{Door, DoorBody, DoorBodyError, DoorError};
pub use fleet::Launch;
pub use gpu::GpuReading;
pub use machine::{host_name, machine};
pub use node::{CommandError, LOCK_FILE, Node, NodeConfig, NodeControl, NodeHandle, StartError};
pub use pools::{Pool, PoolSettings, PoolsError};
pub use reconcile::{Asking, DRAIN_DEFAULT, UnknownPool};
pub use serve::{DaemonError, run};
pub use settings::{NodeIdentity, Settings};
