//! A task as it stands, for `GET /v2/tasks` and `GET /v2/tasks/{id}`.

use pool_registry_types::{Dialect, NodeId, PoolId, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::{ErrorBody, Priority, SessionId, TaskId, Usage, Workload};

/// Where a task stands: `queued → placed → running → ` one of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for a slot.
    Queued,
    /// Has a slot; the engine has not answered yet.
    Placed,
    /// The engine answers.
    Running,
    /// Ended well.
    Completed,
    /// Ended with an error.
    Failed,
    /// Was cancelled.
    Cancelled,
    /// Ran out of time.
    Expired,
    /// Was dropped from a full queue.
    Evicted,
}

impl TaskState {
    /// Whether the task is over.
    pub const fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Placed | Self::Running)
    }
}

/// Where a task was placed, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementDecision {
    /// The pool.
    pub pool_id: PoolId,
    /// The replica.
    pub replica_id: ReplicaId,
    /// The node.
    pub node_id: NodeId,
    /// Why there, in the order in which it was decided.
    pub reasons: Vec<String>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskView {
    /// Which task.
    pub task_id: TaskId,
    /// The session it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// What kind of work.
    pub workload: Workload,
    /// For a request of `/v1`: the dialect that it came in. Such a task is kept in memory only and has no
    /// events of its own; it ends with its client's connection, or by a cancel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<Dialect>,
    /// Its class.
    pub priority: Priority,
    /// The model asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The agent asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Whose it is.
    pub owner: String,
    /// Where it stands.
    pub state: TaskState,
    /// How many tasks go before it, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// Where it was placed, the latest last; more than one when it had to start over.
    #[serde(default)]
    pub placements: Vec<PlacementDecision>,
    /// When it came, RFC 3339.
    pub created_at: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// The request's correlation id.
    pub correlation_id: String,
}

/// A page of tasks, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskList {
    /// The tasks.
    pub tasks: Vec<TaskView>,
    /// Give this back as `cursor` to read on. None: that was all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Where to go on from an accepted task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskLinks {
    /// The task.
    #[serde(rename = "self")]
    pub this: String,
    /// Its events.
    pub events: String,
    /// To cancel it.
    pub cancel: String,
}

/// The 202 of `POST /v2/tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskAccepted {
    /// Which task.
    pub task_id: TaskId,
    /// How many tasks go before it; 0 when it already has a slot.
    pub position: u32,
    /// When it will probably start, in milliseconds from now.
    pub estimated_start_ms: u64,
    /// Where to go on.
    pub links: TaskLinks,
}
