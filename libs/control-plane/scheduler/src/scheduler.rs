//! The scheduler as its caller sees it: calls in, answers and effects out.

mod admission;
#[cfg(test)]
mod check;
mod fleet_calls;
#[cfg(test)]
mod histories;
mod leases;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use task_api::{PlacementRequest, Priority};

use crate::affinity::Affinity;
use crate::arena::{Arena, Key};
use crate::failed::Failed;
use crate::fleet::Fleet;
use crate::life::Life;
use crate::place::{Wants, WarmKeys};
use crate::queue::Ticket;
use crate::replica::WHOLE;
use crate::{DialectSet, Lease, Moment, Reasons, Refusal, ReplicaInfo, ReplicaKey, Settings, TaskKey};

/// How often pools and models without replicas are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

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
    /// A replica that was taken out should be probed now; `bring_back` when it answers. Comes again with back-off.
    Probe(ReplicaKey, Arc<ReplicaInfo>),
}

/// Effects, in the order in which they came about.
pub type Effects = Vec<Effect>;

/// A task that has not ended.
#[derive(Debug)]
struct Task {
    model: Option<Key>,
    pool: Option<Key>,
    dialects: DialectSet,
    /// None unless it says where the task may run.
    wishes: Option<Box<PlacementRequest>>,
    warm: WarmKeys,
    ticket: Ticket,
    deadline: Option<Moment>,
    may_wait: bool,
    submitted: Moment,
    /// Replicas that failed it and that it shall not get again while there is another.
    failed: Failed,
    /// Starts that came to nothing.
    failures: u32,
    /// Slots that it was given: tells an old lease from the present one.
    leases: u32,
    life: Life,
}

impl Task {
    fn wants(&self) -> Wants<'_> {
        Wants {
            model: self.model,
            pool: self.pool,
            dialects: self.dialects,
            wishes: self.wishes.as_deref(),
            failed: (!self.failed.is_empty()).then_some(&self.failed),
        }
    }

    fn priority(&self) -> Priority {
        self.ticket.priority
    }
}

/// The state.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    margin: u32,
    fleet: Fleet,
    tasks: Arena<Task>,
    affinity: Affinity,
    arrivals: u64,
    waiting: usize,
    /// When which waiting task has to be looked at.
    timers: BTreeSet<(Moment, Key)>,
    next_forget: Moment,
}

impl Scheduler {
    /// An empty fleet.
    pub fn new(settings: Settings) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=65,536"
        )]
        let margin = (settings.warm_margin.clamp(0.0, 1.0) * f64::from(WHOLE)) as u32;
        Self {
            margin,
            fleet: Fleet::new(),
            tasks: Arena::new(),
            affinity: Affinity::new(settings.warm_entries_max),
            arrivals: 0,
            waiting: 0,
            timers: BTreeSet::new(),
            next_forget: FORGET_INTERVAL,
            settings,
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
