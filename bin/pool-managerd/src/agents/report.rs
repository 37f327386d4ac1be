//! Agent pools in the node's reports.

use pool_registry_types::{ModelInfo, PoolKind, PoolReport, ReplicaReport, ReplicaState};

use super::parts::PoolParts;
use crate::door::agent_replica;
use crate::slots::Gate;

/// The pool as it is reported: one replica, whose slots are the runs that it takes.
pub(super) fn report(pool: &PoolParts) -> PoolReport {
    let agent = pool.agent.as_str().to_owned();
    pool.look(|slots, is_draining, problem| {
        let gate = slots.gate();
        let state = match gate {
            Gate::NotReady => ReplicaState::Starting,
            Gate::Open => ReplicaState::Ready,
            Gate::Draining => ReplicaState::Draining,
        };
        let replica = ReplicaReport {
            replica_id: agent_replica(),
            state,
            engine: agent.clone(),
            engine_version: pool.profile.package.version.clone(),
            models: models(pool),
            dialects: Vec::new(),
            cancel_on_stream_only: false,
            slots_total: slots.total(),
            slots_free: slots.free(),
            leases: slots.by_holder(),
            vram_free_bytes: 0,
            last_error: problem.cloned(),
        };
        PoolReport {
            pool_id: pool.id.clone(),
            kind: PoolKind::Agent,
            ready: gate == Gate::Open && !is_draining,
            draining: is_draining,
            slots_total: slots.total(),
            slots_free: slots.free(),
            vram_total_bytes: 0,
            vram_free_bytes: 0,
            last_error: problem.cloned(),
            replicas: vec![replica],
        }
    })
}

/// What tasks may ask for: the agent by its name, and the profile's usual model.
fn models(pool: &PoolParts) -> Vec<ModelInfo> {
    let usual = pool
        .profile
        .model
        .as_ref()
        .and_then(|model| model.default.clone());
    let names = std::iter::once(pool.agent.as_str().to_owned()).chain(usual);
    names
        .map(|id| ModelInfo {
            id,
            aliases: Vec::new(),
            context_length: None,
            media: false,
        })
        .collect()
}
