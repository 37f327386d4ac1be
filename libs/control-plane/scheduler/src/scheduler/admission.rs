//! Admission: a task comes in, is placed, waits, or is refused.

use std::time::Duration;

use task_api::{PlacementMode, PlacementRequest, Priority};

use super::{Admission, Effect, Effects, Scheduler, Task, Waiting};
use crate::arena::Key;
use crate::failed::Failed;
use crate::fleet::Counts;
use crate::life::{Event, Life, Wait};
use crate::place::{Wants, WarmKeys, choose};
use crate::queue::Ticket;
use crate::{AdmissionPolicy, Moment, Reason, Reasons, Refusal, Target, TaskKey, TaskSpec};

impl Scheduler {
    /// Takes a task: it is placed at once, waits, or is refused.
    pub fn submit(
        &mut self,
        now: Moment,
        spec: &TaskSpec<'_>,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        if spec.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Refusal::Expired);
        }
        let wants = self.resolve(spec)?;
        let warm = WarmKeys::new(spec.session, spec.owner, spec.prefixes);
        let choice = choose(&self.fleet, &self.affinity, &wants, &warm, self.margin);
        let Some((replica, reasons)) = choice else {
            return self.submit_waiting(now, spec, &wants, warm, effects);
        };
        let task = self.tasks.insert(self.new_task(now, spec, &wants, warm));
        self.arrivals += 1;
        Ok(Admission::Placed(self.place(now, task, replica, reasons)))
    }

    fn new_task(&self, now: Moment, spec: &TaskSpec<'_>, wants: &Wants<'_>, warm: WarmKeys) -> Task {
        Task {
            model: wants.model,
            pool: wants.pool,
            dialects: spec.dialects,
            wishes: wants.wishes.map(|wishes| Box::new(wishes.clone())),
            warm,
            ticket: Ticket {
                priority: spec.priority,
                arrival: self.arrivals,
            },
            deadline: spec.deadline,
            may_wait: spec.may_wait,
            submitted: now,
            failed: Failed::default(),
            failures: 0,
            leases: 0,
            life: Life::Accepted,
        }
    }

    /// Finds what the names in `spec` stand for.
    fn resolve<'a>(&self, spec: &TaskSpec<'a>) -> Result<Wants<'a>, Refusal> {
        let model_key = |name| self.fleet.model_key(name).ok_or(Refusal::NoSuchModel);
        let pool_key = |id| self.fleet.pool_key(id).ok_or(Refusal::NoSuchPool);
        let agent_key = |name| self.fleet.agent_key(name).ok_or(Refusal::NoSuchAgent);
        let (model, pool) = match spec.target {
            Target::Model(model) => (Some(model_key(model)?), None),
            Target::Pool(pool) => (None, Some(pool_key(pool)?)),
            Target::ModelInPool { model, pool } => {
                let pool = pool_key(pool)?;
                (Some(model_key(model)?), Some(pool))
            }
            Target::Agent(agent) => (Some(agent_key(agent)?), None),
            Target::AgentInPool { agent, pool } => {
                let pool = pool_key(pool)?;
                (Some(agent_key(agent)?), Some(pool))
            }
        };
        let says_something = |wishes: &&PlacementRequest| {
            wishes.mode != PlacementMode::Auto || !wishes.avoid.is_empty() || !wishes.nodes.is_empty()
        };
        let wishes = spec.placement.filter(says_something);
        Ok(Wants {
            model,
            pool,
            dialects: spec.dialects,
            wishes,
            failed: None,
        })
    }

    /// No replica has room: the task waits, if it may and there is a queue for it.
    fn submit_waiting(
        &mut self,
        now: Moment,
        spec: &TaskSpec<'_>,
        wants: &Wants<'_>,
        warm: WarmKeys,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        self.check_served(wants)?;
        if !spec.may_wait {
            return Err(self.nobody_free(wants));
        }
        let home = self.find_queue(wants, effects)?;
        let ahead = match spec.priority {
            Priority::Interactive => self.fleet.pools[home].queue.counts().0,
            Priority::Batch => u32::try_from(self.fleet.pools[home].queue.len()).unwrap_or(u32::MAX),
        };
        let pool = &self.fleet.pools[home];
        let start_ms = pool.pace.start_in_ms(ahead, pool.counts.ready_slots);
        if let (Some(deadline), Some(start_ms)) = (spec.deadline, start_ms)
            && now + Duration::from_millis(start_ms) > deadline
        {
            return Err(Refusal::DeadlineUnmet {
                estimated_start_ms: start_ms,
            });
        }
        let task = self.tasks.insert(self.new_task(now, spec, wants, warm));
        self.arrivals += 1;
        Ok(self.enqueue(now, task, home))
    }

    /// Refuses what waiting would not help.
    fn check_served(&self, wants: &Wants<'_>) -> Result<(), Refusal> {
        // A pool whose ready replicas serve other models has dropped this one; without ready replicas it may come
        // back with it.
        let serves =
            |(pool, counts): &(Key, &Counts)| counts.known > 0 || self.fleet.pools[*pool].counts.ready == 0;
        let anywhere = Wants {
            wishes: None,
            ..*wants
        };
        if !self.fleet.pools_for(anywhere).any(|pool| serves(&pool)) {
            let named = wants.model.and_then(|model| self.fleet.models.get(model));
            return Err(match named {
                Some(agent) if agent.is_agent => Refusal::NoSuchAgent,
                Some(_) => Refusal::NoSuchModel,
                None => Refusal::NoSuchPool,
            });
        }
        let mut allowed = self.fleet.pools_for(*wants).filter(serves).peekable();
        if allowed.peek().is_none() {
            return Err(Refusal::NoPoolAllowed);
        }
        if !allowed.any(|(_, counts)| counts.known == 0 || counts.speak(wants.dialects)) {
            return Err(Refusal::DialectUnsupported);
        }
        Ok(())
    }

    /// Why nobody takes a task that may not wait.
    pub(super) fn nobody_free(&self, wants: &Wants<'_>) -> Refusal {
        if self.fleet.pools_for(*wants).any(|(_, counts)| counts.ready > 0) {
            Refusal::ReplicaExhausted
        } else {
            Refusal::PoolUnready
        }
    }

    /// The queue that the task shall stand in: the shortest of those it may stand in, of pools with ready replicas
    /// first. When all are full the policy decides.
    fn find_queue(&mut self, wants: &Wants<'_>, effects: &mut Effects) -> Result<Key, Refusal> {
        let capacity = self.settings.queue_capacity;
        let shortest = self.shortest_queue(wants);
        let shortest = shortest.expect("check_served has found a pool");
        if self.fleet.pools[shortest].queue.len() < capacity {
            return Ok(shortest);
        }
        let roomy = self
            .fleet
            .pools_for(*wants)
            .find(|(key, _)| self.fleet.pools[*key].queue.len() < capacity);
        if let Some((key, _)) = roomy {
            return Ok(key);
        }
        let full = Refusal::QueueFull {
            retry_after_ms: self.retry_after_ms(shortest),
        };
        match self.settings.policy {
            AdmissionPolicy::Reject => Err(full),
            AdmissionPolicy::DropLru => {
                let oldest = self
                    .fleet
                    .pools_for(*wants)
                    .filter(|(key, _)| self.fleet.pools[*key].queue.len() <= capacity)
                    .filter_map(|(key, _)| Some((self.fleet.pools[key].queue.oldest_batch()?, key)))
                    .min_by_key(|((ticket, _), _)| *ticket);
                let ((_, evicted), home) = oldest.ok_or(full)?;
                let retry_after_ms = self.retry_after_ms(home);
                self.end_waiting(evicted, Refusal::Evicted { retry_after_ms }, effects);
                Ok(home)
            }
        }
    }

    fn shortest_queue(&self, wants: &Wants<'_>) -> Option<Key> {
        let pools = self.fleet.pools_for(*wants);
        pools
            .min_by_key(|(key, counts)| (counts.ready == 0, self.fleet.pools[*key].queue.len()))
            .map(|(key, _)| key)
    }

    fn retry_after_ms(&self, pool: Key) -> u64 {
        let pool = &self.fleet.pools[pool];
        pool.pace.retry_after_ms(pool.counts.ready_slots)
    }

    /// Puts an accepted task, or one that came back, into a queue.
    fn enqueue(&mut self, now: Moment, key: Key, home: Key) -> Admission {
        let task = &mut self.tasks[key];
        let unready = now + self.settings.pool_unready_wait;
        let due = task.deadline.map_or(unready, |deadline| deadline.min(unready));
        let wait = Event::Wait(Wait {
            home,
            since: now,
            due,
        });
        task.life = task
            .life
            .step(wait)
            .expect("a task is put into a queue only when it has no slot");
        let ticket = task.ticket;
        self.fleet.pools[home].queue.insert(ticket, key);
        self.timers.insert((due, key));
        self.waiting += 1;
        Admission::Queued(TaskKey(key), self.waiting_at(home, ticket))
    }

    pub(super) fn waiting_at(&self, home: Key, ticket: Ticket) -> Waiting {
        let pool = &self.fleet.pools[home];
        let position = pool.queue.ahead_of(ticket);
        let estimated_start_ms = pool
            .pace
            .start_in_ms(position, pool.counts.ready_slots)
            .unwrap_or(0);
        Waiting {
            position,
            estimated_start_ms,
        }
    }

    /// A task that had a slot wants another: what `submit` does, but it keeps its place in the order, and a full queue
    /// does not turn it away, because it was accepted before.
    pub(super) fn readmit(&mut self, now: Moment, key: Key) -> Result<Admission, Refusal> {
        if let Some((replica, mut reasons)) = self.choose_again(key) {
            let failures = self.tasks[key].failures;
            if failures > 0 {
                let before = u16::try_from(failures).unwrap_or(u16::MAX);
                reasons.push(Reason::StartedOver { before });
            }
            return Ok(Admission::Placed(self.place(now, key, replica, reasons)));
        }
        let task = &self.tasks[key];
        let wants = task.wants();
        if !task.may_wait {
            let refusal = self.nobody_free(&wants);
            self.end(key);
            return Err(refusal);
        }
        let Some(home) = self.shortest_queue(&wants) else {
            self.end(key);
            return Err(Refusal::PoolUnavailable);
        };
        Ok(self.enqueue(now, key, home))
    }

    /// A replica with room, on another node than where the task failed if there is one.
    fn choose_again(&mut self, key: Key) -> Option<(Key, Reasons)> {
        let choose_now = |scheduler: &Self| {
            let task = &scheduler.tasks[key];
            choose(
                &scheduler.fleet,
                &scheduler.affinity,
                &task.wants(),
                &task.warm,
                scheduler.margin,
            )
        };
        choose_now(self).or_else(|| {
            self.tasks[key]
                .failed
                .relax_to_replicas()
                .then(|| choose_now(self))
                .flatten()
        })
    }

    /// Takes a task out of its queue. Its life is the caller's to change.
    pub(super) fn leave_queue(&mut self, key: Key, wait: Wait) {
        let ticket = self.tasks[key].ticket;
        self.fleet.pools[wait.home].queue.remove(ticket);
        self.timers.remove(&(wait.due, key));
        self.waiting -= 1;
    }

    /// A waiting task will not run.
    pub(super) fn end_waiting(&mut self, key: Key, why: Refusal, effects: &mut Effects) {
        if let Life::Queued(wait) = self.tasks[key].life {
            self.leave_queue(key, wait);
            self.end(key);
            effects.push(Effect::Ended(TaskKey(key), why));
        }
    }
}
