//! The state as it can be seen from outside. Every answer is a copy: nothing here is on the way of a task.

use pool_registry_types::{ModelInfo, PoolId};

use super::Scheduler;
use crate::arena::Key;
use crate::life::Life;
use crate::replica::Breaker;
use crate::{ModelEntry, PoolEntry, ReplicaEntry, ReplicaKey, TaskEntry, TaskKey, TaskPhase};

impl Scheduler {
    /// Where a task stands; None when it has ended.
    pub fn task(&self, key: TaskKey) -> Option<TaskEntry> {
        let task = self.tasks.get(key.0)?;
        let (phase, waiting) = match task.life {
            Life::Queued(wait) => (TaskPhase::Queued, Some(self.waiting_at(wait.home, task.ticket))),
            Life::Placed(_) => (TaskPhase::Placed, None),
            Life::Running(_) => (TaskPhase::Running, None),
            Life::Accepted | Life::Ended => return None,
        };
        Some(TaskEntry {
            phase,
            priority: task.priority(),
            waiting,
            submitted: task.submitted,
            starts: task.leases,
        })
    }

    /// How many tasks have not ended, and how many of them wait.
    pub fn task_counts(&self) -> (usize, usize) {
        (self.tasks.len(), self.waiting)
    }

    /// The replicas that have what a hash of [`crate::TaskSpec`] stands for, the latest first.
    pub fn warm_replicas(&self, hash: u64) -> Vec<ReplicaKey> {
        let known = self.affinity.warm(hash);
        known
            .filter(|key| self.fleet.replicas.get(*key).is_some())
            .map(ReplicaKey)
            .collect()
    }

    /// From now on the replica has what the hash stands for: something else than a task has brought it there.
    pub fn note_warm(&mut self, hash: u64, replica: ReplicaKey) {
        self.affinity.note(hash, replica.0);
    }

    /// Every known pool, by name.
    pub fn pools(&self) -> Vec<PoolEntry> {
        let mut pools: Vec<PoolEntry> = self
            .fleet
            .pools
            .iter()
            .map(|(key, _)| self.pool_entry(key))
            .collect();
        pools.sort_by(|a, b| a.pool_id.cmp(&b.pool_id));
        pools
    }

    /// One pool.
    pub fn pool(&self, id: &PoolId) -> Option<PoolEntry> {
        self.fleet.pool_key(id).map(|key| self.pool_entry(key))
    }

    fn pool_entry(&self, key: Key) -> PoolEntry {
        let pool = &self.fleet.pools[key];
        let (waiting_interactive, waiting_batch) = pool.queue.counts();
        let ready = pool
            .replicas
            .values()
            .map(|key| &self.fleet.replicas[*key])
            .filter(|replica| replica.is_ready());
        let free = ready.map(|replica| {
            let busy = replica.leased.saturating_add(replica.status.others_busy);
            replica.status.slots_total.saturating_sub(busy)
        });
        PoolEntry {
            pool_id: pool.id.clone(),
            draining: pool.draining,
            replicas_total: pool.counts.known,
            replicas_ready: pool.counts.ready,
            slots_total: pool.counts.ready_slots,
            slots_leased: pool.leased,
            slots_free: free.fold(0, u32::saturating_add),
            waiting_interactive,
            waiting_batch,
            slot_hold_ms: pool.pace.hold_ms(),
        }
    }

    /// Every known replica of a pool, by name; of all pools without one.
    pub fn replicas(&self, pool: Option<&PoolId>) -> Vec<ReplicaEntry> {
        let all =
            self.fleet.replicas.iter().filter(|(_, replica)| {
                replica.present && pool.is_none_or(|pool| replica.info.pool_id == *pool)
            });
        let mut entries: Vec<ReplicaEntry> = all
            .map(|(key, replica)| ReplicaEntry {
                key: ReplicaKey(key),
                info: replica.info.clone(),
                state: replica.status.state,
                taken_out: replica.breaker != Breaker::Closed,
                slots_total: replica.status.slots_total,
                slots_leased: replica.leased,
                others_busy: replica.status.others_busy,
            })
            .collect();
        entries.sort_by(|a, b| {
            let name = |entry: &ReplicaEntry| {
                let info = &entry.info;
                (
                    info.pool_id.clone(),
                    info.replica_id.clone(),
                    info.node_id.clone(),
                )
            };
            name(a).cmp(&name(b))
        });
        entries
    }

    /// Whether pictures and sound can be sent to `model` (to whatever `pool` serves, without one): every ready replica
    /// that a task for it may be placed on takes them. False when there is none.
    pub fn takes_media(&self, model: Option<&str>, pool: Option<&PoolId>) -> bool {
        let answers_to =
            |info: &ModelInfo, name: &str| info.id == name || info.aliases.iter().any(|a| a == name);
        let mut takes = false;
        for (_, replica) in self
            .fleet
            .replicas
            .iter()
            .filter(|(_, replica)| replica.is_ready())
        {
            if pool.is_some_and(|pool| replica.info.pool_id != *pool) {
                continue;
            }
            let models = replica.info.models.iter();
            for served in models.filter(|served| model.is_none_or(|name| answers_to(served, name))) {
                if !served.media {
                    return false;
                }
                takes = true;
            }
        }
        takes
    }

    /// What can be asked for now: the models of the ready replicas, by name.
    pub fn models(&self) -> Vec<ModelEntry> {
        let mut models: Vec<ModelEntry> = self
            .fleet
            .models
            .iter()
            .filter_map(|(_, model)| {
                let described = model.described.as_ref()?;
                let ready = model.serving.iter().filter(|serving| serving.counts.ready > 0);
                let mut pools: Vec<PoolId> = ready
                    .map(|serving| self.fleet.pools[serving.pool].id.clone())
                    .collect();
                pools.sort();
                (!pools.is_empty()).then(|| ModelEntry {
                    id: model.name.clone(),
                    aliases: described.aliases.clone(),
                    context_length: described.context_length,
                    pools,
                })
            })
            .collect();
        models.sort_by(|a, b| a.id.cmp(&b.id));
        models
    }
}
