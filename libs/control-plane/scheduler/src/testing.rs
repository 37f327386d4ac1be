//! Short ways to make replicas and tasks. Tests only.

use std::time::Duration;

use pool_registry_types::{Dialect, ModelInfo, NodeId, PoolId, PoolKind, ReplicaId, ReplicaState};

use crate::{
    Admission, DialectSet, Effect, Effects, Lease, Moment, Placement, ReplicaInfo, ReplicaKey, ReplicaStatus,
    ReplicaUpdate, Scheduler, Settings, Target, TaskKey, TaskSpec,
};

pub(crate) fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

pub(crate) fn pool(name: &str) -> PoolId {
    PoolId::new(name).unwrap()
}

/// A ready replica `pool/replica` on `node` with one model and four slots.
pub(crate) fn replica(node: &str, pool_id: &str, replica: &str, model: &str) -> ReplicaUpdate {
    ReplicaUpdate {
        info: ReplicaInfo {
            node_id: NodeId::new(node).unwrap(),
            address: format!("http://{node}:9200"),
            pool_id: pool(pool_id),
            replica_id: ReplicaId::new(replica).unwrap(),
            kind: PoolKind::Engine,
            engine: "llamacpp".to_owned(),
            engine_version: String::new(),
            models: vec![ModelInfo {
                id: model.to_owned(),
                aliases: Vec::new(),
                context_length: None,
                media: false,
            }],
            dialects: DialectSet::from(Dialect::ChatCompletions),
            cancel_on_stream_only: false,
        },
        status: ReplicaStatus {
            state: ReplicaState::Ready,
            slots_total: 4,
            others_busy: 0,
            vram_free_bytes: 0,
        },
    }
}

pub(crate) fn slots(mut update: ReplicaUpdate, slots_total: u32) -> ReplicaUpdate {
    update.status.slots_total = slots_total;
    update
}

/// A scheduler with its effects and its time.
pub(crate) struct Bench {
    pub(crate) scheduler: Scheduler,
    pub(crate) effects: Effects,
    pub(crate) now: Moment,
}

impl Bench {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            scheduler: Scheduler::new(settings),
            effects: Effects::new(),
            now: Duration::ZERO,
        }
    }

    pub(crate) fn up(&mut self, update: ReplicaUpdate) -> ReplicaKey {
        let key = self.scheduler.upsert_replica(self.now, update, &mut self.effects);
        self.scheduler.check();
        key
    }

    pub(crate) fn down(&mut self, update: &ReplicaUpdate) {
        let info = &update.info;
        let (node, pool, replica) = (&info.node_id, &info.pool_id, &info.replica_id);
        self.scheduler
            .remove_replica(self.now, node, pool, replica, &mut self.effects);
        self.scheduler.check();
    }

    pub(crate) fn submit(&mut self, spec: &TaskSpec<'_>) -> Result<Admission, crate::Refusal> {
        let answer = self.scheduler.submit(self.now, spec, &mut self.effects);
        self.scheduler.check();
        answer
    }

    pub(crate) fn placed(&mut self, spec: &TaskSpec<'_>) -> Placement {
        match self.submit(spec) {
            Ok(Admission::Placed(placement)) => placement,
            other => panic!("not placed: {other:?}"),
        }
    }

    pub(crate) fn queued(&mut self, spec: &TaskSpec<'_>) -> TaskKey {
        match self.submit(spec) {
            Ok(Admission::Queued(task, _)) => task,
            other => panic!("not queued: {other:?}"),
        }
    }

    pub(crate) fn release(&mut self, lease: Lease) {
        let outcome = crate::Outcome::Completed;
        self.scheduler
            .release(self.now, lease, outcome, &mut self.effects)
            .unwrap();
        self.scheduler.check();
    }

    pub(crate) fn tick(&mut self, now: Moment) {
        self.now = now;
        self.scheduler.tick(now, &mut self.effects);
        self.scheduler.check();
    }

    /// The effects since the last call.
    pub(crate) fn take(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// The one waiting task that was placed since the last call.
    pub(crate) fn one_placed(&mut self) -> Placement {
        match <[Effect; 1]>::try_from(self.take()) {
            Ok([Effect::Placed(placement)]) => placement,
            other => panic!("not one placement: {other:?}"),
        }
    }
}

pub(crate) fn model(name: &str) -> TaskSpec<'_> {
    TaskSpec::new(Target::Model(name))
}

pub(crate) fn place_of(placement: &Placement) -> String {
    format!(
        "{}/{}/{}",
        placement.info.pool_id, placement.info.replica_id, placement.info.node_id
    )
}
