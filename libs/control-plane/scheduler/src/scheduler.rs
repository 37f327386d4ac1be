//! The scheduler as its caller sees it: calls in, answers and effects out.

use std::sync::Arc;

use crate::{
    Lease, ModelEntry, Moment, Outcome, PoolEntry, Reasons, Refusal, ReplicaEntry, ReplicaInfo, ReplicaKey,
    ReplicaUpdate, Settings, StaleLease, TaskEntry, TaskKey, TaskSpec,
};
use pool_registry_types::{NodeId, PoolId, ReplicaId};

/// A task got a slot.
#[derive(Clone, Debug)]
pub struct Placement {
    /// What has to be given back: by `release`, `requeue`, `refused` or `cancel`, exactly once.
    pub lease: Lease,
    /// The replica's key, for `take_out`.
    pub replica: ReplicaKey,
    /// What the replica is.
    pub info: Arc<ReplicaInfo>,
    /// Why this one.
    pub reasons: Reasons,
    /// When the task's time is over: its holder watches that from now on.
    pub deadline: Option<Moment>,
}

/// Where a waiting task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many tasks of its queue go before it.
    pub position: u32,
    /// When it will probably start, in milliseconds from now, by the queue's recent pace; 0 while that is not known.
    pub estimated_start_ms: u64,
}

/// The answer to a task that was accepted.
#[derive(Clone, Debug)]
pub enum Admission {
    /// It has a slot.
    Placed(Placement),
    /// It waits; an [`Effect`] will say how that ends.
    Queued(TaskKey, Waiting),
}

/// What the caller has to do for others than the one it asked for.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A waiting task got a slot: tell whoever waits for it.
    Placed(Placement),
    /// A waiting task will never run. It is forgotten already.
    Ended(TaskKey, Refusal),
    /// The replica behind a lease is no longer known. The lease is still held: its holder goes on while bytes come,
    /// otherwise calls `requeue` or `release`.
    ReplicaLost(Lease),
    /// A replica that was taken out should be probed now; `bring_back` when it answers. Comes again with back-off.
    Probe(ReplicaKey, Arc<ReplicaInfo>),
}

/// Effects, in the order in which they came about.
pub type Effects = Vec<Effect>;

/// The state.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
}

#[expect(unused_variables, clippy::unimplemented, reason = "the signatures come first")]
impl Scheduler {
    /// An empty fleet.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    // ---- tasks ----

    /// Takes a task: it is placed at once, waits, or is refused.
    pub fn submit(
        &mut self,
        now: Moment,
        spec: &TaskSpec<'_>,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        unimplemented!()
    }

    /// The first byte of the answer is on its way to the client: from now on the task cannot start over.
    pub fn started(&mut self, now: Moment, lease: Lease) -> Result<(), StaleLease> {
        unimplemented!()
    }

    /// The task has ended: its slot is free.
    pub fn release(
        &mut self,
        now: Moment,
        lease: Lease,
        outcome: Outcome,
        effects: &mut Effects,
    ) -> Result<(), StaleLease> {
        unimplemented!()
    }

    /// The replica failed before anything was sent: the task starts over elsewhere, before all that came after it.
    /// Refused with [`Refusal::AttemptsExhausted`] after too many starts, and when the answer had begun.
    pub fn requeue(
        &mut self,
        now: Moment,
        lease: Lease,
        effects: &mut Effects,
    ) -> Result<Result<Admission, Refusal>, StaleLease> {
        unimplemented!()
    }

    /// The node said that its slots are taken: the replica is left alone for a while and the task placed again.
    pub fn refused(
        &mut self,
        now: Moment,
        lease: Lease,
        effects: &mut Effects,
    ) -> Result<Result<Admission, Refusal>, StaleLease> {
        unimplemented!()
    }

    /// Ends a task wherever it stands, and frees its slot. False when it had ended before.
    pub fn cancel(&mut self, now: Moment, task: TaskKey, effects: &mut Effects) -> bool {
        unimplemented!()
    }

    /// Where a task stands; None when it has ended.
    pub fn task(&self, now: Moment, task: TaskKey) -> Option<TaskEntry> {
        unimplemented!()
    }

    // ---- replicas ----

    /// Adds a replica or takes its newer report.
    pub fn upsert_replica(
        &mut self,
        now: Moment,
        update: ReplicaUpdate,
        effects: &mut Effects,
    ) -> ReplicaKey {
        unimplemented!()
    }

    /// The replica is gone, or its node is offline. Its leases stay valid until they are given back.
    pub fn remove_replica(
        &mut self,
        now: Moment,
        node: &NodeId,
        pool: &PoolId,
        replica: &ReplicaId,
        effects: &mut Effects,
    ) {
        unimplemented!()
    }

    /// A dispatch failed: nothing more is sent there until `bring_back`, or until its node has reported it lost and
    /// ready again. [`Effect::Probe`]s follow.
    pub fn take_out(&mut self, now: Moment, replica: ReplicaKey, effects: &mut Effects) {
        unimplemented!()
    }

    /// A probe succeeded.
    pub fn bring_back(&mut self, now: Moment, replica: ReplicaKey, effects: &mut Effects) {
        unimplemented!()
    }

    /// Starts or ends the draining of a pool by this control plane: it finishes what it has and gets nothing new.
    /// False when no such pool is known.
    pub fn drain_pool(&mut self, now: Moment, pool: &PoolId, draining: bool, effects: &mut Effects) -> bool {
        unimplemented!()
    }

    // ---- time ----

    /// Does what is due: deadlines of waiting tasks, ends of hold-offs, probes, forgetting.
    pub fn tick(&mut self, now: Moment, effects: &mut Effects) {
        unimplemented!()
    }

    /// When `tick` should be called next; None: nothing is due until something else happens.
    pub fn next_due(&self) -> Option<Moment> {
        unimplemented!()
    }

    // ---- views ----

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Every known pool, by name.
    pub fn pools(&self) -> Vec<PoolEntry> {
        unimplemented!()
    }

    /// Every known replica of a pool, by name; of all pools without one.
    pub fn replicas(&self, pool: Option<&PoolId>) -> Vec<ReplicaEntry> {
        unimplemented!()
    }

    /// What can be asked for now: the models of the ready replicas, by name.
    pub fn models(&self) -> Vec<ModelEntry> {
        unimplemented!()
    }
}
