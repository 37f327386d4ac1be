//! One replica: what it is, what was last reported of it, and what this control plane holds of it.

use std::fmt;

use pool_registry_types::{
    ControlPlaneId, ModelInfo, NodeId, PoolId, PoolReport, ReplicaId, ReplicaReport, ReplicaState,
};

use crate::DialectSet;
use crate::arena::Key;

/// Names a replica while the scheduler knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaKey(pub(crate) Key);

impl ReplicaKey {
    /// The key as a number, for maps.
    pub const fn to_u64(self) -> u64 {
        self.0.to_u64()
    }
}

impl fmt::Debug for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicaKey({}.{})", self.0.index, self.0.generation)
    }
}

/// What a replica is: everything a dispatcher needs to know of it. Changes seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The node it runs on.
    pub node_id: NodeId,
    /// Where the node's one door is.
    pub address: String,
    /// Its pool.
    pub pool_id: PoolId,
    /// Its name within node and pool.
    pub replica_id: ReplicaId,
    /// The engine recipe's name.
    pub engine: String,
    /// The engine's own version.
    pub engine_version: String,
    /// The models that it serves.
    pub models: Vec<ModelInfo>,
    /// The dialects that it speaks by itself. Empty: not known, and nothing is held against it.
    pub dialects: DialectSet,
    /// Whether it notices a closed connection only on streams.
    pub cancel_on_stream_only: bool,
}

/// What was last reported of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Where it stands; only [`ReplicaState::Ready`] takes new tasks.
    pub state: ReplicaState,
    /// Room for tasks.
    pub slots_total: u32,
    /// Slots that other control planes hold.
    pub others_busy: u32,
    /// Free device memory, in bytes.
    pub vram_free_bytes: u64,
}

/// A report of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaUpdate {
    /// What it is.
    pub info: ReplicaInfo,
    /// Where it stands.
    pub status: ReplicaStatus,
}

impl ReplicaUpdate {
    /// Reads a report. `own` is this control plane's id: its own leases are counted here and not there.
    /// `node_draining` and the pool's own flag drain the replica.
    pub fn from_report(
        node_id: &NodeId,
        address: &str,
        node_draining: bool,
        pool: &PoolReport,
        replica: &ReplicaReport,
        own: &ControlPlaneId,
    ) -> Self {
        let draining = (node_draining || pool.draining) && replica.state == ReplicaState::Ready;
        let others_busy = replica
            .leases
            .iter()
            .filter(|(holder, _)| *holder != own)
            .map(|(_, slots)| *slots)
            .fold(0, u32::saturating_add);
        Self {
            info: ReplicaInfo {
                node_id: node_id.clone(),
                address: address.to_owned(),
                pool_id: pool.pool_id.clone(),
                replica_id: replica.replica_id.clone(),
                engine: replica.engine.clone(),
                engine_version: replica.engine_version.clone(),
                models: replica.models.clone(),
                dialects: replica.dialects.iter().copied().collect(),
                cancel_on_stream_only: replica.cancel_on_stream_only,
            },
            status: ReplicaStatus {
                state: if draining {
                    ReplicaState::Draining
                } else {
                    replica.state
                },
                slots_total: replica.slots_total,
                others_busy,
                vram_free_bytes: replica.vram_free_bytes,
            },
        }
    }
}
