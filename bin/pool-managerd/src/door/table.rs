//! What is behind the door, and how it is reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use pool_registry_types::{PoolId, PoolKind, PoolReport, ReplicaId, ReplicaReport, ReplicaState};

use crate::gpu::GpuReading;
use crate::replica::Replica;

/// All pools of the node. Replaced as a whole, so whoever reads it sees one moment.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) pools: BTreeMap<PoolId, PoolEntry>,
}

/// One pool.
#[derive(Clone, Default)]
pub(crate) struct PoolEntry {
    /// Whether the whole pool takes nothing new.
    pub(crate) draining: bool,
    /// GPUs that the pool may use. None: all.
    pub(crate) gpus: Option<Vec<u32>>,
    /// What is wrong with the pool as a whole.
    pub(crate) problem: Option<String>,
    pub(crate) replicas: BTreeMap<ReplicaId, Arc<Replica>>,
    /// Replicas without an engine to ask: being started, or refused.
    pub(crate) pending: BTreeMap<ReplicaId, Pending>,
}

/// A replica without an engine to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) engine: String,
    pub(crate) state: ReplicaState,
    pub(crate) note: Option<String>,
}

impl Table {
    pub(crate) fn replica(&self, pool: &PoolId, replica: &ReplicaId) -> Option<&Arc<Replica>> {
        self.pools.get(pool)?.replicas.get(replica)
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.pools.values().flat_map(|pool| pool.replicas.values())
    }

    pub(crate) fn reports(&self, gpus: &GpuReading) -> Vec<PoolReport> {
        self.pools
            .iter()
            .map(|(id, pool)| pool.report(id, gpus))
            .collect()
    }

    pub(crate) fn report(&self, pool: &PoolId, gpus: &GpuReading) -> Option<PoolReport> {
        self.pools
            .get_key_value(pool)
            .map(|(id, entry)| entry.report(id, gpus))
    }
}

impl PoolEntry {
    fn report(&self, pool_id: &PoolId, gpus: &GpuReading) -> PoolReport {
        let running = self.replicas.values().map(|replica| {
            let mut report = replica.report();
            report.vram_free_bytes = gpus.free_bytes(replica.traits().gpus.as_deref());
            report
        });
        let pending = self
            .pending
            .iter()
            .filter(|(id, _)| !self.replicas.contains_key(*id));
        let mut replicas: Vec<_> = running
            .chain(pending.map(|(id, pending)| pending.report(id)))
            .collect();
        replicas.sort_by(|one, other| one.replica_id.cmp(&other.replica_id));
        let ready = || {
            replicas
                .iter()
                .filter(|replica| replica.state == ReplicaState::Ready)
        };
        let from_replica = || {
            let failed = replicas
                .iter()
                .find_map(|replica| replica.last_error.as_ref().map(|error| (replica, error)));
            failed.map(|(replica, error)| format!("replica {}: {error}", replica.replica_id))
        };
        PoolReport {
            pool_id: pool_id.clone(),
            kind: PoolKind::Engine,
            ready: !self.draining && ready().next().is_some(),
            draining: self.draining,
            slots_total: ready().map(|replica| replica.slots_total).sum(),
            slots_free: ready().map(|replica| replica.slots_free).sum(),
            vram_total_bytes: gpus.total_bytes(self.gpus.as_deref()),
            vram_free_bytes: gpus.free_bytes(self.gpus.as_deref()),
            last_error: self.problem.clone().or_else(from_replica),
            replicas,
        }
    }
}

impl Pending {
    fn report(&self, replica_id: &ReplicaId) -> ReplicaReport {
        ReplicaReport {
            replica_id: replica_id.clone(),
            state: self.state,
            engine: self.engine.clone(),
            engine_version: String::new(),
            models: Vec::new(),
            dialects: Vec::new(),
            cancel_on_stream_only: false,
            slots_total: 0,
            slots_free: 0,
            leases: BTreeMap::new(),
            vram_free_bytes: 0,
            last_error: self.note.clone(),
        }
    }
}
