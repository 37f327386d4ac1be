//! What can be seen from outside: for `GET /v2/pools`, `GET /v1/models`, `GET /v2/tasks/{id}` and the metrics.

use std::sync::Arc;

use pool_registry_types::{PoolId, ReplicaState};
use task_api::Priority;

use crate::{Moment, ReplicaInfo, ReplicaKey};

/// A pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolEntry {
    /// Which pool.
    pub pool_id: PoolId,
    /// Whether this control plane gives it no new tasks.
    pub draining: bool,
    /// Its replicas.
    pub replicas_total: u32,
    /// Its replicas that take tasks, busy or not.
    pub replicas_ready: u32,
    /// Room in these.
    pub slots_total: u32,
    /// Slots that this control plane holds.
    pub slots_leased: u32,
    /// Slots that, as far as is known, nobody holds.
    pub slots_free: u32,
    /// Interactive tasks that wait.
    pub waiting_interactive: u32,
    /// Batch tasks that wait.
    pub waiting_batch: u32,
    /// How long a task holds a slot lately, in milliseconds; None before the first one has ended.
    pub slot_hold_ms: Option<u64>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaEntry {
    /// Its key.
    pub key: ReplicaKey,
    /// What it is.
    pub info: Arc<ReplicaInfo>,
    /// What was reported of it.
    pub state: ReplicaState,
    /// Whether it was taken out after a failed dispatch and has not come back yet.
    pub taken_out: bool,
    /// Room for tasks.
    pub slots_total: u32,
    /// Slots that this control plane holds.
    pub slots_leased: u32,
    /// Slots that others hold, as last reported.
    pub others_busy: u32,
}

/// A model name that clients can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    /// The name.
    pub id: Arc<str>,
    /// Its other names.
    pub aliases: Vec<String>,
    /// How many tokens one task may hold.
    pub context_length: Option<u32>,
    /// The pools that serve it now.
    pub pools: Vec<PoolId>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPhase {
    /// Waits for a slot.
    Queued,
    /// Has a slot; nothing of the answer has come.
    Placed,
    /// The answer comes.
    Running,
}

/// A task that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Where it stands.
    pub phase: TaskPhase,
    /// Its class.
    pub priority: Priority,
    /// Its place in the queue and when it will probably start; None once it has a slot.
    pub waiting: Option<crate::Waiting>,
    /// When it came.
    pub submitted: Moment,
    /// How often it was started.
    pub starts: u32,
}
