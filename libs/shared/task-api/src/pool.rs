//! A pool as a control plane sees it, over all nodes that have it: `GET /v2/pools`.

use pool_registry_types::{ModelInfo, NodeId, PoolId, ReplicaId, ReplicaState};
use serde::{Deserialize, Serialize};

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    /// Which pool.
    pub pool_id: PoolId,
    /// Whether a replica of it takes tasks.
    pub ready: bool,
    /// Whether it finishes what it has and takes nothing new.
    pub draining: bool,
    /// The models that its replicas serve.
    pub models: Vec<ModelInfo>,
    /// Room in the replicas that take tasks.
    pub slots_total: u32,
    /// Room that, as far as is known, nobody uses.
    pub slots_free: u32,
    /// Slots that tasks of this control plane hold.
    pub slots_leased: u32,
    /// Tasks that wait.
    pub queued: u32,
    /// Of these, batch tasks.
    pub queued_batch: u32,
    /// How long a task holds a slot lately, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_hold_ms: Option<u64>,
    /// What last went wrong on one of its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplicaView {
    /// Which replica.
    pub replica_id: ReplicaId,
    /// The node it runs on.
    pub node_id: NodeId,
    /// What was last reported of it.
    pub state: ReplicaState,
    /// Whether it was taken out after a failed dispatch and has not come back yet.
    pub taken_out: bool,
    /// The engine recipe's name.
    pub engine: String,
    /// The engine's own version.
    pub engine_version: String,
    /// Room for tasks.
    pub slots_total: u32,
    /// Room that, as far as is known, nobody uses.
    pub slots_free: u32,
    /// What last went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
